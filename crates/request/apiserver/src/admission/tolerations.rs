//! DefaultTolerationSeconds: a pod stays a while on a node that stops answering, unless it says otherwise.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Value, value};
use keelson_registry::Operation;
use std::collections::HashSet;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// How long, for each of the taints.
#[derive(Clone, Copy, Debug)]
pub struct DefaultTolerationSeconds(pub [i64; 2]);

impl Default for DefaultTolerationSeconds {
    fn default() -> Self {
        DefaultTolerationSeconds([300; 2])
    }
}

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
        for (taint, seconds) in TAINTS.into_iter().zip(self.0) {
            let tolerated = list.iter().take(before).any(|t| {
                let text = |key: &str| t.get(key).and_then(Value::as_str).unwrap_or_default();
                matches!(text("key"), k if k.is_empty() || k == taint) && matches!(text("effect"), "" | "NoExecute")
            });
            if !tolerated {
                list.push(
                    value!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}),
                );
            }
        }
        if list.len() != before {
            pod.set_at(&["spec", "tolerations"], list);
        }
        Ok(())
    }
}

/// So many are compared each with each, which takes milliseconds. No pod has as many; one that is made to have more costs
/// nobody else his time.
const COMPARED: usize = 1024;

/// A toleration's fields.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Toleration<'a> {
    pub key: &'a str,
    pub operator: &'a str,
    pub value: &'a str,
    pub effect: &'a str,
    pub seconds: Option<i64>,
}

impl<'a> Toleration<'a> {
    pub fn of(value: &'a Value) -> Self {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        Toleration {
            key: text("key"),
            operator: text("operator"),
            value: text("value"),
            effect: text("effect"),
            seconds: value.get("tolerationSeconds").and_then(Value::as_i64),
        }
    }

    /// Whether all that the other tolerates is tolerated by this one too.
    fn covers(&self, other: &Toleration<'_>) -> bool {
        let any_key = self.key.is_empty() && self.operator == "Exists";
        let any_effect = self.effect.is_empty();
        let as_long = match self.seconds.filter(|_| self.effect == "NoExecute") {
            Some(ours) => other.seconds.is_some_and(|theirs| theirs <= ours),
            None => true,
        };
        let value = match self.operator {
            "Equal" | "" => other.operator == "Equal" && other.value == self.value,
            operator => operator == "Exists",
        };
        self == other
            || (self.key == other.key || any_key) && (self.effect == other.effect || any_effect) && as_long && value
    }
}

/// Tolerations joined; one that another covers is left out. Of more than [`COMPARED`] only those go that are there twice.
pub fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    // Of equal ones the first stays.
    let mut seen = HashSet::new();
    let all = first.iter().chain(second).map(|value| (value, Toleration::of(value)));
    let all: Vec<(&Value, Toleration<'_>)> = all.filter(|(_, t)| seen.insert(*t)).collect();
    let mut kept: Vec<(&Value, Toleration<'_>)> = Vec::with_capacity(all.len());
    for (i, (value, this)) in all.iter().enumerate() {
        let mut others = kept.iter().chain(&all[i + 1..]);
        if all.len() > COMPARED || !others.any(|(_, t)| t.covers(this)) {
            kept.push((*value, *this));
        }
    }
    kept.into_iter().map(|(value, _)| value.clone()).collect()
}

/// Whether each of them is covered by something that is allowed. More than can be compared are not allowed.
pub fn allows(allowed: &[Value], all: &[Value]) -> bool {
    if allowed.len().saturating_mul(all.len()) > COMPARED * COMPARED {
        return false;
    }
    let allowed: Vec<Toleration<'_>> = allowed.iter().map(Toleration::of).collect();
    let covered = |t: Toleration<'_>| allowed.iter().any(|a| a.covers(&t));
    all.iter().map(Toleration::of).all(covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<Value> {
        serde_json::from_str(text).unwrap()
    }

    /// Upstream's table, in short.
    #[test]
    fn what_another_covers_is_left_out() {
        let all = r#"{"operator":"Exists"}"#;
        let a = r#"{"key":"a","operator":"Equal","value":"v","effect":"NoExecute","tolerationSeconds":10}"#;
        let longer = r#"{"key":"a","operator":"Exists","effect":"NoExecute","tolerationSeconds":100}"#;
        let b = r#"{"key":"b","operator":"Equal","value":"v","effect":"NoSchedule"}"#;
        for (first, second, merged) in [
            (vec![a], vec![a], vec![a]),
            (vec![a, b], vec![all], vec![all]),
            (vec![all], vec![a, b], vec![all]),
            (vec![a], vec![longer, b], vec![longer, b]),
            (vec![longer], vec![a], vec![longer]),
            (vec![b], vec![a], vec![b, a]),
        ] {
            let read = |list_: &[&str]| list(&format!("[{}]", list_.join(",")));
            assert_eq!(merge(&read(&first), &read(&second)), read(&merged));
        }
        // Whoever leaves the operator out is covered by himself alone, as upstream has it.
        let bare = list(r#"[{"key":"b","value":"v","effect":"NoSchedule"}]"#);
        assert!(!allows(&list(&format!("[{b}]")), &bare));
        assert!(allows(&bare, &bare) && allows(&list(&format!("[{all}]")), &bare));
    }

    /// As many as a request can bring.
    #[test]
    fn how_many_there_are_costs_nobody_his_time() {
        let of = |i: usize| value!({"key": format!("k{i}").as_str(), "operator": "Exists", "effect": "NoSchedule"});
        let many: Vec<Value> = (0..80_000).map(of).collect();
        let all = list(r#"[{"operator":"Exists"}]"#);
        let began = std::time::Instant::now();
        assert_eq!(merge(&many, &many[..9]).len(), many.len());
        assert!(!allows(&many, &many));
        assert!(allows(&all, &many) && merge(&many[..COMPARED - 1], &all) == all);
        assert!(
            began.elapsed() < std::time::Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
    }
}
