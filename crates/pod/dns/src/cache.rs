//! What was learned of names outside of the cluster, for as long as it holds, "no such name" and failures included.
//!
//! Bounds: [`ENTRIES`] answers, of which the one that was learned first goes first, none longer than [`LONGEST`] (a
//! cluster's DNS is asked often, and what changed outside should be seen soon), failures for [`FAILED`].

use crate::told::is_denial;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

const ENTRIES: usize = 10_000;
const LONGEST: Duration = Duration::from_secs(30);
const FAILED: Duration = Duration::from_secs(5);
/// Larger answers are not kept: they would be most of the memory.
const RECORDS: usize = 100;

/// What makes two questions one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    name: Name,
    kind: RecordType,
    dnssec: bool,
    checking_disabled: bool,
}

impl Key {
    pub fn of(query: &Query, dnssec: bool, checking_disabled: bool) -> Key {
        Key {
            name: query.name().to_lowercase(),
            kind: query.query_type(),
            dnssec,
            checking_disabled,
        }
    }
}

struct Entry {
    message: Message,
    learned: Instant,
    until: Instant,
}

#[derive(Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
    /// In order of learning; one that was learned again stands here twice, the older of which is skipped.
    order: VecDeque<(Key, Instant)>,
}

impl Cache {
    /// The answer, with the time that its records have left.
    pub fn get(&self, key: &Key) -> Option<Message> {
        let now = Instant::now();
        let entry = self.entries.get(key).filter(|e| e.until > now)?;
        let age = now.duration_since(entry.learned).as_secs() as u32;
        let mut message = entry.message.clone();
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    /// Keeps the answer for as long as it says; `None` stands for a failure.
    pub fn put(&mut self, key: Key, answer: Message) {
        let keep = lifetime(&answer);
        if keep.is_zero() {
            return;
        }
        let learned = Instant::now();
        while self.entries.len() >= ENTRIES || self.order.len() >= 2 * ENTRIES {
            let Some((oldest, at)) = self.order.pop_front() else {
                break;
            };
            if self.entries.get(&oldest).is_some_and(|e| e.learned == at) {
                self.entries.remove(&oldest);
            }
        }
        self.order.push_back((key.clone(), learned));
        let entry = Entry {
            message: answer,
            learned,
            until: learned + keep,
        };
        self.entries.insert(key, entry);
    }

    /// How many answers hold, good ones and denials.
    pub fn sizes(&self) -> (usize, usize) {
        let now = Instant::now();
        let holding = self.entries.values().filter(|e| e.until > now);
        let (denials, good): (Vec<_>, Vec<_>) = holding.partition(|e| is_denial(&e.message));
        (good.len(), denials.len())
    }

    /// Other servers may know other things.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
    }
}

fn lifetime(answer: &Message) -> Duration {
    let least = |records: &[Record]| records.iter().map(|r| r.ttl).min();
    let total = answer.answers.len() + answer.authorities.len() + answer.additionals.len();
    if total > RECORDS || answer.metadata.truncation {
        return Duration::ZERO;
    }
    let negative = || {
        answer.authorities.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
            _ => None,
        })
    };
    let seconds = match answer.metadata.response_code {
        ResponseCode::ServFail => return FAILED,
        ResponseCode::NoError if !answer.answers.is_empty() => least(&answer.answers),
        // Without a SOA nobody said for how long (RFC 2308, 5).
        ResponseCode::NoError | ResponseCode::NXDomain => negative(),
        _ => None,
    };
    Duration::from_secs(seconds.unwrap_or(0).into()).min(LONGEST)
}
