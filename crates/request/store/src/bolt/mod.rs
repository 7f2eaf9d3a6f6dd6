//! Files of bbolt, etcd's engine, as far as snapshots are made of them: written once from front to back, read from any.
//!
//! A file is pages of 4 KiB, numbers little-endian. Page 0 and 1 say where the rest is (the newer one that is whole counts), page 2 lists
//! free pages. Buckets are trees of branch and leaf pages with sorted keys; the root is a bucket of buckets. A small one may stand
//! in its parent's page instead. A page that needs more room goes on in the pages behind it.
//!
//! | what | form |
//! |---|---|
//! | head of a page | id u64 · kind u16 · elements u16 · further pages u32 |
//! | element of a branch | offset u32 · key length u32 · page u64 |
//! | element of a leaf | 1 for a bucket, else 0, u32 · offset u32 · key length u32 · value length u32 |
//! | value of a bucket | page of its root u64, 0: it follows here · sequence u64 |
//! | page 0 and 1 | magic u32 · version u32 · page size u32 · flags u32 · root bucket · free list u64 · pages u64 · transaction u64 · FNV-1a of what is before u64 |
//!
//! Offsets count from the element that has them.

mod read;
mod write;

pub use read::Reader;
pub use write::Writer;

const PAGE: usize = 4096;
const HEAD: usize = 16;
const ELEMENT: usize = 16;
/// Of a bucket's value.
const ROOT: usize = 16;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREE: u16 = 0x10;
const IS_BUCKET: u32 = 1;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// Behind the head of page 0 and 1, up to the sum.
const SUMMED: usize = 56;

fn fnv(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn write(path: &Path, buckets: &[(&str, Pairs)]) {
        let mut file = Writer::create(path).unwrap();
        for (name, pairs) in buckets {
            let mut bucket = file.bucket(name);
            for (key, value) in pairs {
                bucket.put(key, value).unwrap();
            }
            bucket.end().unwrap();
        }
        file.finish().unwrap();
    }

    fn read(path: &Path, name: &str) -> std::io::Result<Pairs> {
        let mut pairs = Vec::new();
        Reader::open(path)?.each(name, |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok(pairs)
    }

    /// Values of all sizes: none, many to a page, larger than one.
    fn pairs(count: u32) -> Pairs {
        let size = |n: u32| match n % 50 {
            49 => 9000,
            n => n as usize * 7,
        };
        let pair = |n: u32| (n.to_be_bytes().to_vec(), vec![n as u8; size(n)]);
        (0..count).map(pair).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        for count in [0, 1, 2, 30, 1000, 40_000] {
            let both = [("key", pairs(count)), ("a", pairs(3)), ("none", Vec::new())];
            write(&path, &both);
            for (name, pairs) in &both {
                assert!(read(&path, name).unwrap() == *pairs, "{name} of {count}");
            }
            assert_eq!(read(&path, "other").unwrap(), Pairs::new(), "what isn't there is empty");
            assert_eq!(std::fs::metadata(&path).unwrap().len() % PAGE as u64, 0);
        }
    }

    #[test]
    fn keys_are_written_in_order_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = Writer::create(&directory.path().join("db")).unwrap();
        let mut bucket = file.bucket("key");
        bucket.put(b"b", b"").unwrap();
        for key in [&b"a"[..], b"b", b""] {
            assert_eq!(bucket.put(key, b"").unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    /// Whatever stands there, it is read or refused, in bounded time and memory.
    #[test]
    fn damaged_files_are_refused_or_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        write(&path, &[("key", pairs(52))]);
        let whole = std::fs::read(&path).unwrap();
        let damaged = directory.path().join("damaged");
        std::fs::write(&damaged, &whole).unwrap();
        let file = std::fs::File::options().write(true).open(&damaged).unwrap();
        for at in (0..whole.len()).step_by(7) {
            for with in [0, 1, 0x7f, 0xff] {
                file.write_all_at(&[with], at as u64).unwrap();
                let _ = read(&damaged, "key");
            }
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
        for len in (0..whole.len()).step_by(997) {
            std::fs::write(&damaged, &whole[..len]).unwrap();
            assert!(read(&damaged, "key").is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_tree_that_leads_to_itself_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        write(&path, &[("key", pairs(1000))]);
        let mut bytes = std::fs::read(&path).unwrap();
        let branch = (0..bytes.len() / PAGE)
            .find(|page| bytes[page * PAGE + 8] == BRANCH as u8)
            .unwrap();
        let first = branch * PAGE + HEAD;
        bytes[first + 8..first + 16].copy_from_slice(&(branch as u64).to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path, "key").unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn elements_are_no_more_than_their_page() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        write(&path, &[("key", pairs(30))]);
        let mut bytes = std::fs::read(&path).unwrap();
        // Each element's value is all that is behind it.
        let leaves = (0..bytes.len() / PAGE).filter(|page| bytes[page * PAGE + 8] == LEAF as u8);
        let leaf = leaves.max_by_key(|page| bytes[page * PAGE + 10]).unwrap();
        for n in 0..20 {
            let at = leaf * PAGE + HEAD + n * ELEMENT;
            bytes[at + 12..at + 16].copy_from_slice(&1000u32.to_le_bytes());
        }
        std::fs::write(&path, bytes).unwrap();
        let refused = read(&path, "key").unwrap_err().to_string();
        assert!(refused.contains("more than the page"), "{refused}");
    }
}
