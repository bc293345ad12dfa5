//! Whether requests in clear text are sent to https instead of home.

use serde::{Deserialize, Serialize};

/// `redirect` of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Redirect {
    /// They go where the route leads.
    #[default]
    Off,
    /// They are answered 308 with the https address, except for ACME challenges.
    Https,
}
