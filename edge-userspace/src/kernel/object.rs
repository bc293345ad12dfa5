//! The built BPF objects: inside this binary, or from a directory while one is being worked on.

use std::{borrow::Cow, fs, path::PathBuf};

use super::KernelError;

macro_rules! embed {
    ($name:literal) => {
        aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/", $name, ".bpf.o"))
    };
}

const FLOW: &[u8] = embed!("flow");
const FLOW_TRACE: &[u8] = embed!("flow.trace");
const SHIELD: &[u8] = embed!("shield");
const SHIELD_TRACE: &[u8] = embed!("shield.trace");
const SOCKMAP: &[u8] = embed!("sockmap");

/// Where objects are taken from.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    replacement: Option<PathBuf>,
    /// Whether the programs are those that report what they do with packets.
    trace: bool,
}

impl Objects {
    /// Those built into this binary.
    pub const fn embedded() -> Self {
        Self { replacement: None, trace: false }
    }

    /// Those of a directory of `*.bpf.o`, or the one object of a file; what is not there is taken from this
    /// binary.
    pub const fn replaced_by(path: PathBuf) -> Self {
        Self { replacement: Some(path), trace: false }
    }

    /// The tracing objects of the same source. The sockmap tier has none.
    #[must_use]
    pub fn traced(self) -> Self {
        Self { trace: true, ..self }
    }

    /// The file or directory that replaces the embedded ones.
    pub(super) fn path(&self) -> Option<&std::path::Path> {
        self.replacement.as_deref()
    }

    /// The object that holds the flow tier.
    pub(super) fn flow(&self) -> Result<Cow<'static, [u8]>, KernelError> {
        if self.trace {
            return self.find("flow.trace.bpf.o", FLOW_TRACE);
        }
        self.find("flow.bpf.o", FLOW)
    }

    /// The object that holds the shield.
    pub(super) fn shield(&self) -> Result<Cow<'static, [u8]>, KernelError> {
        if self.trace {
            return self.find("shield.trace.bpf.o", SHIELD_TRACE);
        }
        self.find("shield.bpf.o", SHIELD)
    }

    /// The object that holds the sockmap tier.
    pub(super) fn sockmap(&self) -> Result<Cow<'static, [u8]>, KernelError> {
        self.find("sockmap.bpf.o", SOCKMAP)
    }

    fn find(&self, name: &str, embedded: &'static [u8]) -> Result<Cow<'static, [u8]>, KernelError> {
        let Some(path) = &self.replacement else { return Ok(embedded.into()) };
        let file = if path.is_dir() { path.join(name) } else { path.clone() };
        if file.file_name().is_none_or(|found| found != name) || !file.exists() {
            return Ok(embedded.into());
        }
        let object = fs::read(&file);
        object.map(Cow::Owned).map_err(|source| KernelError::File { call: "reading", path: file, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_read_where_there_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::replaced_by(directory.path().to_owned());
        assert_eq!(objects.shield().unwrap(), SHIELD);
        let file = directory.path().join("shield.bpf.o");
        fs::write(&file, b"other").unwrap();
        assert_eq!(&*objects.shield().unwrap(), b"other");
        assert_eq!(&*Objects::replaced_by(file).shield().unwrap(), b"other");
        let other = directory.path().join("flow.bpf.o");
        fs::write(&other, b"flow").unwrap();
        assert_eq!(Objects::replaced_by(other).shield().unwrap(), SHIELD);
    }

    #[test]
    fn embedded_objects_are_elf_files_for_bpf() {
        for object in [SHIELD, SOCKMAP, SHIELD_TRACE, FLOW_TRACE] {
            assert!(object.starts_with(b"\x7fELF"));
            assert_eq!(object[18..20], 247_u16.to_le_bytes(), "e_machine is EM_BPF");
        }
    }
}
