//! Changes made at run time that must survive a restart: routes, drained backends, blocks.
//!
//! The state is kept as TOML with the `[[route]]` of the configuration, so that people can read and repair
//! it. This file defines the contents; [`StateStore`] keeps them.

mod problem;
mod store;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde::{Serialize, Serializer, ser::Error as _};
use toml::{de::DeValue, value::Datetime};

pub use problem::{Recovery, StateError};
pub use store::{Opened, StateStore};

use super::{
    document::{Document, Section},
    network::{backend_address, label, prefix},
    problem::ConfigError,
    tables,
    value::{Value, boolean, integer},
};
use crate::spec::{BackendAddress, RouteSpec};

/// The layout that is written. A larger one is refused: it may say what this version would lose.
const VERSION: u32 = 1;

/// The first lines of the file.
const HEAD: &str = "\
# What edgectl changed while edged ran: routes, drained backends and blocks. edged writes this file; change it only
# while edged is stopped, and keep the last line, which shows that nothing is cut off.
";

/// The last line of the file. A truncated TOML text is often still valid; the missing last line shows the
/// loss.
const END: &str = "# end";

/// Everything that is said at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// Routes, in the order in which they were added.
    #[serde(rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteSpec>,
    /// Backends that get no new connections.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drained: Vec<Drained>,
    /// Sources whose packets are dropped.
    #[serde(rename = "block", skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
}

/// A backend that gets no new connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Drained {
    /// The pool in which it is drained; `None` means every pool that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Arc<str>>,
    /// The backend as its pool writes it.
    pub to: BackendAddress,
}

/// A source whose packets are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Block {
    /// The addresses.
    pub cidr: IpNet,
    /// When it ends, kept to the second; `None` means never.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "utc")]
    pub until: Option<SystemTime>,
    /// Whether the operator wanted it whatever it cuts off.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

impl Block {
    /// Whether it has ended.
    pub fn has_ended(&self, now: SystemTime) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Why a text is no state that can be used.
#[derive(Debug)]
enum Unusable {
    /// Another layout, of a later version.
    Newer(u32),
    /// Cut off, or not what a state says.
    Broken(String),
}

impl State {
    fn to_text(&self) -> Result<String, toml::ser::Error> {
        #[derive(Serialize)]
        struct File<'s> {
            version: u32,
            #[serde(flatten)]
            state: &'s State,
        }
        Ok(format!("{HEAD}{}\n{END}\n", toml::to_string(&File { version: VERSION, state: self })?))
    }

    fn from_text(file: &str, text: &str) -> Result<Self, Unusable> {
        if !text.lines().any(|line| line.trim_end() == END) {
            let message =
                format!("its last line, `{END}`, is missing: the file is cut off or was edited without it");
            return Err(Unusable::Broken(message));
        }
        let mut version = None;
        let read = Document::read(file, text, |top| {
            version = top.required("version", "1", integer(1..=u32::MAX));
            Self {
                routes: tables::routes(top, None),
                drained: top.sections("drained", "[[drained]]", drained),
                blocks: top.sections("block", "[[block]]", block),
            }
        });
        match version {
            Some(newer) if newer > VERSION => Err(Unusable::Newer(newer)),
            _ => read.map_err(|error: ConfigError| Unusable::Broken(error.to_string())),
        }
    }
}

fn drained(table: &mut Section<'_>) -> Option<Drained> {
    let pool = table.optional("pool", label);
    let to = table
        .required("to", "\"100.64.0.2:443\"", |value| value.text_as("an address or a name", backend_address));
    Some(Drained { pool, to: to? })
}

fn block(table: &mut Section<'_>) -> Option<Block> {
    let cidr = table.required("cidr", "\"192.0.2.0/24\"", prefix);
    let until = table.optional("until", time);
    let forced = table.or("forced", false, boolean);
    Some(Block { cidr: cidr?, until, forced })
}

fn time(value: &Value<'_>) -> Option<SystemTime> {
    let time = match value.get() {
        DeValue::Datetime(time) => humantime::parse_rfc3339(&time.to_string()).ok(),
        _ => None,
    };
    time.or_else(|| value.expected("a time in UTC such as 2030-01-31T12:00:00Z"))
}

/// A time as TOML has it. Parts of a second are rounded up, so that no block ends early.
#[expect(clippy::ref_option, reason = "serde gives a reference to the field")]
fn utc<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(time) = time else { return serializer.serialize_none() };
    let since = time.duration_since(SystemTime::UNIX_EPOCH).map_err(S::Error::custom)?;
    let seconds = since.as_secs() + u64::from(since.subsec_nanos() != 0);
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(*time);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.parse::<Datetime>().map_err(S::Error::custom)?.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Settings, spec::Conditions};

    pub(super) fn state() -> State {
        let file = r#"
            [[route]]
            host = "*.example.com"
            to = "100.64.0.2"
            [[route]]
            host = "cloud.example.com"
            to = ["100.64.0.2:8443", "nas.ts.net:443"]
            listener = ["https"]
            alpn = ["acme-tls/1", "quote \" and \\"]
            from = ["10.0.0.0/8", "2001:db8::/32"]
            proxy_protocol = "v2"
            datapath = "flow"
        "#;
        State {
            routes: Settings::parse("edge.toml", file).unwrap().routes,
            drained: vec![
                Drained { pool: None, to: "100.64.0.2:443".parse().unwrap() },
                Drained { pool: Some("caddy".into()), to: "nas.ts.net".parse().unwrap() },
            ],
            blocks: vec![
                Block { cidr: "192.0.2.0/24".parse().unwrap(), until: None, forced: true },
                Block {
                    cidr: "2001:db8::/32".parse().unwrap(),
                    until: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)),
                    forced: false,
                },
            ],
        }
    }

    fn broken(text: &str) -> String {
        match State::from_text("state.toml", text) {
            Err(Unusable::Broken(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for state in [State::default(), state()] {
            let text = state.to_text().unwrap();
            assert_eq!(State::from_text("state.toml", &text).unwrap(), state, "{text}");
        }
    }

    #[test]
    fn the_file_reads_like_a_configuration() {
        let text = state().to_text().unwrap();
        let body = text.strip_prefix(HEAD).unwrap();
        assert_eq!(
            body,
            r#"version = 1

[[route]]
host = "*.example.com"
to = "100.64.0.2"

[[route]]
host = "cloud.example.com"
listener = ["https"]
alpn = ["acme-tls/1", 'quote " and \']
from = ["10.0.0.0/8", "2001:db8::/32"]
to = ["100.64.0.2:8443", "nas.ts.net:443"]
proxy_protocol = "v2"
datapath = "flow"

[[drained]]
to = "100.64.0.2:443"

[[drained]]
pool = "caddy"
to = "nas.ts.net"

[[block]]
cidr = "192.0.2.0/24"
forced = true

[[block]]
cidr = "2001:db8::/32"
until = 2030-03-17T17:46:40Z

# end
"#
        );
    }

    #[test]
    fn a_route_to_a_pool_that_is_gone_is_no_damage() {
        let mut state = state();
        let host = "a.test".parse().unwrap();
        state.routes[0].to = crate::spec::Target::One("a_pool_that_was".into());
        state.routes[0].conditions = Conditions { listeners: vec!["gone".into()], ..Conditions::of(host) };
        let text = state.to_text().unwrap();
        assert_eq!(State::from_text("state.toml", &text).unwrap(), state);
    }

    #[test]
    fn damage_is_told() {
        assert_eq!(
            broken("version = 1\n"),
            "its last line, `# end`, is missing: the file is cut off or was edited without it"
        );
        assert_eq!(
            broken(
                "[[route]]\nhots = \"a.test\"\nto = \"100.64.0.2\"\n[[block]]\ncidr = \"x\"\nuntil = 1\n# end"
            ),
            "state.toml:1:1: no `version` at the top of the file; add for example version = 1\n\
             state.toml:1:1: no `host` in [[route]]; add for example host = \"cloud.example.com\"\n\
             state.toml:2:1: unknown key `hots` in [[route]]; did you mean `host`?\n\
             state.toml:5:8: `cidr`: expected an address or a prefix such as \"192.0.2.0/24\" or \"2001:db8::/32\", \
             got \"x\"\n\
             state.toml:6:9: `until`: expected a time in UTC such as 2030-01-31T12:00:00Z, got 1"
        );
        assert!(matches!(
            State::from_text("state.toml", "version = 2\n[[unheard]]\n# end\n"),
            Err(Unusable::Newer(2))
        ));
    }

    #[test]
    fn a_block_ends_not_a_moment_early() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_millis(1_900_000_000_001);
        let block = Block { cidr: "192.0.2.1/32".parse().unwrap(), until: Some(until), forced: false };
        assert!(!block.has_ended(until - Duration::from_millis(1)));
        assert!(block.has_ended(until));
        let state = State { blocks: vec![block], ..State::default() };
        let read = State::from_text("state.toml", &state.to_text().unwrap()).unwrap();
        assert_eq!(read.blocks[0].until, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_001)));
    }
}
