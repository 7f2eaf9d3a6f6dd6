//! What others wrote, on a terminal: colours are obeyed; whatever else a terminal would obey, which may move, rename or answer, is shown
//! in place of it. Where the output is no terminal, every byte passes as it came.

use anyhow::Context;
use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};

/// As a shell tells of whoever nobody listens to any more.
pub const UNREAD: u8 = 141;

const ESCAPE: u8 = 0x1b;
/// With it begin the controls of Latin-1 as UTF-8 has them.
const LATIN: u8 = 0xc2;
/// A longer one is no colour.
const LONGEST: usize = 32;
const UNSHOWN: &[u8] = "\u{fffd}".as_bytes();
const NO_COLOUR: &[u8] = b"\x1b[m";

/// Goes on from piece to piece.
pub struct Plain {
    is_terminal: bool,
    /// How a sequence begins whose end isn't known yet.
    begun: Vec<u8>,
    is_coloured: bool,
}

impl Plain {
    pub fn on(out: &impl IsTerminal) -> Plain {
        Plain::new(out.is_terminal())
    }

    fn new(is_terminal: bool) -> Plain {
        Plain {
            is_terminal,
            begun: Vec::new(),
            is_coloured: false,
        }
    }

    pub fn piece<'a>(&mut self, piece: &'a [u8]) -> Cow<'a, [u8]> {
        if !self.is_terminal {
            return Cow::Borrowed(piece);
        }
        let mut out = Vec::with_capacity(piece.len());
        piece.iter().for_each(|byte| self.take(*byte, &mut out));
        Cow::Owned(out)
    }

    /// What is left when nothing more comes; what follows has its own colour again.
    pub fn end(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.show(&mut out);
        if self.is_coloured {
            out.extend_from_slice(NO_COLOUR);
        }
        out
    }

    fn take(&mut self, byte: u8, out: &mut Vec<u8>) {
        match (self.begun.as_slice(), byte) {
            ([], ESCAPE | LATIN) | ([ESCAPE], b'[') => self.begun.push(byte),
            ([], b'\n' | b'\r' | b'\t') => out.push(byte),
            ([], 0..0x20 | 0x7f) => out.extend_from_slice(&[b'^', byte ^ 0x40]),
            ([], _) => out.push(byte),
            ([LATIN], 0x80..0xa0) => {
                self.begun.clear();
                out.extend_from_slice(UNSHOWN);
            }
            ([ESCAPE, b'[', ..], b'0'..=b'9' | b';' | b':') if self.begun.len() < LONGEST => self.begun.push(byte),
            ([ESCAPE, b'[', ..], b'm') => {
                out.append(&mut self.begun);
                out.push(byte);
                self.is_coloured = true;
            }
            _ => {
                self.show(out);
                self.take(byte, out);
            }
        }
    }

    /// It is no colour.
    fn show(&mut self, out: &mut Vec<u8>) {
        match self.begun.split_first() {
            Some((&ESCAPE, rest)) => {
                out.extend_from_slice(b"^[");
                out.extend_from_slice(rest);
            }
            _ => out.extend_from_slice(&self.begun),
        }
        self.begun.clear();
    }
}

/// Writes a piece of a log to the output. `false`: nobody reads it any more.
pub fn show(piece: &[u8]) -> anyhow::Result<bool> {
    let mut out = std::io::stdout();
    match out.write_all(piece).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.context("the log can't be shown").map(|()| true),
    }
}

/// A line of a table: nothing in it is for the terminal.
pub fn line(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' | '\n' | '\r' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let mut plain = Plain::new(true);
        let mut out: Vec<u8> = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&plain.piece(piece));
        }
        out.extend(plain.end());
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn colours_pass_and_nothing_else_is_obeyed() {
        for (given, expected) in [
            ("one\ttwo\r\n", "one\ttwo\r\n"),
            ("grün – 日本", "grün – 日本"),
            ("\x1b[1;31mred", "\x1b[1;31mred\x1b[m"),
            ("\x1b]0;title\x07", "^[]0;title^G"),
            ("\x1b]52;c;cm0gLXJm\x07", "^[]52;c;cm0gLXJm^G"),
            ("\x1b[2J\x1b[H", "^[[2J^[[H"),
            ("\x1b[6n\x1bc\x08\x7f", "^[[6n^[c^H^?"),
            ("\u{9b}2J", "\u{fffd}2J"),
            ("\x1b\x1b[0m", "^[\x1b[0m\x1b[m"),
            ("end\x1b[3", "end^[[3"),
        ] {
            assert_eq!(shown(&[given.as_bytes()]), expected, "{given:?}");
            // Wherever it is cut.
            for at in 0..given.len() {
                let (a, b) = given.as_bytes().split_at(at);
                assert_eq!(shown(&[a, b]), expected, "{given:?} at {at}");
            }
        }
        let long = format!("\x1b[{}m", "1;".repeat(LONGEST));
        assert!(shown(&[long.as_bytes()]).starts_with("^[[1;"));
    }

    #[test]
    fn what_is_no_terminal_gets_every_byte() {
        let mut plain = Plain::new(false);
        assert_eq!(&*plain.piece(b"\x1b[2J\xff\x1b"), b"\x1b[2J\xff\x1b");
        assert!(plain.end().is_empty());
    }

    #[test]
    fn a_cell_is_one_line_of_text() {
        assert_eq!(line("a\x1b[31m\nb\u{9b}c"), "a\u{fffd}[31m b\u{fffd}c");
    }
}
