//! Facts as they are, and what of the rules a change of them changes.
//!
//! Kept are facts, not rules: a service's rules follow from its facts, so that the difference between two states of it is that
//! between two small rule sets, however many services there are. Only who wants which element of the shared maps is kept
//! besides: of several that want one address or port, the first in order of identity has it.
//!
//! Invariant: after any sequence of changes the table is what the facts would give from nothing.

use crate::model::ServicePort;
use crate::rules::{self, Shared};
use ipnet::IpNet;
use keelson_client::ObjectKey;
use keelson_sys::nft::{self, Datum, Element, Family, Op, Ruleset, SetState, Verdict};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

pub struct Planner {
    cluster_cidr: IpNet,
    services: BTreeMap<ObjectKey, Vec<ServicePort>>,
    /// In which ranges the addresses of services are.
    ranges: BTreeSet<IpNet>,
    claims: HashMap<Shared, Vec<(String, Option<Verdict>)>>,
    /// As they were when the rules were last taken.
    touched: BTreeMap<ObjectKey, Vec<ServicePort>>,
    touched_ranges: Option<BTreeSet<IpNet>>,
}

impl Planner {
    pub fn new(cluster_cidr: IpNet) -> Planner {
        Planner {
            cluster_cidr,
            services: BTreeMap::new(),
            ranges: BTreeSet::new(),
            claims: HashMap::new(),
            touched: BTreeMap::new(),
            touched_ranges: None,
        }
    }

    /// Whose addresses the rules are about.
    pub fn family(&self) -> Family {
        Family::of(self.cluster_cidr.addr())
    }

    pub fn services(&self) -> usize {
        self.services.len()
    }

    pub fn facts(&self, service: &ObjectKey) -> &[ServicePort] {
        self.services.get(service).map(Vec::as_slice).unwrap_or_default()
    }

    /// The service's facts as they are now, none if it is gone; whether that is a change.
    pub fn set(&mut self, service: &ObjectKey, facts: Vec<ServicePort>) -> bool {
        if self.facts(service) == facts {
            return false;
        }
        let old = match facts.is_empty() {
            true => self.services.remove(service),
            false => self.services.insert(service.clone(), facts),
        };
        self.touched.entry(service.clone()).or_insert(old.unwrap_or_default());
        true
    }

    /// The ranges of services; those of the other family are not this one's matter.
    pub fn set_ranges(&mut self, ranges: BTreeSet<IpNet>) {
        let family = self.family();
        let ranges: BTreeSet<IpNet> = ranges.into_iter().filter(|r| Family::of(r.addr()) == family).collect();
        // What is in another is said by that one: elements of a set must not overlap.
        let outer = |r: &IpNet| !ranges.iter().any(|other| other != r && other.contains(r));
        let ranges: BTreeSet<IpNet> = ranges.iter().copied().filter(outer).collect();
        let old = std::mem::replace(&mut self.ranges, ranges);
        self.touched_ranges.get_or_insert(old);
    }

    /// The operations that lead here from where the last call left off.
    pub fn take(&mut self) -> Vec<Op> {
        let (mut before, mut after) = (Ruleset::default(), Ruleset::default());
        let family = self.family();
        let mut winners: BTreeMap<Shared, Option<Element>> = BTreeMap::new();
        for (service, old) in std::mem::take(&mut self.touched) {
            for port in &old {
                let piece = rules::piece(port, self.cluster_cidr);
                merge(&mut before, piece.own);
                for (key, _) in piece.shared {
                    let had = self.winner(&key);
                    winners.entry(key.clone()).or_insert(had);
                    self.give_up(&key, &port.identity);
                }
            }
            for port in self.services.get(&service).into_iter().flatten() {
                let piece = rules::piece(port, self.cluster_cidr);
                merge(&mut after, piece.own);
                for (key, verdict) in piece.shared {
                    let had = winner(self.claims.get(&key), &key);
                    winners.entry(key.clone()).or_insert(had);
                    claim(self.claims.entry(key).or_default(), &port.identity, verdict);
                }
            }
        }
        for (key, had) in winners {
            let has = self.winner(&key);
            for (side, element) in [(&mut before, had), (&mut after, has)] {
                touch(side, key.0, family).extend(element);
            }
        }
        for map in rules::ENDPOINTS {
            if before.sets.contains_key(map) || after.sets.contains_key(map) {
                touch(&mut before, map, family);
                touch(&mut after, map, family);
            }
        }
        if let Some(old) = self.touched_ranges.take() {
            touch(&mut before, rules::RANGES, family).extend(old.iter().map(range));
            touch(&mut after, rules::RANGES, family).extend(self.ranges.iter().map(range));
        }
        nft::between(&before, &after)
    }

    /// The whole table anew, for one of which nothing is known; nothing is pending after it.
    pub fn take_whole(&mut self) -> Vec<Op> {
        self.touched.clear();
        self.touched_ranges = None;
        self.claims.clear();
        nft::replace(&self.whole())
    }

    /// The table as the facts give it.
    fn whole(&mut self) -> Ruleset {
        let mut table = rules::skeleton(self.cluster_cidr);
        for port in self.services.values().flatten() {
            let piece = rules::piece(port, self.cluster_cidr);
            merge(&mut table, piece.own);
            for (key, verdict) in piece.shared {
                claim(self.claims.entry(key).or_default(), &port.identity, verdict);
            }
        }
        for (key, claims) in &self.claims {
            if let (Some(set), Some(element)) = (table.sets.get_mut(key.0), winner(Some(claims), key)) {
                set.elements.insert(element);
            }
        }
        if let Some(set) = table.sets.get_mut(rules::RANGES) {
            set.elements.extend(self.ranges.iter().map(range));
        }
        table
    }

    fn winner(&self, key: &Shared) -> Option<Element> {
        winner(self.claims.get(key), key)
    }

    fn give_up(&mut self, key: &Shared, identity: &str) {
        if let Some(claims) = self.claims.get_mut(key) {
            claims.retain(|(who, _)| who != identity);
            if claims.is_empty() {
                self.claims.remove(key);
            }
        }
    }
}

/// The elements of a shared map in a partial rule set.
fn touch<'a>(side: &'a mut Ruleset, map: &'static str, family: Family) -> &'a mut BTreeSet<Element> {
    let set = || SetState::empty(rules::shared_set(map, family));
    &mut side.sets.entry(map.into()).or_insert_with(set).elements
}

fn merge(into: &mut Ruleset, piece: Ruleset) {
    into.chains.extend(piece.chains);
    for (name, state) in piece.sets {
        rules::merge(&mut into.sets, &name, state);
    }
}

fn claim(claims: &mut Vec<(String, Option<Verdict>)>, identity: &str, verdict: Option<Verdict>) {
    match claims.binary_search_by(|(who, _)| who.as_str().cmp(identity)) {
        // One service names an address twice, or two of its endpoints are one.
        Ok(_) => {}
        Err(at) => claims.insert(at, (identity.into(), verdict)),
    }
}

fn winner(claims: Option<&Vec<(String, Option<Verdict>)>>, key: &Shared) -> Option<Element> {
    let (_, verdict) = claims?.first()?;
    Some(rules::element(key.1.clone(), verdict.clone()))
}

fn range(range: &IpNet) -> Element {
    let datum = |ip: IpAddr| vec![Datum::Addr(ip)];
    Element {
        last: Some(datum(range.broadcast())),
        ..Element::of(datum(range.network()))
    }
}
