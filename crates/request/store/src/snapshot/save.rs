//! Writes a snapshot: keys in the order in which they were last changed. The file has its name when it is whole.

use super::{EMPTY, Entry, FINISHED, KEYS, LEASES, Lease, META, SCHEDULED, Summary, io, place};
use crate::bolt::Writer;
use crate::digest::encoded;
use crate::{LeaseStanding, Result, Revision};
use prost::Message;
use sha2::{Digest, Sha256};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub(crate) struct Saver {
    to: PathBuf,
    fresh: PathBuf,
}

impl Saver {
    pub(crate) fn new(to: &Path) -> Saver {
        let mut fresh = to.as_os_str().to_os_string();
        fresh.push(".part");
        Saver {
            to: to.into(),
            fresh: fresh.into(),
        }
    }

    /// `entries` come by revision. What is in them may be secret: the file is for its owner.
    pub(crate) fn write(
        self,
        revision: Revision,
        leases: &[LeaseStanding],
        entries: impl Iterator<Item = Result<Entry>>,
    ) -> Result<Unsealed> {
        let written = self.fill(revision, leases, entries);
        let unsealed = Unsealed {
            saver: self,
            revision,
            keys: *written.as_ref().unwrap_or(&0),
        };
        written.map(|_| unsealed)
    }

    fn fill(
        &self,
        revision: Revision,
        granted: &[LeaseStanding],
        entries: impl Iterator<Item = Result<Entry>>,
    ) -> Result<u64> {
        let fail = |e: std::io::Error| io(&self.to, &e);
        // The writer finds the file with its mode.
        super::begin(&self.fresh).map_err(fail)?;
        let mut file = Writer::create(&self.fresh).map_err(fail)?;
        for name in EMPTY {
            file.bucket(name).end().map_err(fail)?;
        }
        let mut bucket = file.bucket(KEYS);
        let mut keys = 0;
        let mut leases: Vec<_> = granted.iter().map(|lease| (lease.id, lease.seconds as i64)).collect();
        for entry in entries {
            let Entry { mut kv, sub, seconds } = entry?;
            let at = kv.mod_revision;
            if let Some(seconds) = seconds {
                kv.lease = at as i64;
                leases.push((kv.lease, seconds as i64));
            }
            let value = encoded(kv).encode_to_vec();
            bucket.put(&place(at, sub), &value).map_err(fail)?;
            keys += 1;
        }
        bucket.end().map_err(fail)?;
        let mut bucket = file.bucket(LEASES);
        // As they are written: negative numbers come last.
        leases.sort_unstable_by_key(|(id, _)| id.to_be_bytes());
        leases.dedup_by_key(|(id, _)| *id);
        for (id, seconds) in leases {
            let lease = Lease {
                id,
                seconds,
                left: seconds,
            };
            bucket.put(&id.to_be_bytes(), &lease.encode_to_vec()).map_err(fail)?;
        }
        bucket.end().map_err(fail)?;
        let mut bucket = file.bucket(META);
        for name in [FINISHED, SCHEDULED] {
            bucket.put(name, &place(revision, 0)).map_err(fail)?;
        }
        bucket.end().map_err(fail)?;
        file.finish().map_err(fail)?;
        Ok(keys)
    }
}

/// A file whose content is there, and nothing else yet: no sum, no name. What isn't sealed is removed.
pub(crate) struct Unsealed {
    saver: Saver,
    revision: Revision,
    keys: u64,
}

impl Unsealed {
    pub(crate) fn seal(self) -> Result<Summary> {
        let Saver { to, fresh } = &self.saver;
        let sealed = seal(fresh).and_then(|bytes| {
            super::name(fresh, to)?;
            Ok(bytes)
        });
        Ok(Summary {
            revision: self.revision,
            keys: self.keys,
            bytes: sealed.map_err(|e| io(to, &e))?,
        })
    }
}

impl Drop for Unsealed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.saver.fresh);
    }
}

/// Puts the sum behind what there is.
fn seal(path: &Path) -> std::io::Result<u64> {
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let sum = sum(&mut file, u64::MAX)?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(&sum)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

pub(super) fn sum(file: &mut impl Read, len: u64) -> std::io::Result<[u8; super::SUM]> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut file.take(len), &mut hasher)?;
    Ok(hasher.finalize().into())
}
