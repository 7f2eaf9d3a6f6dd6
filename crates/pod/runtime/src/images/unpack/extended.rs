//! POSIX extended headers: what they say beyond an entry's own header.

use std::io;

use super::archive::{Entry, invalid, path};

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Pieces of a sparse file, beyond which it is refused: as many as an extended header could name.
pub const MAX_EXTENTS: usize = 1 << 16;

/// Bytes of a sparse file that are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// How a sparse file is stored; without `extents`, the map stands before the content.
pub struct Sparse<'a> {
    pub name: Option<&'a [u8]>,
    pub size: Option<u64>,
    pub extents: Option<Vec<Extent>>,
}

/// The records of one header, in their order.
#[derive(Default)]
pub struct Extended(Vec<(Vec<u8>, Vec<u8>)>);

impl Extended {
    /// Records are `<length> <key>=<value>\n`, the length counting all of it; values may have any bytes.
    pub fn parse(mut bytes: &[u8]) -> io::Result<Extended> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let bad = || invalid("a damaged extended header");
            let blank = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize = std::str::from_utf8(&bytes[..blank])
                .ok()
                .and_then(|t| t.parse().ok())
                .ok_or_else(bad)?;
            let record = bytes.get(blank + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return Err(bad());
            }
            records.push((key.to_vec(), value.to_vec()));
            bytes = &bytes[length..];
        }
        Ok(Extended(records))
    }

    /// The last word on a key; an empty one takes earlier ones back.
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.0
            .iter()
            .rev()
            .find(|(k, _)| k == key.as_bytes())
            .map(|(_, value)| value.as_slice())
            .filter(|value| !value.is_empty())
    }

    fn number(&self, key: &str) -> io::Result<Option<u64>> {
        self.get(key).map(decimal).transpose()
    }

    /// Puts into an entry what is said of it; returns the size of what is stored.
    pub fn apply(&self, entry: &mut Entry, stored: u64) -> io::Result<u64> {
        let signed = |key: &str| -> io::Result<Option<i64>> {
            let number = self.number(key)?.map(i64::try_from);
            number
                .transpose()
                .map_err(|_| invalid("an extended header with a number beyond 63 bits"))
        };
        let moment = |key: &str| -> io::Result<Option<(i64, u32)>> {
            let text = self.get(key);
            text.map(|t| time(t).ok_or_else(|| invalid("an extended header with a time that is none")))
                .transpose()
        };
        if let Some(name) = self.get("path") {
            entry.path = path(name);
        }
        if let Some(link) = self.get("linkpath") {
            entry.link = path(link);
        }
        if let Some(uid) = signed("uid")? {
            entry.uid = uid;
        }
        if let Some(gid) = signed("gid")? {
            entry.gid = gid;
        }
        if let Some(time) = moment("mtime")? {
            entry.modified = time;
        }
        entry.accessed = moment("atime")?;
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(XATTR) {
                entry.xattrs.retain(|(known, _)| known != name);
                entry.xattrs.push((name.to_vec(), value.clone()));
            }
        }
        entry.size = self.number("size")?.unwrap_or(stored);
        Ok(entry.size)
    }

    /// Whether the entry is a sparse file, in one of the three forms of extended headers.
    pub fn sparse(&self) -> io::Result<Option<Sparse<'_>>> {
        let version = (self.get("GNU.sparse.major"), self.get("GNU.sparse.minor"));
        let before_content = match version {
            (Some(b"1"), Some(b"0")) => true,
            (Some(b"0"), Some(b"0" | b"1")) => false,
            (None, None) if self.get("GNU.sparse.map").is_some() || self.get("GNU.sparse.offset").is_some() => false,
            // A form that is not known is a plain file.
            _ => return Ok(None),
        };
        let size = match self.number("GNU.sparse.size")? {
            None => self.number("GNU.sparse.realsize")?,
            size => size,
        };
        Ok(Some(Sparse {
            name: self.get("GNU.sparse.name"),
            size,
            extents: if before_content { None } else { Some(self.map()?) },
        }))
    }

    /// The map as one record (0.1) or as one record a number (0.0).
    fn map(&self) -> io::Result<Vec<Extent>> {
        let numbers: Vec<u64> = match self.get("GNU.sparse.map") {
            Some(list) => list.split(|b| *b == b',').map(decimal).collect::<io::Result<_>>()?,
            None => {
                let mut numbers = Vec::new();
                for (key, value) in &self.0 {
                    // Offset and length take turns.
                    let turn = match key.as_slice() {
                        b"GNU.sparse.offset" => 0,
                        b"GNU.sparse.numbytes" => 1,
                        _ => continue,
                    };
                    if numbers.len() % 2 != turn {
                        return Err(invalid("a sparse map out of order"));
                    }
                    numbers.push(decimal(value)?);
                }
                numbers
            }
        };
        if !numbers.len().is_multiple_of(2) {
            return Err(invalid("a sparse map that breaks off"));
        }
        if numbers.len() / 2 > MAX_EXTENTS {
            return Err(invalid("a sparse file of too many pieces"));
        }
        Ok(numbers
            .chunks_exact(2)
            .map(|pair| Extent {
                offset: pair[0],
                length: pair[1],
            })
            .collect())
    }
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .ok_or_else(|| invalid("an extended header with a value that is no number"))
}

/// Seconds with a fraction, of any sign and precision.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    Some(match (negative, nanoseconds) {
        (true, 1..) => (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds),
        _ => (seconds, nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_hold_any_bytes() {
        let read = Extended::parse(b"30 SCHILY.xattr.user.x=a\nb=\0c\n").unwrap();
        assert_eq!(read.get("SCHILY.xattr.user.x"), Some(&b"a\nb=\0c"[..]));
        for bad in [
            &b"9 a=b\n"[..],
            b"x a=b\n",
            b"6 a=b",
            b"5 ab\n",
            b"4 =\n",
            b"99999999999999999999 a=b\n",
        ] {
            assert!(Extended::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_of_every_century() {
        assert_eq!(time(b"16725225600"), Some((16_725_225_600, 0)));
        assert_eq!(time(b"-2177452800.5"), Some((-2_177_452_801, 500_000_000)));
        assert_eq!(time(b"1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(time(b"1.x"), None);
    }
}
