//! What a peer is to be told, and what it was: the difference is the next message. It is made when there is room for it, so that nothing waits in
//! memory, however slowly a peer reads and however often it asks for everything anew.

use crate::wire::{self, Origin};
use crate::{Family, Routes};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Of one session, as long as it is established.
pub struct Table {
    origin: Origin,
    /// Families that both sides speak, and where their routes lead.
    hops: BTreeMap<Family, IpAddr>,
    told: Routes,
    /// Of which the peer hasn't heard that it was told everything.
    unfinished: BTreeSet<Family>,
    /// Those of which nothing is left to be told: they aren't compared again, for that is asked whenever the peer sends something.
    settled: Option<Arc<Routes>>,
}

impl Table {
    pub fn new(origin: Origin, hops: BTreeMap<Family, IpAddr>) -> Table {
        Table {
            unfinished: hops.keys().copied().collect(),
            told: Routes::new(),
            settled: None,
            origin,
            hops,
        }
    }

    /// How many routes the peer has from here.
    pub fn told(&self) -> usize {
        self.told.len()
    }

    /// Whether all has been told once.
    pub fn is_finished(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// Tells all of a family again.
    pub fn repeat(&mut self, family: Family) {
        self.told.retain(|net, _| Family::of(net) != family);
        self.settled = None;
    }

    /// The next message, what goes before what comes.
    pub fn next(&mut self, wanted: &Arc<Routes>) -> Option<Vec<u8>> {
        if self
            .settled
            .as_ref()
            .is_some_and(|settled| Arc::ptr_eq(settled, wanted))
        {
            return None;
        }
        for family in self.hops.keys() {
            let gone = self.told.keys().filter(|net| !wanted.contains_key(*net));
            let gone: Vec<IpNet> = gone
                .filter(|net| Family::of(net) == *family)
                .take(wire::most(*family))
                .copied()
                .collect();
            if !gone.is_empty() {
                gone.iter().for_each(|net| drop(self.told.remove(net)));
                return Some(wire::withdrawal(*family, &gone));
            }
        }
        for (family, hop) in &self.hops {
            let of_family = wanted.iter().filter(|(net, _)| Family::of(net) == *family);
            let mut new = of_family.filter(|(net, attributes)| self.told.get(*net) != Some(*attributes));
            let Some((first, attributes)) = new.next() else {
                continue;
            };
            let alike = new.filter(|(_, other)| *other == attributes).map(|(net, _)| *net);
            let mut nets = vec![*first];
            nets.extend(alike.take(wire::most(*family) - 1));
            self.told.extend(nets.iter().map(|net| (*net, attributes.clone())));
            return Some(wire::announcement(self.origin, *hop, attributes, &nets));
        }
        let end = self.unfinished.pop_first().map(wire::end_of_rib);
        if end.is_none() {
            self.settled = Some(wanted.clone());
        }
        end
    }
}
