//! The tests that are worth running on another kernel, and which of them when time is short.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::{cargo, output};

/// A way to carry connections, or to keep them out, whose fate on a kernel is to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    Copy,
    Splice,
    Sockmap,
    Flow,
    Shield,
    /// The daemon as a whole.
    Other,
}

impl Tier {
    pub(super) const ALL: [Self; 6] =
        [Self::Copy, Self::Splice, Self::Sockmap, Self::Flow, Self::Shield, Self::Other];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Flow => "flow",
            Self::Shield => "shield",
            Self::Other => "other",
        }
    }

    /// The topic of a test, by its suite and its own name.
    pub(super) fn of(suite: &str, test: &str) -> Self {
        let names = |tier: &Self| [suite, test].iter().any(|name| name.contains(tier.name()));
        Self::ALL.into_iter().find(names).unwrap_or(Self::Other)
    }
}

/// How much is run.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// All that is worth it.
    All,
    /// The tests that show within minutes whether every tier works.
    Quick,
    /// The tests whose name contains this.
    Matching(String),
    /// Measurements instead of tests.
    Figures,
}

/// A program of tests.
pub(super) struct Suite {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    choice: &'static Choice,
}

/// Tests by what their names contain. Nothing means all.
struct Choice {
    name: &'static str,
    package: &'static str,
    all: &'static [&'static str],
    /// `None`: the suite is left out.
    quick: Option<&'static [&'static str]>,
    never: &'static [&'static str],
}

/// The packets first: what a kernel does not load shows there at once.
const CHOICES: &[Choice] = &[
    Choice {
        name: "flow_fixtures",
        package: "edge-userspace",
        all: &[],
        quick: Some(&[]),
        never: &["speed"],
    },
    Choice { name: "shield_fixtures", package: "edge-userspace", all: &[], quick: Some(&[]), never: &[] },
    Choice { name: "shield_live", package: "edge-userspace", all: &[], quick: None, never: &[] },
    Choice { name: "sockmap_live", package: "edge-userspace", all: &[], quick: None, never: &[] },
    Choice {
        name: "cases",
        package: "edge-tests",
        all: &[
            "carrying::copy::bytes",
            "carrying::splice::bytes",
            "carrying::sockmap::bytes",
            "carrying::flow::bytes",
            // These and `vlans::` are run here because many kernels of virtual machines, such as CI's, have neither
            // VLANs nor bonds.
            "devices::",
            "flow::",
            "kernel::",
            "netem::",
            // Where there are no tc links, two layouts' filters of clsact.
            "upgrades::",
            "vlans::",
        ],
        quick: Some(&["netem::copy::", "netem::splice::", "netem::sockmap::", "netem::flow::"]),
        // These take minutes each when emulated. They test many connections, and not the kernel.
        never: &["::connections_that_end", "::two_thousand"],
    },
];

impl Suite {
    /// Builds all that may run.
    pub(super) fn build(wanted: &Wanted) -> Result<Vec<Self>> {
        let choices = CHOICES.iter().filter(|choice| match wanted {
            Wanted::All | Wanted::Matching(_) => true,
            Wanted::Quick => choice.quick.is_some(),
            Wanted::Figures => choice.name == "cases",
        });
        let choices: Vec<_> = choices.collect();
        let mut suites = Vec::new();
        for package in ["edge-userspace", "edge-tests"] {
            let own: Vec<_> = choices.iter().filter(|choice| choice.package == package).collect();
            if own.is_empty() {
                continue;
            }
            let mut command = cargo();
            command.args(["test", "--locked", "--no-run", "--message-format=json", "-p", package]);
            for choice in &own {
                command.args(["--test", choice.name]);
            }
            let messages = output(&mut command)?;
            for choice in own {
                let program = program(&messages, choice.name)?;
                suites.push(Self { name: choice.name, program, choice });
            }
        }
        ensure!(!suites.is_empty(), "there is nothing to run");
        Ok(suites)
    }

    /// The arguments for the runner of this suite.
    pub(super) fn arguments(&self, wanted: &Wanted) -> Vec<String> {
        let mut arguments = vec!["--test-threads=2".to_owned()];
        let chosen: &[&str] = match wanted {
            Wanted::All => self.choice.all,
            Wanted::Quick => self.choice.quick.unwrap_or_default(),
            Wanted::Matching(part) => &[part],
            Wanted::Figures => &["figures"],
        };
        arguments.extend(chosen.iter().map(|&part| part.to_owned()));
        if matches!(wanted, Wanted::Figures) {
            arguments.extend(["--ignored", "--nocapture"].map(str::to_owned));
        }
        for part in self.choice.never {
            arguments.extend(["--skip".to_owned(), (*part).to_owned()]);
        }
        arguments
    }
}

/// The program of a test target, as cargo's messages name it.
fn program(messages: &str, target: &str) -> Result<PathBuf> {
    let found =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let is_it = message["target"]["name"] == target && message["profile"]["test"] == true;
            is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
        });
    found.with_context(|| format!("cargo built no test {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_belong_to_the_tier_they_name() {
        assert_eq!(Tier::of("cases", "carrying::splice::bytes_after_the_clients_fin"), Tier::Splice);
        assert_eq!(Tier::of("flow_fixtures", "rewriting::options"), Tier::Flow);
        assert_eq!(Tier::of("cases", "netem::flows_outlive_the_daemon"), Tier::Flow);
        assert_eq!(Tier::of("shield_live", "blocked"), Tier::Shield);
        assert_eq!(Tier::of("cases", "kernel::a_kill"), Tier::Other);
    }

    #[test]
    fn a_program_is_found_among_cargos_messages() {
        let messages = "{\"reason\":\"build-script-executed\"}\n\
            {\"target\":{\"name\":\"cases\"},\"profile\":{\"test\":true},\"executable\":\"/t/cases-1\"}\n";
        assert_eq!(program(messages, "cases").unwrap(), PathBuf::from("/t/cases-1"));
        assert!(program(messages, "other").is_err());
    }
}
