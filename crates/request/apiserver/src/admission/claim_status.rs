//! Who may write which part of a claim's status: what was decided is the schedulers', what is told of a driver's devices is that
//! driver's, on its own node or on all.
//!
//! Upstream checks this with the object's fields, and nothing switches it off: it is no plug-in by name there.

use super::{Phase, Plugin, Review};
use crate::authz::Attributes;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Object, Value};
use keelson_registry::Operation;
use keelson_registry::strategy::same;
use std::collections::{BTreeMap, BTreeSet};

pub struct ClaimStatus;

const GROUP: &str = "resource.k8s.io";
const NODE_OF_TOKEN: &str = "authentication.kubernetes.io/node-name";

#[async_trait]
impl Plugin for ClaimStatus {
    fn name(&self) -> &'static str {
        "ResourceClaimStatusAuthorization"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.op == Operation::Update && review.is_sub(GROUP, "resourceclaims", "status")
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let (Some(new), Some(old)) = (new, old) else {
            return Ok(());
        };
        let mut causes = Vec::new();
        causes.extend(binding(review, new, old).await);
        // What is told of devices goes when a claim loses them: nobody's right is asked for that.
        if new.at(&["status", "allocation"]).is_some() {
            for driver in drivers(new, old) {
                causes.extend(devices(review, new, driver).await);
            }
        }
        match causes.is_empty() {
            true => Ok(()),
            false => Err(ApiError::invalid(GROUP, "ResourceClaim", new.name(), causes)),
        }
    }
}

/// A verb of the request's own, to a part of the claim that is a resource for rights only.
fn attributes(review: &Review<'_>, verb: &str, part: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        user: review.cx.user.as_ref().clone(),
        verb: verb.into(),
        is_resource_request: true,
        api_group: review.cx.def.gvr.group.clone(),
        api_version: review.cx.def.gvr.version.clone(),
        resource: review.cx.def.gvr.resource.clone(),
        subresource: part.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

async fn refusal(review: &Review<'_>, attributes: Attributes) -> Option<String> {
    match review.authorizer.authorize(&attributes).await {
        d if d.is_allowed() => None,
        d => Some(attributes.forbidden(d.reason()).message),
    }
}

async fn binding(review: &Review<'_>, new: &Object, old: &Object) -> Option<Cause> {
    let is_same = |key: &str| same(new.at(&["status", key]), old.at(&["status", key]));
    if is_same("allocation") && is_same("reservedFor") {
        return None;
    }
    let verb = review.cx.verb.as_str();
    let why = refusal(review, attributes(review, verb, "binding", "", "")).await?;
    let why = format!(
        "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"{verb}\" permission: {why}"
    );
    Some(Cause::forbidden("status.allocation", &why))
}

async fn devices(review: &Review<'_>, claim: &Object, driver: &str) -> Option<Cause> {
    let verb = &review.cx.verb;
    let mut verbs = vec![format!("arbitrary-node:{verb}")];
    if is_on_its_node(review, claim) {
        verbs.insert(0, format!("associated-node:{verb}"));
    }
    let mut first = None;
    for verb in &verbs {
        let why = refusal(review, attributes(review, verb, "driver", &review.cx.namespace, driver)).await?;
        first.get_or_insert(why);
    }
    let why = format!(
        "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {}",
        verbs.join(" "),
        first?
    );
    Some(Cause::forbidden("status.devices", &why))
}

/// Whether a service account asks whose token is of a pod on the one node that the claim is for.
fn is_on_its_node(review: &Review<'_>, claim: &Object) -> bool {
    let user = &review.cx.user;
    let nodes = user.extra.get(NODE_OF_TOKEN).map(Vec::as_slice).unwrap_or_default();
    match (nodes, node_of(claim)) {
        ([of_token], Some(node)) => user.name.starts_with("system:serviceaccount:") && of_token == node,
        _ => false,
    }
}

fn node_of(claim: &Object) -> Option<&str> {
    let terms = claim.at(&["status", "allocation", "nodeSelector", "nodeSelectorTerms"])?;
    let [term] = terms.as_array()?.as_slice() else {
        return None;
    };
    let is_empty = |key: &str| term.get(key).and_then(Value::as_array).is_none_or(Vec::is_empty);
    let [field] = term.get("matchFields")?.as_array()?.as_slice() else {
        return None;
    };
    let text = |key: &str| field.get(key).and_then(Value::as_str);
    let [name] = field.get("values")?.as_array()?.as_slice() else {
        return None;
    };
    let is_name = text("key") == Some("metadata.name") && text("operator") == Some("In");
    name.as_str().filter(|_| is_name && is_empty("matchExpressions"))
}

/// Those of whose devices something else is told.
fn drivers<'a>(new: &'a Object, old: &'a Object) -> BTreeSet<&'a str> {
    let (mut before, mut changed) = (told(old).collect::<BTreeMap<_, _>>(), BTreeSet::new());
    // One that is told of twice has changed, whatever stands last.
    for (key, device) in told(new) {
        if !same(Some(device), before.remove(&key)) {
            changed.insert(key[0]);
        }
    }
    changed.extend(before.into_keys().map(|key| key[0]));
    changed
}

fn told(claim: &Object) -> impl Iterator<Item = ([&str; 4], &Value)> {
    let list = claim.at(&["status", "devices"]).and_then(Value::as_array);
    list.into_iter().flatten().map(|device| (id(device), device))
}

fn id(device: &Value) -> [&str; 4] {
    ["driver", "pool", "device", "shareID"].map(|part| device.get(part).and_then(Value::as_str).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn drivers_whose_devices_have_changed() {
        let claim = |devices: Value| Object::try_from(value!({"status": {"devices": devices}})).unwrap();
        let device = |driver: &str, name: &str, data: i64| value!({"driver": driver, "pool": "p", "device": name, "data": {"n": data}});
        let old = claim(value!([
            (device("a", "1", 1)),
            (device("b", "1", 1)),
            (device("c", "1", 1))
        ]));
        let new = claim(value!([
            (device("a", "1", 1)),
            (device("b", "1", 2)),
            (device("d", "1", 1))
        ]));
        assert!(drivers(&new, &old).into_iter().eq(["b", "c", "d"]));
        assert!(drivers(&old, &old).is_empty());
        let twice = claim(value!([
            (device("a", "1", 9)),
            (device("a", "1", 1)),
            (device("b", "1", 1)),
            (device("c", "1", 1))
        ]));
        assert!(drivers(&twice, &old).into_iter().eq(["a"]));
    }

    #[test]
    fn the_node_of_a_claim() {
        let claim = |terms: Value| {
            Object::try_from(value!({"status": {"allocation": {"nodeSelector": {"nodeSelectorTerms": terms}}}}))
                .unwrap()
        };
        let field = value!({"key": "metadata.name", "operator": "In", "values": ["n"]});
        assert_eq!(node_of(&claim(value!([{"matchFields": [(field.clone())]}]))), Some("n"));
        assert_eq!(
            node_of(&claim(
                value!([{"matchFields": [(field.clone())], "matchExpressions": [{"key": "a"}]}])
            )),
            None
        );
        assert_eq!(node_of(&claim(value!([{"matchFields": [field]}, {}]))), None);
    }
}
