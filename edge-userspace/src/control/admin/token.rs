//! The token that changes on the admin address need.

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// The fewest characters: enough that no number of attempts finds it, if they are random.
const FEWEST: usize = 16;
/// The most bytes of the file.
const MOST: u64 = 4096;
/// Rights that nobody else may have on the file.
const OTHERS: u32 = 0o007;

/// A secret that the operator and the daemon share.
pub struct Token(Vec<u8>);

/// Why a file gives no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("{}: {error}: nothing can be changed on the dashboard; make the file and restart edged", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// Every user of the machine could use it.
    #[error(
        "{path}: every user of this machine may open it: nothing can be changed on the dashboard; \
         `chmod 600 {path}` and restart edged",
        path = path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// It can be guessed, or cannot be sent in a header.
    #[error(
        "{path}: a token is one line of at least {FEWEST} visible ASCII characters: nothing can be changed on the dashboard; \
         `openssl rand -hex 32 > {path}` makes one, then restart edged",
        path = path.display()
    )]
    Weak {
        /// The file.
        path: PathBuf,
    },
}

impl Token {
    /// Reads it from the first and only line of a file.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let unreadable = |error| TokenError::Unreadable { path: path.to_owned(), error };
        let file = fs::File::open(path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.permissions().mode() & OTHERS != 0 {
            return Err(TokenError::Open { path: path.to_owned() });
        }
        let mut text = Vec::new();
        file.take(MOST).read_to_end(&mut text).map_err(unreadable)?;
        let token = text.trim_ascii();
        if token.len() < FEWEST || !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Weak { path: path.to_owned() });
        }
        Ok(Self(token.to_vec()))
    }

    /// Whether this is the token. The time it takes depends on the length of `offered` alone.
    pub(super) fn is(&self, offered: &[u8]) -> bool {
        let mut differs = u8::from(offered.len() != self.0.len());
        for (position, byte) in offered.iter().enumerate() {
            // Where it is too long the result is fixed already; any byte will do.
            let own = self.0[position % self.0.len()];
            differs = std::hint::black_box(differs | (byte ^ own));
        }
        differs == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, mode: u32) -> Result<Token, TokenError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        Token::read(file.path())
    }

    #[test]
    fn only_the_whole_token_is_it() {
        let token = written("0123456789abcdef\n", 0o600).unwrap();
        assert!(token.is(b"0123456789abcdef"));
        for other in [
            "",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789abcdeF",
            "0123456789abcdef0123456789abcdef",
        ] {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        assert_eq!(format!("{token:?}"), "Token");
    }

    #[test]
    fn a_file_that_is_no_secret_is_refused_with_the_remedy() {
        for (text, mode, remedy) in [
            ("0123456789abcdef", 0o644, "chmod 600"),
            ("short", 0o600, "openssl rand"),
            ("two lines of sixteen\ncharacters", 0o600, "openssl rand"),
            ("", 0o600, "openssl rand"),
        ] {
            let error = written(text, mode).unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
        let missing = Token::read(Path::new("/nowhere/token")).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/token: No such file"), "{missing}");
    }
}
