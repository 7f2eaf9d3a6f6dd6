//! How fast silent nodes may be given up, zone by zone. Pure.
//!
//! Many silent nodes at once are more likely a fault of the network than as many faults of nodes: then a large zone is
//! given up slowly and a small one not at all; a zone of which nothing is left, at the usual pace, for its pods have
//! somewhere else to go. With no node left anywhere nothing is evicted.

use k8s_openapi::api::core::v1::Node;
use keelson_client::ApiObject;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// One node in this time.
const USUAL: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(100);
/// This part of a zone's nodes being silent makes it a disrupted one,
const UNHEALTHY: f64 = 0.55;
/// if there are more than this many of them.
const FEW: usize = 2;
/// A zone of more nodes than this is large.
const LARGE: usize = 50;

pub type Zone = (String, String);

pub fn of(node: &Node) -> Zone {
    let labels = node.meta().labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key)).cloned().unwrap_or_default();
    (label(REGION), label(ZONE))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    One(Duration),
    Stopped,
}

/// The pace of a zone with so many nodes that are ready and so many that aren't.
pub fn pace(ready: usize, silent: usize) -> Pace {
    let all = ready + silent;
    let disrupted = ready > 0 && silent > FEW && silent as f64 / all as f64 >= UNHEALTHY;
    match disrupted {
        false => Pace::One(USUAL),
        true if all > LARGE => Pace::One(SLOW),
        true => Pace::Stopped,
    }
}

/// When a node of each zone was given up last. An entry a zone that ever had a silent node.
#[derive(Default)]
pub struct Turns(HashMap<Zone, Instant>);

/// Whether a node may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Now,
    In(Duration),
    /// Not while things are as they are.
    Never,
}

impl Turns {
    pub fn take(&mut self, zone: &Zone, pace: Pace, now: Instant) -> Turn {
        let Pace::One(pause) = pace else { return Turn::Never };
        let left = self
            .0
            .get(zone)
            .map_or(Duration::ZERO, |last| (*last + pause).saturating_duration_since(now));
        if left.is_zero() {
            self.0.insert(zone.clone(), now);
            Turn::Now
        } else {
            Turn::In(left)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paces_are_upstreams() {
        assert_eq!(pace(10, 1), Pace::One(USUAL));
        assert_eq!(pace(1, 2), Pace::One(USUAL), "two are few");
        assert_eq!(pace(2, 3), Pace::Stopped);
        assert_eq!(pace(5, 6), Pace::One(USUAL), "below the threshold");
        assert_eq!(pace(20, 31), Pace::One(SLOW), "a large zone");
        assert_eq!(pace(20, 30), Pace::Stopped, "not quite a large one");
        assert_eq!(pace(0, 8), Pace::One(USUAL), "all of it");
    }

    #[tokio::test(start_paused = true)]
    async fn zones_take_turns_of_their_own() {
        let zone = |name: &str| (String::new(), name.to_string());
        let mut turns = Turns::default();
        let usual = Pace::One(USUAL);
        assert_eq!(turns.take(&zone("a"), usual, Instant::now()), Turn::Now);
        assert_eq!(turns.take(&zone("b"), usual, Instant::now()), Turn::Now);
        assert_eq!(turns.take(&zone("a"), usual, Instant::now()), Turn::In(USUAL));
        assert_eq!(turns.take(&zone("a"), Pace::Stopped, Instant::now()), Turn::Never);
        tokio::time::sleep(USUAL).await;
        assert_eq!(turns.take(&zone("a"), usual, Instant::now()), Turn::Now);
    }
}
