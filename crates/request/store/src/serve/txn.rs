//! What a request does in a transaction of the store. Nothing is written before all of it has been judged.

use super::pb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::pb::request_op::Request as Op;
use super::pb::response_op::Response as Done;
use super::pb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use super::{range, status};
use crate::digest::encoded;
use crate::{Error, KeyValue, ListRequest, Result, Transaction};
use std::cmp::Ordering;
use tonic::Status;

/// An answer, or a refusal in etcd's words. Outside of it: the store failed.
pub(super) type Judged<T> = Result<Result<T, Status>>;

fn header(transaction: &Transaction<'_>) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision: transaction.revision() as i64,
        ..Default::default()
    })
}

pub(super) fn put(transaction: &mut Transaction<'_>, request: PutRequest) -> Judged<PutResponse> {
    match may_put(transaction, &request)? {
        Ok(()) => Ok(Ok(do_put(transaction, request)?)),
        Err(refused) => Ok(Err(refused)),
    }
}

fn may_put(transaction: &Transaction<'_>, request: &PutRequest) -> Judged<()> {
    if request.lease != 0 && transaction.lease(request.lease).is_none() {
        return Ok(Err(status::lease_not_found()));
    }
    if (request.ignore_value || request.ignore_lease) && transaction.get(&request.key)?.is_none() {
        return Ok(Err(status::key_not_found()));
    }
    Ok(Ok(()))
}

fn do_put(transaction: &mut Transaction<'_>, request: PutRequest) -> Result<PutResponse> {
    let (mut value, mut lease) = (request.value, request.lease);
    if request.ignore_value || request.ignore_lease {
        let there = transaction.get(&request.key)?;
        let there = there.ok_or_else(|| Error::Invalid {
            what: "the key went while it was written".into(),
        })?;
        if request.ignore_value {
            value = there.value;
        }
        if request.ignore_lease {
            lease = there.lease;
        }
    }
    let prev = transaction.put(request.key, value, lease)?;
    Ok(PutResponse {
        header: header(transaction),
        prev_kv: prev.filter(|_| request.prev_kv).map(encoded),
    })
}

pub(super) fn delete(transaction: &mut Transaction<'_>, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse> {
    let range = range::keys(&request.key, &request.range_end);
    let found: Vec<KeyValue> = match request.range_end.is_empty() {
        true => transaction.get(&request.key)?.into_iter().collect(),
        false => transaction.list(&ListRequest::new(range))?.kvs,
    };
    for kv in &found {
        transaction.delete(&kv.key)?;
    }
    Ok(DeleteRangeResponse {
        header: header(transaction),
        deleted: found.len() as i64,
        prev_kvs: match request.prev_kv {
            true => found.into_iter().map(encoded).collect(),
            false => Vec::new(),
        },
    })
}

fn ranged(transaction: &Transaction<'_>, request: &RangeRequest) -> Result<RangeResponse> {
    let listed = transaction.list(&range::request(request))?;
    Ok(range::response(request, listed, transaction.revision()))
}

pub(super) fn txn(transaction: &mut Transaction<'_>, request: TxnRequest) -> Judged<TxnResponse> {
    let mut path = Vec::new();
    compare_all(transaction, &request, &mut path)?;
    if let Err(refused) = may_all(transaction, &request, &mut path.iter().copied())? {
        return Ok(Err(refused));
    }
    let mut done = do_all(transaction, request, &mut path.into_iter())?;
    done.header = header(transaction);
    Ok(Ok(done))
}

/// Which outcome each transaction takes, in the order in which they are met.
fn compare_all(transaction: &Transaction<'_>, request: &TxnRequest, path: &mut Vec<bool>) -> Result<()> {
    let mut holds = true;
    for compare in &request.compare {
        holds = holds && compare_one(transaction, compare)?;
    }
    path.push(holds);
    for op in taken(request, holds) {
        if let Some(Op::RequestTxn(inner)) = &op.request {
            compare_all(transaction, inner, path)?;
        }
    }
    Ok(())
}

fn taken(request: &TxnRequest, holds: bool) -> &[RequestOp] {
    if holds { &request.success } else { &request.failure }
}

fn compare_one(transaction: &Transaction<'_>, compare: &Compare) -> Result<bool> {
    let found = match compare.range_end.is_empty() {
        true => transaction.get(&compare.key)?.into_iter().collect(),
        false => {
            let range = range::keys(&compare.key, &compare.range_end);
            transaction.list(&ListRequest::new(range))?.kvs
        }
    };
    if found.is_empty() {
        // A key that isn't there has no value, and all else of it is nothing.
        let nothing = KeyValue::gone(compare.key.clone(), 0);
        return Ok(compare.target() != CompareTarget::Value && holds(compare, &nothing));
    }
    Ok(found.iter().all(|kv| holds(compare, kv)))
}

fn holds(compare: &Compare, kv: &KeyValue) -> bool {
    let wanted = compare.target_union.as_ref();
    // Another kind of target than is compared counts as none given.
    let number = match (compare.target(), wanted) {
        (CompareTarget::Version, Some(TargetUnion::Version(n)))
        | (CompareTarget::Create, Some(TargetUnion::CreateRevision(n)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(n)))
        | (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => *n,
        _ => 0,
    };
    let found = match compare.target() {
        CompareTarget::Value => {
            let wanted = match wanted {
                Some(TargetUnion::Value(value)) => &value[..],
                _ => &[],
            };
            kv.value[..].cmp(wanted)
        }
        CompareTarget::Version => (kv.version as i64).cmp(&number),
        CompareTarget::Create => (kv.create_revision as i64).cmp(&number),
        CompareTarget::Mod => (kv.mod_revision as i64).cmp(&number),
        CompareTarget::Lease => kv.lease.cmp(&number),
    };
    match compare.result() {
        CompareResult::Equal => found == Ordering::Equal,
        CompareResult::NotEqual => found != Ordering::Equal,
        CompareResult::Greater => found == Ordering::Greater,
        CompareResult::Less => found == Ordering::Less,
    }
}

/// Whether everything that will be done can be: a transaction that has begun to write goes through.
fn may_all(transaction: &Transaction<'_>, request: &TxnRequest, path: &mut impl Iterator<Item = bool>) -> Judged<()> {
    let holds = path.next().unwrap_or_default();
    for op in taken(request, holds) {
        let may = match &op.request {
            Some(Op::RequestRange(request)) => may_range(transaction, request)?,
            Some(Op::RequestPut(request)) => may_put(transaction, request)?,
            Some(Op::RequestTxn(inner)) => may_all(transaction, inner, path)?,
            _ => Ok(()),
        };
        if may.is_err() {
            return Ok(may);
        }
    }
    Ok(Ok(()))
}

fn may_range(transaction: &Transaction<'_>, request: &RangeRequest) -> Judged<()> {
    if request.revision == 0 {
        return Ok(Ok(()));
    }
    if request.revision > transaction.before() as i64 {
        return Ok(Err(status::future()));
    }
    // The least that shows whether the past goes back so far.
    let probe = ListRequest {
        limit: 1,
        uncounted: true,
        ..range::request(request)
    };
    match transaction.list(&probe) {
        Err(Error::Compacted { .. }) => Ok(Err(status::compacted())),
        other => other.map(|_| Ok(())),
    }
}

fn do_all(
    transaction: &mut Transaction<'_>,
    request: TxnRequest,
    path: &mut impl Iterator<Item = bool>,
) -> Result<TxnResponse> {
    let succeeded = path.next().unwrap_or_default();
    let ops = if succeeded { request.success } else { request.failure };
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match op.request {
            Some(Op::RequestRange(request)) => Some(Done::ResponseRange(ranged(transaction, &request)?)),
            Some(Op::RequestPut(request)) => Some(Done::ResponsePut(do_put(transaction, request)?)),
            Some(Op::RequestDeleteRange(request)) => Some(Done::ResponseDeleteRange(delete(transaction, &request)?)),
            Some(Op::RequestTxn(inner)) => Some(Done::ResponseTxn(do_all(transaction, inner, path)?)),
            None => None,
        };
        responses.push(ResponseOp { response });
    }
    Ok(TxnResponse {
        header: Some(ResponseHeader::default()),
        succeeded,
        responses,
    })
}

/// It may put something, and it reads the past: of either outcome, at any depth.
pub(super) fn nature(request: &TxnRequest) -> (bool, bool) {
    let ops = request.success.iter().chain(&request.failure);
    ops.fold((false, false), |(puts, past), op| match &op.request {
        Some(Op::RequestPut(_)) => (true, past),
        Some(Op::RequestRange(range)) => (puts, past || range.revision != 0),
        Some(Op::RequestTxn(inner)) => {
            let (inner_puts, inner_past) = nature(inner);
            (puts || inner_puts, past || inner_past)
        }
        _ => (puts, past),
    })
}
