//! Unix sockets as targets: their path, and the address of a backend that may be one.

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The prefix of a target that is a Unix socket.
const PREFIX: &str = "unix:";

/// The absolute path of a Unix socket. Written with `unix:` in front.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixPath(Arc<str>);

/// Why some text is no path of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnixPathError {
    /// An empty or a relative path.
    #[error("expected the absolute path of a Unix socket, like \"unix:/run/caddy/caddy.sock\"")]
    Relative,
    /// `unix:@name`.
    #[error(
        "an abstract socket has no owner and no mode, so that any program could take its place; let the program listen \
         on a path, like \"unix:/run/caddy/caddy.sock\""
    )]
    Abstract,
    /// `sun_path` of `struct sockaddr_un` has 108 bytes, one of them the NUL.
    #[error("the path of a Unix socket has at most {} bytes", UnixPath::MAX_BYTES)]
    TooLong,
    /// A directory, or a path with a NUL or a control character.
    #[error("expected the path of a socket, without a slash at its end and without control characters")]
    NoFile,
}

impl UnixPath {
    /// The longest path in bytes.
    pub const MAX_BYTES: usize = 107;

    /// The path in a target that is a Unix socket; `None` for any other target.
    pub fn of_target(text: &str) -> Option<Result<Self, UnixPathError>> {
        text.strip_prefix(PREFIX).map(Self::new)
    }

    fn new(path: &str) -> Result<Self, UnixPathError> {
        match path {
            _ if path.starts_with('@') => Err(UnixPathError::Abstract),
            // `unix:///run/x` is the form of URLs.
            _ if !path.starts_with('/') || path.starts_with("//") => Err(UnixPathError::Relative),
            _ if path.len() > Self::MAX_BYTES => Err(UnixPathError::TooLong),
            _ if path.ends_with('/') || path.chars().any(char::is_control) => Err(UnixPathError::NoFile),
            _ => Ok(Self(path.into())),
        }
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnixPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.0)
    }
}

/// The address of a backend's socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SocketName {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A Unix socket on this machine.
    Unix(UnixPath),
}

impl SocketName {
    /// The address and port; `None` for a Unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for SocketName {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl FromStr for SocketName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match UnixPath::of_target(text) {
            Some(path) => path.map(Self::Unix).map_err(|error| error.to_string()),
            None => text.parse().map(Self::Tcp).map_err(|_| format!("{text:?} is no address with a port")),
        }
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.fmt(f),
        }
    }
}

impl Serialize for SocketName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SocketName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_that_a_program_can_bind_is_taken() {
        let read = |text: &str| UnixPath::of_target(text).unwrap().map(|path| path.to_string());
        assert_eq!(read("unix:/run/caddy.sock").as_deref(), Ok("unix:/run/caddy.sock"));
        let longest = format!("unix:/{}", "a".repeat(UnixPath::MAX_BYTES - 1));
        assert_eq!(read(&longest).as_deref(), Ok(&*longest));
        assert_eq!(read(&format!("{longest}a")), Err(UnixPathError::TooLong));
        for (text, error) in [
            ("unix:", UnixPathError::Relative),
            ("unix:caddy.sock", UnixPathError::Relative),
            ("unix:///run/caddy.sock", UnixPathError::Relative),
            ("unix:@caddy", UnixPathError::Abstract),
            ("unix:/run/", UnixPathError::NoFile),
            ("unix:/run/a\nb", UnixPathError::NoFile),
            ("unix:/run/a\0b", UnixPathError::NoFile),
        ] {
            assert_eq!(read(text), Err(error), "{text:?}");
        }
        assert_eq!(UnixPath::of_target("/run/caddy.sock"), None);
    }

    #[test]
    fn a_socket_is_named_as_it_is_written() {
        for text in ["100.64.0.2:443", "[fd7a::2]:443", "unix:/run/caddy.sock"] {
            assert_eq!(text.parse::<SocketName>().unwrap().to_string(), text);
        }
        assert!("caddy:443".parse::<SocketName>().is_err() && "unix:x".parse::<SocketName>().is_err());
    }
}
