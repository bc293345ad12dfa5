//! `EDGE_LOG`: what the daemon writes to its log.

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::LogError;

const DEFAULT: &str = "info";

/// Parses the setting; without one, or with an empty one, the level is `info`.
///
/// # Errors
///
/// A word is not a level. The filter would take it for the name of a program and suppress everything.
pub(super) fn parse(setting: Option<&str>) -> Result<EnvFilter, LogError> {
    let setting = setting.map(str::trim).filter(|setting| !setting.is_empty()).unwrap_or(DEFAULT);
    let wrong = |part: &str| LogError::Level(part.to_owned());
    for part in setting.split(',').map(str::trim) {
        let is_ours = part == "edge" || part.starts_with("edge::") || part.starts_with("edge[");
        // Directives with more than one word are left to the parser.
        if !is_ours && !part.contains(['=', '[', ']', '{', '}']) && part.parse::<LevelFilter>().is_err() {
            return Err(wrong(part));
        }
    }
    EnvFilter::builder().parse(setting).map_err(|_| wrong(setting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_parts_are_taken_and_other_words_are_not() {
        for setting in [
            None,
            Some(""),
            Some("debug"),
            Some("WARN"),
            Some("off"),
            Some("info,edge::pool=debug"),
            Some("edge::pool"),
        ] {
            parse(setting).unwrap_or_else(|error| panic!("{setting:?}: {error}"));
        }
        for setting in ["verbose", "info,verbos", "edge=loud", "deubg"] {
            let error = parse(Some(setting)).unwrap_err().to_string();
            assert!(error.contains("EDGE_LOG") && error.contains("debug"), "{error}");
        }
    }
}
