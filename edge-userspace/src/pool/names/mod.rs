//! Backends that are given by name: [`lookups`] has a task for each name, [`resolve`] asks the name servers for what
//! [`search`] makes of it, and [`answers`] says what the answers come to. [`labels`] looks
//! up the names that depend on the client's, within the limits of [`desk`].

mod answers;
mod desk;
mod labels;
mod lookups;
mod resolve;
mod search;

pub(super) use labels::Labels;
pub use lookups::Names;
pub use resolve::Resolver;
