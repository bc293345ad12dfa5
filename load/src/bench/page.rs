//! `docs/benchmarks.md`, made from a run; handwritten text between the two marks stays.

use std::{
    fmt::{Result, Write},
    fs,
    path::Path,
};

use super::{
    record::Run,
    table::{BASES, Digits},
    trials::Metric,
};

const REMARKS_BEGIN: &str = "<!-- remarks: kept when this page is made again -->";
const REMARKS_END: &str = "<!-- /remarks -->";

const METHOD: &str = "\
Three hosts in network namespaces of one machine (client, edge, home) are joined by veth pairs. The edge runs one system
at a time. Each system is started afresh for each test, so that neither memory nor packet filters of the previous one
count. Every round runs every test on every system, one after the other, so that the compared runs are close in time. A
figure is the median of all rounds. *Spread* is half the distance between the extremes. A *ratio* is computed within
each round; the table shows the median of the rounds. Ratios apply to other machines, absolute figures do not.

- Clients and service (`load/`) use blocking sockets and one thread per stream, and share the processors with the edge.
  Real ones have processors of their own, so bulk data is discarded in the kernel where it arrives (`MSG_TRUNC`).
- Every connection begins with a real ClientHello; the edge routes it by the server name.
- `bulk-WAY-N`: N streams send as fast as they can, until the last byte has arrived.
- `ping`: 64 bytes and their echo on one connection. `beside-bulk`: the same beside four bulk streams.
- `connect-small`, `connect-pq`: 32 clients connect, send a ClientHello (X25519, or X25519MLKEM768 as browsers send it),
  read 1,200 bytes to the end and close. `handshake`: the same with a complete TLS 1.3 handshake by rustls.
- `idle`: connections that were answered once and then rest. Memory is the increase over the state before. The kernel's
  memory is that in the caches for sockets, files, epoll and connection tracking, including both ends.
- `work-instructions`, `work-calls`: one client after the other as in `connect-small`, with the edge under valgrind or
  strace. These are counts, which are the same on a busy machine. They are taken once, not in every round.
- The machine's processor time comes from `/proc/stat`, interrupts included. The edge's is the time charged to its
  processes, in ticks of 10 ms.
- Access logs are off for all systems.
";

/// Writes the page, with the remarks of the page that is there, and every sample beside it.
pub fn write(path: &Path, run: &Run) -> anyhow::Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, page(run, remarks(&old))?)?;
    Ok(fs::write(path.with_extension("json"), serde_json::to_string(run)? + "\n")?)
}

/// The handwritten text.
fn remarks(page: &str) -> &str {
    let between = page.split_once(REMARKS_BEGIN).and_then(|(_, rest)| rest.split_once(REMARKS_END));
    between.map_or("\n", |(remarks, _)| remarks)
}

fn page(run: &Run, remarks: &str) -> std::result::Result<String, std::fmt::Error> {
    let mut page = String::new();
    let out = &mut page;
    write!(
        out,
        "# Benchmarks\n\nMade by `cargo xtask {}` from its saved run, whose samples are in `benchmarks.json`; not edited by \
         hand but for the remarks. `cargo xtask bench --from docs/benchmarks.json` shows the run, `--against` compares.\n",
        run.command
    )?;
    write!(
        out,
        "\n## Remarks\n\n{REMARKS_BEGIN}{remarks}{REMARKS_END}\n\n## Method\n\n{METHOD}\n## Machine\n\n"
    )?;
    let machine = &run.machine;
    writeln!(out, "- {}", machine.describe())?;
    writeln!(out, "- congestion control on all hosts: {}", machine.congestion_control)?;
    writeln!(
        out,
        "- load average before the run: {:.1} (a quiet machine has less than 0.5)",
        machine.load_before
    )?;
    writeln!(
        out,
        "- {}, {} rounds of {} ms each; {} idle connections",
        run.began, run.rounds, run.effort.millis, run.effort.idle
    )?;
    writeln!(out, "- commit {}", machine.commit)?;
    write!(out, "\n## Systems\n\n| name | what it is | version |\n| --- | --- | --- |\n")?;
    for system in &run.systems {
        let version = system.version.as_deref().unwrap_or("–");
        writeln!(out, "| `{}` | {} | {version} |", system.name, system.about)?;
    }
    for (name, reason) in &run.skipped {
        writeln!(out, "| `{name}` | not measured: {reason} | – |")?;
    }
    write!(out, "\n## Figures\n")?;
    for trial in &run.trials {
        figures(out, run, trial)?;
    }
    if !run.failures.is_empty() {
        write!(out, "\n### Not got through\n\n")?;
        for failure in &run.failures {
            let reason = failure.reason.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(out, "- `{}`, `{}`, round {}: {reason}", failure.system, failure.trial, failure.round)?;
        }
    }
    write!(out, "\n## Configurations\n")?;
    for system in &run.systems {
        write!(out, "\n### {}\n\n```\n{}\n```\n", system.name, system.configuration.trim_end())?;
    }
    Ok(page)
}

fn figures(out: &mut String, run: &Run, trial: &str) -> Result {
    write!(out, "\n### {trial}\n\n| system |")?;
    let metrics: Vec<Metric> = run
        .metrics(trial)
        .into_iter()
        .filter(|&metric| metric != Metric::Failed || any_failed(run, trial))
        .collect();
    for metric in &metrics {
        write!(out, " {} ({}) | ", metric.label(), metric.unit())?;
        write!(out, "{} |", BASES.map(|base| format!("×{base}")).join(" | "))?;
    }
    write!(out, "\n| --- |{}\n", " ---: |".repeat(metrics.len() * (1 + BASES.len())))?;
    for system in &run.systems {
        write!(out, "| `{}` |", system.name)?;
        for &metric in &metrics {
            match run.summary(&system.name, trial, metric) {
                Some(summary) => {
                    write!(out, " {} ± {:.0} % |", Digits(summary.median), summary.spread() * 100.0)?;
                }
                None => write!(out, " – |")?,
            }
            for base in BASES {
                match run.ratio(&system.name, base, trial, metric) {
                    Some(ratio) => write!(out, " {:.2} |", ratio.median)?,
                    None => write!(out, " – |")?,
                }
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn any_failed(run: &Run, trial: &str) -> bool {
    run.samples
        .iter()
        .any(|sample| sample.trial == trial && sample.metric == Metric::Failed && sample.value > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_survive() {
        let page = format!("# Benchmarks\n{REMARKS_BEGIN}\nA cold day.\n{REMARKS_END}\nrest");
        assert_eq!(remarks(&page), "\nA cold day.\n");
        assert_eq!(remarks("nothing"), "\n");
    }
}
