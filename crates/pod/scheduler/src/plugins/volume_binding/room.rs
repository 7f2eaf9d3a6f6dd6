//! Prefers nodes by how much of the storage there a pod's waiting claims would take: of volumes that exist, or else of what drivers say
//! there is room for. Without a shape of configuration those are preferred that keep the most.

use super::{Claims, class_name, room_for, storage};
use crate::framework::{Cycle, Scorer};
use crate::node::NodeInfo;
use crate::plugins::shape::{Shape, broken_line};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use keelson_api::quantity::Quantity;
use std::collections::BTreeMap;

pub fn default_shape() -> Shape {
    vec![(0, 10), (100, 0)]
}

pub(super) struct Room<'a> {
    pub claims: Claims,
    pub cycle: Cycle<'a>,
    pub shape: &'a Shape,
}

/// What of one class is asked for, and what there is.
#[derive(Default)]
struct Storage {
    asked: i64,
    there: i64,
}

impl Scorer for Room<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let snapshot = self.cycle.snapshot;
        let Ok(decision) = self.claims.on(snapshot, node) else {
            return 0;
        };
        let mut classes: BTreeMap<String, Storage> = BTreeMap::new();
        for (volume, claim) in &decision.bind {
            let class = classes.entry(class_name(claim).to_owned()).or_default();
            class.asked += asked(claim);
            class.there += storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()));
        }
        if decision.bind.is_empty() {
            for claim in decision.provision.iter().chain(&decision.await_volume) {
                let Ok(Some(room)) = room_for(claim, snapshot, node) else {
                    continue;
                };
                let there = room.capacity.as_ref().and_then(|q| Quantity::parse(&q.0).ok());
                let class = classes.entry(class_name(claim).to_owned()).or_default();
                class.asked += asked(claim);
                // One room for all claims of the class.
                class.there = there.map_or(0, |q| q.value());
            }
        }
        if classes.is_empty() {
            return 0;
        }
        let sum: i64 = classes.values().map(|class| class.score(self.shape)).sum();
        (sum as f64 / classes.len() as f64).round() as i64
    }
}

impl Storage {
    fn score(&self, shape: &Shape) -> i64 {
        let used = match self.there == 0 || self.asked > self.there {
            true => 100,
            // Bytes may be more than a hundredth of what a number holds.
            false => (i128::from(self.asked) * 100 / i128::from(self.there)) as i64,
        };
        broken_line(shape, used)
    }
}

fn asked(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    storage(resources.and_then(|r| r.requests.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_class_and_one_that_isnt_told_are_worth_the_line_s_end() {
        let gib = 1 << 30;
        for (asked, there, worth) in [
            (0, 100 * gib, 100),
            (10 * gib, 100 * gib, 90),
            (50 * gib, 100 * gib, 50),
            (100 * gib, 100 * gib, 0),
            (101 * gib, 100 * gib, 0),
            (gib, 0, 0),
            (i64::MAX / 2, i64::MAX, 51),
        ] {
            assert_eq!(
                Storage { asked, there }.score(&default_shape()),
                worth,
                "{asked} of {there}"
            );
        }
        let most_used = vec![(0, 0), (100, 10)];
        assert_eq!(Storage { asked: 30, there: 100 }.score(&most_used), 30);
    }
}
