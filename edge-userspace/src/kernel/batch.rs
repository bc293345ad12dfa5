//! `BPF_MAP_LOOKUP_BATCH`: the entries of a hash map, hundreds a call where aya has one.
//!
//! Minimum kernel: 5.6.
#![expect(unsafe_code, reason = "the bpf system call by number")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya::{Pod, maps::MapData};

/// `linux/bpf.h`.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries a call, to begin with: a bucket has to fit.
const ENTRIES: u32 = 1024;

/// The part of `union bpf_attr` that batch calls read.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Visits every entry. One that comes or goes meanwhile may be missed.
pub(super) fn each<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(K, V),
) -> io::Result<()> {
    let sizes = (size_of::<K>(), size_of::<V>());
    raw(map, sizes, |key, value| {
        // SAFETY: each is as long as its type, any octets are such a value (`Pod`), and the copy needs no alignment.
        let (key, value) = unsafe {
            (key.as_ptr().cast::<K>().read_unaligned(), value.as_ptr().cast::<V>().read_unaligned())
        };
        visit(key, value);
    })
}

/// How many entries a map has, whatever they are.
pub(super) fn count(map: &MapData) -> io::Result<u64> {
    let info = map.info().map_err(io::Error::other)?;
    let sizes = (info.key_size() as usize, info.value_size() as usize);
    let mut entries = 0;
    raw(map.fd().as_fd(), sizes, |_, _| entries += 1)?;
    Ok(entries)
}

/// `sizes` are those of a key and a value.
fn raw(map: BorrowedFd<'_>, sizes: (usize, usize), mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let (key_size, value_size) = sizes;
    let mut room = ENTRIES;
    let mut keys = vec![0_u8; room as usize * key_size];
    let mut values = vec![0_u8; room as usize * value_size];
    // The number of the next bucket; the kernel's to interpret.
    let (mut position, mut next) = (0_u32, 0_u32);
    let mut started = false;
    loop {
        let mut attributes = Attributes {
            in_batch: if started { address(&raw const position) } else { 0 },
            out_batch: address(&raw mut next),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: room,
            map_fd: map.as_raw_fd().cast_unsigned(),
            ..Attributes::default()
        };
        // SAFETY: the attributes are those of this command; the kernel writes at most `count` keys and values,
        // for which there is room, and one word at `out_batch`. Keys and values are of the map's sizes, which its
        // owner asserts.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>())
        };
        let error = (result != 0).then(io::Error::last_os_error);
        let last = match error.as_ref().and_then(io::Error::raw_os_error) {
            None => false,
            // No more buckets; what was found comes along.
            Some(libc::ENOENT) => true,
            Some(libc::ENOSPC) if attributes.count == 0 && room < 1 << 20 => {
                // A bucket longer than the room.
                room *= 2;
                keys.resize(room as usize * key_size, 0);
                values.resize(room as usize * value_size, 0);
                continue;
            }
            Some(libc::EINTR) => continue,
            Some(_) => return Err(error.unwrap_or_else(|| io::ErrorKind::Other.into())),
        };
        let found = attributes.count.min(room) as usize;
        let pairs = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        pairs.take(found).for_each(|(key, value)| visit(key, value));
        if last {
            return Ok(());
        }
        (position, started) = (next, true);
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
