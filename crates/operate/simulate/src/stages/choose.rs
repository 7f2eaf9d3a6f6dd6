//! Which stage is next for an object, and when.

use super::spec::{Operator, Requirement, Stage};
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

/// The longest delay that is waited for.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// The stage's place among all, and how long until it is played. Chance comes as two numbers from 0 to 1.
pub fn choose(stages: &[&Stage], object: &Value, now: Timestamp, chance: (f64, f64)) -> Option<(usize, Duration)> {
    let fitting: Vec<usize> = (0..stages.len()).filter(|n| fits(stages[*n], object)).collect();
    let chosen = match &fitting[..] {
        [] => return None,
        [only] => *only,
        several => {
            let weights: Vec<(usize, i64)> = several.iter().map(|n| (*n, weight(stages[*n], object))).collect();
            by_weight(&weights, chance.0)
        }
    };
    Some((chosen, delay(stages[chosen], object, now, chance.1)))
}

fn fits(stage: &Stage, object: &Value) -> bool {
    stage.selector.iter().all(|r| holds(r, object))
}

fn holds(requirement: &Requirement, object: &Value) -> bool {
    let found = requirement.of.values(object);
    let among = || {
        let is_one = |v: &&Value| match v {
            Value::String(text) => requirement.values.contains(text),
            Value::Bool(_) | Value::Number(_) => requirement.values.contains(&v.to_string()),
            _ => false,
        };
        found.iter().any(is_one)
    };
    match requirement.operator {
        Operator::In => among(),
        Operator::NotIn => !among(),
        Operator::Exists => !found.is_empty(),
        Operator::DoesNotExist => found.is_empty(),
    }
}

fn weight(stage: &Stage, object: &Value) -> i64 {
    let told = stage
        .weight_from
        .as_ref()
        .and_then(|q| match q.values(object).first()? {
            Value::String(text) => text.parse().ok(),
            other => other.as_i64(),
        });
    told.unwrap_or(stage.weight).max(0)
}

/// In proportion to the weights; where none has any, each as well as another.
fn by_weight(weights: &[(usize, i64)], chance: f64) -> usize {
    let total: i64 = weights.iter().map(|(_, w)| w).fold(0, |sum, w| sum.saturating_add(*w));
    if total == 0 {
        let nth = (chance * weights.len() as f64) as usize;
        return weights[nth.min(weights.len() - 1)].0;
    }
    let mut left = (chance * total as f64) as i64;
    for (n, weight) in weights {
        left -= weight;
        if left < 0 {
            return *n;
        }
    }
    weights[weights.len() - 1].0
}

/// From the delay to its jitter; the jitter alone where it is less.
fn delay(stage: &Stage, object: &Value, now: Timestamp, chance: f64) -> Duration {
    let told = |from: &Option<super::query::Query>, usual: Option<Duration>| {
        let said = from
            .as_ref()
            .and_then(|q| time(q.values(object).first()?.as_str()?, now));
        said.or(usual)
    };
    let least = told(&stage.delay_from, stage.delay).unwrap_or_default();
    let Some(most) = told(&stage.jitter_from, stage.jitter) else {
        return least.min(LONGEST);
    };
    match most.checked_sub(least) {
        Some(range) => (least + range.mul_f64(chance)).min(LONGEST),
        None => most.min(LONGEST),
    }
}

/// A date, or a duration as Go writes it.
fn time(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(date) = text.parse::<Timestamp>() {
        return Some(Duration::try_from(date.duration_since(now)).unwrap_or_default());
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        sum += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    (!text.is_empty()).then(|| Duration::from_secs_f64(sum.min(LONGEST.as_secs_f64())))
}
