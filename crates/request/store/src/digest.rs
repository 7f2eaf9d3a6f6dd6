//! A sum over all that a store has, as etcd makes it (`HashKV`): two stores with the same past have the same one.
//!
//! CRC-32C over the bucket's name, then place and content of every version up to a revision, in the order of revisions; of those
//! that a compaction made past only what still stood at that revision.

use crate::etcd::mvccpb;
use crate::{Event, EventKind, KeyValue, Revision};
use prost::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    pub sum: u32,
    /// Up to where.
    pub revision: Revision,
    /// 0: never compacted.
    pub compacted: Revision,
    /// The store's, then.
    pub current: Revision,
}

/// Takes versions in the order of revisions.
pub(crate) struct Summer {
    sum: u32,
}

impl Summer {
    pub(crate) fn new() -> Summer {
        let mut summer = Summer { sum: !0 };
        summer.take(crate::snapshot::KEYS.as_bytes());
        summer
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.sum = TABLE[usize::from((self.sum as u8) ^ byte)] ^ (self.sum >> 8);
        }
    }

    pub(crate) fn version(&mut self, sub: u32, kv: KeyValue) {
        self.take(&crate::snapshot::place(kv.mod_revision, sub));
        self.take(&encoded(kv).encode_to_vec());
    }

    pub(crate) fn event(&mut self, sub: u32, event: Event) {
        match event.kind {
            EventKind::Put => self.version(sub, event.kv),
            EventKind::Delete => {
                let mut place = crate::snapshot::place(event.kv.mod_revision, sub);
                place.push(b't');
                self.take(&place);
                let gone = mvccpb::KeyValue {
                    key: event.kv.key,
                    ..mvccpb::KeyValue::default()
                };
                self.take(&gone.encode_to_vec());
            }
        }
    }

    pub(crate) fn sum(self) -> u32 {
        !self.sum
    }
}

/// As etcd keeps it.
pub(crate) fn encoded(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision as i64,
        mod_revision: kv.mod_revision as i64,
        version: kv.version as i64,
        value: kv.value,
        lease: kv.lease,
    }
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut value, mut bit) = (n as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0x82f6_3b78
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of this text is the usual proof of a CRC-32C.
    #[test]
    fn sums_are_castagnolis() {
        let mut summer = Summer { sum: !0 };
        summer.take(b"123456789");
        assert_eq!(summer.sum(), 0xe306_9283);
    }
}
