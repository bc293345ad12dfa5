//! Which program a configuration is for, by its contents.

use serde::Serialize;

/// A format that can be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `haproxy.cfg`.
    Haproxy,
    /// `nginx.conf`, or a file that it includes.
    Nginx,
    /// `sniproxy.conf`.
    Sniproxy,
    /// Static or dynamic files of Traefik, or a compose file with its labels.
    Traefik,
}

impl Format {
    /// The format that the first telling line has.
    pub fn guess(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut semicolons = false;
        for line in lines {
            semicolons |= line.ends_with(';');
            let words: Vec<&str> = line.split_whitespace().collect();
            let found = match words[..] {
                ["global" | "defaults"] | ["frontend" | "backend" | "listen" | "defaults", _] => {
                    Self::Haproxy
                }
                ["stream" | "http" | "events" | "server" | "stream{" | "http{" | "server{", ..]
                    if line.ends_with('{') || line.ends_with("{}") || line == "server" =>
                {
                    Self::Nginx
                }
                ["map" | "upstream", _, .., "{"] => Self::Nginx,
                ["listener" | "listen", .., "{"] if !semicolons => Self::Sniproxy,
                ["table", ..] if line.ends_with('{') => Self::Sniproxy,
                _ if is_traefik(line) => Self::Traefik,
                _ => continue,
            };
            return Some(found);
        }
        None
    }
}

fn is_traefik(line: &str) -> bool {
    let key = line.trim_matches(['[', ']', '"', '\'']).trim_end_matches(':').to_ascii_lowercase();
    matches!(key.as_str(), "tcp" | "entrypoints" | "providers" | "services" | "http" | "version")
        || key.starts_with("tcp.")
        || key.starts_with("http.")
        || key.starts_with("entrypoints.")
        || line.starts_with("version:")
}
