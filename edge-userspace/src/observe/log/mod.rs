//! The daemon's log: on standard error, as text or as JSON, with priorities where the journal reads it.

mod filter;
mod journal;

use std::{
    env,
    fmt::Display,
    io::{IsTerminal as _, stderr},
};

use tracing_subscriber::{
    Layer, fmt, layer::SubscriberExt as _, registry::LookupSpan, util::SubscriberInitExt as _,
};

use journal::Prioritised;

/// `EDGE_LOG`: what is written.
pub const LEVEL: &str = "EDGE_LOG";
/// `EDGE_LOG_FORMAT`: how it is written.
pub const FORMAT: &str = "EDGE_LOG_FORMAT";

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a setting of the environment is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// `EDGE_LOG` has a word that is no level.
    #[error(
        "{LEVEL}: {0:?} is no log level; write error, warn, info, debug, trace or off, and for a part of edge for \
         example \"info,edge::pool=debug\""
    )]
    Level(String),
    /// `EDGE_LOG_FORMAT` names no format.
    #[error("{FORMAT}: {0:?} is no format of the log; write text or json")]
    Format(String),
}

/// Starts the log as the environment variables [`LEVEL`] and [`FORMAT`] configure it.
///
/// # Errors
///
/// A setting is not understood. The log has not started then.
pub fn start() -> Result<(), LogError> {
    let setting = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let filter = filter::parse(setting(LEVEL).as_deref())?;
    let format = Format::parse(setting(FORMAT).as_deref())?;
    tracing_subscriber::registry().with(lines(format, journal::reads_stderr())).with(filter).init();
    Ok(())
}

/// Prints the error with which the daemon exits, whether or not the log has started.
pub fn give_up(error: &dyn Display) {
    let words = format!("edged: {error}");
    if journal::reads_stderr() {
        eprint!("{}", journal::prioritise(&words, tracing::Level::ERROR));
    } else {
        eprintln!("{words}");
    }
}

impl Format {
    fn parse(setting: Option<&str>) -> Result<Self, LogError> {
        match setting.map(str::trim).unwrap_or_default() {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.to_owned())),
        }
    }
}

fn lines<S>(format: Format, is_journal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    // A line that cannot be written (a full disk) is lost. To say so on the same stream would panic.
    let layer = fmt::layer().log_internal_errors(false).with_writer(stderr).with_target(false);
    match (format, is_journal) {
        (Format::Text, false) => layer.with_ansi(stderr().is_terminal()).boxed(),
        // The journal has the time, and shows colours by priority.
        (Format::Text, true) => layer.with_ansi(false).without_time().map_event_format(Prioritised).boxed(),
        (Format::Json, false) => layer.json().flatten_event(true).boxed(),
        (Format::Json, true) => layer.json().flatten_event(true).map_event_format(Prioritised).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_text_or_json_and_nothing_else() {
        for (setting, format) in [
            (None, Format::Text),
            (Some(""), Format::Text),
            (Some("text"), Format::Text),
            (Some("json"), Format::Json),
        ] {
            assert_eq!(Format::parse(setting), Ok(format), "{setting:?}");
        }
        let error = Format::parse(Some("JSON5")).unwrap_err().to_string();
        assert!(error.contains("EDGE_LOG_FORMAT") && error.contains("json"), "{error}");
    }
}
