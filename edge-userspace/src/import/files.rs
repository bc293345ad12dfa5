//! The files that a configuration names: read with bounds, and from beside the configuration where it was copied from
//! another machine.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

/// The largest file, in bytes: maps of a hundred thousand names fit.
const MAX_BYTES: u64 = 8 << 20;
/// The most files that one pattern stands for.
const MAX_MATCHES: usize = 1000;

/// Where a reader finds what its configuration includes.
pub trait Files {
    /// A file's text.
    fn read(&self, path: &str) -> io::Result<String>;
    /// The files that a pattern with `*` in its last part stands for, sorted; the name itself where there is no `*`.
    fn list(&self, pattern: &str) -> Vec<String>;
    /// A variable of the environment.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The file system. Relative names are looked up in the directory of the configuration; so are absolute ones that do not
/// exist, by their last part.
#[derive(Clone, Debug)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// For the files that `configuration` names.
    pub fn beside(configuration: &Path) -> Self {
        Self { directory: configuration.parent().unwrap_or(Path::new("")).to_owned() }
    }

    fn places(&self, path: &str) -> Vec<PathBuf> {
        let mut places = vec![self.directory.join(path)];
        places.extend(Path::new(path).file_name().map(|name| self.directory.join(name)));
        places
    }
}

impl Files for Disk {
    fn read(&self, path: &str) -> io::Result<String> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for place in self.places(path) {
            match read_text(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => failure = error,
                read => return read,
            }
        }
        Err(failure)
    }

    fn list(&self, pattern: &str) -> Vec<String> {
        if !pattern.contains('*') {
            return vec![pattern.to_owned()];
        }
        for place in self.places(pattern) {
            let (Some(directory), Some(last)) =
                (place.parent(), place.file_name().and_then(|name| name.to_str()))
            else {
                continue;
            };
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            let Ok(entries) = fs::read_dir(directory) else { continue };
            let fits = |entry: fs::DirEntry| {
                matches(last, entry.file_name().to_str()?)
                    .then(|| entry.path().to_str().map(str::to_owned))?
            };
            let mut found: Vec<String> = entries.flatten().filter_map(fits).take(MAX_MATCHES).collect();
            found.sort();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// A file's text; the configuration itself may be a pipe.
///
/// # Errors
///
/// It cannot be read, is too large, or is no UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("the file is larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(text)
}

/// Whether a name fits a pattern with `*`, as glob(7) has it.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_shell_has_it() {
        for (pattern, name, fits) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".a.conf", false),
            ("*", "a", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxc", false),
            ("a.conf", "a.conf", true),
            ("a.conf", "a.confx", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_file_that_was_copied_beside_the_configuration_is_found() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("sni.map"), "a.test b\n").unwrap();
        fs::write(directory.path().join("b.conf"), "").unwrap();
        let disk = Disk::beside(&directory.path().join("haproxy.cfg"));
        assert_eq!(disk.read("/nonexistent/haproxy/sni.map").unwrap(), "a.test b\n");
        assert_eq!(disk.read("sni.map").unwrap(), "a.test b\n");
        assert_eq!(disk.list("/nonexistent/conf.d/*.conf").len(), 1);
        assert_eq!(disk.read("no").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
