//! Writes a file, bucket after bucket, each in the order of its keys. Only a leaf's page is in memory, and a bucket's branches.

use super::{BRANCH, ELEMENT, FREE, HEAD, IS_BUCKET, LEAF, MAGIC, META, PAGE, ROOT, SUMMED, VERSION, fnv};
use std::fs::File;
use std::io::{self, BufWriter, Error, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the list of free pages is, and the first page behind it.
const FREE_LIST: u64 = 2;
const FIRST: u64 = 3;

pub struct Writer {
    out: BufWriter<File>,
    /// The page that is written next.
    next: u64,
    /// Names and values of buckets.
    buckets: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Writer {
    /// An empty file; one that is there is written over. Nothing can be read of it before [`Writer::finish`].
    pub fn create(path: &Path) -> io::Result<Writer> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        out.write_all(&[0; PAGE * FIRST as usize])?;
        Ok(Writer {
            out,
            next: FIRST,
            buckets: Vec::new(),
        })
    }

    /// One bucket at a time, in any order, each name once.
    pub fn bucket(&mut self, name: &str) -> Bucket<'_> {
        Bucket {
            leaf: Page::new(LEAF),
            leaves: Vec::new(),
            last: None,
            name: name.as_bytes().to_vec(),
            file: self,
        }
    }

    /// Writes the page, behind all others.
    fn append(&mut self, page: &mut Page) -> io::Result<u64> {
        let id = self.next;
        let bytes = page.take(id)?;
        self.next += (bytes.len() / PAGE) as u64;
        self.out.write_all(&bytes)?;
        Ok(id)
    }

    /// Writes what leads to the buckets. What was written is on the disk then.
    pub fn finish(mut self) -> io::Result<File> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let mut root = Page::new(LEAF);
        for (name, value) in &buckets {
            root.leaf(IS_BUCKET, name, value);
        }
        let root = self.append(&mut root)?;
        let pages = self.next;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        for id in 0..2 {
            file.write_all_at(&meta(id, root, pages), id * PAGE as u64)?;
        }
        file.write_all_at(&head(FREE_LIST, FREE, 0, 0), FREE_LIST * PAGE as u64)?;
        file.sync_all()?;
        Ok(file)
    }
}

fn head(id: u64, kind: u16, count: u16, further: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&id.to_le_bytes());
    head[8..10].copy_from_slice(&kind.to_le_bytes());
    head[10..12].copy_from_slice(&count.to_le_bytes());
    head[12..].copy_from_slice(&further.to_le_bytes());
    head
}

fn meta(id: u64, root: u64, pages: u64) -> Vec<u8> {
    let mut page = head(id, META, 0, 0).to_vec();
    for number in [MAGIC, VERSION, PAGE as u32, 0] {
        page.extend(number.to_le_bytes());
    }
    let sequence = 0;
    for number in [root, sequence, FREE_LIST, pages, id] {
        page.extend(number.to_le_bytes());
    }
    let sum = fnv(&page[HEAD..HEAD + SUMMED]);
    page.extend(sum.to_le_bytes());
    page
}

pub struct Bucket<'a> {
    file: &'a mut Writer,
    name: Vec<u8>,
    leaf: Page,
    /// Each page's first key.
    leaves: Vec<(Vec<u8>, u64)>,
    last: Option<Vec<u8>>,
}

impl Bucket<'_> {
    /// Fails with [`ErrorKind::InvalidInput`] unless the key is larger than the last one.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if key.is_empty() || self.last.as_deref().is_some_and(|last| key <= last) {
            return Err(Error::new(ErrorKind::InvalidInput, "keys have to be in order"));
        }
        if !self.leaf.has_room(key.len() + value.len()) {
            self.flush()?;
        }
        self.leaf.leaf(0, key, value);
        self.last = Some(key.to_vec());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let first = self.leaf.first.clone();
        let id = self.file.append(&mut self.leaf)?;
        self.leaves.push((first, id));
        Ok(())
    }

    pub fn end(mut self) -> io::Result<()> {
        let mut value = vec![0; ROOT];
        match self.last {
            // It stands in its parent's page.
            None => value.extend(head(0, LEAF, 0, 0)),
            Some(_) => {
                self.flush()?;
                let root = self.branches()?;
                value[..8].copy_from_slice(&root.to_le_bytes());
            }
        }
        self.file.buckets.push((self.name, value));
        Ok(())
    }

    /// Pages that lead to the leaves, level by level; the page that leads to all.
    fn branches(&mut self) -> io::Result<u64> {
        let mut level = std::mem::take(&mut self.leaves);
        while level.len() > 1 {
            let (mut above, mut page) = (Vec::new(), Page::new(BRANCH));
            for (key, id) in &level {
                if !page.has_room(key.len()) {
                    let first = page.first.clone();
                    above.push((first, self.file.append(&mut page)?));
                }
                page.branch(key, *id);
            }
            let first = page.first.clone();
            above.push((first, self.file.append(&mut page)?));
            level = above;
        }
        Ok(level[0].1)
    }
}

/// A page that is being filled.
struct Page {
    kind: u16,
    /// Elements, their offsets as if their data began with the first one's.
    elements: Vec<[u8; ELEMENT]>,
    data: Vec<u8>,
    first: Vec<u8>,
}

/// Where an element has its offset.
fn offset_at(kind: u16) -> usize {
    if kind == BRANCH { 0 } else { 4 }
}

impl Page {
    fn new(kind: u16) -> Page {
        Page {
            kind,
            elements: Vec::new(),
            data: Vec::new(),
            first: Vec::new(),
        }
    }

    /// Two elements fit in any page: it gets longer.
    fn has_room(&self, bytes: usize) -> bool {
        self.elements.len() < 2 || HEAD + (self.elements.len() + 1) * ELEMENT + self.data.len() + bytes <= PAGE
    }

    fn leaf(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        self.element(
            [flags, self.data.len() as u32, key.len() as u32, value.len() as u32],
            key,
            value,
        );
    }

    fn branch(&mut self, key: &[u8], page: u64) {
        let (low, high) = (page as u32, (page >> 32) as u32);
        self.element([self.data.len() as u32, key.len() as u32, low, high], key, &[]);
    }

    fn element(&mut self, numbers: [u32; 4], key: &[u8], value: &[u8]) {
        if self.elements.is_empty() {
            self.first = key.to_vec();
        }
        let mut element = [0; ELEMENT];
        for (at, number) in element.chunks_exact_mut(4).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        self.elements.push(element);
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    /// The page's bytes, whole pages; it is empty again.
    fn take(&mut self, id: u64) -> io::Result<Vec<u8>> {
        let too_large = || Error::new(ErrorKind::InvalidInput, "too large for a page");
        let len = HEAD + self.elements.len() * ELEMENT + self.data.len();
        let pages = len.div_ceil(PAGE);
        let further = u32::try_from(pages - 1).map_err(|_| too_large())?;
        let count = u16::try_from(self.elements.len()).map_err(|_| too_large())?;
        let mut bytes = Vec::with_capacity(pages * PAGE);
        bytes.extend(head(id, self.kind, count, further));
        let at = offset_at(self.kind);
        for (n, mut element) in self.elements.drain(..).enumerate() {
            let (_, rest) = element.split_at_mut(at);
            if let Some(place) = rest.first_chunk_mut::<4>() {
                let behind = (usize::from(count) - n) * ELEMENT;
                let offset = u32::from_le_bytes(*place) as usize + behind;
                *place = u32::try_from(offset).map_err(|_| too_large())?.to_le_bytes();
            }
            bytes.extend(element);
        }
        bytes.append(&mut self.data);
        bytes.resize(pages * PAGE, 0);
        Ok(bytes)
    }
}
