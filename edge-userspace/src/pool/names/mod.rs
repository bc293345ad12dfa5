//! Backends that are given by name: [`lookups`] has a task for each name, [`resolve`] asks the name servers for what
//! [`search`] makes of it, and [`answers`] says what the answers come to.

mod answers;
mod lookups;
mod resolve;
mod search;

pub use lookups::Names;
pub use resolve::Resolver;
