//! The engine's journal, as far as it has to be known when its end can't be trusted.
//!
//! A failed sync leaves pages that the kernel shows as written and will never write: what is read back may not be on the disk,
//! and a later sync that succeeds says nothing about it. So whenever the last sync isn't known to have succeeded, the journals
//! are written anew ([`renew`]): up to where they are good, into fresh files, synced, in the place of the old ones.
//!
//! Each batch is synced before the next one is begun. A damaged batch that a whole one follows had therefore been acknowledged,
//! and the directory is not to be trusted; one that nothing follows was cut short, by a kill or with the power, and is dropped.
//!
//! Form: batches of start (1 · count u32 · sequence number u64), items (2 · kind · compression · table u64 · key length u16 ·
//! value length u32 · stored length u32 · key · value) or clearings (4 · table u64), and end (3 · XXH3 of what is between · mark).
//! Numbers are little-endian. The test below reads what the engine wrote: another form fails there.

use super::fault;
use crate::Result;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const START_LEN: usize = 13;
/// Up to where an item's own lengths are told.
const ITEM_HEAD: usize = 21;
const CLEAR_LEN: usize = 9;
const MARK: &[u8] = b"FJL\x03";

/// A whole batch.
#[derive(Debug, PartialEq, Eq)]
struct Batch {
    seqno: u64,
    len: usize,
}

/// The batch at the beginning of `bytes`, if there is a whole one.
fn first(bytes: &[u8]) -> Option<Batch> {
    if *bytes.first()? != START {
        return None;
    }
    let count = number::<4>(bytes, 1)?;
    let seqno = number::<8>(bytes, 5)?;
    let mut end = START_LEN;
    for _ in 0..count {
        end += match *bytes.get(end)? {
            ITEM => {
                let key = number::<2>(bytes, end + 11)? as usize;
                let stored = number::<4>(bytes, end + 17)? as usize;
                ITEM_HEAD + key + stored
            }
            CLEAR => CLEAR_LEN,
            _ => return None,
        };
    }
    if *bytes.get(end)? != END || number::<8>(bytes, end + 1)? != xxh3_64(bytes.get(START_LEN..end)?) {
        return None;
    }
    let len = end + 9 + MARK.len();
    (bytes.get(end + 9..len)? == MARK).then_some(Batch { seqno, len })
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut out = [0; 8];
    out[..N].copy_from_slice(bytes.get(at..at + N)?);
    Some(u64::from_le_bytes(out))
}

/// How a journal is to be cut.
#[derive(Debug, PartialEq, Eq)]
enum Cut {
    /// Only whole batches that are wanted stand before it, and none that is wanted behind it.
    At(usize),
    /// Whole batches follow one that isn't.
    Damaged(usize),
}

/// `before`: only batches of smaller sequence numbers are wanted.
fn cut(journal: &[u8], before: Option<u64>) -> Cut {
    let mut end = 0;
    while let Some(batch) = first(&journal[end..]) {
        if before.is_some_and(|before| batch.seqno >= before) {
            return Cut::At(end);
        }
        end += batch.len;
    }
    let wanted = |batch: Batch| before.is_none_or(|before| batch.seqno < before);
    // A batch in progress is at the end: whatever stands behind it was written by nobody.
    let rest = &journal[end..];
    let starts = rest.iter().enumerate().skip(1).filter(|(_, byte)| **byte == START);
    match starts.filter_map(|(at, _)| first(&rest[at..])).any(wanted) {
        true => Cut::Damaged(end),
        false => Cut::At(end),
    }
}

/// Writes the journals anew, with the engine closed: what is wanted of them is on the disk then, and nothing else can be read.
pub(super) fn renew(store: &Path, before: Option<u64>) -> Result<()> {
    let fail = |e: std::io::Error| fault::io(store, &e);
    // What another engine wrote would look like damage from its first byte on.
    if fs::read(store.join("version")).map_err(fail)? != MARK {
        return Ok(());
    }
    let mut is_cut = false;
    for path in journals(store).map_err(fail)? {
        let mut journal = fs::read(&path).map_err(fail)?;
        trim(&mut journal);
        let end = match cut(&journal, before) {
            Cut::At(end) => end,
            Cut::Damaged(at) => return Err(damaged(store, &path, at)),
        };
        if is_cut && end > 0 {
            return Err(damaged(store, &path, 0));
        }
        is_cut |= journal[end..].iter().any(|byte| *byte != 0);
        replace(&path, &journal[..end]).map_err(fail)?;
    }
    sync_directory(store).map_err(fail)
}

/// The engine makes a journal with 64 MiB of zeros; what is written there doesn't end with any.
fn trim(journal: &mut Vec<u8>) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let zeros = journal
        .rchunks(ZEROS.len())
        .take_while(|chunk| **chunk == ZEROS[..chunk.len()]);
    let zeros: usize = zeros.map(<[u8]>::len).sum();
    journal.truncate(journal.len() - zeros);
}

fn damaged(store: &Path, journal: &Path, at: usize) -> crate::Error {
    let what = format!("its journal {} is damaged at byte {at}", journal.display());
    fault::corrupt(store, what)
}

/// Oldest first.
fn journals(store: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|s| s.to_str()?.parse::<u64>().ok());
        if let (Some(number), Some("jnl")) = (number, path.extension().and_then(|e| e.to_str())) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    // Not a name that the engine takes for a journal.
    let fresh = path.with_extension("jnl-fresh");
    let mut file = File::create(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Whether the disk takes anything at all.
pub(super) fn try_disk(store: &Path) -> Result<()> {
    const NAME: &str = "try";
    let path = store.join(NAME);
    let tried = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(&[0x5a; 64 << 10])?;
        file.sync_all()?;
        fs::remove_file(&path)
    };
    tried().map_err(|e| fault::io(store, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    /// What the engine wrote for `count` commits of two tables: small values, and large ones, which it compresses.
    fn written(directory: &Path, count: u64) -> (PathBuf, Vec<u8>, u64) {
        let db = Database::builder(directory)
            .manual_journal_persist(true)
            .open()
            .unwrap();
        let tables = ["a", "b"].map(|name| db.keyspace(name, KeyspaceCreateOptions::default).unwrap());
        let before = db.seqno();
        for n in 0..count {
            let mut batch = db.batch().durability(Some(PersistMode::SyncData));
            batch.insert(
                &tables[0],
                n.to_be_bytes(),
                vec![n as u8; if n % 3 == 0 { 9000 } else { 20 }],
            );
            batch.remove(&tables[1], n.to_be_bytes());
            batch.commit().unwrap();
        }
        let after = db.seqno();
        drop((tables, db));
        assert_eq!(after - before, count);
        let path = journals(directory).unwrap().pop().unwrap();
        let mut journal = fs::read(&path).unwrap();
        trim(&mut journal);
        journal.extend([0; 16]);
        (path, journal, before)
    }

    fn batches(journal: &[u8]) -> Vec<Batch> {
        let mut at = 0;
        std::iter::from_fn(|| first(&journal[at..]).inspect(|b| at += b.len)).collect()
    }

    #[test]
    fn the_engines_journal_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let (_, journal, first_seqno) = written(directory.path(), 10);
        let read = batches(&journal);
        let of_commits: Vec<u64> = read.iter().map(|b| b.seqno).filter(|s| *s >= first_seqno).collect();
        assert!(of_commits.into_iter().eq(first_seqno..first_seqno + 10), "{read:?}");
        let len: usize = read.iter().map(|b| b.len).sum();
        assert!(journal[len..].iter().all(|b| *b == 0), "something else follows");
        assert_eq!(cut(&journal, None), Cut::At(len));
    }

    #[test]
    fn what_was_cut_short_is_told_from_damage() {
        let directory = tempfile::tempdir().unwrap();
        let (_, journal, _) = written(directory.path(), 10);
        let read = batches(&journal);
        let len: usize = read.iter().map(|b| b.len).sum();
        let last = len - read.last().unwrap().len;
        for torn in [last, last + 1, last + 20, last + 60, len - 1] {
            let mut journal = journal.clone();
            journal[torn..].fill(0);
            assert_eq!(cut(&journal, None), Cut::At(last), "{torn}");
            let mut hole = journal.clone();
            hole[torn..torn + 8].fill(0xee);
            assert_eq!(cut(&hole, None), Cut::At(last), "{torn}");
        }
        let mut damaged = journal.clone();
        damaged[last - 30] ^= 1;
        assert!(matches!(cut(&damaged, None), Cut::Damaged(at) if at < last));
    }

    #[test]
    fn what_nobody_was_told_of_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let (path, journal, first_seqno) = written(directory.path(), 10);
        renew(directory.path(), Some(first_seqno + 7)).unwrap();
        let renewed = fs::read(&path).unwrap();
        assert!(journal.starts_with(&renewed));
        assert_eq!(batches(&renewed).last().unwrap().seqno, first_seqno + 6);
        let db = Database::builder(directory.path()).open().unwrap();
        let table = db.keyspace("a", KeyspaceCreateOptions::default).unwrap();
        assert_eq!(table.len().unwrap(), 7);
    }
}
