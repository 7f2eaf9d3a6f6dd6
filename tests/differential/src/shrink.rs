//! A smaller request that shows the same difference.

use crate::case::Case;
use crate::compare::{Group, differences};
use crate::side::Side;
use anyhow::Result;
use serde_json::Value;

/// How many requests one group may cost.
const TRIES: usize = 150;

/// Leaves out of the body of a case's one request what the difference doesn't need.
pub async fn smaller(ours: &Side, peer: &Side, case: &Case, group: &Group) -> Result<Case> {
    let mut best = case.clone();
    let [step] = case.steps.as_slice() else { return Ok(best) };
    let Ok(mut body) = serde_json::from_str::<Value>(&step.body) else {
        return Ok(best);
    };
    let mut tries = 0;
    let mut again = true;
    while again && tries < TRIES {
        again = false;
        for pointer in pointers(&body) {
            if tries >= TRIES {
                break;
            }
            let Some(without) = without(&body, &pointer) else {
                continue;
            };
            let mut tried = best.clone();
            tried.steps[0].body = without.to_string();
            tries += 1;
            let (a, b) = tokio::join!(ours.case(&tried), peer.case(&tried));
            if differences(&tried, &a?, &b?).iter().any(|d| d.group == *group) {
                (best, body, again) = (tried, without, true);
            }
        }
    }
    Ok(best)
}

/// All places, the outer ones first.
fn pointers(value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let mut level = vec![(String::new(), value)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (at, value) in level {
            match value {
                Value::Object(map) => next.extend(
                    map.iter()
                        .map(|(k, v)| (format!("{at}/{}", k.replace('~', "~0").replace('/', "~1")), v)),
                ),
                Value::Array(items) => {
                    next.extend(items.iter().enumerate().rev().map(|(i, v)| (format!("{at}/{i}"), v)))
                }
                _ => {}
            }
        }
        out.extend(
            next.iter()
                .map(|(at, _)| at.clone())
                .filter(|at| !matches!(at.as_str(), "/apiVersion" | "/kind")),
        );
        level = next;
    }
    out
}

fn without(value: &Value, pointer: &str) -> Option<Value> {
    let mut value = value.clone();
    let (above, last) = pointer.rsplit_once('/')?;
    let last = last.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(above)? {
        Value::Object(map) => drop(map.remove(&last)?),
        Value::Array(items) => {
            let at: usize = last.parse().ok()?;
            if at >= items.len() {
                return None;
            }
            items.remove(at);
        }
        _ => return None,
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_places_go_first() {
        let value = serde_json::json!({"kind": "a", "b": {"c/d": [1, 2]}});
        assert_eq!(pointers(&value), ["/b", "/b/c~1d", "/b/c~1d/1", "/b/c~1d/0"]);
        assert_eq!(
            without(&value, "/b/c~1d/1"),
            Some(serde_json::json!({"kind": "a", "b": {"c/d": [1]}}))
        );
    }
}
