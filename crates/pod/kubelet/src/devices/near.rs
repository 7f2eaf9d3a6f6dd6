//! From which nodes of memory devices could be had, and which are near those that were found. Upstream's rules; pure.

use super::choose::Ids;
use super::ledger::Device;
use crate::managers::any;
use crate::managers::topology::{Hint, Mask};
use std::collections::{BTreeMap, BTreeSet};

/// What is free, by how it lies to the nodes that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Near {
    pub close: Ids,
    pub far: Ids,
}

/// Of a resource whose devices say where they are; `None`: they don't.
pub fn sorted(devices: &BTreeMap<String, Device>, near: Mask) -> Option<Near> {
    let placed = || devices.iter().filter(|(_, d)| !d.numa.is_empty());
    placed().next()?;
    let (close, far): (Vec<_>, Vec<_>) = placed().partition(|(_, d)| any(near, &d.numa));
    let ids = |list: Vec<(&String, &Device)>| list.into_iter().map(|(id, _)| id.clone()).collect();
    Some(Near {
        close: ids(close),
        far: ids(far),
    })
}

/// From which nodes so many could be had; those of `reuse` are among them. `None`: it is all the same.
pub fn hints(
    devices: &BTreeMap<String, Device>,
    machine: &[u32],
    free: &Ids,
    reuse: &Ids,
    count: usize,
) -> Option<Vec<Hint>> {
    if devices.values().all(|d| d.numa.is_empty()) {
        return None;
    }
    let said = devices
        .values()
        .flat_map(|d| &d.numa)
        .filter_map(|n| u32::try_from(*n).ok());
    let known: BTreeSet<u32> = said.filter(|n| machine.contains(n)).collect();
    let nodes: Vec<u32> = match known.is_empty() {
        true => machine.to_vec(),
        false => known.into_iter().collect(),
    };
    let (mut fewest, mut masks) = (nodes.len(), Vec::new());
    Mask::each(&nodes, &mut |mask| {
        let is_near = |id: &&String| devices.get(*id).is_some_and(|d| any(mask, &d.numa));
        if devices.keys().filter(is_near).count() >= count {
            fewest = fewest.min(mask.count());
        }
        let placed = reuse
            .iter()
            .filter(|id| devices.get(*id).is_some_and(|d| !d.numa.is_empty()));
        let must: Vec<&String> = placed.collect();
        if must.iter().all(is_near) && must.len() + free.iter().filter(is_near).count() >= count {
            masks.push(mask);
        }
    });
    let hint = |mask: Mask| Hint {
        mask: Some(mask),
        preferred: mask.count() == fewest,
    };
    Some(masks.into_iter().map(hint).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `id@nodes`, with `.` between nodes.
    fn devices(text: &str) -> BTreeMap<String, Device> {
        let one = |word: &str| {
            let (id, nodes) = word.split_once('@').unwrap();
            let numa = nodes
                .split('.')
                .filter(|n| !n.is_empty())
                .map(|n| n.parse().unwrap())
                .collect();
            (id.to_owned(), Device { healthy: true, numa })
        };
        text.split_whitespace().map(one).collect()
    }

    fn ids(text: &str) -> Ids {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn shown(hints: Option<Vec<Hint>>) -> String {
        let one = |h: &Hint| {
            let nodes: Vec<String> = h.mask.unwrap().nodes().map(|n| n.to_string()).collect();
            format!("{}{}", nodes.join("."), if h.preferred { "!" } else { "" })
        };
        hints.map_or("any".into(), |list| list.iter().map(one).collect::<Vec<_>>().join(" "))
    }

    /// Devices, free, reused, how many → hints. The cases are those of upstream's manager.
    #[test]
    fn hints_are_upstreams() {
        for (all, free, reuse, count, wanted) in [
            ("1@0 2@1", "1 2", "", 1, "0! 1! 0.1"),
            ("1@0 2@1", "2", "", 1, "1! 0.1"),
            ("1@0 2@1 3@0 4@1", "1 2 3 4", "", 2, "0! 1! 0.1"),
            ("1@0 2@1 3@0 4@1", "2 3", "", 2, "0.1"),
            ("1@0 2@1 3@0 4@1", "1 2 3 4", "", 3, "0.1!"),
            ("1@ 2@", "1 2", "", 1, "any"),
            ("1@0 2@1 3@", "1 2 3", "", 1, "0! 1! 0.1"),
            ("1@0.1", "1", "", 1, "0! 1! 0.1"),
            ("1@0 2@1 3@0 4@1", "2 4", "1", 2, "0.1"),
            ("1@0 2@1 3@0 4@1", "2 3 4", "1", 2, "0! 0.1"),
            ("1@9", "1", "", 1, ""),
        ] {
            let got = hints(&devices(all), &[0, 1], &ids(free), &ids(reuse), count);
            assert_eq!(shown(got), wanted, "{all} | {free} | {reuse} | {count}");
        }
    }

    #[test]
    fn devices_are_sorted_by_where_they_are() {
        let near = sorted(&devices("a@0 b@1 c@0.1 d@"), Mask::of([0])).unwrap();
        assert_eq!((near.close, near.far), (ids("a c"), ids("b")));
        assert_eq!(sorted(&devices("a@ b@"), Mask::of([0])), None);
    }
}
