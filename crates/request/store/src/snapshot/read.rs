//! Reads a snapshot, ours or etcd's. Of a key with a past the newest version counts.

use super::{Entry, FINISHED, KEYS, LEASES, Lease, META, SCHEDULED, SUM, Sum, Summary, damaged, io, save};
use crate::bolt::Reader;
use crate::etcd::mvccpb;
use crate::{KeyValue, Result, Revision};
use prost::Message;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What etcd's own pages are multiples of; what is more is a sum.
const SECTOR: u64 = 512;

pub(crate) struct Content {
    path: PathBuf,
    file: Reader,
    revision: Revision,
    /// The revision at which each key got what it is now, of those that are.
    newest: HashMap<Vec<u8>, Revision>,
    seconds: HashMap<i64, u64>,
    bytes: u64,
}

fn odd(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// Revision, and whether it is a deletion. Numbers within a revision: the API servers write one key at a time.
fn revision(place: &[u8]) -> std::io::Result<(Revision, u64, bool)> {
    let (main, rest) = place
        .split_first_chunk::<8>()
        .ok_or_else(|| odd("a revision is malformed"))?;
    let rest = rest.strip_prefix(b"_").ok_or_else(|| odd("a revision is malformed"))?;
    let (within, rest) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| odd("a revision is malformed"))?;
    let deletion = match rest {
        b"" => false,
        b"t" => true,
        _ => return Err(odd("a revision is malformed")),
    };
    Ok((u64::from_be_bytes(*main), u64::from_be_bytes(*within), deletion))
}

fn decode<T: Message + Default>(value: &[u8]) -> std::io::Result<T> {
    T::decode(value).map_err(|_| odd("a value is malformed"))
}

impl Content {
    /// Checks the sum, and finds what is there. Each key is held in memory.
    pub(crate) fn open(path: &Path, sum: Sum) -> Result<Content> {
        let fail = |e: Error| io(path, &e);
        let bytes = check_sum(path, sum)?;
        let file = Reader::open(path).map_err(fail)?;
        let mut content = Content {
            path: path.into(),
            file,
            revision: 0,
            newest: HashMap::new(),
            seconds: HashMap::new(),
            bytes,
        };
        content.scan().map_err(fail)?;
        if content.revision == 0 {
            return Err(damaged(path, "there is no store in it"));
        }
        Ok(content)
    }

    fn scan(&mut self) -> std::io::Result<()> {
        let Content {
            file,
            revision: last,
            newest,
            seconds,
            ..
        } = self;
        file.each(META, |name, value| {
            if name == SCHEDULED || name == FINISHED {
                *last = (*last).max(revision(value)?.0);
            }
            Ok(())
        })?;
        file.each(KEYS, |at, value| {
            let (at, _, deletion) = revision(at)?;
            let kv: mvccpb::KeyValue = decode(value)?;
            *last = (*last).max(at);
            match deletion {
                true => drop(newest.remove(&kv.key[..])),
                false => drop(newest.insert(kv.key.to_vec(), at)),
            }
            Ok(())
        })?;
        file.each(LEASES, |_, value| {
            let lease: Lease = decode(value)?;
            let left = if lease.left > 0 { lease.left } else { lease.seconds };
            seconds.insert(lease.id, u64::try_from(left).unwrap_or_default());
            Ok(())
        })
    }

    pub(crate) fn summary(&self) -> Result<Summary> {
        let mut keys = 0;
        self.each(|_| {
            keys += 1;
            Ok(())
        })?;
        Ok(Summary {
            revision: self.revision,
            keys,
            bytes: self.bytes,
        })
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// What each key is, in the order of revisions.
    pub(crate) fn each(&self, mut f: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        let (mut failed, mut last) = (None, 0);
        let walked = self.file.each(KEYS, |at, value| {
            let (at, _, deletion) = revision(at)?;
            let kv: mvccpb::KeyValue = decode(value)?;
            if deletion || self.newest.get(&kv.key[..]) != Some(&at) {
                return Ok(());
            }
            if at == last {
                return Err(odd("one revision changed several keys, which no API server does"));
            }
            last = at;
            let number = |n: i64| u64::try_from(n).map_err(|_| odd("a number is negative"));
            let entry = Entry {
                kv: KeyValue {
                    key: kv.key,
                    value: kv.value,
                    create_revision: number(kv.create_revision)?,
                    mod_revision: at,
                    version: number(kv.version)?,
                },
                // One whose lease is gone was about to go.
                seconds: (kv.lease != 0).then(|| self.seconds.get(&kv.lease).copied().unwrap_or_default()),
            };
            f(entry).map_err(|error| {
                failed = Some(error);
                odd("the store took no more")
            })
        });
        match (failed, walked) {
            (Some(error), _) => Err(error),
            (None, walked) => walked.map_err(|e| io(&self.path, &e)),
        }
    }
}

/// Of a file that has a sum. One that was copied from a member's directory has none.
fn check_sum(path: &Path, wanted: Sum) -> Result<u64> {
    let fail = |e: Error| io(path, &e);
    // What isn't a file could be waited for for ever.
    if !path.metadata().map_err(fail)?.is_file() {
        return Err(damaged(path, "it is no file"));
    }
    let mut file = File::open(path).map_err(fail)?;
    let len = file.metadata().map_err(fail)?.len();
    match (len % SECTOR, wanted) {
        (rest, Sum::Wanted) if rest == SUM as u64 => {}
        (rest, Sum::Ignored) if rest == 0 || rest == SUM as u64 => return Ok(len),
        (0, Sum::Wanted) => {
            return Err(damaged(
                path,
                "it has no sum (SHA-256), as a member's own file has none: --skip-hash-check takes it as it is",
            ));
        }
        _ => return Err(damaged(path, "it is no snapshot, or was cut short")),
    }
    let sum = save::sum(&mut file, len - SUM as u64).map_err(fail)?;
    let mut noted = [0; SUM];
    file.seek(SeekFrom::Start(len - SUM as u64)).map_err(fail)?;
    file.read_exact(&mut noted).map_err(fail)?;
    match sum == noted {
        true => Ok(len),
        false => Err(damaged(path, "its sum (SHA-256) is wrong: it isn't what was written")),
    }
}
