//! Reads a file. What stands in it is believed as far as it fits: each page is read at most once by a walk, trees are of bounded depth, and
//! nothing is longer than the file.

use super::{BRANCH, ELEMENT, HEAD, IS_BUCKET, LEAF, MAGIC, META, ROOT, SUMMED, VERSION, fnv};
use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// No file that fits on a disk has trees so deep.
const DEPTH: usize = 32;
/// Of pages as they are made: by the system's, which is 4 to 64 KiB.
const SIZES: [u64; 5] = [4096, 8192, 16384, 32768, 65536];

pub struct Reader {
    file: File,
    page: u64,
    pages: u64,
    root: u64,
}

fn odd(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> io::Result<u64> {
    let mut out = [0; 8];
    let found = at.checked_add(N).and_then(|end| bytes.get(at..end));
    out[..N].copy_from_slice(found.ok_or_else(|| odd("a page is too short"))?);
    Ok(u64::from_le_bytes(out))
}

fn slice(bytes: &[u8], at: u64, len: u64) -> io::Result<&[u8]> {
    let range = usize::try_from(at)
        .ok()
        .zip(at.checked_add(len).and_then(|end| usize::try_from(end).ok()));
    let found = range.and_then(|(start, end)| bytes.get(start..end));
    found.ok_or_else(|| odd("an element leads out of its page"))
}

/// Page 0 or 1: page size, root, transaction.
fn meta(bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let of = bytes.get(HEAD..)?;
    let is = |at, value: u32| number::<4>(of, at).is_ok_and(|n| n == u64::from(value));
    let sum = number::<8>(of, SUMMED).ok()?;
    if !is(0, MAGIC) || !is(4, VERSION) || fnv(of.get(..SUMMED)?) != sum {
        return None;
    }
    if number::<2>(bytes, 8).ok()? & u64::from(META) == 0 {
        return None;
    }
    Some((
        number::<4>(of, 8).ok()?,
        number::<8>(of, 16).ok()?,
        number::<8>(of, 48).ok()?,
    ))
}

impl Reader {
    pub fn open(path: &Path) -> io::Result<Reader> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let at = |offset: u64| {
            let mut bytes = [0; HEAD + SUMMED + 8];
            file.read_exact_at(&mut bytes, offset).ok()?;
            meta(&bytes)
        };
        // The second one stands where the first says; if that is damaged, at one of the usual places.
        let metas = [0].into_iter().chain(SIZES).filter_map(|offset| {
            let found = at(offset)?;
            (offset == 0 || offset == found.0).then_some(found)
        });
        let newest = metas.max_by_key(|(_, _, transaction)| *transaction);
        let (page, root, _) = newest.ok_or_else(|| odd("it is no file of etcd's (bbolt)"))?;
        if !SIZES.contains(&page) {
            return Err(odd(format!("its pages have {page} bytes")));
        }
        Ok(Reader {
            pages: len / page,
            file,
            page,
            root,
        })
    }

    /// Everything in a bucket, in the order of keys; nothing if there is no such bucket. Buckets in it are passed over.
    pub fn each(&self, bucket: &str, mut f: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut found = None;
        self.walk(self.root, &mut |flags, key, value| {
            if flags & IS_BUCKET != 0 && key == bucket.as_bytes() {
                found = Some(value.to_vec());
            }
            Ok(())
        })?;
        let Some(found) = found else { return Ok(()) };
        let mut plain = |flags: u32, key: &[u8], value: &[u8]| match flags & IS_BUCKET {
            0 => f(key, value),
            _ => Ok(()),
        };
        match number::<8>(&found, 0)? {
            0 => {
                let inline = found.get(ROOT..).unwrap_or_default();
                self.elements(inline, DEPTH, &mut 0, &mut plain)
            }
            root => self.walk(root, &mut plain),
        }
    }

    fn walk(&self, root: u64, f: &mut impl FnMut(u32, &[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut left = self.pages;
        self.tree(root, 0, &mut left, f)
    }

    /// `left`: how many pages may still be read.
    fn tree(
        &self,
        id: u64,
        depth: usize,
        left: &mut u64,
        f: &mut impl FnMut(u32, &[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if depth == DEPTH {
            return Err(odd("its trees are too deep"));
        }
        let page = self.read(id, left)?;
        self.elements(&page, depth, left, f)
    }

    fn elements(
        &self,
        page: &[u8],
        depth: usize,
        left: &mut u64,
        f: &mut impl FnMut(u32, &[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (kind, count) = (number::<2>(page, 8)? as u16, number::<2>(page, 10)?);
        // Elements that lie in each other would be more than the file.
        let mut room = page.len() as u64;
        for n in 0..count as usize {
            let at = HEAD + n * ELEMENT;
            let place = |offset: u64| offset + at as u64;
            if kind & LEAF != 0 {
                let (offset, key) = (number::<4>(page, at + 4)?, number::<4>(page, at + 8)?);
                let value = number::<4>(page, at + 12)?;
                let flags = number::<4>(page, at)? as u32;
                let start = place(offset);
                let left = room.checked_sub(ELEMENT as u64 + key + value);
                room = left.ok_or_else(|| odd("a page's elements are more than the page"))?;
                f(flags, slice(page, start, key)?, slice(page, start + key, value)?)?;
            } else if kind & BRANCH != 0 {
                self.tree(number::<8>(page, at + 8)?, depth + 1, left, f)?;
            } else {
                return Err(odd(format!("a page of kind {kind} in a tree")));
            }
        }
        Ok(())
    }

    /// A page with those that it goes on in.
    fn read(&self, id: u64, left: &mut u64) -> io::Result<Vec<u8>> {
        let mut head = [0; HEAD];
        if id >= self.pages {
            return Err(odd(format!("page {id} is missing: the file was cut short")));
        }
        self.file.read_exact_at(&mut head, id * self.page)?;
        let pages = 1 + number::<4>(&head, 12)?;
        if number::<8>(&head, 0)? != id || pages > self.pages - id {
            return Err(odd(format!("page {id} is damaged")));
        }
        *left = left
            .checked_sub(pages)
            .ok_or_else(|| odd("its pages lead in circles"))?;
        let mut page = vec![0; (pages * self.page) as usize];
        self.file.read_exact_at(&mut page, id * self.page)?;
        Ok(page)
    }
}
