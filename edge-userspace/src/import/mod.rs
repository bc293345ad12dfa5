//! `edgectl import`: configurations of HAProxy, nginx, sniproxy and Traefik → a configuration of edge, and a list of what
//! has no translation.
//!
//! Each format has a reader: text → [`model`]. What follows is the same for all: `assemble` makes listeners, pools and
//! routes of it, `draft` writes them, and the text is accepted only if [`Settings::parse`] accepts it.

#![forbid(unsafe_code)]

mod assemble;
mod draft;
mod files;
mod guess;
mod haproxy;
mod model;
mod nginx;
mod pattern;
mod sniproxy;
#[cfg(test)]
mod tests;
mod traefik;

pub use files::{Disk, Files, read_text};
pub use guess::Format;
pub use model::Untranslated;

use crate::config::{ConfigError, Settings};

/// A file that is translated.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name, for messages.
    pub name: String,
    /// Its contents.
    pub text: String,
}

/// A translation.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The format that was read.
    pub format: Format,
    /// The configuration; edge accepts it.
    pub text: String,
    /// Whether it leads any client anywhere.
    pub serves: bool,
    /// The losses, in the order of the files.
    pub untranslated: Vec<Untranslated>,
}

/// Why there is no translation.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The contents are of no format that is known.
    #[error(
        "not recognised as haproxy.cfg, nginx.conf, sniproxy.conf or a configuration of Traefik; --format names one"
    )]
    Unknown,
    /// The file is damaged, or larger than it may be.
    #[error("{place}: {message}")]
    Malformed {
        /// File and line.
        place: String,
        /// The damage.
        message: String,
    },
    /// The translation is no configuration. A fault of this program.
    #[error("the translation is not valid, which is a fault of edgectl; please report it with the file\n{0}")]
    Invalid(#[from] ConfigError),
}

impl Failure {
    fn at(place: &model::Place, message: impl Into<String>) -> Self {
        Self::Malformed { place: place.to_string(), message: message.into() }
    }
}

/// Translates files that belong together; `format` where the contents do not tell.
///
/// # Errors
///
/// The format is not known, or a file is damaged.
pub fn import(sources: &[Source], format: Option<Format>, files: &dyn Files) -> Result<Imported, Failure> {
    let guessed = || sources.iter().find_map(|source| Format::guess(&source.text));
    let format = format.or_else(guessed).ok_or(Failure::Unknown)?;
    let mut model = model::Model::default();
    match format {
        Format::Haproxy => haproxy::read(sources, files, &mut model),
        Format::Nginx => nginx::read(sources, files, &mut model)?,
        Format::Sniproxy => sniproxy::read(sources, &mut model)?,
        Format::Traefik => traefik::read(sources, &mut model)?,
    }
    let draft = assemble::assemble(&mut model);
    let names: Vec<_> = sources.iter().map(|source| source.name.as_str()).collect();
    let mut heading = format!(
        "Translated by `edgectl import` from {}. Behind each table stands its line there.",
        names.join(", ")
    );
    if draft.is_empty() {
        heading.push_str("\nNothing in it leads a client anywhere that edge can.");
    }
    let text = draft.text(&heading);
    Settings::parse("edge.toml", &text)?;
    let mut untranslated = model.lost;
    let order: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
    untranslated.sort_by_key(|lost| {
        (
            order.iter().position(|name| *name == lost.file).unwrap_or(order.len()),
            lost.file.clone(),
            lost.line,
        )
    });
    untranslated.dedup();
    Ok(Imported { format, text, serves: !draft.is_empty(), untranslated })
}
