//! Archives of layers as a test wants them, and stacks of what they unpack to.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use keelson_runtime::images::{Expected, Layers, digest};
use keelson_sys::mount;
use tar::EntryType;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A store of layers, and one image's stack in it.
pub struct Stack {
    pub dir: PathBuf,
    pub layers: Layers,
    pub diff_ids: Vec<String>,
}

impl Stack {
    pub fn new() -> Result<Stack> {
        let name = format!(
            "keelson-layers-{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        Ok(Stack {
            layers: Layers::open(&dir, Path::new(keelson_runtime::SELF))?,
            dir,
            diff_ids: Vec::new(),
        })
    }

    /// Puts a layer on top.
    pub fn push(&mut self, plain: &[u8]) -> Result<()> {
        self.push_as(plain, plain)
    }

    pub fn push_as(&mut self, archive: &[u8], plain: &[u8]) -> Result<()> {
        let mut diff_ids = self.diff_ids.clone();
        diff_ids.push(digest::of(plain));
        let path = self.dir.join("archive");
        fs::write(&path, archive)?;
        let expected = Expected {
            digest: Some(&digest::of(archive)),
            diff_id: &digest::of(plain),
        };
        let chains = digest::chain(&diff_ids);
        self.layers
            .add(&chains, fs::File::open(path)?, archive.len() as u64, &expected)?;
        self.diff_ids = diff_ids;
        Ok(())
    }

    /// Where all layers are seen as one.
    pub fn mounted(&self) -> Result<PathBuf> {
        let target = self.dir.join("mnt");
        fs::create_dir_all(&target)?;
        mount::unmount(&target)?;
        let lowers = self.layers.directories(&digest::chain(&self.diff_ids));
        match lowers.as_slice() {
            [one] => mount::bind_read_only(one, &target)?,
            lowers => mount::overlay(lowers, None, &target)?,
        }
        Ok(target)
    }

    /// All paths, in order.
    pub fn paths(&self) -> Result<Vec<String>> {
        let root = self.mounted()?;
        let mut found = Vec::new();
        let mut waiting = vec![root.clone()];
        while let Some(dir) = waiting.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                found.push(entry.path().strip_prefix(&root)?.to_string_lossy().into_owned());
                if entry.file_type()?.is_dir() {
                    waiting.push(entry.path());
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.dir.join("mnt"));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// An archive with names as they are given.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    pub fn header(path: &str, kind: EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().expect("a GNU header").name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(size as u64);
        header.set_cksum();
        header
    }

    pub fn file(mut self, path: &str, content: &str) -> Tar {
        let header = Tar::header(path, EntryType::Regular, 0o644, content.len());
        self.0.append(&header, content.as_bytes()).expect("memory");
        self
    }

    pub fn files(self, paths: &[&str]) -> Tar {
        paths.iter().fold(self, |tar, path| tar.file(path, path))
    }

    pub fn dir(mut self, path: &str) -> Tar {
        let header = Tar::header(path, EntryType::Directory, 0o755, 0);
        self.0.append(&header, &[][..]).expect("memory");
        self
    }

    pub fn link(mut self, kind: EntryType, path: &str, to: &str) -> Tar {
        let mut header = Tar::header(path, kind, 0o777, 0);
        header.as_gnu_mut().expect("a GNU header").linkname[..to.len()].copy_from_slice(to.as_bytes());
        header.set_cksum();
        self.0.append(&header, &[][..]).expect("memory");
        self
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(records.iter().copied()).expect("memory");
        self
    }

    pub fn raw(mut self, header: &tar::Header, content: &[u8]) -> Tar {
        self.0.append(header, content).expect("memory");
        self
    }

    pub fn end(self) -> Vec<u8> {
        self.0.into_inner().expect("memory")
    }
}

pub fn gzip(plain: &[u8]) -> Result<Vec<u8>> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(plain)?;
    Ok(gz.finish()?)
}

/// A zstd frame of stored blocks with a window of `1 << log` bytes.
pub fn zstd(plain: &[u8], log: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
    let blocks: Vec<&[u8]> = plain.chunks(1 << 16).collect();
    for (i, block) in blocks.iter().enumerate() {
        let last = u32::from(i + 1 == blocks.len());
        frame.extend_from_slice(&(last | (block.len() as u32) << 3).to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}
