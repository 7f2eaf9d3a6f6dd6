//! NodeDeclaredFeatureValidator: what a running pod is changed to, its node must know how to do.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Map, Object, Quantity, Value};
use keelson_client::declared_features::{RESIZES_OF_INIT_CONTAINERS, RESIZES_OF_MEMORY_VOLUMES, RESIZES_OF_PODS};
use keelson_registry::Operation;
use keelson_registry::strategy::same;

pub struct NodeDeclaredFeatureValidator;

#[async_trait]
impl Plugin for NodeDeclaredFeatureValidator {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatureValidator"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.op == Operation::Update && (review.is("", "pods") || review.is_sub("", "pods", "resize"))
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let (Some(new), Some(old)) = (new, old) else {
            return Ok(());
        };
        let (Some(node), needed) = (node_of(new), needed(new, old)) else {
            return Ok(());
        };
        if needed.is_empty() {
            return Ok(());
        }
        let Some(object) = review.lookup.cached("", "nodes", "", node).await? else {
            return Err(review.forbidden(Some(new), format!("node {node:?} not found")));
        };
        let declared = object.at(&["status", "declaredFeatures"]).and_then(Value::as_array);
        let declares = |name: &&&str| declared.is_some_and(|all| all.iter().any(|d| d.as_str() == Some(**name)));
        let missing: Vec<&str> = needed.iter().filter(|name| !declares(name)).copied().collect();
        match missing.is_empty() {
            true => Ok(()),
            false => {
                let missing = missing.join(", ");
                let why = format!("pod update requires features {missing} which are not available on node {node:?}");
                Err(review.forbidden(Some(new), why))
            }
        }
    }
}

/// The node that has the pod.
pub fn node_of(pod: &Object) -> Option<&str> {
    pod.str_at(&["spec", "nodeName"]).filter(|name| !name.is_empty())
}

/// What this change needs of the node, sorted.
fn needed(new: &Object, old: &Object) -> Vec<&'static str> {
    let (Some(new), Some(old)) = (new.obj("spec"), old.obj("spec")) else {
        return Vec::new();
    };
    let mut needed = Vec::new();
    if !same(new.get("resources"), old.get("resources")) {
        needed.push(RESIZES_OF_PODS);
    }
    if init_container_resized(new, old) {
        needed.push(RESIZES_OF_INIT_CONTAINERS);
    }
    if memory_volume_resized(new, old) {
        needed.push(RESIZES_OF_MEMORY_VOLUMES);
    }
    needed
}

fn list<'a>(spec: &'a Map, key: &str) -> impl Iterator<Item = &'a Value> {
    spec.arr(key).into_iter().flatten()
}

/// Sidecars are resized as other containers are.
fn init_container_resized(new: &Map, old: &Map) -> bool {
    let is_sidecar = |c: &Value| c.get("restartPolicy").and_then(Value::as_str) == Some("Always");
    let mut pairs = list(old, "initContainers").zip(list(new, "initContainers"));
    pairs.any(|(old, new)| !is_sidecar(old) && !same(new.get("resources"), old.get("resources")))
}

/// That volumes come or go, or become another kind, validation refuses.
fn memory_volume_resized(new: &Map, old: &Map) -> bool {
    let size = |volume: &Value| {
        volume
            .at(&["emptyDir", "sizeLimit"])?
            .as_str()?
            .parse::<Quantity>()
            .ok()
    };
    let in_memory = |volume: &Value| volume.at(&["emptyDir", "medium"]).and_then(Value::as_str) == Some("Memory");
    let is_other = |(old, new): (&Value, &Value)| {
        let sizes = size(old).zip(size(new));
        old.get("name") == new.get("name") && in_memory(new) && sizes.is_some_and(|(old, new)| old != new)
    };
    list(old, "volumes").zip(list(new, "volumes")).any(is_other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn what_a_change_needs() {
        let cpu = |n: &str| value!({"requests": {"cpu": n}});
        let pod = |spec: Value| Object::try_from(value!({"spec": spec})).unwrap();
        let volume =
            |medium: &str, size: &str| value!([{"name": "v", "emptyDir": {"medium": medium, "sizeLimit": size}}]);
        for (old, new, needs) in [
            (value!({"resources": cpu("1")}), value!({"resources": cpu("1")}), vec![]),
            (
                value!({"resources": cpu("1")}),
                value!({"resources": cpu("2")}),
                vec![RESIZES_OF_PODS],
            ),
            (value!({"resources": cpu("1")}), value!({}), vec![RESIZES_OF_PODS]),
            (
                value!({"initContainers": [{"name": "i", "resources": cpu("1")}]}),
                value!({"initContainers": [{"name": "i", "resources": cpu("2")}]}),
                vec![RESIZES_OF_INIT_CONTAINERS],
            ),
            (
                value!({"initContainers": [{"name": "i", "restartPolicy": "Always", "resources": cpu("1")}]}),
                value!({"initContainers": [{"name": "i", "restartPolicy": "Always", "resources": cpu("2")}]}),
                vec![],
            ),
            (
                value!({"volumes": volume("Memory", "1Gi")}),
                value!({"volumes": volume("Memory", "2Gi")}),
                vec![RESIZES_OF_MEMORY_VOLUMES],
            ),
            (
                value!({"volumes": volume("Memory", "1Gi")}),
                value!({"volumes": volume("Memory", "1024Mi")}),
                vec![],
            ),
            (
                value!({"volumes": volume("", "1Gi")}),
                value!({"volumes": volume("", "2Gi")}),
                vec![],
            ),
        ] {
            assert_eq!(needed(&pod(new.clone()), &pod(old.clone())), needs, "{old:?} {new:?}");
        }
    }
}
