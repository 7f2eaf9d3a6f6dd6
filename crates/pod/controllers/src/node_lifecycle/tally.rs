//! Which nodes are ready, zone by zone, kept by what changes: what a node's turn depends on is read and not counted, and only
//! those whose turn it may change are looked at again.

use super::zones::{self, Pace, Zone};
use std::collections::{BTreeSet, HashMap};

#[derive(Default)]
pub struct Tally {
    nodes: HashMap<String, (Zone, bool)>,
    zones: HashMap<Zone, Count>,
    /// In all zones.
    ready: usize,
}

#[derive(Default)]
struct Count {
    ready: usize,
    silent: BTreeSet<String>,
}

impl Count {
    fn pace(&self) -> Pace {
        zones::pace(self.ready, self.silent.len())
    }
}

impl Tally {
    /// A node's zone and whether it is ready; `None`: it is gone. Returns the nodes that aren't ready whose turn that may change.
    pub fn set(&mut self, name: &str, state: Option<(Zone, bool)>) -> BTreeSet<String> {
        let old = self.nodes.get(name).cloned();
        if old == state {
            return BTreeSet::new();
        }
        let had_ready = self.ready > 0;
        let mut touched: Vec<Zone> = Vec::new();
        for (zone, _) in old.iter().chain(&state) {
            if !touched.contains(zone) {
                touched.push(zone.clone());
            }
        }
        let paces: Vec<Option<Pace>> = touched.iter().map(|z| self.zones.get(z).map(Count::pace)).collect();
        if let Some((zone, was_ready)) = old {
            self.leave(name, &zone, was_ready);
        }
        if let Some((zone, is_ready)) = state {
            self.enter(name, zone, is_ready);
        }
        if had_ready != (self.ready > 0) {
            return self.zones.values().flat_map(|c| c.silent.iter().cloned()).collect();
        }
        let mut concerned = BTreeSet::new();
        for (zone, before) in touched.iter().zip(paces) {
            if let Some(count) = self.zones.get(zone)
                && before.is_some_and(|before| before != count.pace())
            {
                concerned.extend(count.silent.iter().cloned());
            }
        }
        concerned
    }

    fn enter(&mut self, name: &str, zone: Zone, is_ready: bool) {
        self.nodes.insert(name.to_owned(), (zone.clone(), is_ready));
        let count = self.zones.entry(zone).or_default();
        if is_ready {
            count.ready += 1;
            self.ready += 1;
        } else {
            count.silent.insert(name.to_owned());
        }
    }

    fn leave(&mut self, name: &str, zone: &Zone, was_ready: bool) {
        self.nodes.remove(name);
        let Some(count) = self.zones.get_mut(zone) else { return };
        if was_ready {
            count.ready -= 1;
            self.ready -= 1;
        } else {
            count.silent.remove(name);
        }
        if count.ready == 0 && count.silent.is_empty() {
            self.zones.remove(zone);
        }
    }

    /// How many nodes are ready besides this one, which isn't, whatever was told of it; and the pace of its zone.
    pub fn without(&self, name: &str, zone: &Zone) -> (usize, Pace) {
        let counted_ready = |(in_zone, is_ready): &(Zone, bool)| *is_ready && in_zone == zone;
        let own = self.nodes.get(name);
        let here = usize::from(own.is_some_and(counted_ready));
        let anywhere = usize::from(own.is_some_and(|(_, is_ready)| *is_ready));
        let count = self.zones.get(zone);
        let (ready, silent) = count.map_or((0, 0), |c| (c.ready, c.silent.len()));
        (self.ready - anywhere, zones::pace(ready - here, silent + here))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn zone(name: &str) -> Zone {
        (String::new(), name.into())
    }

    fn set(tally: &mut Tally, name: &str, in_zone: &str, is_ready: bool) -> usize {
        tally.set(name, Some((zone(in_zone), is_ready))).len()
    }

    #[test]
    fn a_node_that_becomes_ready_has_only_those_looked_at_whose_turn_it_changes() {
        let mut tally = Tally::default();
        let nodes = 1000;
        let told: usize = (0..nodes).map(|n| set(&mut tally, &format!("n{n}"), "a", false)).sum();
        assert_eq!(told, 0, "nobody's turn changes while none is ready");
        assert_eq!(tally.without("n1", &zone("a")).0, 0);
        let told: Vec<usize> = (0..nodes)
            .map(|n| set(&mut tally, &format!("n{n}"), "a", true))
            .collect();
        // The first that is ready, and the one with which the zone isn't disrupted any more: twice in all, and not a thousand times.
        assert_eq!(told.iter().filter(|n| **n > 0).count(), 2, "{told:?}");
        assert!(told.iter().sum::<usize>() < 2 * nodes);
        assert_eq!(set(&mut tally, "n5", "a", true), 0, "no news");
    }

    #[test]
    fn what_it_says_is_what_counting_gives() {
        let mut tally = Tally::default();
        for (n, in_zone) in ["a", "a", "a", "a", "b", "b"].iter().enumerate() {
            set(&mut tally, &format!("n{n}"), in_zone, true);
        }
        let usual = Pace::One(Duration::from_secs(10));
        assert_eq!(tally.without("n0", &zone("a")), (5, usual), "itself it isn't ready");
        for n in 0..2 {
            assert_eq!(set(&mut tally, &format!("n{n}"), "a", false), 0);
        }
        let told = tally.set("n2", Some((zone("a"), false)));
        assert_eq!(told.len(), 3, "three of four are silent: the zone's pace is another");
        assert_eq!(tally.without("n0", &zone("a")), (3, Pace::Stopped));
        assert_eq!(tally.without("n4", &zone("b")), (2, usual));
        // It moves, and one goes.
        tally.set("n3", Some((zone("b"), true)));
        assert_eq!(
            tally.without("n0", &zone("a")),
            (3, usual),
            "nothing is left of the zone"
        );
        for n in 3..6 {
            tally.set(&format!("n{n}"), None);
        }
        assert_eq!(tally.without("n0", &zone("a")).0, 0);
        (0..3).for_each(|n| drop(tally.set(&format!("n{n}"), None)));
        assert!(tally.zones.is_empty() && tally.nodes.is_empty() && tally.ready == 0);
    }
}
