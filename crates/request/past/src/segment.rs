//! A file of blocks, one after the other.

use crate::block::{HEAD, Head, Record};
use crate::log::Point;
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 16] = b"keelson-history1";
/// The magic, and what everything in the file comes after.
const BEGIN: u64 = 32;
/// No block has more.
const MOST: usize = 64 << 20;

pub(crate) struct Segment {
    pub path: Arc<PathBuf>,
    /// Every change after it is in the file, up to the last block's.
    pub base: Point,
    pub blocks: Vec<Arc<Head>>,
    pub bytes: u64,
    file: Option<File>,
}

fn open(path: &Path, new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(new).mode(0o600).open(path)
}

impl Segment {
    pub(crate) fn create(directory: &Path, base: Point) -> Result<Segment> {
        let path = directory.join(format!("{:020}", base.revision));
        let made = || {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
            // One that nothing came into, or that couldn't be read.
            if path.exists() {
                std::fs::remove_file(&path)?;
            }
            let file = open(&path, true)?;
            let mut start = MAGIC.to_vec();
            start.extend_from_slice(&base.revision.to_le_bytes());
            start.extend_from_slice(&base.time_ms.to_le_bytes());
            file.write_all_at(&start, 0)?;
            Ok(file)
        };
        let file = made().map_err(|e: io::Error| Error::written(&path, &e))?;
        Ok(Segment {
            path: Arc::new(path),
            base,
            blocks: Vec::new(),
            bytes: BEGIN,
            file: Some(file),
        })
    }

    /// Reads the heads; what isn't whole at the end is cut off. `None`: it's no such file, or its beginning isn't whole.
    pub(crate) fn read(path: PathBuf) -> Result<Option<Segment>> {
        let fail = |e: io::Error| Error::at(&path, e);
        let file = open(&path, false).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let mut start = [0; BEGIN as usize];
        if length < BEGIN || file.read_exact_at(&mut start, 0).is_err() || start[..16] != MAGIC[..] {
            return Ok(None);
        }
        let number = |from: usize| u64::from_le_bytes(start[from..from + 8].try_into().unwrap_or_default());
        let base = Point {
            revision: number(16),
            time_ms: number(24),
        };
        let (mut blocks, mut end) = (Vec::new(), BEGIN);
        while let Some(head) = head_at(&file, end, length) {
            end += head.whole();
            blocks.push(Arc::new(head));
        }
        // Heads come before their content: the last one's may be missing.
        if let Some(last) = blocks.last()
            && content(&file, last).is_none_or(|content| !last.is_whole(&content))
        {
            end -= last.whole();
            blocks.pop();
        }
        if end < length {
            tracing::info!(path = %path.display(), "the end of this history isn't whole and is cut off: it is read again from the store");
            file.set_len(end).map_err(fail)?;
        }
        Ok(Some(Segment {
            path: Arc::new(path),
            base,
            blocks,
            bytes: end,
            file: Some(file),
        }))
    }

    /// Everything up to it is here.
    pub(crate) fn end(&self) -> Point {
        self.blocks.last().map_or(self.base, |last| Point {
            revision: last.last,
            time_ms: last.to_ms,
        })
    }

    /// A block that only says how far it goes gives way to the next.
    pub(crate) fn append(&mut self, mut head: Head, bytes: &[u8]) -> Result<()> {
        let Some(file) = &self.file else {
            return Err(Error::at(&self.path, "it isn't written to any more"));
        };
        let replaced = self.blocks.last().filter(|last| last.hashes.is_empty());
        let at = self.bytes - replaced.map_or(0, |last| last.whole());
        let written = file.write_all_at(bytes, at).and_then(|()| match replaced {
            Some(_) => file.set_len(at + bytes.len() as u64),
            None => Ok(()),
        });
        if let Err(error) = written {
            // What was written of it would be taken for the end of a crash; the next attempt writes over it.
            let _ = file.set_len(self.bytes);
            return Err(Error::written(&self.path, &error));
        }
        if replaced.is_some() {
            self.blocks.pop();
        }
        head.at = at + (HEAD + head.hashes.len() * 4) as u64;
        self.bytes = at + bytes.len() as u64;
        self.blocks.push(Arc::new(head));
        Ok(())
    }

    /// Nothing more is written to it.
    pub(crate) fn seal(&mut self) {
        self.file = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.file.is_some()
    }

    pub(crate) fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&*self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a file of the history can't be removed");
        }
    }
}

fn head_at(file: &File, at: u64, length: u64) -> Option<Head> {
    if at + HEAD as u64 > length {
        return None;
    }
    let mut fixed = [0; HEAD];
    file.read_exact_at(&mut fixed, at).ok()?;
    let many = Head::hashes_of(&fixed);
    if many > MOST || at + (HEAD + many) as u64 > length {
        return None;
    }
    let mut hashes = vec![0; many];
    file.read_exact_at(&mut hashes, at + HEAD as u64).ok()?;
    let head = Head::decode(&fixed, &hashes, at + (HEAD + many) as u64)?;
    (head.length as usize <= MOST && head.raw as usize <= MOST && at + head.whole() <= length).then_some(head)
}

fn content(file: &File, head: &Head) -> Option<Vec<u8>> {
    let mut content = vec![0; head.length as usize];
    file.read_exact_at(&mut content, head.at).ok()?;
    Some(content)
}

/// The changes of a block, in order.
pub(crate) fn records(path: &Path, head: &Head) -> Result<Vec<Record>> {
    let file = File::open(path).map_err(|e| Error::at(path, e))?;
    let content = content(&file, head).ok_or_else(|| Error::at(path, "it is shorter than it was"))?;
    head.records(path, &content)
}

/// Whether a file begins as ours do: nothing else is ever removed.
pub(crate) fn is_ours(path: &Path) -> bool {
    let mut start = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == *MAGIC
}
