//! etcd's messages, and how the store's terms are written in them.

use crate::{Error, Event, EventKind, KeyRange, KeyValue, Result, Revision};
use bytes::Bytes;

/// Messages and clients of etcd's v3 API, written by `tools/proto/run.sh`.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod mvccpb {
    include!("../../proto/mvccpb.rs");
}
/// See [`mvccpb`].
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod etcdserverpb {
    include!("../../proto/etcdserverpb.rs");
}

use etcdserverpb::ResponseHeader;

/// etcd's smallest key; as the end of a range it means that there is none.
const FIRST: &[u8] = b"\0";

/// `key` and `range_end` of a request.
pub(super) fn bounds(range: &KeyRange) -> (Bytes, Bytes) {
    let or_first = |bytes: &Bytes| match bytes.is_empty() {
        true => Bytes::from_static(FIRST),
        false => bytes.clone(),
    };
    let start = or_first(&range.start);
    // One key alone is cheaper for etcd than a range that holds no other.
    let alone = range.end.strip_prefix(&start[..]) == Some(FIRST) && !range.start.is_empty();
    let end = if alone { Bytes::new() } else { or_first(&range.end) };
    (start, end)
}

/// The bytes are copied: what comes from the wire shares one buffer with the rest of its message, and would keep all of it.
pub(super) fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(&kv.key),
        value: Bytes::copy_from_slice(&kv.value),
        create_revision: revision(kv.create_revision),
        mod_revision: revision(kv.mod_revision),
        version: revision(kv.version),
        lease: kv.lease,
    }
}

/// A change. One that must have had something before, and comes without it, had it compacted away.
pub(super) fn event(event: mvccpb::Event) -> Result<Event> {
    let kind = match event.r#type() {
        mvccpb::event::EventType::Put => EventKind::Put,
        mvccpb::event::EventType::Delete => EventKind::Delete,
    };
    let kv = key_value(event.kv.ok_or_else(|| odd("an event without a key"))?);
    let prev = event.prev_kv.map(key_value);
    let created = kind == EventKind::Put && kv.create_revision == kv.mod_revision;
    if prev.is_none() && !created {
        return Err(Error::Compacted {
            compact_revision: kv.mod_revision,
        });
    }
    Ok(Event { kind, kv, prev })
}

/// Revisions are not negative.
pub(super) fn revision(number: i64) -> Revision {
    u64::try_from(number).unwrap_or_default()
}

pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// The store's revision when the answer was made.
pub(super) fn at(header: Option<&ResponseHeader>) -> Result<Revision> {
    match header {
        Some(header) => Ok(revision(header.revision)),
        None => Err(odd("an answer without a header")),
    }
}

/// Something that no etcd sends.
pub(super) fn odd(what: &str) -> Error {
    Error::Answered {
        what: format!("etcd sent {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_etcds_terms() {
        let shown = |range: KeyRange| {
            let (key, end) = bounds(&range);
            (key.to_vec(), end.to_vec())
        };
        assert_eq!(shown(KeyRange::all()), (b"\0".to_vec(), b"\0".to_vec()));
        assert_eq!(shown(KeyRange::key("/a")), (b"/a".to_vec(), Vec::new()));
        assert_eq!(shown(KeyRange::prefix("/a/")), (b"/a/".to_vec(), b"/a0".to_vec()));
        assert_eq!(shown(KeyRange::new("/a", "")), (b"/a".to_vec(), b"\0".to_vec()));
    }
}
