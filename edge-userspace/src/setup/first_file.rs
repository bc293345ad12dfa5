//! The first configuration: its text, whether a file may be replaced by it, and writing it at once or not at all.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::{
    config::{ConfigError, Settings},
    spec::{BackendAddress, HostPattern},
};

/// The answers of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The names that home serves.
    pub hosts: Vec<HostPattern>,
    /// Where home is.
    pub to: BackendAddress,
}

impl Answers {
    /// The configuration.
    ///
    /// # Errors
    ///
    /// edge would not accept it.
    pub fn text(&self) -> Result<String, ConfigError> {
        let quoted = |text: String| toml::Value::from(text).to_string();
        let hosts: Vec<_> = self.hosts.iter().map(|host| quoted(host.to_string())).collect();
        let hosts = match &*hosts {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let text = format!(
            "# Written by `edgectl init`. TLS on port 443 goes home by its server name, HTTP on port 80 by its Host.\n\
             #\n\
             # After a change:  systemctl reload edged\n\
             # Is all well?     edgectl doctor\n\n\
             [[route]]\nhost = {hosts}\nto = {}\n",
            quoted(self.to.to_string())
        );
        Settings::parse("edge.toml", &text)?;
        Ok(text)
    }
}

/// Whether a configuration says nothing: it is empty, or all comments, as the one that the package installs.
pub fn is_blank(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'))
}

/// Puts a file in its place in one step, readable by all. A reader sees the old file or the whole new one.
///
/// # Errors
///
/// A directory or the file cannot be made.
pub fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("edge.toml");
    let fresh = directory.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = fs::File::options().write(true).create_new(true).mode(0o644).open(&fresh)?;
        // Whatever the umask is: edged runs as a user of its own.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if written.is_err() {
        // The rest of it is of no use.
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_first_file_is_one_that_edge_accepts() {
        let answers = |hosts: &[&str], to: &str| Answers {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            to: to.parse().unwrap(),
        };
        let text = answers(&["example.com", "*.example.com"], "100.64.0.2").text().unwrap();
        assert!(
            text.ends_with("host = [\"example.com\", \"*.example.com\"]\nto = \"100.64.0.2\"\n"),
            "{text}"
        );
        assert!(answers(&["*"], "[fd00::2]:8443").text().is_ok());
    }

    #[test]
    fn the_file_of_the_package_is_blank() {
        assert!(is_blank(include_str!("../../../packaging/edge.toml")));
        assert!(!is_blank("# x\n[daemon]\n"));
    }

    #[test]
    fn a_file_is_there_whole_and_readable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/edge.toml");
        write_new(&path, "a").unwrap();
        write_new(&path, "b").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
