//! Steps of `cargo xtask test` beside unit tests and the lab.

pub(crate) mod dependencies;
pub(crate) mod documented;
pub(crate) mod emulated;
pub(crate) mod miri;
