//! LimitRanger: default requests and limits of containers, and the bounds that a namespace sets.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::quantity::Quantity;
use keelson_api::{ApiResult, Map, Object, Value};
use keelson_registry::Operation;
use keelson_registry::resources::pod_resources;
use std::collections::BTreeMap;

pub struct LimitRanger;

fn concerns(review: &Review, old: Option<&Object>) -> bool {
    if old.is_some_and(|o| o.deletion_timestamp().is_some()) {
        return false;
    }
    let pod_create = review.is("", "pods") && review.op == Operation::Create;
    let resize = review.is_sub("", "pods", "resize") && review.op == Operation::Update;
    let claim = review.is("", "persistentvolumeclaims") && matches!(review.op, Operation::Create | Operation::Update);
    pod_create || resize || claim
}

async fn ranges(review: &Review<'_>) -> ApiResult<Vec<Object>> {
    review.lookup.list("", "limitranges", &review.cx.namespace).await
}

fn limits(range: &Object) -> impl Iterator<Item = &Map> {
    range
        .at(&["spec", "limits"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new.filter(|_| review.cx.def.is("", "pods") && concerns(review, old)) else {
            return Ok(());
        };
        for range in ranges(review).await? {
            fill(pod, &range);
        }
        Ok(())
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(object) = new.filter(|_| concerns(review, old)) else {
            return Ok(());
        };
        for range in ranges(review).await? {
            let errs = if review.cx.def.is("", "pods") {
                check_pod(object, &range)
            } else {
                check_claim(object, &range)
            };
            match errs.as_slice() {
                [] => {}
                [one] => return Err(review.forbidden(Some(object), one)),
                many => return Err(review.forbidden(Some(object), format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// Fills in what containers don't say, and notes it in an annotation.
fn fill(pod: &mut Object, range: &Object) {
    let (mut requests, mut maxima) = (Map::new(), Map::new());
    for limit in limits(range).filter(|l| l.str("type") == Some("Container")) {
        let merge = |into: &mut Map, key: &str| {
            limit
                .obj(key)
                .into_iter()
                .flatten()
                .for_each(|(k, v)| drop(into.insert(k.clone(), v.clone())))
        };
        merge(&mut requests, "defaultRequest");
        merge(&mut maxima, "default");
    }
    let mut notes = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let Some(Value::Array(containers)) = pod.at_mut(&["spec", list]) else {
            continue;
        };
        for c in containers.iter_mut().filter_map(Value::as_object_mut) {
            let name = c.str("name").unwrap_or_default().to_string();
            for (key, defaults, what) in [("requests", &requests, "request"), ("limits", &maxima, "limit")] {
                let missing: Vec<_> = {
                    let has = c.obj("resources").and_then(|r| r.obj(key));
                    defaults
                        .iter()
                        .filter(|(k, _)| !has.is_some_and(|h| h.contains_key(k)))
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect()
                };
                if missing.is_empty() {
                    continue;
                }
                let names: Vec<&str> = missing.iter().map(|(k, _)| k.as_str()).collect();
                notes.push(format!("{} {what} for {word} {name}", names.join(", ")));
                let into = c.object_mut("resources").object_mut(key);
                missing.into_iter().for_each(|(k, v)| drop(into.insert(k, v)));
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.set_at(&["metadata", "annotations", "kubernetes.io/limit-ranger"], text);
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(m: Option<&Map>) -> Amounts {
    m.into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.to_string(), v.as_str()?.parse().ok()?)))
        .collect()
}

fn enforced<'a>(limit: &'a Map, key: &str) -> impl Iterator<Item = (&'a str, Quantity)> {
    limit
        .obj(key)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?.parse().ok()?)))
}

fn check(limit: &Map, kind: &str, requests: &Amounts, maxima: &Amounts, errs: &mut Vec<String>) {
    for (name, min) in enforced(limit, "min") {
        let rule = format!("minimum {name} usage per {kind} is {min}");
        match (requests.get(name), maxima.get(name)) {
            (None, _) => errs.push(format!("{rule}.  No request is specified")),
            (Some(r), _) if *r < min => errs.push(format!("{rule}, but request is {r}")),
            (_, Some(l)) if *l < min => errs.push(format!("{rule}, but limit is {l}")),
            _ => {}
        }
    }
    for (name, max) in enforced(limit, "max") {
        let rule = format!("maximum {name} usage per {kind} is {max}");
        match (requests.get(name), maxima.get(name)) {
            (_, None) => errs.push(format!("{rule}.  No limit is specified")),
            (_, Some(l)) if *l > max => errs.push(format!("{rule}, but limit is {l}")),
            (Some(r), _) if *r > max => errs.push(format!("{rule}, but request is {r}")),
            _ => {}
        }
    }
    for (name, ratio) in enforced(limit, "maxLimitRequestRatio") {
        let rule = format!("{name} max limit to request ratio per {kind} is {ratio}");
        let of = |m: &Amounts| m.get(name).copied().filter(|q| !q.is_zero());
        match (of(requests), of(maxima)) {
            (None, _) => errs.push(format!("{rule}, but no request is specified or request is 0")),
            (_, None) => errs.push(format!("{rule}, but no limit is specified or limit is 0")),
            (Some(r), Some(l)) => {
                let observed = l.as_f64() / r.as_f64();
                if observed > ratio.as_f64() {
                    errs.push(format!("{rule}, but provided ratio is {observed:.6}"));
                }
            }
        }
    }
}

fn check_pod(pod: &Object, range: &Object) -> Vec<String> {
    let mut errs = Vec::new();
    for limit in limits(range) {
        match limit.str("type") {
            Some("Container") => {
                for list in ["containers", "initContainers"] {
                    for c in pod.at(&["spec", list]).and_then(Value::as_array).into_iter().flatten() {
                        let of = |key: &str| amounts(c.at(&["resources", key]).and_then(Value::as_object));
                        check(limit, "Container", &of("requests"), &of("limits"), &mut errs);
                    }
                }
            }
            Some("Pod") => {
                let total = |key: &str| {
                    pod_resources::total(pod, key)
                        .into_iter()
                        .map(|(k, v)| (k.to_string(), v))
                        .collect()
                };
                check(limit, "Pod", &total("requests"), &total("limits"), &mut errs);
            }
            _ => {}
        }
    }
    errs
}

fn check_claim(claim: &Object, range: &Object) -> Vec<String> {
    let mut errs = Vec::new();
    let requests = amounts(claim.at(&["spec", "resources", "requests"]).and_then(Value::as_object));
    let kind = "PersistentVolumeClaim";
    for limit in limits(range).filter(|l| l.str("type") == Some(kind)) {
        for (name, min) in enforced(limit, "min") {
            let rule = format!("minimum {name} usage per {kind} is {min}");
            match requests.get(name) {
                None => errs.push(format!("{rule}.  No request is specified")),
                Some(r) if *r < min => errs.push(format!("{rule}, but request is {r}")),
                _ => {}
            }
        }
        for (name, max) in enforced(limit, "max") {
            let rule = format!("maximum {name} usage per {kind} is {max}");
            match requests.get(name) {
                None => errs.push(format!("{rule}.  No request is specified")),
                Some(r) if *r > max => errs.push(format!("{rule}, but request is {r}")),
                _ => {}
            }
        }
    }
    errs
}
