//! The tasks that the documentation names. This program must understand each line of a console block, and a
//! run of the tests performs it, possibly in a shorter form.

use std::fs;

use anyhow::{Context, Result, anyhow};
use clap::Parser as _;

use crate::{Cli, Task, bench::Bench, demo::Demo, setup, soak::Soak, vm::Vm};

/// Where tasks are named.
const FILES: &[&str] = &["CONTRIBUTING.md", "README.md", "fuzz/README.md", "docs/inside.md"];

/// How a run of the tests covers a documented command.
pub(crate) enum Rehearsal {
    /// A step of every run does it: the step's name.
    Step(&'static str),
    /// The run does this in its place, as a step of this name.
    Shorter(String, Task),
    /// No run does it, for this reason.
    Never(&'static str),
}

/// A task as the documentation names it.
pub(crate) struct Documented {
    /// The words after `cargo xtask`.
    pub(crate) words: String,
    task: Task,
}

/// Reads every documented task. Fails with the line that this program does not understand.
pub(crate) fn tasks() -> Result<Vec<Documented>> {
    let mut all: Vec<Documented> = Vec::new();
    for name in FILES {
        let file = setup::root()?.join(name);
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        for words in commands(&text).iter().filter_map(|line| line.strip_prefix("cargo xtask ")) {
            if all.iter().any(|known| known.words == words) {
                continue;
            }
            let arguments = ["cargo xtask"].into_iter().chain(words.split_whitespace());
            let task = Cli::try_parse_from(arguments)
                .map_err(|error| anyhow!("{name} names `cargo xtask {words}`: {error}"))?
                .task;
            all.push(Documented { words: words.to_owned(), task });
        }
    }
    Ok(all)
}

/// The commands in the console blocks of a Markdown text, without prompts and comments.
pub(crate) fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut is_console = false;
    for line in text.lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            is_console = language == "console";
        } else if is_console
            && let Some(command) = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ "))
        {
            let command = command.split_once("  #").map_or(command, |(command, _)| command);
            commands.push(command.trim().to_owned());
        }
    }
    commands
}

impl Documented {
    pub(crate) fn rehearsal(&self) -> Rehearsal {
        match &self.task {
            Task::Book => Rehearsal::Step("book"),
            Task::Build => Rehearsal::Step("release build"),
            Task::BuildEbpf(_) => Rehearsal::Step("BPF objects"),
            Task::Dist(_) => Rehearsal::Step("static programs"),
            Task::Fuzz(_) => Rehearsal::Step("fuzz targets"),
            Task::Test(_) => Rehearsal::Step("lab"),
            Task::Bench(bench) if bench.is_check() => Rehearsal::Step("bench of the bench"),
            Task::Bench(bench) => {
                Rehearsal::Shorter(format!("short {}", self.words), Task::Bench(Bench::rehearsal(bench)))
            }
            Task::Demo(_) => Rehearsal::Shorter("demo".to_owned(), Task::Demo(Demo::default())),
            Task::Soak(_) => Rehearsal::Shorter("short soak".to_owned(), Task::Soak(Soak::rehearsal())),
            Task::Vm(vm) if vm.is_system() => {
                Rehearsal::Never("whole machines, emulated, take half an hour each")
            }
            Task::Vm(_) => Rehearsal::Shorter("vm --quick, one kernel".to_owned(), Task::Vm(Vm::rehearsal())),
            Task::Run(_) => Rehearsal::Never("it ends when the operator ends it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_task_is_known_and_tried_by_a_run_of_the_tests() {
        let documented = tasks().unwrap();
        assert!(documented.len() > 5, "CONTRIBUTING.md names more than {}", documented.len());
        let untried = documented.iter().filter(|task| matches!(task.rehearsal(), Rehearsal::Never(_)));
        let untried: Vec<_> = untried.map(|task| task.words.as_str()).collect();
        assert_eq!(untried, ["vm --system"], "no run of the tests tries these");
    }

    #[test]
    fn the_tasks_of_the_release_workflow_are_known() {
        let workflow = setup::root().unwrap().join(".github/workflows/release.yml");
        let workflow = fs::read_to_string(workflow).unwrap();
        let tasks: Vec<_> =
            workflow.split("run: cargo xtask ").skip(1).filter_map(|rest| rest.lines().next()).collect();
        assert!(tasks.iter().any(|task| task.starts_with("dist ")), "{tasks:?}");
        for task in tasks {
            Cli::try_parse_from(["cargo xtask"].into_iter().chain(task.split_whitespace())).unwrap();
        }
    }

    #[test]
    fn only_console_blocks_hold_commands() {
        let text = "# Title\n```console\n# cargo xtask test limits  # a comment\n$ ls\n  output\n```\n\
                    ```toml\n# cargo xtask none\n```\n  ```console\n  $ cargo build\n  ```\n";
        assert_eq!(commands(text), ["cargo xtask test limits", "ls", "cargo build"]);
    }
}
