//! DefaultTolerationSeconds: a pod stays five minutes on a node that stops answering, unless it says otherwise.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Value, value};
use keelson_registry::Operation;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

pub struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let written = matches!(review.op, Operation::Create | Operation::Update);
        let Some(pod) = new.filter(|_| written && review.is("", "pods")) else {
            return Ok(());
        };
        let mut list = pod
            .at(&["spec", "tolerations"])
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let before = list.len();
        for taint in TAINTS {
            let tolerated = list.iter().take(before).any(|t| {
                let text = |key: &str| t.get(key).and_then(Value::as_str).unwrap_or_default();
                matches!(text("key"), k if k.is_empty() || k == taint) && matches!(text("effect"), "" | "NoExecute")
            });
            if !tolerated {
                list.push(
                    value!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}),
                );
            }
        }
        if list.len() != before {
            pod.set_at(&["spec", "tolerations"], list);
        }
        Ok(())
    }
}

/// Tolerations joined, each kept once.
pub fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::with_capacity(first.len() + second.len());
    for t in first.iter().chain(second) {
        if !out.contains(t) {
            out.push(t.clone());
        }
    }
    out
}
