//! The Debian package, by dpkg-deb. `packaging/deb` has its control file and its scripts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{PROGRAMS, Parts, Release, debian_name, files, gzip, place, write};
use crate::{
    command::{output, run},
    setup,
};

const NAME: &str = "edge";
/// Where the README's steps put the programs, and where the package does.
const BY_HAND: &str = "/usr/local/bin/";
const BY_PACKAGE: &str = "/usr/bin/";
const SCRIPTS: &[&str] = &["postinst", "prerm", "postrm"];
/// Documents for operators, below `/usr/share/doc/edge`.
const DOCUMENTS: &[&str] =
    &["README.md", "docs/guide.md", "docs/flow.md", "docs/security.md", "docs/control-api.md"];

/// The package for one target. `version` is the release's, or another one to try an upgrade with.
pub(super) fn make(release: &Release, parts: &Parts, version: &str) -> Result<PathBuf> {
    setup::packages(&["dpkg"])?;
    // The first revision of the package: there is no other packaging of this version.
    let version = format!("{version}-1");
    let architecture = debian_name(parts.target)?;
    let file = format!("{NAME}_{version}_{architecture}.deb");
    let tree = release.folder(&format!("{NAME}_{version}_{architecture}"))?;
    content(release, parts, &tree, &version)?;
    control(&tree, &version, architecture)?;
    let package = release.directory.join(file);
    // The time of every file in it, so that the package of a commit is always the same.
    run(Command::new("dpkg-deb")
        .env("SOURCE_DATE_EPOCH", &release.time)
        .args(["--root-owner-group", "-Zxz", "--build"])
        .arg(&tree)
        .arg(&package)
        .stdout(std::process::Stdio::null()))?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// Makes `first.deb` and `next.deb`, an upgrade of it, in the folder `to`, both with the programs of an archive.
/// Does nothing for an archive of a version that had no manual pages.
pub(crate) fn from_archive(archive: &Path, target: &str, to: &Path) -> Result<()> {
    // Beside the archive may be the release's own packages.
    let release = Release { directory: to.to_owned(), ..Release::new()? };
    let unpacked = release.folder("unpacked")?;
    run(Command::new("tar").args(["--strip-components=1", "-xf"]).arg(archive).arg("-C").arg(&unpacked))?;
    if unpacked.join("man").is_dir() {
        let parts = Parts { target, programs: &unpacked, documents: &unpacked };
        let next = format!("{}+next", release.version);
        for (version, name) in [(&release.version, "first.deb"), (&next, "next.deb")] {
            fs::rename(make(&release, &parts, version)?, to.join(name))?;
        }
    }
    Ok(fs::remove_dir_all(&unpacked)?)
}

/// The files that the package installs.
fn content(release: &Release, parts: &Parts, tree: &Path, version: &str) -> Result<()> {
    let root = setup::root()?;
    let packaging = root.join("packaging");
    let share = tree.join("usr/share");
    for program in PROGRAMS {
        place(&parts.programs.join(program), &tree.join("usr/bin").join(program), 0o755)?;
    }
    let unit = fs::read_to_string(packaging.join("edged.service"))?;
    ensure!(unit.contains(BY_HAND), "the unit has no program in {BY_HAND}");
    let unit = unit.replace(BY_HAND, BY_PACKAGE);
    write(&tree.join("usr/lib/systemd/system/edged.service"), unit.as_bytes(), 0o644)?;
    place(&packaging.join("edge.sysusers"), &tree.join("usr/lib/sysusers.d/edge.conf"), 0o644)?;
    place(&packaging.join("edge.sysctl.conf"), &tree.join("usr/lib/sysctl.d/50-edge.conf"), 0o644)?;
    place(&packaging.join("edge.logrotate"), &tree.join("etc/logrotate.d/edge"), 0o644)?;
    place(&packaging.join("edge.toml"), &tree.join("etc/edge/edge.toml"), 0o644)?;
    for page in files(&parts.documents.join("man"))? {
        let section = page.extension().context("a manual page has a section")?.to_string_lossy();
        let name = page.file_name().context("a manual page has a name")?;
        let to = share.join(format!("man/man{section}")).join(name);
        place(&page, &to, 0o644)?;
        gzip(&to)?;
    }
    for program in PROGRAMS {
        let script = |shell: &str| parts.documents.join(format!("completions/{program}.{shell}"));
        place(&script("bash"), &share.join("bash-completion/completions").join(program), 0o644)?;
        place(&script("zsh"), &share.join(format!("zsh/vendor-completions/_{program}")), 0o644)?;
        place(&script("fish"), &share.join(format!("fish/vendor_completions.d/{program}.fish")), 0o644)?;
    }
    let documents = share.join("doc").join(NAME);
    for document in DOCUMENTS {
        let name = document.rsplit('/').next().unwrap_or(document);
        place(&root.join(document), &documents.join(name), 0o644)?;
    }
    for monitoring in ["prometheus/edge.rules.yml", "grafana/edge.json"] {
        place(&packaging.join(monitoring), &documents.join(monitoring), 0o644)?;
    }
    for example in files(&root.join("examples"))? {
        let name = example.file_name().context("an example has a name")?;
        place(&example, &documents.join("examples").join(name), 0o644)?;
    }
    write(&documents.join("copyright"), copyright(&root)?.as_bytes(), 0o644)?;
    place(&root.join("CHANGELOG.md"), &documents.join("changelog"), 0o644)?;
    gzip(&documents.join("changelog"))?;
    let debian = documents.join("changelog.Debian");
    write(&debian, changelog(release, version)?.as_bytes(), 0o644)?;
    gzip(&debian).map(drop)
}

/// The control file, the scripts, and the sums by which `dpkg --verify` finds changed files.
fn control(tree: &Path, version: &str, architecture: &str) -> Result<()> {
    let sums = output(
        Command::new("sh")
            .args(["-c", "find usr -type f -print0 | sort -z | xargs -0 md5sum"])
            .current_dir(tree)
            .env("LC_ALL", "C"),
    )?;
    let size = output(Command::new("du").args(["-k", "-s", "--apparent-size"]).arg(tree))?;
    let size = size.split_whitespace().next().context("du printed no size")?;
    let from = setup::root()?.join("packaging/deb");
    let to = tree.join("DEBIAN");
    let control = fs::read_to_string(from.join("control"))?
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", size);
    write(&to.join("control"), control.as_bytes(), 0o644)?;
    write(&to.join("md5sums"), sums.as_bytes(), 0o644)?;
    place(&from.join("conffiles"), &to.join("conffiles"), 0o644)?;
    SCRIPTS.iter().try_for_each(|script| place(&from.join(script), &to.join(script), 0o755))
}

/// The licences in Debian's format: the text of MIT, and where that of Apache-2.0 is.
fn copyright(root: &Path) -> Result<String> {
    let licence = fs::read_to_string(root.join("LICENSE-MIT"))?;
    let licence =
        licence.lines().map(|line| if line.is_empty() { " .".to_owned() } else { format!(" {line}") });
    let text = fs::read_to_string(root.join("packaging/deb/copyright"))?;
    Ok(text.replace("@MIT@", &licence.collect::<Vec<_>>().join("\n")))
}

/// The changes of the packaging; the project's own changelog is beside it.
fn changelog(release: &Release, version: &str) -> Result<String> {
    let control = fs::read_to_string(setup::root()?.join("packaging/deb/control"))?;
    let maintainer = control.lines().find_map(|line| line.strip_prefix("Maintainer: "));
    let maintainer = maintainer.context("packaging/deb/control names no maintainer")?;
    let date = output(
        Command::new("date").env("LC_ALL", "C").args(["-u", "-R", "-d"]).arg(format!("@{}", release.time)),
    )?;
    Ok(format!(
        "{NAME} ({version}) unstable; urgency=medium\n\n  * The changes are in changelog.gz.\n\n -- {maintainer}  {}\n",
        date.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::TARGETS;

    #[test]
    fn an_archive_becomes_a_package_and_an_upgrade_of_it() {
        if Command::new("dpkg-deb").arg("--version").output().is_err() {
            eprintln!("skipped: this machine has no dpkg-deb");
            return;
        }
        let release = Release::new().unwrap();
        let folder = release.folder("deb-test").unwrap();
        let tree = folder.join("edge");
        for file in ["edged", "edgectl", "man/edged.8", "man/edgectl.1"] {
            write(&tree.join(file), file.as_bytes(), 0o644).unwrap();
        }
        for program in PROGRAMS {
            for shell in ["bash", "zsh", "fish"] {
                write(&tree.join(format!("completions/{program}.{shell}")), b"", 0o644).unwrap();
            }
        }
        let archive = folder.join("edge.tar.gz");
        run(Command::new("tar").arg("-C").arg(&folder).arg("-czf").arg(&archive).arg("edge")).unwrap();
        from_archive(&archive, TARGETS[1], &folder).unwrap();

        let dpkg = |arguments: &[&str], package: &str| {
            output(Command::new("dpkg-deb").args(arguments).arg(folder.join(package))).unwrap()
        };
        let [first, next] = ["first.deb", "next.deb"]
            .map(|package| dpkg(&["--show", "--showformat=${Version} ${Architecture}"], package));
        assert_eq!(first, format!("{}-1 arm64", release.version));
        let is_newer =
            ["--compare-versions", next.split(' ').next().unwrap(), "gt", first.split(' ').next().unwrap()];
        assert!(Command::new("dpkg").args(is_newer).status().unwrap().success(), "{next} after {first}");
        run(Command::new("dpkg-deb").arg("-R").arg(folder.join("first.deb")).arg(folder.join("unpacked")))
            .unwrap();
        let unit = fs::read_to_string(folder.join("unpacked/usr/lib/systemd/system/edged.service")).unwrap();
        assert!(unit.contains("/usr/bin/edged") && !unit.contains("/usr/local"), "{unit}");
        assert_eq!(
            fs::read_to_string(folder.join("unpacked/DEBIAN/conffiles")).unwrap(),
            "/etc/edge/edge.toml\n/etc/logrotate.d/edge\n"
        );
        assert!(folder.join("unpacked/usr/share/man/man8/edged.8.gz").is_file());
        fs::remove_dir_all(folder).unwrap();
    }
}
