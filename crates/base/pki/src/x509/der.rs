//! DER, read strictly and written: tags of one byte, lengths of up to four bytes in their shortest form.
//!
//! What an encoder may choose is refused here, as Go's `cryptobyte` does; readers that repair input see other values in it
//! than those that don't. Knows nothing of certificates.

pub const BOOLEAN: u8 = 0x01;
pub const INTEGER: u8 = 0x02;
pub const BIT_STRING: u8 = 0x03;
pub const OCTET_STRING: u8 = 0x04;
pub const NULL: u8 = 0x05;
pub const OBJECT_IDENTIFIER: u8 = 0x06;
pub const UTF8_STRING: u8 = 0x0c;
pub const NUMERIC_STRING: u8 = 0x12;
pub const PRINTABLE_STRING: u8 = 0x13;
pub const T61_STRING: u8 = 0x14;
pub const IA5_STRING: u8 = 0x16;
pub const UTC_TIME: u8 = 0x17;
pub const GENERALIZED_TIME: u8 = 0x18;
pub const BMP_STRING: u8 = 0x1e;
pub const SEQUENCE: u8 = 0x30;
pub const SET: u8 = 0x31;

/// The tag `[n]` of a primitive value.
pub const fn context(n: u8) -> u8 {
    0x80 | n
}
/// The tag `[n]` around other values.
pub const fn constructed(n: u8) -> u8 {
    0xa0 | n
}

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    pub tag: u8,
    pub value: &'a [u8],
    /// With tag and length.
    pub raw: &'a [u8],
}

/// What is left to read. `None` means that the bytes are not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn peek(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    pub fn any(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, _) = rest.split_first()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, header) = match first {
            0..=0x7f => (usize::from(first), 2),
            0x81..=0x84 => {
                let count = usize::from(first & 0x7f);
                let digits = rest.get(1..=count)?;
                let length = digits.iter().fold(0usize, |n, d| n << 8 | usize::from(*d));
                if length < 0x80 || digits[0] == 0 {
                    return None;
                }
                (length, 2 + count)
            }
            _ => return None,
        };
        let raw = self.0.get(..header.checked_add(length)?)?;
        self.0 = &self.0[raw.len()..];
        Some(Element {
            tag,
            value: &raw[header..],
            raw,
        })
    }

    pub fn element(&mut self, tag: u8) -> Option<Element<'a>> {
        let mut ahead = *self;
        let found = ahead.any().filter(|e| e.tag == tag)?;
        *self = ahead;
        Some(found)
    }
    pub fn read(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.element(tag).map(|e| e.value)
    }
    pub fn enter(&mut self, tag: u8) -> Option<Reader<'a>> {
        self.read(tag).map(Reader)
    }
    /// Reads the value if it is there: `Some(None)` where another one, or none, comes next.
    pub fn optional(&mut self, tag: u8) -> Option<Option<&'a [u8]>> {
        match self.peek(tag) {
            true => self.read(tag).map(Some),
            false => Some(None),
        }
    }

    /// The content of an object identifier, checked.
    pub fn oid(&mut self) -> Option<&'a [u8]> {
        self.read(OBJECT_IDENTIFIER).filter(|o| super::oid::is_valid(o))
    }
    pub fn boolean(&mut self) -> Option<bool> {
        match self.read(BOOLEAN)? {
            [0] => Some(false),
            [0xff] => Some(true),
            _ => None,
        }
    }
    /// The digits of an integer in two's complement, in their shortest form.
    pub fn integer(&mut self) -> Option<&'a [u8]> {
        self.read(INTEGER).filter(|i| match i {
            [] => false,
            [0, next, ..] => next & 0x80 != 0,
            [0xff, next, ..] => next & 0x80 == 0,
            _ => true,
        })
    }
    pub fn small_integer(&mut self) -> Option<i64> {
        let digits = self.integer().filter(|d| d.len() <= 8)?;
        let sign = if digits[0] & 0x80 != 0 { -1 } else { 0 };
        Some(digits.iter().fold(sign, |n, d| n << 8 | i64::from(*d)))
    }
    /// A bit string as whole bytes and the number of unused bits in the last one, which are zero.
    pub fn bits(&mut self) -> Option<(&'a [u8], u8)> {
        let (&unused, bytes) = self.read(BIT_STRING)?.split_first()?;
        let last = bytes.last().copied().unwrap_or_default();
        let fits = unused <= 7 && !(bytes.is_empty() && unused > 0) && last & ((1u8 << unused) - 1) == 0;
        fits.then_some((bytes, unused))
    }
}

/// A bit string's value as Go's `RightAlign` gives it: unused bits are shifted out at the end.
pub fn right_align(bytes: &[u8], unused: u8) -> Vec<u8> {
    if unused == 0 {
        return bytes.to_vec();
    }
    let mut before = 0u8;
    let shifted = bytes.iter().map(|b| {
        let byte = before.checked_shl(u32::from(8 - unused)).unwrap_or(0) | b >> unused;
        before = *b;
        byte
    });
    shifted.collect()
}

/// A value of `tag` with its length before it.
pub fn write(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(value.len()) {
        Ok(n) if n < 0x80 => out.push(n),
        _ => {
            let digits = value.len().to_be_bytes();
            let digits = &digits[digits.iter().take_while(|d| **d == 0).count()..];
            out.push(0x80 | digits.len() as u8);
            out.extend_from_slice(digits);
        }
    }
    out.extend_from_slice(value);
    out
}

/// Values one after the other, inside a value of `tag`.
pub fn wrap<T: AsRef<[u8]>>(tag: u8, parts: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut inside = Vec::new();
    for part in parts {
        inside.extend_from_slice(part.as_ref());
    }
    write(tag, &inside)
}

/// A set: DER sorts its members by their bytes.
pub fn set_of(mut members: Vec<Vec<u8>>) -> Vec<u8> {
    members.sort();
    wrap(SET, members)
}

/// A number without sign, big end first.
pub fn unsigned(digits: &[u8]) -> Vec<u8> {
    let digits = &digits[digits.iter().take_while(|d| **d == 0).count()..];
    match digits.first() {
        None => write(INTEGER, &[0]),
        Some(first) if first & 0x80 != 0 => wrap(INTEGER, [&[0], digits]),
        Some(_) => write(INTEGER, digits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_encoding() {
        let read = |bytes: &[u8]| Reader(bytes).any().map(|e| e.value.len());
        for n in [0usize, 1, 127, 128, 255, 256, 70_000] {
            assert_eq!(read(&write(OCTET_STRING, &vec![7; n])), Some(n));
        }
        for bad in [
            &[][..],
            &[4],
            &[4, 1],
            &[4, 0x80, 0, 0],
            &[4, 0x81, 1, 7],
            &[4, 0x82, 0, 0x80],
            &[4, 0x85, 0, 0, 0, 0, 1],
            &[0x1f, 0x81, 0, 0],
        ] {
            assert_eq!(read(bad), None, "{bad:x?}");
        }
        let integer = |bytes: &[u8]| Reader(&write(INTEGER, bytes)).small_integer();
        assert_eq!(
            [integer(&[0]), integer(&[0xff]), integer(&[0, 0x80]), integer(&[1, 0])],
            [Some(0), Some(-1), Some(128), Some(256)]
        );
        assert_eq!(
            [integer(&[]), integer(&[0, 1]), integer(&[0xff, 0x80])],
            [None, None, None]
        );
        assert_eq!(unsigned(&[0, 0, 0x80]), [2, 2, 0, 0x80]);
        let bits = |bytes: &[u8]| Reader(&write(BIT_STRING, bytes)).bits().map(|(b, u)| right_align(b, u));
        assert_eq!(bits(&[4, 0x12, 0x30]), Some(vec![0x01, 0x23]));
        assert_eq!(
            [bits(&[]), bits(&[1]), bits(&[8, 0]), bits(&[1, 1])],
            [None, None, None, None]
        );
    }
}
