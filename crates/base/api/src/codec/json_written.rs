//! Whether a JSON text is already the one that we would write for its value: then it can be handed on as it is.
//!
//! Doubt is a no: the caller then reads and writes it.

/// `Some`: it is, and whether its value is a zero one in Go's meaning (see `omitzero`).
pub(super) fn as_we_write(text: &[u8]) -> Option<bool> {
    std::str::from_utf8(text).ok()?;
    let mut scan = Scan { text, at: 0 };
    let zero = scan.value(0)?;
    (scan.at == text.len()).then_some(zero)
}

/// Deeper ones are read properly.
const DEEPEST: usize = 64;
/// Longer numbers may be written in another way.
const DIGITS: usize = 15;

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }
    fn literal(&mut self, text: &str, zero: bool) -> Option<bool> {
        self.text[self.at..].starts_with(text.as_bytes()).then(|| {
            self.at += text.len();
            zero
        })
    }

    fn value(&mut self, depth: usize) -> Option<bool> {
        if depth > DEEPEST {
            return None;
        }
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string().map(<[u8]>::is_empty),
            b'n' => self.literal("null", true),
            b't' => self.literal("true", false),
            b'f' => self.literal("false", true),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<bool> {
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(true);
        }
        let mut zero = true;
        let mut before: Option<&[u8]> = None;
        loop {
            let key = self.string()?;
            if before.is_some_and(|before| !stands_before(before, key)) {
                return None;
            }
            before = Some(key);
            self.take(b':')?;
            zero &= self.value(depth + 1)?;
            if self.take(b',').is_none() {
                self.take(b'}')?;
                return Some(zero);
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<bool> {
        self.take(b'[')?;
        if self.take(b']').is_some() {
            return Some(true);
        }
        loop {
            self.value(depth + 1)?;
            if self.take(b',').is_none() {
                self.take(b']')?;
                return Some(false);
            }
        }
    }

    /// What stands between the quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(&self.text[start..self.at - 1]);
                }
                b'\\' => match self.text.get(self.at + 1)? {
                    b'"' | b'\\' | b'n' | b'r' | b't' => self.at += 2,
                    _ => return None,
                },
                // Line separators begin with this one; so do many others.
                0..0x20 | b'<' | b'>' | b'&' | 0xe2 => return None,
                _ => self.at += 1,
            }
        }
    }

    fn number(&mut self) -> Option<bool> {
        let negative = self.take(b'-').is_some();
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        let digits = &self.text[start..self.at];
        match digits {
            b"0" => (!negative).then_some(true),
            [b'1'..=b'9', ..] if digits.len() <= DIGITS => Some(false),
            _ => None,
        }
    }
}

/// Whether two keys, as written, are in order by what they mean.
fn stands_before(a: &[u8], b: &[u8]) -> bool {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    // They may differ in the second half of an escape.
    let escapes = a[..same].iter().rev().take_while(|b| **b == b'\\').count();
    let at = same - escapes % 2;
    match (meant(&a[at..]), meant(&b[at..])) {
        (None, Some(_)) => true,
        (Some(x), Some(y)) => x < y,
        _ => false,
    }
}

/// The first byte that is meant. Only escapes that [`Scan::string`] takes come here.
fn meant(text: &[u8]) -> Option<u8> {
    match text {
        [b'\\', b'n', ..] => Some(b'\n'),
        [b'\\', b'r', ..] => Some(b'\r'),
        [b'\\', b't', ..] => Some(b'\t'),
        [b'\\', other, ..] => Some(*other),
        text => text.first().copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Strictness, json};

    /// What is taken as it stands must be what reading and writing gives.
    #[test]
    fn only_what_would_be_written_so_is_taken_as_it_stands() {
        let taken = [
            r#"{}"#,
            r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{}},"k:{\"name\":\"b\"}":{}}}}"#,
            r#"{"a":[1,-20,0,"x\n\\",true,null],"b":999999999999999,"é":"ü"}"#,
            r#"{"a\n":1,"a\"":1,"a\"b":1,"a#":1,"a[":1,"a\\":1,"a]":1}"#,
            r#"{"k:{\"name\":\"V_1\"}":{},"k:{\"name\":\"V_10\"}":{},"k:{\"name\":\"V_2\"}":{}}"#,
            "null",
            r#""""#,
        ];
        for text in taken {
            let value = json::decode(text.as_bytes(), None, Strictness::Lenient).unwrap().value;
            assert!(as_we_write(text.as_bytes()).is_some(), "{text}");
            assert_eq!(String::from_utf8(json::encode(&value)).unwrap(), text);
        }
        assert_eq!(as_we_write(br#"{"a":{},"b":""}"#), Some(true));
        assert_eq!(as_we_write(br#"{"a":{},"b":"x"}"#), Some(false));
        for text in [
            r#"{"b":1,"a":1}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a": 1}"#,
            r#"{"a":1.0}"#,
            r#"{"a":-0}"#,
            r#"{"a":01}"#,
            r#"{"a":1e3}"#,
            r#"{"a":12345678901234567890}"#,
            r#"{"a":"<"}"#,
            r#"{"a":"\u0041"}"#,
            r#"{"a":"\/"}"#,
            "{\"a\":\"\u{2028}\"}",
            r#"{"a":1}x"#,
            r#"{"a#":1,"a\"":1}"#,
            r#"{"a\\":1,"a\"":1}"#,
            r#"{"aX":1,"a\n":1}"#,
            r#"{"a":1"#,
            r#"{"a":1,}"#,
            "",
            "nul",
        ] {
            assert_eq!(as_we_write(text.as_bytes()), None, "{text}");
        }
        assert_eq!(as_we_write(b"{\"a\":\"\xff\"}"), None);
        assert_eq!(as_we_write("[".repeat(100).as_bytes()), None);
    }
}
