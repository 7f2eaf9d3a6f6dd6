//! The tokens of JSON, with Go's words for what is wrong with them.

use super::DecodeError;
use std::borrow::Cow;

/// A position in a JSON text that is valid UTF-8.
pub(super) struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    pub pos: usize,
}

/// A number as it was written.
pub(super) struct Number<'a> {
    pub text: &'a str,
    pub integer: Option<i64>,
}

/// Shows a byte as Go's scanner does.
fn quoted(c: u8, text: &str, pos: usize) -> String {
    match c {
        b'\'' => r"'\''".into(),
        b'"' => "'\"'".into(),
        _ => match text.get(pos..).and_then(|t| t.chars().next()) {
            Some(ch) if (ch as u32) < 0x80 => {
                let escaped = match ch {
                    '\n' => "\\n".into(),
                    '\r' => "\\r".into(),
                    '\t' => "\\t".into(),
                    '\\' => "\\\\".into(),
                    c if c.is_ascii_control() => format!("\\x{:02x}", c as u32),
                    c => c.to_string(),
                };
                format!("'{escaped}'")
            }
            // Go looks at bytes and prints each as the character of that number.
            _ => format!("'{}'", c as char),
        },
    }
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Lexer {
            text,
            bytes: text.as_bytes(),
            pos: 0,
        }
    }
    #[cold]
    pub fn invalid<T>(&self, context: &str) -> Result<T, DecodeError> {
        Err(DecodeError(match self.bytes.get(self.pos) {
            Some(c) => format!("invalid character {} {context}", quoted(*c, self.text, self.pos)),
            None => "unexpected end of JSON input".into(),
        }))
    }
    /// The next byte that isn't white space, or 0 at the end.
    #[inline]
    pub fn peek(&mut self) -> u8 {
        loop {
            match self.bytes.get(self.pos) {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.pos += 1,
                Some(c) => return *c,
                None => return 0,
            }
        }
    }
    pub fn at_end(&mut self) -> bool {
        self.peek();
        self.pos >= self.bytes.len()
    }
    pub fn since(&self, start: usize) -> &'a str {
        &self.text[start..self.pos]
    }
    pub fn literal(&mut self, word: &str) -> Result<(), DecodeError> {
        for expected in word.bytes() {
            if self.bytes.get(self.pos) != Some(&expected) {
                return self.invalid(&format!("in literal {word} (expecting '{}')", expected as char));
            }
            self.pos += 1;
        }
        Ok(())
    }
    fn digits(&mut self) -> usize {
        let start = self.pos;
        while self.bytes.get(self.pos).is_some_and(u8::is_ascii_digit) {
            self.pos += 1;
        }
        self.pos - start
    }
    pub fn number(&mut self) -> Result<Number<'a>, DecodeError> {
        let start = self.pos;
        if self.bytes[self.pos] == b'-' {
            self.pos += 1;
        }
        match self.bytes.get(self.pos) {
            Some(b'0') => self.pos += 1,
            Some(b'1'..=b'9') => {
                self.digits();
            }
            _ => return self.invalid("in numeric literal"),
        }
        let mut integral = true;
        if self.bytes.get(self.pos) == Some(&b'.') {
            self.pos += 1;
            integral = false;
            if self.digits() == 0 {
                return self.invalid("after decimal point in numeric literal");
            }
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.pos) {
            self.pos += 1;
            integral = false;
            if let Some(b'+' | b'-') = self.bytes.get(self.pos) {
                self.pos += 1;
            }
            if self.digits() == 0 {
                return self.invalid("in exponent of numeric literal");
            }
        }
        let text = self.since(start);
        Ok(Number {
            text,
            integer: if integral { text.parse().ok() } else { None },
        })
    }
    /// A string, the opening quote being the next byte.
    #[inline]
    pub fn string(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        self.pos += 1;
        let start = self.pos;
        loop {
            match self.bytes.get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(Cow::Borrowed(&self.text[start..self.pos - 1]));
                }
                Some(b'\\') => return self.escaped(start).map(Cow::Owned),
                Some(c) if *c < 0x20 => return self.invalid("in string literal"),
                Some(_) => self.pos += 1,
                None => return self.invalid(""),
            }
        }
    }
    #[cold]
    fn escaped(&mut self, start: usize) -> Result<String, DecodeError> {
        let mut out = String::from(&self.text[start..self.pos]);
        loop {
            let run = self.pos;
            while self
                .bytes
                .get(self.pos)
                .is_some_and(|c| *c >= 0x20 && !matches!(c, b'"' | b'\\'))
            {
                self.pos += 1;
            }
            out.push_str(&self.text[run..self.pos]);
            match self.bytes.get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.pos += 1;
                    self.escape(&mut out)?;
                }
                _ => return self.invalid("in string literal"),
            }
        }
    }
    fn escape(&mut self, out: &mut String) -> Result<(), DecodeError> {
        let plain = match self.bytes.get(self.pos) {
            Some(c @ (b'"' | b'\\' | b'/')) => *c as char,
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.pos += 1;
                let unit = self.hex()?;
                out.push(self.surrogates(unit)?);
                return Ok(());
            }
            _ => return self.invalid("in string escape code"),
        };
        out.push(plain);
        self.pos += 1;
        Ok(())
    }
    fn hex(&mut self) -> Result<u32, DecodeError> {
        let mut unit = 0;
        for _ in 0..4 {
            match self.bytes.get(self.pos).and_then(|c| (*c as char).to_digit(16)) {
                Some(d) => unit = unit * 16 + d,
                None => return self.invalid("in \\u hexadecimal character escape"),
            }
            self.pos += 1;
        }
        Ok(unit)
    }
    /// A code point from a unit; a lone surrogate becomes the replacement character, as in Go.
    fn surrogates(&mut self, unit: u32) -> Result<char, DecodeError> {
        if (0xd800..0xdc00).contains(&unit) && self.bytes[self.pos..].starts_with(b"\\u") {
            let back = self.pos;
            self.pos += 2;
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                let point = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.pos = back;
        }
        Ok(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}
