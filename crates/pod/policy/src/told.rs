//! What policies did with packets, for the program's page: read from the kernel when somebody asks.

use crate::TABLE;
use crate::plan::{Met, Planner};
use keelson_measure::Measures;
use keelson_sys::nft::{self, Counted, Family};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

const FAMILY: &str = "keelson_policy_packets_total";

/// What counters' names stand for, in each family.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<BTreeMap<Family, BTreeMap<String, Met>>>>);

impl Told {
    /// For one page: whoever counts for it anew gets a clone.
    pub fn new(measures: &Measures) -> Told {
        let told = Told::default();
        let read = told.clone();
        measures.add(move |page| {
            let known = read.0.lock().clone();
            if known.values().all(BTreeMap::is_empty) {
                return;
            }
            let counted = known.iter().filter_map(|(family, met)| {
                let counters = nft::counters(*family, TABLE).inspect_err(|error| {
                    tracing::debug!(%error, "the counters of network policies can't be read");
                });
                Some((counters.ok()?, met))
            });
            write(page, counted);
        });
        told
    }

    pub(crate) fn know(&self, planners: &mut [Planner]) {
        let mut known = self.0.lock();
        for planner in planners {
            let family = planner.family();
            let now = planner.met();
            if known.get(&family) != Some(now) {
                known.insert(family, now.clone());
            }
        }
    }
}

/// Packets of both families together.
fn write<'a>(page: &mut String, counted: impl Iterator<Item = (Vec<Counted>, &'a BTreeMap<String, Met>)>) {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (counters, met) in counted {
        for counter in counters {
            let Some(met) = met.get(&counter.name) else { continue };
            // Names of objects need no escapes.
            let labels = format!(
                "action=\"{}\",direction=\"{}\",kind=\"{}\",namespace=\"{}\",policy=\"{}\"",
                met.action,
                met.direction,
                met.kind(),
                met.namespace,
                met.policy
            );
            *sums.entry(labels).or_default() += counter.packets;
        }
    }
    let _ = writeln!(
        page,
        "# HELP {FAMILY} Packets of this node's pods by the policy that decided"
    );
    let _ = writeln!(page, "# TYPE {FAMILY} counter");
    for (labels, packets) in sums {
        let _ = writeln!(page, "{FAMILY}{{{labels}}} {packets}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_together() {
        let met = Met {
            direction: "ingress",
            namespace: "shop".into(),
            policy: String::new(),
            action: "deny",
        };
        let known: BTreeMap<String, Met> = [("a".to_string(), met)].into();
        let of = |name: &str, packets| Counted {
            name: name.into(),
            packets,
            bytes: 0,
        };
        let mut page = String::new();
        let all = [(vec![of("a", 3), of("gone", 9)], &known), (vec![of("a", 4)], &known)];
        write(&mut page, all.into_iter());
        let line = "keelson_policy_packets_total{action=\"deny\",direction=\"ingress\",kind=\"NetworkPolicy\",namespace=\"shop\",policy=\"\"} 7";
        assert_eq!(page.lines().last(), Some(line));
        assert_eq!(page.lines().count(), 3);
    }
}
