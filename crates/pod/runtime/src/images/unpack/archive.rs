//! Reads tar archives as strangers write them: old Unix, POSIX with extended headers, GNU with long names, and sparse
//! files of all four forms. What counts as an archive is what Go's `archive/tar` takes, which every other runtime uses.
//!
//! Nothing an archive says makes it keep more than [`MAX_EXTENSION`] bytes a header, and of those one each at a time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::extended::{Extended, Extent, MAX_EXTENTS};

pub const BLOCK: usize = 512;
/// Longest extended header, and longest long name: Go's own bound.
pub const MAX_EXTENSION: u64 = 1 << 20;

/// What can be read, and passed over.
pub trait Source: Read {
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// A source that passes over bytes by reading them.
pub struct Streamed<R>(pub R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Source for Streamed<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if io::copy(&mut (&mut self.0).take(bytes), &mut io::sink())? < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Source for File {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| invalid("a size beyond 63 bits"))?;
        self.seek(SeekFrom::Current(bytes)).map(drop)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
    /// A header that speaks of all entries; nobody heeds it.
    Global,
    /// Something that only its inventor knows.
    Other(u8),
}

impl Kind {
    /// Has no content, whatever its size says.
    fn is_header_only(self) -> bool {
        !matches!(self, Kind::File | Kind::Global | Kind::Other(_))
    }
}

#[derive(Debug)]
pub struct Entry {
    pub path: PathBuf,
    pub link: PathBuf,
    pub kind: Kind,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    /// Length of the file that comes out.
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
    pub accessed: Option<(i64, u32)>,
    pub device: (u64, u64),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a sparse file: where its bytes belong; the rest is holes.
    pub extents: Option<Vec<Extent>>,
}

pub struct Archive<S> {
    source: S,
    /// Bytes of the current entry that are still to come, then its padding.
    left: u64,
    padding: u64,
    position: u64,
}

impl<S: Source> Archive<S> {
    pub fn new(source: S) -> Self {
        Archive {
            source,
            left: 0,
            padding: 0,
            position: 0,
        }
    }

    /// Where in the archive the current entry's next byte stands.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let rest = self.left + self.padding;
            self.source.skip(rest)?;
            self.position += rest;
            (self.left, self.padding) = (0, 0);
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            check_sum(&block)?;
            let size = u64::try_from(number(&block[124..136])?).map_err(|_| invalid("a negative size"))?;
            match block[156] {
                b'x' => extended = Extended::parse(&self.extension(size)?)?,
                b'L' => long_name = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extension(size)?).to_vec()),
                _ => {
                    let mut entry = header(&block, size)?;
                    let mut stored = extended.apply(&mut entry, size)?;
                    if let Some(name) = long_name {
                        entry.path = path(&name);
                    }
                    if let Some(link) = long_link {
                        entry.link = path(&link);
                    }
                    if entry.kind == Kind::File && block[156] == 0 && entry.path.as_os_str().as_bytes().ends_with(b"/")
                    {
                        entry.kind = Kind::Directory;
                    }
                    if entry.kind.is_header_only() {
                        stored = 0;
                    }
                    self.enter(stored)?;
                    if block[156] == b'S' {
                        self.old_sparse(&block, &mut entry)?;
                    } else if entry.kind == Kind::File {
                        self.new_sparse(&extended, &mut entry)?;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Begins an entry of so many stored bytes.
    fn enter(&mut self, stored: u64) -> io::Result<()> {
        self.left = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        // Later sums of the two do not overflow.
        if stored > i64::MAX as u64 {
            return Err(invalid("a size beyond 63 bits"));
        }
        Ok(())
    }

    /// The next block; `None` at the archive's end, which is a block of zeros or nothing at all.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.source.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.position += BLOCK as u64;
        Ok((block != [0; BLOCK]).then_some(block))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(invalid("an extended header of more than 1 MiB"));
        }
        self.enter(size)?;
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// GNU's first form: the map begins in the header and goes on in blocks of its own.
    fn old_sparse(&mut self, block: &[u8; BLOCK], entry: &mut Entry) -> io::Result<()> {
        if &block[257..265] != b"ustar  \0" {
            return Err(invalid("a sparse file that is not GNU's"));
        }
        entry.size = u64::try_from(number(&block[483..495])?).map_err(|_| invalid("a negative size"))?;
        let mut extents = Vec::new();
        let mut more = old_extents(&block[386..482], &mut extents)? && block[482] != 0;
        while more {
            // These blocks stand before the content and are not counted by it.
            let Some(next) = self.block()? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            more = old_extents(&next[..504], &mut extents)? && next[504] != 0;
        }
        self.keep(extents, entry)
    }

    /// The forms of extended headers: the map stands in the header (0.0, 0.1) or before the content (1.0).
    fn new_sparse(&mut self, extended: &Extended, entry: &mut Entry) -> io::Result<()> {
        let Some(sparse) = extended.sparse()? else {
            return Ok(());
        };
        if let Some(name) = sparse.name {
            entry.path = path(name);
        }
        if let Some(size) = sparse.size {
            entry.size = size;
        }
        let extents = match sparse.extents {
            Some(extents) => extents,
            None => self.map_before_content()?,
        };
        self.keep(extents, entry)
    }

    /// Decimal numbers, one a line: how many extents, then offset and length of each; padded to a block.
    fn map_before_content(&mut self) -> io::Result<Vec<Extent>> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut next = |archive: &mut Self| -> io::Result<u64> {
            let mut value: Option<u64> = None;
            loop {
                if at == BLOCK {
                    archive.read_exact(&mut block)?;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match (byte, value) {
                    (b'\n', Some(value)) => return Ok(value),
                    (b'0'..=b'9', _) => {
                        let more = value.unwrap_or(0).checked_mul(10);
                        value = Some(
                            more.and_then(|v| v.checked_add(u64::from(byte - b'0')))
                                .ok_or_else(|| invalid("a sparse map's number beyond 64 bits"))?,
                        );
                    }
                    _ => return Err(invalid("a sparse map that is none")),
                }
            }
        };
        let count = next(self)?;
        if count > MAX_EXTENTS as u64 {
            return Err(invalid("a sparse file of too many pieces"));
        }
        let mut extents = Vec::new();
        for _ in 0..count {
            let (offset, length) = (next(self)?, next(self)?);
            extents.push(Extent { offset, length });
        }
        Ok(extents)
    }

    /// Takes a map that is in order and stands for all that is stored.
    fn keep(&self, extents: Vec<Extent>, entry: &mut Entry) -> io::Result<()> {
        let (mut end, mut sum) = (0u64, 0u64);
        for extent in &extents {
            if extent.offset < end {
                return Err(invalid("a sparse map out of order"));
            }
            end = extent
                .offset
                .checked_add(extent.length)
                .filter(|end| *end <= entry.size)
                .ok_or_else(|| invalid("a sparse map that leaves its file"))?;
            sum += extent.length;
        }
        if sum > self.left {
            return Err(invalid("a sparse file with less content than its map says"));
        }
        entry.extents = Some(extents);
        Ok(())
    }
}

/// The content of the current entry as it is stored.
impl<S: Source> Read for Archive<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let n = self.source.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

fn header(block: &[u8; BLOCK], size: u64) -> io::Result<Entry> {
    let kind = match block[156] {
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::Link,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'g' => Kind::Global,
        other => Kind::Other(other),
    };
    let mut name = until_nul(&block[..100]).to_vec();
    let posix = &block[257..263] == b"ustar\0";
    if posix {
        let end = if &block[508..512] == b"tar\0" { 476 } else { 500 };
        let prefix = until_nul(&block[345..end]);
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
    }
    let device = |field: &[u8]| number(field).map(|n| u64::try_from(n).unwrap_or(0));
    let known = posix || &block[257..262] == b"ustar";
    Ok(Entry {
        path: path(&name),
        link: path(until_nul(&block[157..257])),
        kind,
        mode: (number(&block[100..108])? & 0o7777) as u32,
        uid: number(&block[108..116])?,
        gid: number(&block[116..124])?,
        size,
        modified: (number(&block[136..148])?, 0),
        accessed: None,
        device: if known && matches!(kind, Kind::Char | Kind::Block) {
            (device(&block[329..337])?, device(&block[337..345])?)
        } else {
            (0, 0)
        },
        xattrs: Vec::new(),
        extents: None,
    })
}

/// Adds the extents of one block; `false`: the map has ended.
fn old_extents(fields: &[u8], extents: &mut Vec<Extent>) -> io::Result<bool> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            return Ok(false);
        }
        if extents.len() >= MAX_EXTENTS {
            return Err(invalid("a sparse file of too many pieces"));
        }
        let positive = |f| number(f).and_then(|n| u64::try_from(n).map_err(|_| invalid("a negative place in a file")));
        extents.push(Extent {
            offset: positive(&field[..12])?,
            length: positive(&field[12..])?,
        });
    }
    Ok(true)
}

/// The sum of all bytes with blanks for the sum itself; some have summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> io::Result<()> {
    let wanted = number(&block[148..156]).ok();
    let bytes = || block[..148].iter().chain(&block[156..]);
    let unsigned: i64 = bytes().map(|b| i64::from(*b)).sum::<i64>() + 8 * 32;
    let signed: i64 = bytes().map(|b| i64::from(*b as i8)).sum::<i64>() + 8 * 32;
    if wanted != Some(unsigned) && wanted != Some(signed) {
        return Err(invalid(
            "a header whose sum is wrong: this is no tar archive, or it is damaged",
        ));
    }
    Ok(())
}

/// A field's number: octal text, or binary with the highest bit set.
fn number(field: &[u8]) -> io::Result<i64> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // Two's complement of seven bits and whole bytes.
        let negative = first & 0x40 != 0;
        let start = i128::from(if negative {
            i64::from(first | 0x80) - 256
        } else {
            i64::from(first & 0x3f)
        });
        let mut value = start;
        for byte in rest {
            value = (value << 8) | i128::from(*byte);
            if i64::try_from(value).is_err() {
                return Err(invalid("a number beyond 64 bits"));
            }
        }
        return i64::try_from(value).map_err(|_| invalid("a number beyond 64 bits"));
    }
    let text = until_nul(field.trim_ascii_start()).trim_ascii();
    if text.is_empty() {
        return Ok(0);
    }
    std::str::from_utf8(text)
        .ok()
        .and_then(|t| i64::from_str_radix(t, 8).ok())
        .filter(|n| *n >= 0)
        .ok_or_else(|| invalid("a header with a field that is no number"))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

pub fn path(bytes: &[u8]) -> PathBuf {
    Path::new(std::ffi::OsStr::from_bytes(bytes)).to_path_buf()
}

pub fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_kinds() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0x3b, 0x9a, 0xca, 0]).unwrap(), 1_000_000_000);
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff]).unwrap(), -1);
        assert_eq!(number(&[0xff, 0xff, 0xff, 0x00]).unwrap(), -256);
        assert!(number(&[0xbf; 12]).is_err());
        assert!(number(b"-0000644").is_err());
        assert!(number(b"00009").is_err());
    }

    #[test]
    fn what_another_wrote_is_read() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/{}", "d".repeat(120), "n".repeat(130));
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o640);
        header.set_uid(1_000_640_000);
        header.set_mtime(7);
        builder
            .append_pax_extensions([("mtime", b"7258118400.25".as_slice()), ("uid", b"5")])
            .unwrap();
        builder.append_data(&mut header, &long, &b"hello"[..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut archive = Archive::new(Streamed(&bytes[..]));
        let entry = archive.next_entry().unwrap().unwrap();
        assert_eq!(entry.path, Path::new(&long));
        assert_eq!((entry.mode, entry.uid, entry.size), (0o640, 5, 5));
        assert_eq!(entry.modified, (7_258_118_400, 250_000_000));
        let mut content = String::new();
        archive.read_to_string(&mut content).unwrap();
        assert_eq!(content, "hello");
        assert!(archive.next_entry().unwrap().is_none());
    }

    #[test]
    fn a_header_without_end_is_refused() {
        for kind in [
            tar::EntryType::XHeader,
            tar::EntryType::GNULongName,
            tar::EntryType::GNULongLink,
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 40);
            header.set_cksum();
            let endless = header.as_bytes().chain(io::repeat(b'a'));
            let error = Archive::new(Streamed(endless)).next_entry().unwrap_err();
            assert!(error.to_string().contains("1 MiB"), "{error}");
        }
    }
}
