//! Ranges: what is asked for, and what is shown of what was found.

use super::pb::range_request::{SortOrder, SortTarget};
use super::pb::{RangeRequest, RangeResponse};
use crate::digest::encoded;
use crate::etcd::mvccpb;
use crate::{KeyRange, KeyValue, ListRequest, Listed, Revision};
use bytes::Bytes;

/// One key, if there is no end; all from the key on, if the end is a zero byte.
pub(super) fn keys(key: &Bytes, end: &Bytes) -> KeyRange {
    match &end[..] {
        [] => KeyRange::key(key.clone()),
        [0] => KeyRange::new(key.clone(), Bytes::new()),
        _ => KeyRange::new(key.clone(), end.clone()),
    }
}

/// What the store is asked for.
pub(super) fn request(request: &RangeRequest) -> ListRequest {
    let limit = match usize::try_from(request.limit) {
        _ if request.count_only => 1,
        // Sorted by something else without an order is what comes first by key, and one more, as etcd has it.
        Ok(limit) if limit > 0 && is_plain(request) && !is_filtered(request) => limit + usize::from(!in_order(request)),
        _ => 0,
    };
    ListRequest {
        range: keys(&request.key, &request.range_end),
        limit,
        revision: Revision::try_from(request.revision)
            .ok()
            .filter(|revision| *revision > 0),
        uncounted: false,
    }
}

/// `revision`: the store's.
pub(super) fn response(request: &RangeRequest, listed: Listed, revision: Revision) -> RangeResponse {
    let mut kvs = listed.kvs;
    let mut more = listed.more;
    if request.count_only {
        (kvs, more) = (Vec::new(), false);
    }
    if is_filtered(request) {
        kvs.retain(|kv| is_shown(request, kv));
    }
    if !in_order(request) {
        sort(request, &mut kvs);
    }
    if let Ok(limit) = usize::try_from(request.limit)
        && limit > 0
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        more = true;
    }
    let shown = |kv: KeyValue| {
        let mut kv: mvccpb::KeyValue = encoded(kv);
        if request.keys_only {
            kv.value = Bytes::new();
            // etcd has keys in its index, which knows no leases; values it has to look at.
            if request.sort_target() != SortTarget::Value {
                kv.lease = 0;
            }
        }
        kv
    };
    RangeResponse {
        header: Some(super::pb::ResponseHeader {
            revision: revision as i64,
            ..Default::default()
        }),
        kvs: kvs.into_iter().map(shown).collect(),
        more,
        count: listed.count as i64,
    }
}

/// What etcd takes for the order in which keys are found: so it looks at no more than the limit.
pub(super) fn is_plain(request: &RangeRequest) -> bool {
    request.sort_order() == SortOrder::None || in_order(request)
}

/// As keys are found, in ascending order.
fn in_order(request: &RangeRequest) -> bool {
    match (request.sort_target(), request.sort_order()) {
        (SortTarget::Key, order) => order != SortOrder::Descend,
        _ => false,
    }
}

pub(super) fn is_filtered(request: &RangeRequest) -> bool {
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    bounds.iter().any(|bound| *bound != 0)
}

fn is_shown(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |number: Revision, min: i64, max: i64| {
        let number = number as i64;
        (min == 0 || number >= min) && (max == 0 || number <= max)
    };
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(
            kv.create_revision,
            request.min_create_revision,
            request.max_create_revision,
        )
}

fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    kvs.sort_by(|a, b| match request.sort_target() {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    });
    if request.sort_order() == SortOrder::Descend {
        kvs.reverse();
    }
}
