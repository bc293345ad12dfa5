//! The questions of a check in each protocol, and which first bytes answer them. Pure.

use super::{
    CheckError,
    probe::{self, Answer},
};
use crate::{
    sniff::postgres,
    spec::{Ask, HostName, SocketName},
};

/// The bytes of an SSH server that are searched for its identification: other lines may precede it (RFC 4253
/// §4.2).
const SSH_PREAMBLE: usize = 8 * 1024;
/// Our identification. Without one, sshd logs an error; with one it logs that a client disconnected.
const SSH_IDENTIFICATION: &[u8] = b"SSH-2.0-edge_health_check\r\n";

impl Ask {
    /// The bytes to send to the backend at `address`.
    pub(super) fn question(self, server_name: Option<&HostName>, address: &SocketName) -> Vec<u8> {
        match self {
            Self::Connect => Vec::new(),
            Self::Tls => probe::client_hello(server_name, 0),
            Self::Http => {
                let host = match (server_name, address) {
                    (Some(name), _) => name.to_string(),
                    (None, SocketName::Tcp(address)) => address.to_string(),
                    (None, SocketName::Unix(_)) => "localhost".to_owned(),
                };
                format!(
                    "HEAD / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: edge-health-check\r\nConnection: close\r\n\r\n"
                )
                .into_bytes()
            }
            Self::Ssh => SSH_IDENTIFICATION.to_vec(),
            Self::Postgres => postgres::SSL_REQUEST.to_vec(),
        }
    }

    /// The meaning of the backend's first bytes; `None` if there are too few.
    pub(super) fn understand(self, received: &[u8]) -> Option<Result<(), CheckError>> {
        let understood = match self {
            Self::Connect => Some(true),
            Self::Tls => match probe::answer(received) {
                Answer::Incomplete => None,
                Answer::ServerHello | Answer::Alert(_) => Some(true),
                Answer::NotTls => Some(false),
            },
            Self::Http => begins(received, b"HTTP/1."),
            Self::Ssh => identification(received),
            Self::Postgres => received.first().map(|byte| [postgres::YES, postgres::NO].contains(byte)),
        }?;
        Some(if understood { Ok(()) } else { Err(CheckError::Foreign(self)) })
    }
}

fn begins(received: &[u8], word: &[u8]) -> Option<bool> {
    if received.starts_with(word) {
        return Some(true);
    }
    if word.starts_with(received) { None } else { Some(false) }
}

/// The line that begins with `SSH-`.
fn identification(received: &[u8]) -> Option<bool> {
    const WORD: &[u8] = b"SSH-";
    let lines = received.split(|&byte| byte == b'\n');
    if lines.clone().any(|line| line.starts_with(WORD)) {
        return Some(true);
    }
    // Only a line of text may precede an identification.
    let is_text = received.iter().all(|byte| *byte >= b' ' || b"\t\r\n".contains(byte));
    if is_text && received.len() < SSH_PREAMBLE { None } else { Some(false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_on_every_prefix() {
        for (ask, answer, enough) in [
            (Ask::Tls, &[22, 3, 3, 0, 90, 2][..], 6),
            (Ask::Tls, &[21, 3, 3, 0, 2, 2, 112], 7),
            (Ask::Http, b"HTTP/1.1 503 Service Unavailable\r\n", 7),
            (Ask::Ssh, b"SSH-2.0-OpenSSH_9.6\r\n", 4),
            (Ask::Ssh, b"Welcome.\r\nSSH-2.0-OpenSSH_9.6\r\n", 14),
            (Ask::Postgres, b"S", 1),
            (Ask::Postgres, b"N", 1),
        ] {
            for len in 0..=answer.len() {
                let understood = ask.understand(&answer[..len]);
                assert_eq!(understood.is_some(), len >= enough, "{ask:?} {:?}", &answer[..len]);
                assert!(understood.is_none_or(|outcome| outcome.is_ok()));
            }
        }
    }

    #[test]
    fn what_speaks_something_else_does_not_pass() {
        for (ask, answer) in [
            (Ask::Tls, &b"HTTP/1.1 400 Bad Request\r\n"[..]),
            (Ask::Http, b"SSH-2.0-OpenSSH_9.6\r\n"),
            (Ask::Http, &[21, 3, 1, 0, 2, 2, 10]),
            (Ask::Ssh, &[21, 3, 1, 0, 2, 2, 10]),
            (Ask::Ssh, &[b'x'; SSH_PREAMBLE]),
            (Ask::Postgres, b"E\0\0\0\x30SFATAL"),
            (Ask::Postgres, b"HTTP/1.1 400 Bad Request\r\n"),
        ] {
            assert!(matches!(ask.understand(answer), Some(Err(CheckError::Foreign(_)))), "{ask:?}");
        }
    }

    #[test]
    fn an_http_request_always_names_a_host() {
        let address: SocketName = "[fd7a::2]:80".parse().unwrap();
        let socket = "unix:/run/caddy.sock".parse().unwrap();
        let name: HostName = "cloud.example.com".parse().unwrap();
        for (name, address, host) in [
            (Some(&name), &address, "Host: cloud.example.com\r\n"),
            (None, &address, "Host: [fd7a::2]:80\r\n"),
            (None, &socket, "Host: localhost\r\n"),
        ] {
            let request = String::from_utf8(Ask::Http.question(name, address)).unwrap();
            assert!(request.contains(host), "{request}");
        }
    }
}
