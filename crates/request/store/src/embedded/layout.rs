//! How keys, revisions and versions are written in the engine's tables.
//!
//! | table  | key                                   | value                                   |
//! |--------|---------------------------------------|-----------------------------------------|
//! | data   | key, escaped · end mark · revision, inverted | kind · create revision · version · value |
//! | log    | revision                              | key                                     |
//! | expiry | deadline · revision                   | key                                     |
//! | meta   | a name                                | a number or a text                      |
//!
//! In `data` a key's newest version comes first, and keys come in byte order: a zero byte is escaped, so that the end mark
//! sorts before anything a longer key could go on with.

use crate::{KeyValue, Revision};
use bytes::Bytes;

const END: [u8; 2] = [0, 0];
const ESCAPED_ZERO: [u8; 2] = [0, 0xff];
/// End mark and revision.
const TAIL: usize = 10;
/// Kind, create revision, version.
const HEAD: usize = 17;

const PUT: u8 = 0;
const DELETED: u8 = 1;

/// The place before all versions of `key`.
pub(super) fn before(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + TAIL);
    for &byte in key {
        match byte {
            0 => out.extend_from_slice(&ESCAPED_ZERO),
            byte => out.push(byte),
        }
    }
    out.extend_from_slice(&END);
    out
}

/// The place of the version of `key` that was made at `revision`, or else of the next older one.
pub(super) fn at(key: &[u8], revision: Revision) -> Vec<u8> {
    let mut out = before(key);
    out.extend_from_slice(&(!revision).to_be_bytes());
    out
}

/// The place after all versions of `key`.
pub(super) fn behind(key: &[u8]) -> Vec<u8> {
    let mut out = before(key);
    out.extend_from_slice(&[0xff; 9]);
    out
}

/// A place in `data`, taken apart: the key as it is written there, and the revision.
pub(super) fn split(place: &[u8]) -> Option<(&[u8], Revision)> {
    let (rest, revision) = place.split_last_chunk::<8>()?;
    let (key, end) = rest.split_last_chunk::<2>()?;
    (*end == END).then_some((key, !Revision::from_be_bytes(*revision)))
}

fn unescape(written: &[u8], out: &mut Vec<u8>) {
    let mut bytes = written.iter();
    while let Some(&byte) = bytes.next() {
        out.push(byte);
        if byte == 0 {
            bytes.next();
        }
    }
}

/// The key that is written so.
pub(super) fn key(written: &[u8]) -> Bytes {
    let mut key = Vec::with_capacity(written.len());
    unescape(written, &mut key);
    key.into()
}

pub(super) fn put(create: Revision, version: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + value.len());
    out.push(PUT);
    out.extend_from_slice(&create.to_be_bytes());
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(value);
    out
}

pub(super) fn deleted() -> Vec<u8> {
    vec![DELETED]
}

/// A version as it is written. `None` inside: the key was deleted. Key and value share one allocation.
pub(super) fn version(written_key: &[u8], revision: Revision, record: &[u8]) -> Option<Option<KeyValue>> {
    if record == [DELETED] {
        return Some(None);
    }
    let (&kind, rest) = record.split_first()?;
    let (create, rest) = rest.split_first_chunk::<8>()?;
    let (version, value) = rest.split_first_chunk::<8>()?;
    if kind != PUT {
        return None;
    }
    let mut both = Vec::with_capacity(written_key.len() + value.len());
    unescape(written_key, &mut both);
    let key_len = both.len();
    both.extend_from_slice(value);
    let both = Bytes::from(both);
    Some(Some(KeyValue {
        key: both.slice(..key_len),
        value: both.slice(key_len..),
        create_revision: Revision::from_be_bytes(*create),
        mod_revision: revision,
        version: u64::from_be_bytes(*version),
    }))
}

pub(super) fn is_deleted(record: &[u8]) -> bool {
    record == [DELETED]
}

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

pub(super) fn expiry(deadline_ms: u64, revision: Revision) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&deadline_ms.to_be_bytes());
    out[8..].copy_from_slice(&revision.to_be_bytes());
    out
}

pub(super) fn split_expiry(place: &[u8]) -> Option<(u64, Revision)> {
    let (deadline, revision) = place.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*deadline), number(revision)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order_whatever_bytes_they_have() {
        let keys: &[&[u8]] = &[
            b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0\0", b"a\0b", b"a\x01", b"ab", b"a\xff", b"b",
        ];
        for pair in keys.windows(2) {
            assert!(behind(pair[0]) < before(pair[1]), "{pair:?}");
            assert!(at(pair[0], 7) < at(pair[0], 6) && at(pair[0], 0) < behind(pair[0]));
        }
    }

    #[test]
    fn versions_read_back_as_written() {
        for key in [&b"/registry/pods/a/b"[..], b"\0", b"a\0\0b"] {
            let place = at(key, 42);
            let (written, revision) = split(&place).unwrap();
            let kv = version(written, revision, &put(7, 3, b"value")).unwrap().unwrap();
            assert_eq!((&kv.key[..], &kv.value[..]), (key, &b"value"[..]));
            assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (7, 42, 3));
            assert_eq!(version(written, revision, &deleted()), Some(None));
            assert_eq!(version(written, revision, b""), None);
        }
    }
}
