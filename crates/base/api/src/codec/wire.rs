//! Protobuf's wire format, and base64.

use super::{DecodeError, EncodeError};
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

pub(super) fn base64_encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
/// On failure the offset Go would name; it ignores line breaks, and takes bits that stand for nothing.
pub(super) fn base64_decode(text: &str) -> Result<Vec<u8>, usize> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    let decoded = match text.contains(['\n', '\r']) {
        true => LENIENT.decode(text.replace(['\n', '\r'], "")),
        false => LENIENT.decode(text),
    };
    decoded.map_err(|_| base64_error(text).unwrap_or(text.len()))
}

/// The byte at which Go's decoder sees that a text is no base64.
pub fn base64_error(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate().filter(|(_, c)| !matches!(c, b'\n' | b'\r'));
    // The place within a group of four.
    let mut place = 0;
    while let Some((at, c)) = bytes.next() {
        match (c, place) {
            (b'=', 0 | 1) => return Some(at),
            (b'=', 2) => match bytes.next() {
                None => return Some(text.len()),
                Some((_, b'=')) => return bytes.next().map(|(at, _)| at),
                Some((next, _)) => return Some(next - 1),
            },
            (b'=', _) => return bytes.next().map(|(at, _)| at),
            (c, _) if c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/') => place = (place + 1) % 4,
            _ => return Some(at),
        }
    }
    // It ends within four, which are the wrong ones.
    (place > 0).then(|| text.len() - place)
}

/// What stands behind a field's key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Datum<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Reads the fields of a message.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

pub(super) fn malformed(what: &str) -> DecodeError {
    DecodeError(format!("proto: {what}"))
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }
    /// What hasn't been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }
    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (i, b) in self.bytes.iter().enumerate().take(10) {
            value |= u64::from(b & 0x7f) << (7 * i);
            if b & 0x80 == 0 {
                self.bytes = &self.bytes[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.bytes.len() < 10 {
            DecodeError("unexpected EOF".into())
        } else {
            malformed("integer overflow")
        })
    }
    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        if n > self.bytes.len() {
            return Err(DecodeError("unexpected EOF".into()));
        }
        let (head, rest) = self.bytes.split_at(n);
        self.bytes = rest;
        Ok(head)
    }
    /// The next field's number and content.
    #[inline]
    pub fn next(&mut self) -> Result<Option<(u32, Datum<'a>)>, DecodeError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| malformed("illegal tag"))?;
        let datum = match key & 7 {
            0 => Datum::Varint(self.varint()?),
            1 => Datum::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| malformed("negative length"))?;
                Datum::Bytes(self.take(len)?)
            }
            5 => Datum::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(malformed(&format!("illegal wireType {other}"))),
        };
        Ok(Some((number, datum)))
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?
            .try_into()
            .map_err(|_| DecodeError("unexpected EOF".into()))
    }
    /// The varints of a packed list.
    pub fn packed(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.bytes.is_empty() {
            Ok(None)
        } else {
            self.varint().map(Some)
        }
    }
}

impl<'a> Datum<'a> {
    pub fn bytes(self) -> Result<&'a [u8], DecodeError> {
        match self {
            Datum::Bytes(b) => Ok(b),
            _ => Err(malformed("wrong wireType")),
        }
    }
    pub fn varint(self) -> Result<u64, DecodeError> {
        match self {
            Datum::Varint(v) => Ok(v),
            _ => Err(malformed("wrong wireType")),
        }
    }
    pub fn str(self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| malformed("string is not valid UTF-8"))
    }
}

/// Writes the fields of a message.
#[derive(Default)]
pub(super) struct Writer {
    pub out: Vec<u8>,
}

impl Writer {
    pub fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.out.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.out.push(v as u8);
    }
    pub fn key(&mut self, number: u32, wire_type: u64) {
        self.varint(u64::from(number) << 3 | wire_type);
    }
    pub fn field_varint(&mut self, number: u32, v: u64) {
        self.key(number, 0);
        self.varint(v);
    }
    pub fn field_bytes(&mut self, number: u32, bytes: &[u8]) {
        self.key(number, 2);
        self.varint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }
    pub fn field_fixed64(&mut self, number: u32, bits: u64) {
        self.key(number, 1);
        self.out.extend_from_slice(&bits.to_le_bytes());
    }
    /// A nested message: its length is known when it has been written, and put before it.
    pub fn field_message(
        &mut self,
        number: u32,
        write: impl FnOnce(&mut Writer) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        self.key(number, 2);
        let start = self.out.len();
        self.out.push(0);
        write(self)?;
        let len = self.out.len() - start - 1;
        if len < 0x80 {
            self.out[start] = len as u8;
            return Ok(());
        }
        let mut prefix = Writer::default();
        prefix.varint(len as u64);
        self.out.splice(start..=start, prefix.out);
        Ok(())
    }
}
