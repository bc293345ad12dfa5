//! Which device a pinned link of XDP or tc is on: the kernel's word, whatever the pin is called. A link follows its device
//! when that is renamed, and is on none when it is gone.
//!
//! Minimum kernel: 5.9 (XDP links); tc links came with 6.6.
#![expect(unsafe_code, reason = "the bpf system call by number")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// linux/bpf.h
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`. Of XDP and tc links alike, the first word of their own part is the index.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    index: u32,
    rest: [u32; 3],
}

/// The index of the device, in the network namespace of that device; 0 where it is gone. An error where the pin is no link
/// of either kind.
pub(super) fn device_of(pin: &Path) -> io::Result<u32> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut get = Get { path: path.as_ptr().addr() as u64, fd: 0, flags: 0 };
    // SAFETY: the attributes are those of this command, and the path ends in NUL and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut get, size_of::<Get>()) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for nobody else.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = LinkInfo::default();
    let mut ask = GetInfo {
        fd: link.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
        info: (&raw mut info).addr() as u64,
    };
    // SAFETY: the attributes are those of this command; the kernel writes at most `length` octets to `info`, which has
    // as many and outlives the call, and any octets are integers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut ask, size_of::<GetInfo>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    match info.kind {
        BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX => Ok(info.index),
        _ => Err(io::Error::other("it is no link of a device")),
    }
}
