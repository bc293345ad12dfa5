//! The README's quick start, word by word: its commands, and the configuration that it shows.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use crate::checks::documented::commands;

/// The section with the steps.
const SECTION: &str = "## Quick start on a VPS";
/// Where it says that the configuration goes.
const CONFIGURATION: &str = "/etc/edge/edge.toml";

/// A script of the README's steps, run in an unpacked archive of `cargo xtask dist`. The archive's programs
/// take the place of cargo's build.
pub(super) fn script(readme: &str) -> Result<String> {
    let (_, section) = readme.split_once(SECTION).context("the README has no quick start")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    ensure!(section.contains(CONFIGURATION), "the quick start does not name {CONFIGURATION}");
    let toml = block(section, "toml").context("the quick start has no configuration")?;
    let mut script =
        String::from("set -ex\nmkdir -p target/release /etc/edge\ncp edged edgectl target/release\n");
    let _ = write!(script, "cat >{CONFIGURATION} <<'END'\n{toml}END\n");
    let steps: Vec<_> =
        commands(section).into_iter().filter(|command| !command.starts_with("cargo ")).collect();
    ensure!(!steps.is_empty(), "the quick start has no commands");
    for step in steps {
        let _ = writeln!(script, "{step}");
    }
    Ok(script)
}

/// The first block of a language, without the indentation of its list.
fn block(text: &str, language: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != format!("```{language}"));
    lines.next()?;
    Some(lines.take_while(|line| *line != "```").flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_start_is_a_script() {
        let readme = std::fs::read_to_string(crate::setup::root().unwrap().join("README.md")).unwrap();
        let script = script(&readme).unwrap();
        for part in ["[[route]]\n", "install -m 755 target/release/edged", "systemctl enable --now edged\n"] {
            assert!(script.contains(part), "{part:?} is not in\n{script}");
        }
        assert!(!script.contains("cargo"), "{script}");
    }
}
