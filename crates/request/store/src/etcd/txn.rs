//! Writes as transactions: the compare, what happens if it holds, and what is read if it doesn't.

use super::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::wire::etcdserverpb::request_op::Request as Op;
use super::wire::etcdserverpb::response_op::Response as Answer;
use super::wire::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};
use super::wire::{at, key_value, number, odd};
use crate::{Expect, Outcome, Result};
use bytes::Bytes;

/// `lease` 0: none, and the key's earlier one is taken off it.
pub(super) fn put(key: &Bytes, value: &Bytes, expected: Expect, lease: i64) -> TxnRequest {
    let put = PutRequest {
        key: key.clone(),
        value: value.clone(),
        lease,
        prev_kv: expected != Expect::Absent,
        ..Default::default()
    };
    if_then(key, expected, Op::RequestPut(put))
}

pub(super) fn delete(key: &Bytes, expected: Expect) -> TxnRequest {
    let delete = match expected {
        // What isn't there can't be removed.
        Expect::Absent => read(key),
        Expect::ModRevision(_) | Expect::Any => Op::RequestDeleteRange(DeleteRangeRequest {
            key: key.clone(),
            range_end: Bytes::new(),
            prev_kv: true,
        }),
    };
    if_then(key, expected, delete)
}

fn if_then(key: &Bytes, expected: Expect, then: Op) -> TxnRequest {
    let revision = match expected {
        Expect::Absent => Some(0),
        Expect::ModRevision(revision) => Some(number(revision)),
        Expect::Any => None,
    };
    let compare = revision.map(|revision| Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        range_end: Bytes::new(),
    });
    let operation = |op| RequestOp { request: Some(op) };
    TxnRequest {
        success: vec![operation(then)],
        failure: compare.iter().map(|_| operation(read(key))).collect(),
        compare: compare.into_iter().collect(),
    }
}

fn read(key: &Bytes) -> Op {
    Op::RequestRange(RangeRequest {
        key: key.clone(),
        ..Default::default()
    })
}

/// What a transaction made by [`put`] or [`delete`] did.
pub(super) fn outcome(answer: TxnResponse) -> Result<Outcome> {
    let revision = at(answer.header.as_ref())?;
    let first = answer.responses.into_iter().next().and_then(|r| r.response);
    Ok(match first {
        Some(Answer::ResponsePut(put)) => Outcome::Done {
            revision,
            prev: put.prev_kv.map(key_value),
        },
        Some(Answer::ResponseDeleteRange(deleted)) if deleted.deleted > 0 => Outcome::Done {
            revision,
            prev: deleted.prev_kvs.into_iter().next().map(key_value),
        },
        Some(Answer::ResponseDeleteRange(_)) => Outcome::Conflict {
            revision,
            current: None,
        },
        Some(Answer::ResponseRange(found)) => Outcome::Conflict {
            revision,
            current: found.kvs.into_iter().next().map(key_value),
        },
        Some(Answer::ResponseTxn(_)) | None => return Err(odd("a transaction without a result")),
    })
}
