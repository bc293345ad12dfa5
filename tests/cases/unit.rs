//! The files installed beside the programs, as this machine's systemd reads them (Debian 12 has 252).

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use lab::{
    Context, Edged, Result,
    edged::program,
    ensure,
    require::{self, Need},
    service,
};

use crate::{case, greeting};

fn packaged(name: &str) -> Result<(PathBuf, String)> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging")).join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok((path.canonicalize()?, text))
}

/// The value of a key that stands once in the unit.
fn value<'u>(unit: &'u str, key: &str) -> Result<&'u str> {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().with_context(|| format!("no {key} in the unit"))?;
    ensure!(values.next().is_none(), "{key} stands twice");
    Ok(value)
}

#[test]
fn systemd_understands_every_line_of_the_unit() -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Program("systemd-analyze", "systemd")]) {
        return Ok(());
    }
    case(|lab| {
        let (_, unit) = packaged("edged.service")?;
        let programs = program("edged")?.parent().context("a directory")?.to_string_lossy().into_owned();
        let installed = unit.replace("/usr/local/bin", &programs);
        let verify = |text: &str| -> Result<String> {
            let file = lab.file("edged.service", text)?;
            let mut command = Command::new("systemd-analyze");
            command.args(["verify", "--man=no"]).arg(&file);
            let output = lab.edge.output(command)?;
            let complaint = String::from_utf8(output.stderr)?;
            ensure!(output.status.success() || !complaint.is_empty(), "{}", output.status);
            Ok(complaint)
        };
        // It has a word for what it does not know: else the silence below would mean nothing.
        let unknown = verify(&installed.replace("Type=notify", "Type=telepathy"))?;
        ensure!(unknown.contains("telepathy"), "{unknown:?}");
        let complaint = verify(&installed)?;
        ensure!(complaint.is_empty(), "{complaint}");
        Ok(())
    })
}

#[test]
fn the_unit_keeps_its_promises() -> Result<()> {
    let (_, unit) = packaged("edged.service")?;
    for (key, wanted) in [
        ("Type", "notify"),
        ("Restart", "always"),
        // No start limit that ends it for good.
        ("StartLimitIntervalSec", "0"),
        ("ExecReload", "/usr/local/bin/edgectl reload"),
        ("UMask", "0027"),
        ("User", "edge"),
        ("ConfigurationDirectory", "edge"),
        ("StateDirectory", "edge"),
        ("LogsDirectory", "edge"),
        ("RuntimeDirectory", "edge"),
        // Outlives the restarts that listening sockets stay open over; edged looks for this name.
        ("Slice", "edge.slice"),
        ("ProtectSystem", "strict"),
        // Not /sys/fs/bpf, which ProtectKernelTunables makes read-only all the same.
        ("ReadWritePaths", "-/sys/fs/bpf/edge"),
        ("ExecStartPre", "+mkdir -p -m 0700 /sys/fs/bpf/edge"),
    ] {
        ensure!(value(&unit, key)? == wanted, "{key}={}", value(&unit, key)?);
    }
    ensure!(value(&unit, "FileDescriptorStoreMax")?.parse::<u32>()? >= 1024);
    Ok(())
}

#[test]
fn a_broken_file_fails_the_reload_and_the_journal_gets_its_place() -> Result<()> {
    case(|lab| {
        let (_, unit) = packaged("edged.service")?;
        let words = value(&unit, "ExecReload")?;
        let arguments: Vec<&str> = words.split(' ').skip(1).collect();
        let route = format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_address());
        let edged = Edged::start(lab, &route)?;
        edged.edgectl().text(&arguments)?;
        edged.rewrite(&format!("{route}datapth = \"copy\"\n"))?;
        // The output of a failed ExecReload goes to the journal, and its status fails the job.
        let said = edged.edgectl().refused(1, &arguments)?;
        let line = fs::read_to_string(edged.config())?.lines().position(|line| line.contains("datapth"));
        let place = format!("edge.toml:{}:1: ", line.context("the line")? + 1);
        ensure!(said.contains(&place), "no {place} in {said}");
        Ok(())
    })
}

#[test]
fn the_access_log_is_for_the_group() -> Result<()> {
    /// As in the group file below.
    const GROUP: u32 = 4711;
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let groups = lab.file("group", format!("root:x:0:\nedge:x:{GROUP}:\n"))?;
        // As the unit has it, with a group file of its own.
        let start = format!(
            "mount --bind {} /etc/group && umask 0077 && exec setpriv --groups={GROUP} \"$@\"",
            groups.display()
        );
        let route = format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_address());
        let edged = Edged::plan(lab, &route)
            .by(&["/usr/bin/unshare", "--mount", "/bin/sh", "-c", &start, "edged"])
            .start()?;
        let is_for_the_group = |path: &Path| -> Result<()> {
            let file = fs::metadata(path)?;
            let rights = (file.mode() & 0o7777, file.gid());
            ensure!(rights == (0o640, GROUP), "{:o} of group {}", rights.0, rights.1);
            Ok(())
        };
        let log = edged.access_log.path().clone();
        is_for_the_group(&log)?;
        ensure!(fs::metadata(edged.edgectl().control())?.gid() == GROUP);
        // By then most rights are given up.
        fs::rename(&log, log.with_extension("old"))?;
        edged.edgectl().text(&["reload"])?;
        greeting(lab, "a.example")?;
        edged.access_log.wait_for_host("a.example")?;
        is_for_the_group(&log)
    })
}

#[test]
fn the_user_and_the_group_are_made() -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Program("systemd-sysusers", "systemd")]) {
        return Ok(());
    }
    case(|lab| {
        let (file, _) = packaged("edge.sysusers")?;
        let root = lab.directory().join("root");
        fs::create_dir_all(root.join("etc"))?;
        let mut command = Command::new("systemd-sysusers");
        command.arg("--root").arg(&root).arg(file);
        lab.edge.text_of(command)?;
        for (file, wanted) in [("etc/group", "edge:x:"), ("etc/passwd", "edge:x:")] {
            let text = fs::read_to_string(root.join(file))?;
            ensure!(text.lines().any(|line| line.starts_with(wanted)), "{file}: {text}");
        }
        Ok(())
    })
}
