//! What a request must be before anything is done: etcd's rules, in its order, with its words.

use super::pb::range_request::{SortOrder, SortTarget};
use super::pb::request_op::Request as Op;
use super::pb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use super::{range, status};
use crate::KeyRange;
use bytes::Bytes;
use std::collections::BTreeSet;
use tonic::Status;

pub(super) fn range(request: &RangeRequest) -> Result<(), Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(status::invalid_sort()) }
}

pub(super) fn put(request: &PutRequest) -> Result<(), Status> {
    match request {
        r if r.key.is_empty() => Err(status::empty_key()),
        r if r.ignore_value && !r.value.is_empty() => Err(status::value_provided()),
        r if r.ignore_lease && r.lease != 0 => Err(status::lease_provided()),
        _ => Ok(()),
    }
}

pub(super) fn delete(request: &DeleteRangeRequest) -> Result<(), Status> {
    match request.key.is_empty() {
        true => Err(status::empty_key()),
        false => Ok(()),
    }
}

/// `most`: operations of one list; those of a transaction within it count for both.
pub(super) fn txn(request: &TxnRequest, most: usize) -> Result<(), Status> {
    shape(request, most)?;
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

fn shape(request: &TxnRequest, most: usize) -> Result<(), Status> {
    let count = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    if count > most {
        return Err(status::too_many_ops());
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(status::empty_key());
    }
    let mut ops = request.success.iter().chain(&request.failure);
    ops.try_for_each(|op| match &op.request {
        Some(Op::RequestRange(request)) => range(request),
        Some(Op::RequestPut(request)) => put(request),
        Some(Op::RequestDeleteRange(request)) => delete(request),
        Some(Op::RequestTxn(request)) => shape(request, most - count),
        None => Err(status::key_not_found()),
    })
}

/// What a list of operations may write: no key twice, and none that it deletes.
#[derive(Default)]
struct Changes {
    puts: BTreeSet<Bytes>,
    /// Sorted, and apart from each other.
    deletes: Vec<KeyRange>,
}

fn changes(ops: &[RequestOp]) -> Result<Changes, Status> {
    let mut all = Changes::default();
    for op in ops {
        if let Some(Op::RequestDeleteRange(r)) = &op.request {
            all.deletes.push(range::keys(&r.key, &r.range_end));
        }
    }
    all.merge();
    for op in ops {
        if let Some(Op::RequestTxn(inner)) = &op.request {
            let (then, other) = (changes(&inner.success)?, changes(&inner.failure)?);
            // One of both happens: what one puts the other may delete.
            for key in then.puts.union(&other.puts) {
                all.put(key)?;
            }
            all.deletes.extend(then.deletes.into_iter().chain(other.deletes));
            all.merge();
        }
    }
    for op in ops {
        if let Some(Op::RequestPut(r)) = &op.request {
            all.put(&r.key)?;
        }
    }
    Ok(all)
}

impl Changes {
    fn put(&mut self, key: &Bytes) -> Result<(), Status> {
        match !self.is_deleted(key) && self.puts.insert(key.clone()) {
            true => Ok(()),
            false => Err(status::duplicate_key()),
        }
    }

    fn merge(&mut self) {
        self.deletes.retain(|range| !range.is_empty());
        self.deletes.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<KeyRange> = Vec::new();
        for next in self.deletes.drain(..) {
            match merged.last_mut() {
                Some(last) if last.end.is_empty() => {}
                Some(last) if next.start <= last.end => {
                    if next.end.is_empty() || next.end > last.end {
                        last.end = next.end;
                    }
                }
                _ => merged.push(next),
            }
        }
        self.deletes = merged;
    }

    fn is_deleted(&self, key: &Bytes) -> bool {
        let behind = self.deletes.partition_point(|range| range.start <= *key);
        behind > 0 && self.deletes[behind - 1].contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Op) -> RequestOp {
        RequestOp { request: Some(request) }
    }
    fn put_of(key: &str) -> RequestOp {
        op(Op::RequestPut(PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..Default::default()
        }))
    }
    fn delete_of(key: &str, end: &str) -> RequestOp {
        op(Op::RequestDeleteRange(DeleteRangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
            prev_kv: false,
        }))
    }
    fn both(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Op::RequestTxn(TxnRequest {
            compare: Vec::new(),
            success,
            failure,
        }))
    }
    fn judged(success: Vec<RequestOp>) -> String {
        let request = TxnRequest {
            success,
            ..Default::default()
        };
        txn(&request, 4).map_or_else(|status| status.message().to_string(), |()| String::new())
    }

    #[test]
    fn a_key_changes_once() {
        let duplicate = "etcdserver: duplicate key given in txn request";
        for (ops, words) in [
            (vec![put_of("a"), put_of("b")], ""),
            (vec![put_of("a"), put_of("a")], duplicate),
            (vec![put_of("a"), delete_of("a", "")], duplicate),
            (vec![delete_of("a", "c"), put_of("b")], duplicate),
            (vec![delete_of("a", "c"), put_of("c")], ""),
            (vec![delete_of("a", "\0"), put_of("c")], duplicate),
            (vec![delete_of("a", "c"), delete_of("b", "d")], ""),
            (vec![delete_of("a", "b"), delete_of("a", "d"), put_of("c")], duplicate),
            (vec![both(vec![put_of("a")], vec![put_of("a")])], ""),
            (vec![both(vec![put_of("a")], vec![]), put_of("a")], duplicate),
            (
                vec![both(vec![put_of("a")], vec![]), both(vec![], vec![put_of("a")])],
                duplicate,
            ),
            (vec![both(vec![put_of("a")], vec![delete_of("a", "")])], ""),
            (
                vec![both(vec![], vec![delete_of("a", "")]), both(vec![put_of("a")], vec![])],
                duplicate,
            ),
            (vec![delete_of("a", ""), both(vec![put_of("a")], vec![])], duplicate),
        ] {
            assert_eq!(judged(ops), words);
        }
    }

    #[test]
    fn shapes() {
        assert_eq!(judged(vec![put_of("")]), "etcdserver: key is not provided");
        assert_eq!(judged(vec![RequestOp { request: None }]), "etcdserver: key not found");
        let five: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(put_of).collect();
        assert_eq!(judged(five), "etcdserver: too many operations in txn request");
        let deep = both(vec![put_of("a"), put_of("b")], vec![]);
        assert_eq!(judged(vec![deep.clone(), put_of("c")]), "");
        assert_eq!(
            judged(vec![deep, put_of("c"), put_of("d")]),
            "etcdserver: too many operations in txn request"
        );
    }
}
