//! Files of prefixes: one per line, comments behind `#` or `;`, as common feeds publish them. They are
//! polled, which also works through links and on network filesystems.

use std::{
    fs::{File, Metadata},
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use tracing::{info, warn};

/// A list that is larger is not a list of prefixes that would fit.
const MAX_FILE: u64 = 64 << 20;

/// The files, with what they said when they were last readable.
#[derive(Debug, Default)]
pub struct Lists {
    files: Vec<Watched>,
}

impl Lists {
    /// Files to watch; nothing is read yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let watch = |path: PathBuf| Watched {
            name: path.to_string_lossy().into(),
            path,
            seen: None,
            read: None,
            prefixes: Vec::new(),
            complaint: None,
        };
        Self { files: paths.into_iter().map(watch).collect() }
    }

    /// Reads the files that changed; returns whether any has new contents.
    ///
    /// A file is read when it looks the same twice in a row, so that an unfinished one is left alone; the
    /// first look reads at once. A file that is gone or unreadable keeps its last contents.
    pub fn look(&mut self) -> bool {
        let mut changed = false;
        for file in &mut self.files {
            changed |= file.look();
        }
        changed
    }

    /// Whether every file was read once. Until then the contents that an earlier daemon knew must be kept.
    pub fn are_complete(&self) -> bool {
        self.files.iter().all(|file| file.read.is_some())
    }

    /// Every prefix with the name of its list.
    pub fn prefixes(&self) -> impl Iterator<Item = (IpNet, Arc<str>)> {
        self.files.iter().flat_map(|file| file.prefixes.iter().map(|net| (*net, file.name.clone())))
    }
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    name: Arc<str>,
    seen: Option<Stamp>,
    read: Option<Stamp>,
    prefixes: Vec<IpNet>,
    complaint: Option<String>,
}

impl Watched {
    fn look(&mut self) -> bool {
        match self.read_if_changed() {
            Ok(None) => false,
            Ok(Some(text)) => {
                self.complaint = None;
                let (prefixes, rejected) = parse(&text);
                if let Some((line, text)) = rejected.first() {
                    let others = rejected.len() - 1;
                    warn!(list = &*self.name, others, "line {line} is no prefix and is skipped: {text}");
                }
                info!(list = &*self.name, prefixes = prefixes.len(), "read the list");
                self.prefixes = prefixes;
                true
            }
            Err(error) => {
                // Once, not with every look.
                let complaint = error.to_string();
                if self.complaint.as_ref() != Some(&complaint) {
                    warn!(
                        list = &*self.name,
                        "cannot read the list: {error}; what it said last stays blocked"
                    );
                    self.complaint = Some(complaint);
                }
                false
            }
        }
    }

    fn read_if_changed(&mut self) -> io::Result<Option<String>> {
        let seen = self.seen.take();
        let stamp = Stamp::of(&std::fs::metadata(&self.path)?);
        self.seen = Some(stamp);
        let is_settled = self.read.is_none() || seen == Some(stamp);
        if !is_settled || self.read == Some(stamp) {
            return Ok(None);
        }
        let text = read(&self.path)?;
        self.read = Some(stamp);
        Ok(Some(text))
    }
}

/// The metadata that shows whether a file was written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_FILE >> 20)));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The prefixes, and the numbers (from 1) of lines that hold something else. Host bits are cut off; a prefix
/// of length 0 is rejected, because a list that blocks everyone is broken.
fn parse(text: &str) -> (Vec<IpNet>, Vec<(usize, String)>) {
    let mut prefixes = Vec::new();
    let mut rejected = Vec::new();
    for (line, text) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let content = text.split(['#', ';']).next().unwrap_or_default();
        let Some(word) = content.split([' ', '\t', ',']).map(str::trim).find(|word| !word.is_empty()) else {
            continue;
        };
        match prefix(word) {
            Some(net) => prefixes.push(net),
            None => rejected.push((line, text.chars().take(80).collect())),
        }
    }
    (prefixes, rejected)
}

fn prefix(word: &str) -> Option<IpNet> {
    let net = word.parse::<IpNet>().or_else(|_| word.parse::<IpAddr>().map(IpNet::from)).ok()?;
    (net.prefix_len() > 0).then(|| net.trunc())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_formats_of_common_feeds_are_read() {
        let text = "\u{feff}# a comment\n; Spamhaus DROP\n1.10.16.0/20 ; SBL256894\n\n192.0.2.1\r\n\
            2001:db8::/32\t# a note\n10.1.2.3/8\n198.51.100.7,ssh-bf\n  203.0.113.0/24  \n2001:db8:1::9\n";
        let (prefixes, rejected) = parse(text);
        let texts: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
        let expected = [
            "1.10.16.0/20",
            "192.0.2.1/32",
            "2001:db8::/32",
            "10.0.0.0/8",
            "198.51.100.7/32",
            "203.0.113.0/24",
            "2001:db8:1::9/128",
        ];
        assert_eq!(texts, expected);
        assert_eq!(rejected, []);
    }

    #[test]
    fn what_is_no_prefix_is_named_and_the_rest_read() {
        let (prefixes, rejected) = parse("192.0.2.1\nexample.com\n0.0.0.0/0\n::/0\n192.0.2.0/33\n192.0.2.2");
        assert_eq!(prefixes.len(), 2);
        assert_eq!(rejected.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!(rejected[0].1, "example.com");
    }

    #[test]
    fn a_file_is_read_once_when_it_has_settled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("feed");
        let said = |lists: &Lists| lists.prefixes().map(|(net, _)| net.to_string()).collect::<Vec<_>>();
        let mut lists = Lists::new([path.clone()]);
        assert!(!lists.look() && !lists.are_complete(), "not there yet");
        fs::write(&path, "192.0.2.1").unwrap();
        assert!(lists.look() && lists.are_complete(), "the first words are taken at once");
        assert!(!lists.look());
        fs::write(&path, "192.0.2.1\n192.0.").unwrap();
        assert!(!lists.look(), "perhaps still being written");
        fs::write(&path, "192.0.2.1\n192.0.2.2\n").unwrap();
        assert!(!lists.look(), "indeed it was");
        assert!(lists.look());
        assert_eq!(said(&lists), ["192.0.2.1/32", "192.0.2.2/32"]);
        assert_eq!(&*lists.prefixes().next().unwrap().1, path.to_str().unwrap());

        fs::remove_file(&path).unwrap();
        assert!(!lists.look());
        assert_eq!(said(&lists).len(), 2, "a list that is gone keeps its last words");
        fs::write(directory.path().join("new"), "192.0.2.3").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert!(!lists.look());
        assert!(lists.look());
        assert_eq!(said(&lists), ["192.0.2.3/32"]);
    }
}
