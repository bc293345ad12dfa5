//! nginx.conf as a tree of directives: words, quotes, comments, blocks and includes.

use std::{iter::Peekable, str::Chars, sync::Arc};

use crate::import::{
    Failure, Files,
    model::{Model, Place},
};

/// The deepest nesting of blocks and includes together.
const DEEPEST: usize = 24;
/// The most directives, those of included files among them.
const MOST: usize = 200_000;
/// The most files.
const MOST_FILES: usize = 1000;

/// A directive, with the block that may follow it.
#[derive(Clone, Debug)]
pub(super) struct Directive {
    pub(super) place: Place,
    /// Its name first; never empty.
    pub(super) words: Vec<String>,
    pub(super) block: Option<Vec<Directive>>,
}

impl Directive {
    pub(super) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    pub(super) fn text(&self) -> String {
        self.words.join(" ")
    }
}

/// Reads files with what they include.
pub(super) struct Reader<'r> {
    pub(super) files: &'r dyn Files,
    pub(super) model: &'r mut Model,
    pub(super) directives: usize,
    pub(super) included: usize,
}

enum Token {
    Word(String),
    Open,
    Close,
    End,
}

struct Lexer<'t> {
    characters: Peekable<Chars<'t>>,
    line: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<Token> {
        loop {
            let character = self.bump()?;
            match character {
                '{' => return Some(Token::Open),
                '}' => return Some(Token::Close),
                ';' => return Some(Token::End),
                '#' => while self.characters.next_if(|next| *next != '\n').is_some() {},
                '"' | '\'' => return Some(Token::Word(self.quoted(character))),
                _ if character.is_whitespace() => {}
                _ => return Some(Token::Word(self.bare(character))),
            }
        }
    }

    fn bump(&mut self) -> Option<char> {
        let character = self.characters.next()?;
        self.line += usize::from(character == '\n');
        Some(character)
    }

    fn quoted(&mut self, quote: char) -> String {
        let mut word = String::new();
        while let Some(character) = self.bump() {
            match character {
                _ if character == quote => break,
                '\\' => match self.bump() {
                    Some(escaped @ ('"' | '\'' | '\\')) => word.push(escaped),
                    Some(other) => word.extend(['\\', other]),
                    None => {}
                },
                _ => word.push(character),
            }
        }
        word
    }

    /// A word without quotes. `${name}` and the braces of a regular expression's `{2}` belong to it.
    fn bare(&mut self, first: char) -> String {
        let mut word = String::from(first);
        while let Some(next) = self.characters.peek().copied() {
            match next {
                '{' if word.ends_with('$') => {}
                '{' | ';' => break,
                '}' if !word.contains("${") => break,
                _ if next.is_whitespace() => break,
                _ => {}
            }
            self.bump();
            word.push(next);
            if next == '\\' {
                word.extend(self.bump());
            }
        }
        word
    }
}

impl Reader<'_> {
    pub(super) fn text(&mut self, name: &str, text: &str, depth: usize) -> Result<Vec<Directive>, Failure> {
        let mut lexer = Lexer { characters: text.chars().peekable(), line: 1 };
        let file = Arc::from(name);
        let (directives, closed) = self.block(&mut lexer, &file, depth)?;
        if closed {
            return Err(Failure::at(&Place::new(&file, lexer.line), "a `}` without its `{`"));
        }
        Ok(directives)
    }

    /// Directives up to the closing brace (`true`) or the end of the file.
    fn block(
        &mut self,
        lexer: &mut Lexer<'_>,
        file: &Arc<str>,
        depth: usize,
    ) -> Result<(Vec<Directive>, bool), Failure> {
        let mut directives = Vec::new();
        let mut words: Vec<String> = Vec::new();
        let mut line = lexer.line;
        loop {
            let token = lexer.next();
            let place = || Place::new(file, line);
            match token {
                Some(Token::Word(word)) => {
                    if words.is_empty() {
                        line = lexer.line;
                    }
                    words.push(word);
                }
                Some(Token::End) if words.is_empty() => {}
                Some(Token::End) => {
                    self.count(&place())?;
                    let directive =
                        Directive { place: place(), words: std::mem::take(&mut words), block: None };
                    match &*directive.words {
                        [include, pattern] if include == "include" => {
                            directives.extend(self.include(pattern, &directive.place, depth)?);
                        }
                        _ => directives.push(directive),
                    }
                }
                Some(Token::Open) => {
                    self.count(&place())?;
                    if depth >= DEEPEST {
                        return Err(Failure::at(&place(), "blocks are nested too deeply"));
                    }
                    let (block, closed) = self.block(lexer, file, depth + 1)?;
                    if !closed {
                        return Err(Failure::at(&place(), "the block has no `}`"));
                    }
                    if words.is_empty() {
                        return Err(Failure::at(&place(), "a block without a name"));
                    }
                    directives.push(Directive {
                        place: place(),
                        words: std::mem::take(&mut words),
                        block: Some(block),
                    });
                }
                Some(Token::Close) | None => {
                    if !words.is_empty() {
                        return Err(Failure::at(&place(), "the directive has no `;`"));
                    }
                    return Ok((directives, token.is_some()));
                }
            }
        }
    }

    fn count(&mut self, place: &Place) -> Result<(), Failure> {
        self.directives += 1;
        if self.directives > MOST { Err(Failure::at(place, "too many directives")) } else { Ok(()) }
    }

    fn include(&mut self, pattern: &str, place: &Place, depth: usize) -> Result<Vec<Directive>, Failure> {
        if depth >= DEEPEST {
            return Err(Failure::at(place, "includes are nested too deeply"));
        }
        let mut directives = Vec::new();
        for name in self.files.list(pattern) {
            self.included += 1;
            if self.included > MOST_FILES {
                return Err(Failure::at(place, "too many included files"));
            }
            match self.files.read(&name) {
                Ok(text) => directives.extend(self.text(&name, &text, depth + 1)?),
                // Types, parameters and modules of the web server.
                Err(_)
                    if ["mime.types", "_params", "modules-enabled"]
                        .iter()
                        .any(|part| name.contains(part)) => {}
                Err(error) => {
                    let why = format!("{name} cannot be read: {error}; copy it beside this file");
                    self.model.lose(place, format!("include {pattern}"), why);
                }
            }
        }
        Ok(directives)
    }
}
