//! Runs the static programs of another architecture in qemu's user mode: one emulated process on this kernel.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{output, run},
    dist::{self, PROGRAMS},
    setup,
};

/// Packages that it needs besides the lab's.
const PACKAGES: &[&str] = &["qemu-user-static"];
/// Made to be compiled quickly: nothing of what is shipped is measured here.
const PROFILE: &str = "emulated";
/// Deadlines are multiplied by this.
pub(crate) const PATIENCE: u32 = 4;

/// Builds the static programs of `target`, and writes a script for each that runs it with
/// `qemu-ARCHITECTURE-static`. Returns their directory, for `EDGE_PROGRAMS` of the lab.
pub(crate) fn programs(target: &str) -> Result<PathBuf> {
    setup::packages(PACKAGES)?;
    let built = dist::build(target, PROFILE)?;
    let scripts = setup::target()?.join("emulated").join(target);
    fs::create_dir_all(&scripts)?;
    let architecture = target.split('-').next().unwrap_or(target);
    for program in PROGRAMS {
        let script = scripts.join(program);
        let text = format!(
            "#!/bin/sh\nexec qemu-{architecture}-static '{}' \"$@\"\n",
            built.join(program).display()
        );
        fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(scripts)
}

/// Checks that both programs start, and that they accept every example.
pub(crate) fn read_examples(programs: &Path) -> Result<()> {
    for program in PROGRAMS {
        let version = output(Command::new(programs.join(program)).arg("--version"))?;
        ensure!(version.trim().ends_with(env!("CARGO_PKG_VERSION")), "{program} --version says {version:?}");
    }
    let folder = setup::root()?.join("examples");
    let mut examples = 0;
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let example = entry?.path();
        if example.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        run(Command::new(programs.join("edged")).arg("--check").arg("--config").arg(&example))?;
        run(Command::new(programs.join("edgectl")).args(["config", "check"]).arg(&example))?;
        examples += 1;
    }
    ensure!(examples > 0, "{} has no examples", folder.display());
    Ok(())
}
