//! Where the words go, and in which colours.

use std::{
    borrow::Cow,
    ffi::OsString,
    io::{self, IsTerminal, Write},
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use clap::ValueEnum;

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

impl Colour {
    const fn style(self) -> Style {
        match self {
            Self::Green => AnsiColor::Green.on_default(),
            Self::Yellow => AnsiColor::Yellow.on_default(),
            Self::Red => AnsiColor::Red.on_default(),
            Self::Dim => Style::new().dimmed(),
            Self::Bold => Style::new().bold(),
        }
    }
}

/// When the output is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ColourArg {
    /// On a terminal that can, unless `NO_COLOR` is set; elsewhere with `CLICOLOR_FORCE`
    #[default]
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

impl ColourArg {
    /// The choice of a command line, also of one that clap refuses: its error has colours too.
    pub(super) fn find(arguments: &[OsString]) -> Self {
        let mut texts = arguments.iter().filter_map(|argument| argument.to_str());
        let mut found = Self::default();
        while let Some(text) = texts.next() {
            let value = match text.strip_prefix("--color") {
                Some("") => texts.next(),
                Some(rest) => rest.strip_prefix('='),
                None if text == "--" => break,
                None => None,
            };
            found = value.and_then(|value| Self::from_str(value, false).ok()).unwrap_or(found);
        }
        found
    }

    /// Makes it the rule for everything that this process writes, clap's help and errors included.
    pub(super) fn apply(self) {
        let choice = match self {
            Self::Auto => ColorChoice::Auto,
            Self::Always => ColorChoice::Always,
            Self::Never => ColorChoice::Never,
        };
        choice.write_global();
    }
}

/// The text in a colour (ECMA-48 SGR).
pub(super) fn paint(text: &str, colour: Option<Colour>) -> String {
    match colour {
        None => text.to_owned(),
        Some(colour) => {
            let style = colour.style();
            format!("{style}{text}{style:#}")
        }
    }
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
    /// Colours are wanted: `--color`, and the rules of anstream for a terminal and its environment (`NO_COLOR`,
    /// `CLICOLOR`, `CLICOLOR_FORCE`, `TERM=dumb`).
    pub(super) colours: bool,
    /// How many characters a line of the terminal has; `None` where there is none to fit into.
    pub(super) width: Option<usize>,
}

impl Output {
    /// The style for this process's terminal and environment.
    pub(super) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let colours = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        Self { json, terminal, colours, width }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_searched_for_the_choice() {
        let found = |line: &str| ColourArg::find(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(found("edgectl routes list"), ColourArg::Auto);
        assert_eq!(found("edgectl --color=always routes"), ColourArg::Always);
        assert_eq!(found("edgectl routes list --color never"), ColourArg::Never);
        assert_eq!(found("edgectl --color sometimes"), ColourArg::Auto);
        assert_eq!(found("edgectl --color"), ColourArg::Auto);
    }

    #[test]
    fn a_colour_ends_with_its_text() {
        assert_eq!(paint("x", Some(Colour::Red)), "\x1b[31mx\x1b[0m");
        assert_eq!(paint("x", None), "x");
    }
}
