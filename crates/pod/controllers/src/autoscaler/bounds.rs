//! From what metrics ask for to what is done: stabilisation, rates, bounds. Pure but for what it remembers.
//!
//! Ages are measured by this process' own clock. After a restart the memory is empty: then the first recommendation is
//! the present size, as upstream has it. What is remembered of an autoscaler is bounded by its windows: an entry that
//! has left them gives its place to the next.

use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};
use std::time::Duration;
use tokio::time::Instant;

/// A condition's reason and message.
pub type Told = (&'static str, &'static str);

/// What is to be done, and what conditions say of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub replicas: i32,
    pub able: Told,
    pub limited: (bool, Told),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    replicas: i32,
    at: Instant,
}

/// What is remembered of one autoscaler.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    recommendations: Vec<Change>,
    ups: Vec<Change>,
    downs: Vec<Change>,
}

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub min: i32,
    pub max: i32,
    pub current: i32,
}

const READY: Told = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Told = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Told = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Told = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Told = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const TOO_MANY: Told = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const UP_LIMIT: Told = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: Told = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);

fn seconds(n: i32) -> Duration {
    Duration::from_secs(n.max(0).unsigned_abs().into())
}

fn verdict(stabilized: i32, able: Told, (replicas, limit): (i32, Told)) -> Verdict {
    Verdict {
        replicas,
        able,
        limited: (replicas != stabilized, limit),
    }
}

impl Memory {
    /// The size found at first counts as the first recommendation.
    pub fn begin(&mut self, current: i32, now: Instant) {
        if self.recommendations.is_empty() {
            self.recommendations.push(Change {
                replicas: current,
                at: now,
            });
        }
    }

    /// Remembers a recommendation; one that is older than all windows makes room.
    fn recommend(&mut self, replicas: i32, window: Duration, now: Instant) {
        let new = Change { replicas, at: now };
        let old = self.recommendations.iter_mut().rfind(|r| now - r.at > window);
        match old {
            Some(old) => *old = new,
            None => self.recommendations.push(new),
        }
    }

    fn within(&self, window: Duration, now: Instant) -> impl Iterator<Item = i32> {
        self.recommendations
            .iter()
            .filter(move |r| now - r.at < window)
            .map(|r| r.replicas)
    }

    /// What becomes of a wish where nothing is said of behaviour. A higher one keeps replicas for `window`.
    pub fn plain(&mut self, wish: i32, bounds: Bounds, window: Duration, now: Instant) -> Verdict {
        let stabilized = self
            .recommendations
            .iter()
            .filter(|r| now - r.at <= window)
            .map(|r| r.replicas)
            .fold(wish, i32::max);
        self.recommend(wish, window, now);
        let able = if stabilized == wish { READY } else { DOWN_STABILIZED };
        verdict(stabilized, able, plain_bounds(stabilized, bounds))
    }

    /// What becomes of a wish under the rules of a behaviour.
    pub fn ruled(&mut self, wish: i32, bounds: Bounds, rules: &Rules, now: Instant) -> Verdict {
        let up = self.within(rules.up.window, now).fold(wish, i32::min);
        let down = self.within(rules.down.window, now).fold(wish, i32::max);
        self.recommend(wish, rules.up.window.max(rules.down.window), now);
        let stabilized = bounds.current.max(up).min(down);
        let able = match stabilized == wish {
            true => READY,
            false if wish >= bounds.current => UP_STABILIZED,
            false => DOWN_STABILIZED,
        };
        verdict(stabilized, able, self.ruled_bounds(stabilized, bounds, rules, now))
    }

    fn ruled_bounds(&self, wish: i32, bounds: Bounds, rules: &Rules, now: Instant) -> (i32, Told) {
        let Bounds { min, max, current } = bounds;
        if wish > current {
            let limit = self.limit_up(current, &rules.up, now).max(current);
            let (most, told) = if max > limit {
                (limit, UP_LIMIT)
            } else {
                (max, TOO_MANY)
            };
            if wish > most {
                return (most, told);
            }
        } else if wish < current {
            let limit = self.limit_down(current, &rules.down, now).min(current);
            let (least, told) = if min < limit {
                (limit, DOWN_LIMIT)
            } else {
                (min, TOO_FEW)
            };
            if wish < least {
                return (least, told);
            }
        }
        (wish, WITHIN)
    }

    /// The size at the beginning of a policy's period.
    fn at_start(&self, current: i32, policy: &HPAScalingPolicy, now: Instant) -> i32 {
        let period = seconds(policy.period_seconds);
        let sum =
            |changes: &[Change]| -> i32 { changes.iter().filter(|c| now - c.at < period).map(|c| c.replicas).sum() };
        current - sum(&self.ups) + sum(&self.downs)
    }

    fn limit_up(&self, current: i32, way: &Way, now: Instant) -> i32 {
        let limits = way.policies.iter().map(|policy| {
            let start = self.at_start(current, policy, now);
            match policy.type_.as_str() {
                "Pods" => start.saturating_add(policy.value),
                _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
            }
        });
        match way.select {
            Select::None => current,
            Select::Least => limits.fold(i32::MAX, i32::min),
            Select::Most => limits.fold(i32::MIN, i32::max),
        }
    }

    fn limit_down(&self, current: i32, way: &Way, now: Instant) -> i32 {
        let limits = way.policies.iter().map(|policy| {
            let start = self.at_start(current, policy, now);
            match policy.type_.as_str() {
                "Pods" => start.saturating_sub(policy.value),
                _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
            }
        });
        match way.select {
            Select::None => current,
            // The least change is the highest size.
            Select::Least => limits.fold(i32::MIN, i32::max),
            Select::Most => limits.fold(i32::MAX, i32::min),
        }
    }

    /// Remembers a change that was made; policies count those of their period.
    pub fn changed(&mut self, before: i32, after: i32, rules: &Rules, now: Instant) {
        let (changes, way) = match after > before {
            true => (&mut self.ups, &rules.up),
            false => (&mut self.downs, &rules.down),
        };
        let period = way.policies.iter().map(|p| p.period_seconds).max().unwrap_or(0);
        let new = Change {
            replicas: (after - before).abs(),
            at: now,
        };
        match changes.iter_mut().rfind(|c| now - c.at > seconds(period)) {
            Some(old) => *old = new,
            None => changes.push(new),
        }
    }
}

/// At most double, or four: who has few may have some more at once.
fn plain_bounds(wish: i32, bounds: Bounds) -> (i32, Told) {
    let limit = (2.0 * f64::from(bounds.current)).max(4.0) as i32;
    let (most, told) = match bounds.max > limit {
        true => (limit, UP_LIMIT),
        false => (bounds.max, TOO_MANY),
    };
    if wish < bounds.min {
        (bounds.min, TOO_FEW)
    } else if wish > most {
        (most, told)
    } else {
        (wish, WITHIN)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Select {
    None,
    Least,
    Most,
}

#[derive(Clone, Debug)]
struct Way {
    window: Duration,
    policies: Vec<HPAScalingPolicy>,
    select: Select,
}

/// A behaviour with its gaps filled.
#[derive(Clone, Debug)]
pub struct Rules {
    up: Way,
    down: Way,
}

impl Rules {
    /// `window`: how long a higher recommendation keeps replicas, if nothing else is said.
    pub fn of(behavior: &HorizontalPodAutoscalerBehavior, window: Duration) -> Self {
        Rules {
            up: way(
                behavior.scale_up.as_ref(),
                Duration::ZERO,
                &[("Pods", 4), ("Percent", 100)],
            ),
            down: way(behavior.scale_down.as_ref(), window, &[("Percent", 100)]),
        }
    }
}

fn way(rules: Option<&HPAScalingRules>, window: Duration, policies: &[(&str, i32)]) -> Way {
    let policy = |(kind, value): &(&str, i32)| HPAScalingPolicy {
        type_: (*kind).into(),
        value: *value,
        period_seconds: 15,
    };
    let given = rules.and_then(|r| r.policies.clone()).filter(|p| !p.is_empty());
    Way {
        window: rules
            .and_then(|r| r.stabilization_window_seconds)
            .map_or(window, seconds),
        policies: given.unwrap_or_else(|| policies.iter().map(policy).collect()),
        select: match rules.and_then(|r| r.select_policy.as_deref()) {
            Some("Disabled") => Select::None,
            Some("Min") => Select::Least,
            _ => Select::Most,
        },
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
