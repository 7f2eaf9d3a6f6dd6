//! Some changes together, as they are written: ordered by key, so that versions of one object stand side by side and compress to little.

use crate::{Error, Result};
use bytes::Bytes;
use keelson_store::{KeyValue, Revision};
use prost::Message;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// A change of a key.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    #[prost(uint64, tag = "1")]
    pub revision: Revision,
    /// When it was seen: milliseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub time_ms: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub key: Bytes,
    #[prost(bool, tag = "4")]
    pub deleted: bool,
    /// What it replaced; `None`: the key is new.
    #[prost(message, optional, tag = "5")]
    pub before: Option<Before>,
    #[prost(message, optional, tag = "6")]
    pub who: Option<Who>,
    /// It was seen after a start of the server, and happened some time before.
    #[prost(bool, tag = "7")]
    pub late: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Before {
    #[prost(bytes = "bytes", tag = "1")]
    pub value: Bytes,
    #[prost(uint64, tag = "2")]
    pub mod_revision: Revision,
    #[prost(uint64, tag = "3")]
    pub create_revision: Revision,
    #[prost(uint64, tag = "4")]
    pub version: u64,
}

/// Who made a change, as the server that served it knows.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Who {
    #[prost(string, tag = "1")]
    pub user: String,
    /// The client, as it calls itself.
    #[prost(string, tag = "2")]
    pub agent: String,
    /// The API's verb, and the subresource if there is one: `patch`, `update status`.
    #[prost(string, tag = "3")]
    pub verb: String,
}

/// So many letters of each of these are kept: clients call themselves what they like.
const LONGEST: usize = 256;

impl Who {
    fn bytes(&self) -> usize {
        self.user.len() + self.agent.len() + self.verb.len()
    }

    pub(crate) fn cut(mut self) -> Who {
        for text in [&mut self.user, &mut self.agent, &mut self.verb] {
            if let Some((end, _)) = text.char_indices().nth(LONGEST) {
                text.truncate(end);
                text.shrink_to_fit();
            }
        }
        self
    }
}

#[derive(Clone, PartialEq, Message)]
struct Records {
    #[prost(message, repeated, tag = "1")]
    records: Vec<Record>,
}

impl Record {
    /// About what it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let before = self.before.as_ref().map_or(0, |before| before.value.len());
        let who = self.who.as_ref().map_or(0, Who::bytes);
        self.key.len() + before + who + 160
    }

    /// The key as it stood before.
    pub fn was(&self) -> Option<KeyValue> {
        self.before.as_ref().map(|before| KeyValue {
            key: self.key.clone(),
            value: before.value.clone(),
            create_revision: before.create_revision,
            mod_revision: before.mod_revision,
            version: before.version,
            lease: 0,
        })
    }
}

/// What is known of a block without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where its content begins in the file.
    pub at: u64,
    pub length: u32,
    pub raw: u32,
    /// Everything after the block before, up to and including `last`, is in it.
    pub last: Revision,
    pub to_ms: u64,
    pub sum: u64,
    /// Of keys, and of every beginning of them that ends with a slash; sorted.
    pub hashes: Box<[u32]>,
}

/// length, raw, how many hashes, (nothing), last, to, sum of the content, sum of the head and hashes
pub(crate) const HEAD: usize = 4 * 4 + 4 * 8;

pub(crate) fn hash(key: &[u8]) -> u32 {
    xxh3_64(key) as u32
}

fn hashes<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Box<[u32]> {
    let mut all = Vec::new();
    for key in keys {
        all.push(hash(key));
        let slashes = key.iter().enumerate().filter(|(_, b)| **b == b'/');
        all.extend(slashes.map(|(at, _)| hash(&key[..=at])));
    }
    all.sort_unstable();
    all.dedup();
    all.into()
}

/// A block of these; its content's place in the file is yet to be said.
pub(crate) fn write(mut records: Vec<Record>, last: Revision, to_ms: u64) -> (Head, Vec<u8>) {
    records.sort_by(|a, b| (&a.key, a.revision).cmp(&(&b.key, b.revision)));
    let hashes = hashes(records.iter().map(|record| &record.key[..]));
    let raw = Records { records }.encode_to_vec();
    let content = lz4_flex::compress(&raw);
    let head = Head {
        at: 0,
        length: content.len() as u32,
        raw: raw.len() as u32,
        last,
        to_ms,
        sum: xxh3_64(&content),
        hashes,
    };
    let mut bytes = head.encode();
    bytes.extend_from_slice(&content);
    (head, bytes)
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.hashes.len() * 4 + self.length as usize);
        for number in [self.length, self.raw, self.hashes.len() as u32, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.last, self.to_ms, self.sum, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for hash in &self.hashes {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        let sum = xxh3_64(&bytes);
        bytes[HEAD - 8..HEAD].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// How many bytes of hashes follow the fixed part.
    pub(crate) fn hashes_of(fixed: &[u8; HEAD]) -> usize {
        number(&fixed[8..12]) as usize * 4
    }

    /// From the fixed part and the hashes, which end at `at` in the file. `None`: it isn't whole.
    pub(crate) fn decode(fixed: &[u8; HEAD], hashes: &[u8], at: u64) -> Option<Head> {
        let mut all = [&fixed[..], hashes].concat();
        all[HEAD - 8..HEAD].fill(0);
        let long = |from: usize| u64::from_le_bytes(fixed[from..from + 8].try_into().unwrap_or_default());
        (xxh3_64(&all) == long(HEAD - 8)).then(|| Head {
            at,
            length: number(&fixed[0..4]),
            raw: number(&fixed[4..8]),
            last: long(16),
            to_ms: long(24),
            sum: long(32),
            hashes: hashes.chunks_exact(4).map(number).collect(),
        })
    }

    /// Whether it may have changes of a key, or of keys that begin so (with a slash at the end).
    pub(crate) fn may_have(&self, hash: u32) -> bool {
        self.hashes.binary_search(&hash).is_ok()
    }

    /// Bytes of the file, with head and hashes.
    pub(crate) fn whole(&self) -> u64 {
        (HEAD + self.hashes.len() * 4) as u64 + u64::from(self.length)
    }

    pub(crate) fn is_whole(&self, content: &[u8]) -> bool {
        content.len() == self.length as usize && xxh3_64(content) == self.sum
    }

    /// In the order of revisions.
    pub(crate) fn records(&self, path: &Path, content: &[u8]) -> Result<Vec<Record>> {
        let wrong = |what: &str| Error::at(path, format!("{what}, at byte {}", self.at));
        if !self.is_whole(content) {
            return Err(wrong("what is there isn't what was written"));
        }
        let raw = lz4_flex::decompress(content, self.raw as usize).map_err(|e| wrong(&e.to_string()))?;
        let mut records = Records::decode(Bytes::from(raw))
            .map_err(|e| wrong(&e.to_string()))?
            .records;
        records.sort_by_key(|record| record.revision);
        Ok(records)
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(revision: Revision, key: &str, was: Option<&str>) -> Record {
        Record {
            revision,
            time_ms: revision * 1000,
            key: key.to_string().into(),
            before: was.map(|was| Before {
                value: was.to_string().into(),
                ..Before::default()
            }),
            ..Record::default()
        }
    }

    #[test]
    fn of_a_long_name_the_beginning_is_kept() {
        let who = Who {
            user: "ä".repeat(5000),
            agent: "curl".into(),
            verb: "é".repeat(256),
        };
        let cut = who.clone().cut();
        assert_eq!(cut.user, "ä".repeat(256));
        assert_eq!((&cut.agent, &cut.verb), (&who.agent, &who.verb));
        let mut record = record(1, "/r/a/x", None);
        let without = record.bytes();
        record.who = Some(cut);
        assert_eq!(record.bytes(), without + 512 + 4 + 512);
    }

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_told() {
        let long = "the same again and again ".repeat(200);
        let records = vec![
            record(3, "/r/b/x", None),
            record(4, "/r/a/y", Some(&long)),
            record(5, "/r/a/y", Some(&long)),
        ];
        let (head, bytes) = write(records.clone(), 5, 5000);
        assert!(bytes.len() < long.len() / 2, "{}", bytes.len());
        let fixed: &[u8; HEAD] = bytes[..HEAD].try_into().unwrap();
        let start = HEAD + Head::hashes_of(fixed);
        let read = Head::decode(fixed, &bytes[HEAD..start], 0).unwrap();
        assert_eq!(read, head);
        assert_eq!(read.whole(), bytes.len() as u64);
        assert_eq!(read.records(Path::new("f"), &bytes[start..]).unwrap(), records);
        for there in ["/r/a/y", "/r/a/", "/r/", "/"] {
            assert!(read.may_have(hash(there.as_bytes())), "{there}");
        }
        assert!(!read.may_have(hash(b"/r/c/")));
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(read.records(Path::new("f"), &damaged[start..]).is_err());
        damaged[20] ^= 1;
        let fixed: &[u8; HEAD] = damaged[..HEAD].try_into().unwrap();
        assert_eq!(Head::decode(fixed, &damaged[HEAD..start], 0), None);
    }
}
