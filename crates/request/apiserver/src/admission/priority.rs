//! Priority: a pod's priority is its class's, and there is one default class.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Value};
use keelson_registry::Operation;

pub struct Priority;

async fn default_class(review: &Review<'_>) -> ApiResult<Option<Object>> {
    let classes = review.lookup.list("scheduling.k8s.io", "priorityclasses", "").await?;
    let defaults = classes.into_iter().filter(|c| c.bool("globalDefault") == Some(true));
    // Two defaults can stand side by side after a race: the lower one counts.
    Ok(defaults.min_by_key(|c| c.int("value").unwrap_or(0)))
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new.filter(|_| review.is("", "pods")) else {
            return Ok(());
        };
        match (review.op, old) {
            (Operation::Update, Some(old)) => {
                for key in ["priority", "preemptionPolicy"] {
                    if pod.at(&["spec", key]).is_none()
                        && let Some(v) = old.at(&["spec", key])
                    {
                        pod.set_at(&["spec", key], v.clone());
                    }
                }
                Ok(())
            }
            (Operation::Create, _) => resolve(review, pod).await,
            _ => Ok(()),
        }
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(class) = new.filter(|_| review.is("scheduling.k8s.io", "priorityclasses")) else {
            return Ok(());
        };
        if class.bool("globalDefault") != Some(true) {
            return Ok(());
        }
        match default_class(review).await? {
            Some(other) if review.op == Operation::Create || other.name() != class.name() => Err(review.forbidden(
                Some(class),
                format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    other.name()
                ),
            )),
            _ => Ok(()),
        }
    }
}

async fn resolve(review: &Review<'_>, pod: &mut Object) -> ApiResult<()> {
    let name = pod
        .str_at(&["spec", "priorityClassName"])
        .unwrap_or_default()
        .to_string();
    let class = if name.is_empty() {
        default_class(review).await?
    } else {
        match review
            .lookup
            .cached("scheduling.k8s.io", "priorityclasses", "", &name)
            .await?
        {
            Some(c) => Some(c),
            None => return Err(review.forbidden(Some(pod), format!("no PriorityClass with name {name} was found"))),
        }
    };
    let (priority, policy) = match &class {
        Some(c) => (c.int("value").unwrap_or(0), c.str("preemptionPolicy").map(String::from)),
        None => (0, Some("PreemptLowerPriority".to_string())),
    };
    if let Some(c) = &class {
        pod.set_at(&["spec", "priorityClassName"], c.name());
    }
    if let Some(given) = pod
        .at(&["spec", "priority"])
        .and_then(Value::as_i64)
        .filter(|p| *p != priority)
    {
        return Err(review.forbidden(
            Some(pod),
            format!("the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"),
        ));
    }
    pod.set_at(&["spec", "priority"], priority);
    if let Some(policy) = policy {
        if let Some(given) = pod.str_at(&["spec", "preemptionPolicy"]).filter(|p| *p != policy) {
            return Err(review.forbidden(
                Some(pod),
                format!("the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"),
            ));
        }
        pod.set_at(&["spec", "preemptionPolicy"], policy);
    }
    Ok(())
}
