//! Where the words go, and in which colours.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

/// A colour by what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    /// As it should be.
    Green,
    /// Look at this.
    Yellow,
    /// Broken.
    Red,
    /// Of less weight.
    Dim,
    /// Of more weight.
    Bold,
}

/// The text in a colour (ECMA-48 SGR).
pub(super) fn paint(text: &str, colour: Option<Colour>) -> String {
    let code = match colour {
        None => return text.to_owned(),
        Some(Colour::Green) => 32,
        Some(Colour::Yellow) => 33,
        Some(Colour::Red) => 31,
        Some(Colour::Dim) => 2,
        Some(Colour::Bold) => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// The text without control sequences for the terminal: parts of the output come from the network.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) { text.escape_debug().to_string().into() } else { text.into() }
}

/// How standard output is to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// The API's JSON instead of text.
    pub(super) json: bool,
    /// Standard output is a terminal.
    pub(super) terminal: bool,
    /// Colours are wanted (<https://no-color.org>).
    pub(super) colours: bool,
    /// How many characters a line of the terminal has; `None` where there is none to fit into.
    pub(super) width: Option<usize>,
}

impl Output {
    /// The style for this process's terminal and environment.
    pub(super) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        Self { json, terminal, colours: terminal && !unwanted, width }
    }

    /// Text in a colour, where colours are wanted.
    pub(super) fn paint(self, text: &str, colour: Colour) -> String {
        paint(text, self.colours.then_some(colour))
    }
}

/// Writes lines to standard output.
pub(super) fn write_lines<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> io::Result<()> {
    let mut text = String::new();
    for line in lines {
        text.extend([line.as_ref(), "\n"]);
    }
    write(text.as_bytes())
}

/// Writes bytes to standard output as they are.
pub(super) fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
