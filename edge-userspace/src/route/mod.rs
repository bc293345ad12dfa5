//! Host, ALPN and source → route. Pure; the table is immutable and replaced as a whole.
//!
//! The table does not know what a target is: it returns the value that it was built with.

#![forbid(unsafe_code)]

mod explain;
mod table;

pub use explain::{Considered, Outcome, Outranked, Unmet};
pub use table::{Query, Rule, Table};
