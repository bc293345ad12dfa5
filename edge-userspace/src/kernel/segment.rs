//! Segments and the packets that carry them: headers, the MSS that fits a path, and the option of a socket for it.

use std::{io, os::fd::AsFd};

use super::tcp;

/// IP and TCP headers without options, in bytes.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;
/// The least MSS that the kernel takes (`TCP_MIN_MSS`).
const LEAST: u32 = 88;
/// The largest that it takes (`MAX_TCP_WINDOW`). Beyond, there is nothing to limit.
const MOST: u32 = 32767;

/// IP and TCP headers without options, in bytes.
pub const fn headers(is_ipv4: bool) -> u32 {
    if is_ipv4 { HEADERS_V4 } else { HEADERS_V6 }
}

/// The MSS of packets of at most `mtu` bytes, 0 where the headers alone are longer.
pub const fn fitting(mtu: u32, is_ipv4: bool) -> u32 {
    mtu.saturating_sub(headers(is_ipv4))
}

/// The nearest MSS that [`set_limit`] takes; `None` where it is so large that there is nothing to limit.
pub fn limit(octets: u32) -> Option<u16> {
    u16::try_from(octets.max(LEAST)).ok().filter(|&octets| u32::from(octets) <= MOST)
}

/// `TCP_MAXSEG`: the largest MSS to announce, when connecting or, on a listening socket, to clients from now
/// on; 0 removes the limit.
pub fn set_limit(socket: impl AsFd, octets: u16) -> io::Result<()> {
    tcp::set(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mss_leaves_room_for_the_headers() {
        assert_eq!([fitting(1500, true), fitting(1500, false), fitting(20, true)], [1460, 1440, 0]);
    }

    #[test]
    fn the_limit_is_one_that_the_kernel_takes() {
        assert_eq!(
            [20, 88, 1380, 32767, 32768, 65496].map(limit),
            [Some(88), Some(88), Some(1380), Some(32767), None, None]
        );
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        set_limit(&socket, 88).unwrap();
        set_limit(&socket, 32767).unwrap();
        assert!(set_limit(&socket, 87).is_err());
        assert!(set_limit(&socket, 32768).is_err());
    }
}
