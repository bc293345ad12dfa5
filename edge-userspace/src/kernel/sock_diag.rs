//! Lists the peers of a local TCP port, whatever process has the sockets: `SOCK_DIAG_BY_FAMILY`, which takes no right
//! (`inet_diag_dump_icsk` in the kernel's `net/ipv4/inet_diag.c`).

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::netlink::{Dump, dump_of};

/// `NETLINK_SOCK_DIAG`.
const SOCK_DIAG: isize = 4;
/// The type of the request and of its answers (`SOCK_DIAG_BY_FAMILY`).
const BY_FAMILY: u16 = 20;
/// `struct inet_diag_msg`.
const ANSWER: usize = 72;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Where a request has the local port, in network order (`id.idiag_sport`).
const LOCAL_PORT: usize = 8;
/// Where an answer has the remote address (`id.idiag_dst`).
const REMOTE: usize = 24;
/// `1 << TCP_ESTABLISHED`: handshakes that are not done may have a source that is not theirs.
const ESTABLISHED: u32 = 1 << 1;
const TCP: u8 = 6;

/// The remote addresses of established TCP connections to this local port; mapped IPv4 addresses as IPv4.
///
/// The kernel looks at every TCP socket of the network namespace: not for each packet. Not on a thread of workers, which
/// have no netlink.
pub fn connected_to(port: u16) -> io::Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let body = request(family, port)?;
        let dump = Dump { protocol: SOCK_DIAG, question: BY_FAMILY, body: &body, length: ANSWER };
        found.extend(dump_of(&dump)?.iter().filter_map(|answer| remote(answer)));
    }
    Ok(found)
}

fn request(family: i32, port: u16) -> io::Result<[u8; REQUEST]> {
    let mut request = [0; REQUEST];
    request[0] = u8::try_from(family).map_err(io::Error::other)?;
    request[1] = TCP;
    request[4..8].copy_from_slice(&ESTABLISHED.to_ne_bytes());
    request[LOCAL_PORT..LOCAL_PORT + 2].copy_from_slice(&port.to_be_bytes());
    Ok(request)
}

fn remote(answer: &[u8]) -> Option<IpAddr> {
    let octets: [u8; 16] = *answer.get(REMOTE..)?.first_chunk()?;
    let address = match i32::from(*answer.first()?) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(*octets.first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(octets)),
        _ => return None,
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn clients_of_a_port_are_found_in_both_families() {
        for (bind, connect, expected) in [
            ("127.0.0.1:0", "127.0.0.1", "127.0.0.1"),
            ("[::]:0", "127.0.0.1", "127.0.0.1"),
            ("[::1]:0", "::1", "::1"),
        ] {
            let listener = TcpListener::bind(bind).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(connected_to(port).unwrap(), BTreeSet::new(), "{bind}: nobody has come");
            let client = TcpStream::connect((connect, port)).unwrap();
            let accepted = listener.accept().unwrap();
            let expected: IpAddr = expected.parse().unwrap();
            assert_eq!(connected_to(port).unwrap(), BTreeSet::from([expected]), "{bind}");
            // The client's own port is not one that somebody connects to from elsewhere.
            drop((client, accepted));
        }
    }

    #[test]
    fn an_answer_that_is_too_short_has_no_address() {
        let mut answer = [0; ANSWER];
        answer[0] = 2;
        answer[REMOTE..REMOTE + 4].copy_from_slice(&[192, 0, 2, 1]);
        assert_eq!(remote(&answer), Some([192, 0, 2, 1].into()));
        assert_eq!(remote(&answer[..REMOTE + 15]), None);
        assert_eq!(remote(&[]), None);
    }
}
