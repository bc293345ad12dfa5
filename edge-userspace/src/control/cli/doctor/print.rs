//! Doctor's findings as text: problems first, each with its remedy below, then one line that sums up.

use std::io::{self, IsTerminal, Write};

use super::super::{
    Output, routes,
    style::{self, Colour, printable},
    table::wrapped,
};
use crate::control::api::{Check, CheckStatus};

/// The width for text that goes to no terminal.
const WIDTH: usize = 100;
/// The column that messages and remedies begin in.
const INDENT: usize = 6;

/// Prints a report while it is being made. On a terminal a problem is printed as soon as it is found, and a line on
/// standard error shows how far the examination is; elsewhere failures come before warnings.
pub(super) struct Report {
    output: Output,
    /// Whether to list what is in order, too.
    verbose: bool,
    /// Whether the progress line can be shown.
    progress: bool,
    found: Vec<Check>,
}

impl Report {
    pub(super) fn new(output: Output, verbose: bool) -> Self {
        let progress = output.terminal && io::stderr().is_terminal();
        Self { output, verbose, progress, found: Vec::new() }
    }

    /// The findings so far, in the order of arrival.
    pub(super) fn found(&self) -> &[Check] {
        &self.found
    }

    /// Takes a finding.
    pub(super) fn add(&mut self, check: Check) -> io::Result<()> {
        self.clear_progress();
        if self.output.terminal && is_problem(&check) {
            style::write_lines(problem(&check, self.output))?;
        }
        self.found.push(check);
        if self.progress {
            let (checks, problems) =
                (self.found.len(), self.found.iter().filter(|check| is_problem(check)).count());
            // Where it cannot be shown nothing is lost.
            let _ = write!(io::stderr(), "examining: {checks} checks, {problems} problems so far");
            let _ = io::stderr().flush();
        }
        Ok(())
    }

    /// Prints what is left to print.
    pub(super) fn end(&self) -> io::Result<()> {
        self.clear_progress();
        let mut lines = Vec::new();
        if !self.output.terminal {
            let mut problems: Vec<_> = self.found.iter().filter(|check| is_problem(check)).collect();
            problems.sort_by_key(|check| std::cmp::Reverse(check.status));
            lines.extend(problems.into_iter().flat_map(|check| problem(check, self.output)));
        }
        if self.verbose {
            let rest: Vec<_> = self.found.iter().filter(|check| !is_problem(check)).collect();
            lines.extend(table(&rest, self.output));
        }
        lines.push(summary(&self.found, self.verbose, self.output));
        style::write_lines(lines)
    }

    fn clear_progress(&self) {
        if self.progress {
            let _ = write!(io::stderr(), "\r\x1b[2K");
            let _ = io::stderr().flush();
        }
    }
}

fn is_problem(check: &Check) -> bool {
    matches!(check.status, CheckStatus::Warn | CheckStatus::Fail)
}

fn word(check: &Check, output: Output) -> String {
    let (word, colour) = routes::status(check.status);
    output.paint(&format!("{word:4}"), colour)
}

/// A message may have several lines, such as the report on a configuration file.
fn message(check: &Check) -> impl Iterator<Item = String> {
    check.message.lines().map(|line| printable(line).into_owned())
}

/// A problem: its name, its message, its remedy.
fn problem(check: &Check, output: Output) -> Vec<String> {
    let room = output.width.unwrap_or(WIDTH).saturating_sub(INDENT).max(20);
    let mut lines = vec![format!("{}  {}", word(check, output), printable(&check.name))];
    // A line with white space in front shows a place in a file: its columns matter.
    let message = message(check).flat_map(|line| {
        if line.starts_with(' ') || line.contains("  ") { vec![line] } else { wrapped(&line, room).collect() }
    });
    lines.extend(message.map(|line| format!("{:INDENT$}{line}", "")));
    if let Some(remedy) = &check.remedy {
        let arrow = output.paint("->", Colour::Bold);
        let remedy = printable(remedy).into_owned();
        let before = |nth| if nth == 0 { arrow.as_str() } else { "  " };
        let wrapped = wrapped(&remedy, room.saturating_sub(3)).enumerate();
        lines.extend(wrapped.map(|(nth, line)| format!("{:INDENT$}{} {line}", "", before(nth))));
    }
    lines
}

/// Checks that need nothing, one line each where there is room.
fn table(checks: &[&Check], output: Output) -> Vec<String> {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let row = |check: &&Check| {
        let longest = message(check).map(|line| line.chars().count()).max().unwrap_or(0);
        if output.width.is_some_and(|room| INDENT + width + 2 + longest > room) {
            return problem(check, output);
        }
        let mut message = message(check);
        let first = message.next().unwrap_or_default();
        let mut lines = vec![format!("{}  {:width$}  {first}", word(check, output), check.name)];
        lines.extend(message.map(|line| format!("{:INDENT$}{:width$}  {line}", "", "")));
        lines
    };
    checks.iter().flat_map(row).collect()
}

fn summary(checks: &[Check], verbose: bool, output: Output) -> String {
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (failed, warned, skipped, fine) = (
        count(CheckStatus::Fail),
        count(CheckStatus::Warn),
        count(CheckStatus::Skip),
        count(CheckStatus::Ok),
    );
    let counted = |count: usize, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        many_of => Some(format!("{many_of} {many}")),
    };
    let parts = [
        counted(failed, "failure", "failures"),
        counted(warned, "warning", "warnings"),
        Some(format!("{fine} ok")),
        counted(skipped, "not examined", "not examined"),
    ];
    let parts = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let (verdict, colour) = match (failed, warned) {
        (0, 0) => ("all is well", Colour::Green),
        (0, _) => ("it works, but see above", Colour::Yellow),
        _ => ("something is broken", Colour::Red),
    };
    let fold = if verbose { "" } else { " (`edgectl doctor -v` lists them all)" };
    format!("{}: {parts}{fold}", output.paint(verdict, colour))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: Option<usize>) -> Output {
        Output { json: false, terminal: false, colours: false, width }
    }

    #[test]
    fn a_problem_fits_into_80_columns() {
        let check = Check::new("backend 10.0.0.2:443", CheckStatus::Fail, "10.0.0.2:443: Connection refused ".repeat(4).trim())
            .remedy("`ss -ltn sport = :443` at home must list 10.0.0.2 or a wildcard address: start the service there");
        let lines = problem(&check, plain(Some(80)));
        assert_eq!(lines[0], "fail  backend 10.0.0.2:443");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("      -> `ss")), "{lines:#?}");
    }

    #[test]
    fn a_line_sums_up() {
        use CheckStatus::{Fail, Ok, Skip, Warn};
        let check = |status| Check::new("x", status, "y");
        for (statuses, expected) in [
            (&[Ok, Ok, Skip][..], "all is well: 2 ok, 1 not examined (`edgectl doctor -v` lists them all)"),
            (&[Warn, Ok], "it works, but see above: 1 warning, 1 ok (`edgectl doctor -v` lists them all)"),
            (
                &[Fail, Fail, Warn],
                "something is broken: 2 failures, 1 warning, 0 ok (`edgectl doctor -v` lists them all)",
            ),
        ] {
            let checks: Vec<_> = statuses.iter().map(|&status| check(status)).collect();
            assert_eq!(summary(&checks, false, plain(None)), expected);
        }
    }

    #[test]
    fn control_characters_of_the_network_are_shown_as_escapes() {
        let check = Check::new("x", CheckStatus::Fail, "a\u{1b}[2Jb").remedy("c\u{7}d");
        assert!(problem(&check, plain(None)).iter().all(|line| !line.contains(char::is_control)));
    }
}
