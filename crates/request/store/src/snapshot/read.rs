//! Reads a snapshot, ours or etcd's. Of a key with a past the newest version counts.

use super::{Entry, FINISHED, KEYS, LEASES, Lease, META, SCHEDULED, SUM, Sum, Summary, damaged, io, save};
use crate::bolt::Reader;
use crate::etcd::mvccpb;
use crate::{KeyValue, Result, Revision};
use prost::Message;
use std::collections::{HashMap, HashSet};
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
    /// Granted for, and left, by number.
    leases: HashMap<i64, (u64, u64)>,
    /// Those numbered as the revision that they are of: they say when an API server's key ends.
    ours: HashSet<i64>,
    bytes: u64,
}

fn odd(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// Revision, number of the change within it, and whether it is a deletion.
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
            leases: HashMap::new(),
            ours: HashSet::new(),
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
            leases,
            ours,
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
            if kv.lease == at as i64 && !deletion {
                ours.insert(kv.lease);
            }
            match deletion {
                true => drop(newest.remove(&kv.key[..])),
                false => drop(newest.insert(kv.key.to_vec(), at)),
            }
            Ok(())
        })?;
        file.each(LEASES, |_, value| {
            let lease: Lease = decode(value)?;
            let left = if lease.left > 0 { lease.left } else { lease.seconds };
            let number = |n: i64| u64::try_from(n).unwrap_or_default();
            leases.insert(lease.id, (number(lease.seconds), number(left)));
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

    /// Leases of etcd's clients, and what each was granted for. Those that say when an API server's keys end aren't among them.
    pub(crate) fn leases(&self) -> impl Iterator<Item = (i64, u64)> {
        let clients = self.leases.iter().filter(|(id, _)| !self.ours.contains(id));
        clients.map(|(id, (seconds, _))| (*id, *seconds))
    }

    /// What each key is, in the order of revisions.
    pub(crate) fn each(&self, mut f: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut failed = None;
        let walked = self.file.each(KEYS, |at, value| {
            let (at, sub, deletion) = revision(at)?;
            let kv: mvccpb::KeyValue = decode(value)?;
            if deletion || self.newest.get(&kv.key[..]) != Some(&at) {
                return Ok(());
            }
            let lease = self.leases.get(&kv.lease);
            let clients = lease.is_some() && !self.ours.contains(&kv.lease);
            let number = |n: i64| u64::try_from(n).map_err(|_| odd("a number is negative"));
            let entry = Entry {
                kv: KeyValue {
                    key: kv.key,
                    value: kv.value,
                    create_revision: number(kv.create_revision)?,
                    mod_revision: at,
                    version: number(kv.version)?,
                    lease: if clients { kv.lease } else { 0 },
                },
                sub: u32::try_from(sub).map_err(|_| odd("a revision has too many changes"))?,
                // One whose lease is gone was about to go.
                seconds: (kv.lease != 0 && !clients).then(|| lease.map_or(0, |(_, left)| *left)),
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
