//! Rules of policies, of either kind: each peer by each kind of port, and the sets of numbers that they look into.

use super::members::{What, Whose};
use super::{Direction, Met, Planner};
use crate::facts::{Peer, Port, Scope};
use crate::ranges;
use ipnet::IpNet;
use keelson_sys::nft::names::name;
use keelson_sys::nft::{Datum, Element, Expr, Family, KeyType, Load, Set, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// What a rule says of packets, and of whose.
pub(super) struct Said<'a> {
    /// Empty: everybody.
    pub peers: &'a [Peer],
    /// Empty: every packet.
    pub ports: &'a [Port],
    pub subject: &'a Scope,
    pub verdict: Verdict,
    pub met: Met,
    /// Some of its packets are told.
    pub logged: bool,
}

impl Planner {
    pub(super) fn rule(&mut self, direction: Direction, said: &Said, sets: &mut Vec<String>) -> Vec<Vec<Expr>> {
        let look = |load: Vec<Load>, set: String| Expr::InSet {
            load,
            set,
            negate: false,
        };
        let to_port = || vec![Load::L4Proto, Load::DestinationPort];
        // What a packet has to be, each line a rule.
        let mut matches: Vec<Vec<Expr>> = Vec::new();
        for (peer, scope) in self.peers(direction, said.peers, sets) {
            if said.ports.is_empty() {
                matches.push(peer.clone().into_iter().collect());
                continue;
            }
            if let Some(set) = self.numbers(said.ports, sets) {
                matches.push(peer.clone().into_iter().chain([look(to_port(), set)]).collect());
            }
            for port in said.ports {
                if let Port::Name { protocol, name } = port {
                    // A name is the destination's: of a pod that the policy selects, or of a peer.
                    let named = match direction {
                        Direction::Ingress => said.subject.clone(),
                        Direction::Egress => scope.clone().unwrap_or_else(Scope::all),
                    };
                    let what = What::Named {
                        protocol: *protocol,
                        name: name.clone(),
                    };
                    let set = self.members(Whose::Pods(named), what, sets);
                    let mut load = vec![Load::DestinationAddr(self.family)];
                    load.extend(to_port());
                    matches.push(peer.clone().into_iter().chain([look(load, set)]).collect());
                }
            }
        }
        let mut made = Vec::new();
        for mut exprs in matches {
            if said.logged {
                made.push(exprs.iter().cloned().chain(Planner::log(&said.met)).collect());
            }
            exprs.extend([self.counter(said.met.clone()), Expr::Verdict(said.verdict.clone())]);
            made.push(exprs);
        }
        made
    }

    /// Which sources or destinations, and which pods are among them, for names of ports.
    fn peers(
        &mut self,
        direction: Direction,
        peers: &[Peer],
        sets: &mut Vec<String>,
    ) -> Vec<(Option<Expr>, Option<Scope>)> {
        if peers.is_empty() {
            return vec![(None, None)];
        }
        let (mut blocks, mut all): (Vec<(IpNet, Vec<IpNet>)>, Vec<Whose>) = (Vec::new(), Vec::new());
        for peer in peers {
            let whose = match peer {
                Peer::Block { range, except } => {
                    blocks.push((*range, except.clone()));
                    continue;
                }
                Peer::Pods(scope) => Whose::Pods(scope.clone()),
                Peer::Nodes(selector) => Whose::Nodes(selector.clone()),
            };
            if !all.contains(&whose) {
                all.push(whose);
            }
        }
        let load = direction.peer_address(self.family);
        let among = |set: String| {
            Some(Expr::InSet {
                load: vec![load],
                set,
                negate: false,
            })
        };
        let mut made = Vec::new();
        if let Some(set) = self.blocks(&blocks, sets) {
            made.push((among(set), None));
        }
        for whose in all {
            let scope = match &whose {
                Whose::Pods(scope) => Some(scope.clone()),
                Whose::Nodes(_) => None,
            };
            let set = self.members(whose, What::Addresses, sets);
            made.push((among(set), scope));
        }
        made
    }

    /// A set of address ranges, by its content; `None`: there is nothing in it.
    fn blocks(&mut self, blocks: &[(IpNet, Vec<IpNet>)], sets: &mut Vec<String>) -> Option<String> {
        let ranges = ranges::addresses(blocks, self.family != Family::Ip6);
        let elements = ranges.into_iter().map(|(first, last)| Element {
            last: Some(vec![Datum::Addr(last)]),
            ..Element::of(vec![Datum::Addr(first)])
        });
        self.constant("block", vec![self.family.address()], elements.collect(), sets)
    }

    /// A set of protocols and port ranges.
    fn numbers(&mut self, ports: &[Port], sets: &mut Vec<String>) -> Option<String> {
        let mut by_protocol: BTreeMap<u8, Vec<(u16, u16)>> = BTreeMap::new();
        for port in ports {
            if let Port::Numbers { protocol, first, last } = port {
                by_protocol.entry(*protocol).or_default().push((*first, *last));
            }
        }
        let mut elements = BTreeSet::new();
        for (protocol, list) in by_protocol {
            let key = |port| vec![Datum::Proto(protocol), Datum::Port(port)];
            let merged = ranges::ports(list.into_iter()).into_iter();
            elements.extend(merged.map(|(first, last)| Element {
                last: Some(key(last)),
                ..Element::of(key(first))
            }));
        }
        self.constant("ports", vec![KeyType::Proto, KeyType::Port], elements, sets)
    }

    fn constant(
        &mut self,
        kind: &str,
        key: Vec<KeyType>,
        elements: BTreeSet<Element>,
        sets: &mut Vec<String>,
    ) -> Option<String> {
        if elements.is_empty() {
            return None;
        }
        let content: Vec<String> = elements.iter().map(Element::to_string).collect();
        let content = content.join(",");
        let (mut called, mut tries) = (name(kind, &content), 0);
        let there = &self.table.wanted().sets;
        // As with the sets of members.
        while there.get(&called).is_some_and(|set| set.elements != elements) {
            tries += 1;
            called = name(kind, &format!("{tries} {content}"));
        }
        let set = Set {
            name: called,
            key,
            data: None,
            intervals: true,
            dynamic_timeout_ms: None,
        };
        let name = set.name.clone();
        *self.constants.entry(name.clone()).or_default() += 1;
        sets.push(name.clone());
        self.table.add_set(set, elements);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::TCP;

    #[test]
    fn a_set_is_shared_for_what_is_in_it_and_not_for_its_name() {
        let mut planner = Planner::new(Family::Ip);
        let port = |first| Port::Numbers {
            protocol: TCP,
            first,
            last: first,
        };
        let mut sets = Vec::new();
        let one = planner.numbers(&[port(80)], &mut sets).unwrap();
        assert_eq!(planner.numbers(&[port(80)], &mut sets).as_ref(), Some(&one));
        let two = planner.numbers(&[port(81)], &mut sets).unwrap();
        sets.iter().for_each(|set| planner.release(set));
        // As if the contents of both had one hash and one beginning.
        let other = Set {
            name: two.clone(),
            key: vec![KeyType::Proto, KeyType::Port],
            data: None,
            intervals: true,
            dynamic_timeout_ms: None,
        };
        planner.table.add_set(other, BTreeSet::new());
        assert_ne!(planner.numbers(&[port(81)], &mut Vec::new()), Some(two));
    }
}
