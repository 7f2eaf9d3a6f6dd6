//! PodResizeValidator: a pod isn't made larger than its node, where it could only wait for ever.

use super::declared_features::node_of;
use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Cause, Object, Value};
use keelson_registry::Operation;
use keelson_registry::resources::pod_resources::{amounts, total};
use keelson_registry::strategy::same;

pub struct PodResizeValidator;

#[async_trait]
impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.op == Operation::Update && review.is_sub("", "pods", "resize")
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let (Some(new), Some(old)) = (new, old) else {
            return Ok(());
        };
        let Some(name) = node_of(new).filter(|_| !same(new.get("spec"), old.get("spec"))) else {
            return Ok(());
        };
        let Some(node) = review.lookup.cached("", "nodes", "", name).await? else {
            return Err(review.forbidden(Some(new), format!("node {name:?} not found")));
        };
        let Some((reason, why)) = other_system(&node).or_else(|| too_large(new, &node)) else {
            return Ok(());
        };
        let mut refusal = review.forbidden(Some(new), why);
        let details = refusal.details.get_or_insert_default();
        details.causes.push(Cause {
            reason: reason.into(),
            ..Cause::default()
        });
        Err(refusal)
    }
}

type Why = (&'static str, String);

fn other_system(node: &Object) -> Option<Why> {
    let system = node
        .labels()?
        .str("kubernetes.io/os")
        .filter(|system| *system != "linux")?;
    let name = node.name();
    let why = format!("pod resize is only supported on linux nodes, node {name:?} is {system:?}");
    Some(("UnsupportedPlatform", why))
}

fn too_large(pod: &Object, node: &Object) -> Option<Why> {
    let allocatable = amounts(node.at(&["status", "allocatable"]).and_then(Value::as_object));
    let wanted = total(pod, "requests");
    let over = ["cpu", "memory"].into_iter().filter_map(|name| {
        let wanted = wanted.get(name)?;
        let has = allocatable.get(name).copied().unwrap_or_default();
        let shown = |q: keelson_api::Quantity| match name {
            "cpu" => q.milli_value(),
            _ => q.value(),
        };
        let is_over = *wanted > has;
        is_over.then(|| format!("{name}, requested: {}, allocatable: {}", shown(*wanted), shown(has)))
    });
    let over: Vec<String> = over.collect();
    let why = format!("node didn't have enough allocatable resources: {}", over.join("; "));
    (!over.is_empty()).then_some(("NodeCapacity", why))
}
