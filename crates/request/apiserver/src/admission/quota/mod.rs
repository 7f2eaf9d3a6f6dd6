//! ResourceQuota: what a request would use is added to every quota that counts it, or the request is refused.
//!
//! Requests of one namespace are charged one after another, and each charge is a compare-and-set on the quota's status:
//! no two servers give the same unit away. What was charged for a write that fails afterwards the quota controller
//! gives back.

mod extended;
mod scopes;
mod usage;

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use extended::Extended;
use keelson_api::quantity::Quantity;
use keelson_api::{ApiResult, Object, Str, Value};
use keelson_registry::Operation;
use keelson_registry::resources::pod_resources::{Amounts, amounts};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

const RETRIES: usize = 4;

/// One lock a namespace, as long as somebody holds it.
#[derive(Default)]
struct Locks(Mutex<HashMap<Str, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    fn of(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut map = self.0.lock();
        if let Some(lock) = map.get(namespace).and_then(Weak::upgrade) {
            return lock;
        }
        map.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        map.insert(namespace.into(), Arc::downgrade(&lock));
        lock
    }
}

#[derive(Default)]
pub struct ResourceQuota {
    locks: Locks,
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(new) = new else { return Ok(()) };
        let cx = review.cx;
        if cx.namespace.is_empty() || !usage::counts(review, new, old) {
            return Ok(());
        }
        if review
            .lookup
            .list("", "resourcequotas", &cx.namespace)
            .await?
            .is_empty()
        {
            return Ok(());
        }
        let lock = self.locks.of(&cx.namespace);
        let _guard = lock.lock().await;
        let mut extended = [Extended::default(), Extended::default()];
        if cx.def.gvr.group == "resource.k8s.io" && cx.def.gvr.resource == "resourceclaims" {
            extended[0] = Extended::of(review, new).await?;
            if let Some(old) = old {
                extended[1] = Extended::of(review, old).await?;
            }
        }
        for _ in 0..RETRIES {
            let quotas = review.lookup.list("", "resourcequotas", &cx.namespace).await?;
            let mut charged = Vec::new();
            for quota in &quotas {
                if let Some(used) = check(review, quota, (new, old), &extended)? {
                    charged.push((quota, used));
                }
            }
            if cx.dry_run || self.charge(review, charged).await? {
                return Ok(());
            }
        }
        Err(review
            .cx
            .conflict(new.name(), "the quota's usage is changing too fast; please try again"))
    }
}

impl ResourceQuota {
    /// Writes the new usage of each quota; false when another server was faster.
    async fn charge(&self, review: &Review<'_>, charged: Vec<(&Object, Amounts)>) -> ApiResult<bool> {
        for (quota, used) in charged {
            let cx = review
                .lookup
                .cx("", "resourcequotas", quota.namespace(), quota.name())?;
            let engine = review.lookup.engine();
            let Some(current) = engine.current(&cx).await? else {
                continue;
            };
            if current.object.resource_version() != quota.resource_version() {
                return Ok(false);
            }
            let mut new = current.object.clone();
            for (name, amount) in used {
                new.set_at(&["status", "used", &name], amount.to_string());
            }
            if engine.swap(&cx, &current, new).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn printed(list: &Amounts) -> String {
    list.iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// What the quota's usage becomes; `None` when it doesn't count this request.
fn check(
    review: &Review<'_>,
    quota: &Object,
    (new, old): (&Object, Option<&Object>),
    [extended, before]: &[Extended; 2],
) -> ApiResult<Option<Amounts>> {
    let resource = &review.cx.def.gvr;
    let hard = amounts(quota.at(&["status", "hard"]).and_then(Value::as_object));
    let used = amounts(quota.at(&["status", "used"]).and_then(Value::as_object));
    let measured = |name: &&Str| usage::measures(resource, name) || extended.measures(name);
    let counted: Vec<&Str> = hard.keys().filter(measured).collect();
    if counted.is_empty() || !scopes::matches(quota, new, resource) {
        return Ok(None);
    }
    usage::required(resource, &counted, new)
        .map_err(|why| review.forbidden(Some(new), format!("failed quota: {}: {why}", quota.name())))?;
    let unknown: Vec<&str> = counted
        .iter()
        .filter(|n| !used.contains_key(n.as_str()))
        .map(|n| n.as_str())
        .collect();
    if !unknown.is_empty() {
        let why = format!(
            "status unknown for quota: {}, resources: {}",
            quota.name(),
            unknown.join(",")
        );
        return Err(review.forbidden(Some(new), why));
    }
    let mut delta = usage::of(resource, new);
    extended.add_to(&mut delta);
    if let Some((name, _)) = delta.iter().find(|(_, q)| q.is_negative()) {
        return Err(review.forbidden(Some(new), format!("quota usage is negative for resource(s): {name}")));
    }
    if let Some(old) = old.filter(|o| review.op == Operation::Update && scopes::matches(quota, o, resource)) {
        let mut was = usage::of(resource, old);
        before.add_to(&mut was);
        for (name, before) in was {
            if let Some(q) = delta.get_mut(&name) {
                q.sub(before);
                if q.is_negative() {
                    *q = Quantity::default();
                }
            }
        }
    }
    delta.retain(|name, q| !q.is_zero() && hard.contains_key(name));
    if delta.is_empty() {
        return Ok(None);
    }
    let (mut after, mut exceeded) = (Amounts::new(), Vec::new());
    for (name, q) in &delta {
        let mut sum = used.get(name).copied().unwrap_or_default();
        sum.add(*q);
        if hard.get(name).is_some_and(|h| sum > *h) {
            exceeded.push(name.clone());
        }
        after.insert(name.clone(), sum);
    }
    if !exceeded.is_empty() && review.cx.subresource != "status" {
        let of = |list: &Amounts| {
            printed(
                &list
                    .iter()
                    .filter(|(k, _)| exceeded.contains(k))
                    .map(|(k, v)| (k.clone(), *v))
                    .collect(),
            )
        };
        return Err(review.forbidden(
            Some(new),
            format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                quota.name(),
                of(&delta),
                of(&used),
                of(&hard)
            ),
        ));
    }
    Ok(Some(after))
}
