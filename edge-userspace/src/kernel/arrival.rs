//! By which device a client's connection came in. The kernel notes it with the SYN (`mc_index` of an IPv4 socket,
//! `mcast_oif` of an IPv6 one) and tells it as packet information, the one that `getsockopt` gives for streams.
#![expect(unsafe_code, reason = "socket options that fill a buffer of control messages")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

// linux/in.h and linux/in6.h
const IP_PKTINFO: i32 = 8;
const IP_PKTOPTIONS: i32 = 9;
const IPV6_2292PKTINFO: i32 = 2;
const IPV6_2292PKTOPTIONS: i32 = 6;

/// Length, level and type.
const HEADER: usize = size_of::<usize>() + 8;
/// `struct in6_pktinfo`: the address goes before the index. `struct in_pktinfo` has the index first.
const INDEX_AFTER_ADDRESS: usize = 16;

/// The index of the device that the SYN of an accepted connection arrived on.
pub fn arrival_device(socket: impl AsFd) -> io::Result<u32> {
    let socket = socket.as_fd();
    let index = match rustix::net::sockopt::socket_domain(socket)? {
        rustix::net::AddressFamily::INET6 => information(
            socket,
            libc::IPPROTO_IPV6,
            IPV6_2292PKTINFO,
            IPV6_2292PKTOPTIONS,
            INDEX_AFTER_ADDRESS,
        ),
        _ => information(socket, libc::IPPROTO_IP, IP_PKTINFO, IP_PKTOPTIONS, 0),
    }?;
    if index == 0 { Err(io::Error::other("the kernel did not note the device")) } else { Ok(index) }
}

/// Switches the information on, reads it, and takes the number at `at` of the first message of that type.
fn information(socket: BorrowedFd<'_>, level: i32, switch: i32, options: i32, at: usize) -> io::Result<u32> {
    let on = 1_i32;
    // SAFETY: the option reads an int.
    let switched = unsafe { libc::setsockopt(socket.as_raw_fd(), level, switch, (&raw const on).cast(), 4) };
    if switched != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut buffer = [0_u8; 256];
    let mut length = 256;
    // SAFETY: the kernel writes at most `length` octets, and says in it how many.
    let read = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, options, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(length).unwrap_or(0).min(buffer.len());
    find(&buffer[..length], level, switch, at)
        .ok_or_else(|| io::Error::other("the kernel tells no packet information"))
}

/// Walks the control messages (`struct cmsghdr`, each aligned to a word).
fn find(mut messages: &[u8], level: i32, kind: i32, at: usize) -> Option<u32> {
    const WORD: usize = size_of::<usize>();
    while messages.len() >= HEADER {
        let length = usize::from_ne_bytes(messages[..WORD].try_into().ok()?);
        let number = |from: usize| -> Option<i32> {
            Some(i32::from_ne_bytes(messages.get(from..from + 4)?.try_into().ok()?))
        };
        let message = messages.get(HEADER..length)?;
        if (number(WORD)?, number(WORD + 4)?) == (level, kind) {
            return Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
        }
        messages = messages.get(length.next_multiple_of(WORD)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_device_of_loopback_is_its_own() {
        for (listen, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")] {
            let listener = TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _near = TcpStream::connect((connect, port)).unwrap();
            assert_eq!(arrival_device(listener.accept().unwrap().0).unwrap(), 1, "{listen} {connect}");
        }
    }

    #[test]
    fn a_lying_length_ends_the_walk() {
        let mut message = [0; 40];
        message[..8].copy_from_slice(&4_usize.to_ne_bytes());
        assert_eq!(find(&message, 0, 8, 0), None);
        message[..8].copy_from_slice(&400_usize.to_ne_bytes());
        assert_eq!(find(&message, 0, 8, 0), None);
    }
}
