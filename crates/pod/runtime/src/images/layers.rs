//! Unpacked layers, by the name of their stack. A layer is there whole or not at all.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keelson_sys::mount;

use super::digest::Digesting;
use super::unpack::unpack;

const BUFFER: usize = 256 << 10;

#[derive(Debug)]
pub struct Layers {
    root: PathBuf,
    ingest: PathBuf,
    counter: AtomicU64,
    /// Something was unpacked that may not be on the disk yet.
    dirty: AtomicBool,
}

/// What an archive has to be: its own digest, if known, and that of its uncompressed form.
pub struct Expected<'a> {
    pub digest: Option<&'a str>,
    pub diff_id: &'a str,
}

impl Layers {
    /// Opens the store; what an earlier run did not finish is removed.
    pub fn open(root: &Path) -> io::Result<Layers> {
        let layers = Layers {
            root: root.join("layers"),
            ingest: root.join("ingest"),
            counter: AtomicU64::new(0),
            dirty: AtomicBool::new(false),
        };
        fs::create_dir_all(&layers.root)?;
        for mounted in mount::below(&layers.ingest)? {
            mount::unmount(&mounted)?;
        }
        match fs::remove_dir_all(&layers.ingest) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&layers.ingest)?,
        }
        Ok(layers)
    }

    /// A directory that all layers lie in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directories of a stack, topmost first, as overlayfs wants them.
    pub fn directories(&self, chains: &[String]) -> Vec<PathBuf> {
        chains.iter().rev().map(|chain| self.entry(chain).join("fs")).collect()
    }

    pub fn has(&self, chain: &str) -> bool {
        self.entry(chain).is_dir()
    }

    /// Short, because overlayfs takes only a page of names: half a digest is unique enough.
    fn entry(&self, chain: &str) -> PathBuf {
        let hex = chain.strip_prefix("sha256:").unwrap_or(chain);
        self.root.join(hex.get(..32).unwrap_or(hex))
    }

    /// A new file for what is being downloaded.
    pub fn ingest_file(&self) -> PathBuf {
        self.ingest
            .join(self.counter.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Unpacks the archive of the topmost layer of `chains` onto the ones below it, which are there already.
    pub fn add(&self, chains: &[String], archive: impl Read, expected: &Expected<'_>) -> io::Result<()> {
        let Some((chain, below)) = chains.split_last() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no layer"));
        };
        let work = self.ingest_file();
        let (fs_dir, target) = (work.join("fs"), work.join("mnt"));
        fs::create_dir_all(&fs_dir)?;
        let result = (|| {
            let size = if below.is_empty() {
                unpack_verified(archive, &fs_dir, expected)?
            } else {
                fs::create_dir(work.join("work"))?;
                fs::create_dir(&target)?;
                let upper = Some((fs_dir.as_path(), work.join("work")));
                let upper = upper.as_ref().map(|(fs, work)| (*fs, work.as_path()));
                mount::overlay(&self.root, &self.directories(below), upper, "", &target).map_err(|e| {
                    io::Error::new(e.kind(), format!("cannot mount an overlay in {}: {e}", work.display()))
                })?;
                let unpacked = unpack_verified(archive, &target, expected);
                mount::unmount(&target)?;
                fs::remove_dir_all(work.join("work"))?;
                fs::remove_dir(&target)?;
                unpacked?
            };
            fs::write(work.join("size"), size.to_string())?;
            match fs::rename(&work, self.entry(chain)) {
                // Another pull was quicker.
                Err(_) if self.has(chain) => fs::remove_dir_all(&work),
                done => done,
            }
        })();
        self.dirty.store(true, Ordering::SeqCst);
        if result.is_err() && work.exists() {
            for mounted in mount::below(&work)? {
                mount::unmount(&mounted)?;
            }
            fs::remove_dir_all(&work)?;
        }
        result
    }

    /// Takes layers that no stack names out of sight, so that a crash leaves no half of one, and returns where they are to
    /// be removed from.
    pub fn set_aside(&self, chains: &HashSet<String>) -> io::Result<Vec<PathBuf>> {
        let kept: HashSet<PathBuf> = chains.iter().map(|c| self.entry(c)).collect();
        let mut doomed = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if !kept.contains(&path) {
                doomed.push(self.ingest_file());
                fs::rename(&path, &doomed[doomed.len() - 1])?;
            }
        }
        Ok(doomed)
    }

    /// Bytes and number of layers.
    pub fn usage(&self) -> io::Result<(u64, u64)> {
        let (mut bytes, mut count) = (0, 0);
        for entry in fs::read_dir(&self.root)? {
            let size = fs::read_to_string(entry?.path().join("size")).unwrap_or_default();
            bytes += size.trim().parse().unwrap_or(0);
            count += 1;
        }
        Ok((bytes, count))
    }

    /// Everything unpacked so far is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        if self.dirty.swap(false, Ordering::SeqCst) {
            // Costly: the kernel writes what everybody has written.
            nix::unistd::syncfs(File::open(&self.root)?)?;
        }
        Ok(())
    }
}

fn unpack_verified(archive: impl Read, target: &Path, expected: &Expected<'_>) -> io::Result<u64> {
    let mut compressed = BufReader::with_capacity(BUFFER, Digesting::new(archive));
    let start = compressed.fill_buf()?;
    let (gzip, zstd) = (
        start.starts_with(&[0x1f, 0x8b]),
        start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
    );
    let decoder: Box<dyn Read + '_> = if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(&mut compressed))
    } else if zstd {
        let decoder = ruzstd::decoding::StreamingDecoder::new(&mut compressed)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {e}")))?;
        Box::new(decoder)
    } else {
        Box::new(&mut compressed)
    };
    let mut plain = BufReader::with_capacity(BUFFER, Digesting::new(decoder));
    let size = unpack(&mut plain, target)?;
    // Both digests cover what follows the archive's end, too.
    io::copy(&mut plain, &mut io::sink())?;
    verify(expected.diff_id, &plain.into_inner().finish()?, "uncompressed layer")?;
    io::copy(&mut compressed, &mut io::sink())?;
    if let Some(digest) = expected.digest {
        verify(digest, &compressed.into_inner().finish()?, "layer")?;
    }
    Ok(size)
}

pub fn verify(wanted: &str, got: &str, what: &str) -> io::Result<()> {
    if wanted == got {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} has digest {got}, expected {wanted}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::digest;

    fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o640);
            header.set_uid(nix::unistd::getuid().as_raw().into());
            header.set_gid(nix::unistd::getgid().as_raw().into());
            header.set_cksum();
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_layer_is_verified_and_all_or_nothing() {
        let dir = std::env::temp_dir().join(format!("keelson-layers-{}", std::process::id()));
        let layers = Layers::open(&dir).unwrap();
        let archive = tar(&[("etc/a", "one")]);
        let diff_id = digest::of(&archive);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::copy(&mut &archive[..], &mut gz).unwrap();
        let gz = gz.finish().unwrap();
        let gz_digest = digest::of(&gz);
        let chains = vec![diff_id.clone()];

        let wrong = Expected {
            digest: Some(&diff_id),
            diff_id: &diff_id,
        };
        assert!(layers.add(&chains, &gz[..], &wrong).is_err());
        assert!(!layers.has(&diff_id));

        let right = Expected {
            digest: Some(&gz_digest),
            diff_id: &diff_id,
        };
        layers.add(&chains, &gz[..], &right).unwrap();
        assert_eq!(
            fs::read_to_string(layers.directories(&chains)[0].join("etc/a")).unwrap(),
            "one"
        );
        assert_eq!(layers.usage().unwrap(), (3, 1));
        for doomed in layers.set_aside(&HashSet::new()).unwrap() {
            assert!(doomed.is_dir());
        }
        assert!(!layers.has(&diff_id));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn archives_cannot_leave_the_directory() {
        let dir = std::env::temp_dir().join(format!("keelson-escape-{}", std::process::id()));
        let layers = Layers::open(&dir).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(nix::unistd::getuid().as_raw().into());
        header.set_gid(nix::unistd::getgid().as_raw().into());
        builder.append_link(&mut header, "out", &dir).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(tar(&[("out/escaped", "x")]));
        let diff_id = digest::of(&bytes);
        let expected = Expected {
            digest: None,
            diff_id: &diff_id,
        };
        // The link is followed inside the layer, where its target does not exist yet.
        let _either_way = layers.add(std::slice::from_ref(&diff_id), &bytes[..], &expected);
        assert!(!dir.join("escaped").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
