//! Priorities for systemd's journal: a number before each line (`sd-daemon(3)`, `SyslogLevelPrefix=`).

use std::{env, fs, io::IsTerminal as _, os::unix::fs::MetadataExt as _};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Whether standard error leads to the journal: `JOURNAL_STREAM` names its device and inode (`systemd.exec(5)`). The
/// variable alone says little, since children whose streams are redirected inherit it.
pub(super) fn reads_stderr() -> bool {
    if std::io::stderr().is_terminal() {
        return false;
    }
    let (Ok(named), Ok(stream)) = (env::var("JOURNAL_STREAM"), fs::metadata("/proc/self/fd/2")) else {
        return false;
    };
    named == format!("{}:{}", stream.dev(), stream.ino())
}

/// A format whose lines begin with their priority.
pub(super) struct Prioritised<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        writer.write_str(&prioritise(&text, *event.metadata().level()))
    }
}

/// The text with a priority before each of its lines: to the journal each is a message of its own.
pub(super) fn prioritise(text: &str, level: Level) -> String {
    let priority = priority(level);
    text.lines().flat_map(|line| ["<", priority, ">", line, "\n"]).collect()
}

/// The priority of a level, as `syslog(3)` numbers them.
const fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_message_has_its_priority() {
        assert_eq!(prioritise("one\n  two\n", Level::WARN), "<4>one\n<4>  two\n");
        assert_eq!(prioritise("one", Level::ERROR), "<3>one\n");
        assert_eq!(prioritise("", Level::INFO), "");
    }
}
