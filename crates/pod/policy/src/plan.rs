//! Facts as rules, kept up to date piece by piece.
//!
//! A packet's way: the map `egress` sends what a pod of this node sends to the pod's chain, the map `ingress` what goes to
//! one; a pod that no policy selects is accepted there, and an address in neither map is dropped. So a pod starts closed
//! and is open only when its rules are in force. A pod's chain jumps to the chains of the policies that select it, which
//! accept or return, and drops what none accepted. Both directions have a base chain of their own, so that an accept of
//! the first leaves the second to judge.
//!
//! Every packet that goes the way of its connection's first one is judged, not only the first: a flow ends when policies
//! no longer allow it. Answers pass. Peers are sets of pod addresses, one for each selector, whoever uses it: a pod that
//! comes or goes is an element in the sets whose selectors match it.
//!
//! Invariant: after any sequence of changes the table is what the facts would give from nothing.

use crate::facts::{Namespaces, Peer, Pod, Policy, Port, Rule, Scope};
use crate::ranges;
use ipnet::IpNet;
use keelson_client::labels::{self, Labels};
use keelson_network::LINK_PREFIX;
use keelson_sys::nft::names::name;
use keelson_sys::nft::{
    Base, Chain, ChainKind, Cmp, DataType, Datum, Element, Expr, Family, Hook, KeyType, Load, Op, Ruleset, Set,
    SetState, Table, Verdict,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Namespace, name, and the sandbox where the API knows no such pod.
pub type PodKey = (String, String, String);
pub type PolicyKey = (String, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// The map of pods, and how its chains' names begin.
    fn word(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
    fn rules(self, policy: &Policy) -> Option<&[Rule]> {
        match self {
            Direction::Ingress => policy.ingress.as_deref(),
            Direction::Egress => policy.egress.as_deref(),
        }
    }
    fn pod_address(self, family: Family) -> Load {
        match self {
            Direction::Ingress => Load::DestinationAddr(family),
            Direction::Egress => Load::SourceAddr(family),
        }
    }
    fn peer_address(self, family: Family) -> Load {
        match self {
            Direction::Ingress => Load::SourceAddr(family),
            Direction::Egress => Load::DestinationAddr(family),
        }
    }
}

/// What a set says about the pods of its scope.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Addresses,
    /// Address, protocol and number of a port by its name.
    Named {
        protocol: u8,
        name: String,
    },
}

/// A set whose elements are pods.
struct Members {
    scope: Scope,
    what: What,
    /// How many rules look here.
    uses: usize,
    /// How many pods give each element: two may have one address for a moment.
    counts: BTreeMap<Element, usize>,
}

struct Held {
    policy: Policy,
    /// The sets that its rules look into.
    sets: Vec<String>,
}

/// The rules of one family on this node.
pub struct Planner {
    family: Family,
    table: Table,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<PodKey, Pod>,
    policies: BTreeMap<PolicyKey, Held>,
    members: BTreeMap<String, Members>,
    /// Sets named by what is in them: how many rules look there.
    constants: BTreeMap<String, usize>,
    /// Which pods of this node claim an address.
    owners: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    verdicts: BTreeMap<(Direction, IpAddr), Verdict>,
}

/// The table in which every pod is closed.
pub fn closed(family: Family) -> Ruleset {
    let mut rules = Ruleset::default();
    for (direction, chain, priority) in [
        (Direction::Egress, "from-pods", -5),
        (Direction::Ingress, "to-pods", -4),
    ] {
        let map = direction.word();
        let set = Set {
            name: map.into(),
            key: vec![family.address()],
            data: Some(DataType::Verdict),
            intervals: false,
            dynamic_timeout_ms: None,
        };
        rules.sets.insert(map.into(), SetState::empty(set));
        let by_link = || {
            let (cmp, prefix) = (Cmp::Eq, LINK_PREFIX.to_string());
            match direction {
                Direction::Ingress => Expr::OutputName { cmp, prefix },
                Direction::Egress => Expr::InputName { cmp, prefix },
            }
        };
        let look_up = Expr::LookupVerdict {
            load: vec![direction.pod_address(family)],
            map: map.into(),
        };
        let accept = || Expr::Verdict(Verdict::Accept);
        let chain_rules = vec![
            vec![Expr::Reply, accept()],
            vec![Expr::StateRelated, accept()],
            vec![by_link(), look_up],
            vec![by_link(), Expr::Verdict(Verdict::Drop)],
        ];
        let base = Base {
            kind: ChainKind::Filter,
            hook: Hook::Forward,
            priority,
        };
        rules.chains.insert(
            chain.into(),
            Chain {
                base: Some(base),
                rules: chain_rules,
            },
        );
    }
    rules
}

fn pod_chain(direction: Direction, ip: IpAddr) -> String {
    format!("{}-pod-{ip}", direction.word())
}

fn policy_chain(direction: Direction, (namespace, policy): &PolicyKey) -> String {
    name(direction.word(), &format!("{namespace}/{policy}"))
}

impl Planner {
    pub fn new(family: Family) -> Planner {
        let mut table = Table::default();
        let skeleton = closed(family);
        for state in skeleton.sets.into_values() {
            table.add_set(state.set, state.elements);
        }
        for (name, chain) in skeleton.chains {
            table.set_chain(&name, Some(chain));
        }
        Planner {
            family,
            table,
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
            members: BTreeMap::new(),
            constants: BTreeMap::new(),
            owners: BTreeMap::new(),
            verdicts: BTreeMap::new(),
        }
    }

    /// What has to be done since the last call.
    pub fn take(&mut self) -> Vec<Op> {
        self.table.take()
    }

    /// Everything anew, for a table of which nothing is known.
    pub fn take_whole(&mut self) -> Vec<Op> {
        self.table.take_whole()
    }

    pub fn wanted(&self) -> &Ruleset {
        self.table.wanted()
    }

    pub fn policies(&self) -> usize {
        self.policies.len()
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether rules let this pod of the node through, be it only to its policies.
    pub fn is_open(&self, ip: IpAddr) -> bool {
        Direction::BOTH.iter().all(|d| self.verdicts.contains_key(&(*d, ip)))
    }

    /// The keys held for the pod of this name.
    pub fn pod_keys(&self, namespace: &str, pod: &str) -> Vec<PodKey> {
        let first = (namespace.to_string(), pod.to_string(), String::new());
        let same = |k: &&PodKey| k.0 == namespace && k.1 == pod;
        self.pods
            .range(first..)
            .map(|(k, _)| k)
            .take_while(same)
            .cloned()
            .collect()
    }

    fn ours(&self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self.family != Family::Ip6)
    }

    pub fn set_pod(&mut self, key: PodKey, new: Option<Pod>) {
        let old = self.pods.get(&key);
        if old == new.as_ref() {
            return;
        }
        let old = match new.clone() {
            Some(new) => self.pods.insert(key.clone(), new),
            None => self.pods.remove(&key),
        };
        for set in self.members.keys().cloned().collect::<Vec<_>>() {
            self.count(&set, old.as_ref(), false);
            self.count(&set, new.as_ref(), true);
        }
        let local = |pod: &Option<Pod>| -> Vec<IpAddr> {
            let pod = pod.iter().filter(|p| p.local);
            pod.flat_map(|p| p.addresses.clone())
                .filter(|ip| self.ours(ip))
                .collect()
        };
        let (was, is) = (local(&old), local(&new));
        for ip in &was {
            if let Some(owners) = self.owners.get_mut(ip) {
                owners.remove(&key);
                if owners.is_empty() {
                    self.owners.remove(ip);
                }
            }
        }
        for ip in &is {
            self.owners.entry(*ip).or_default().insert(key.clone());
        }
        for ip in was.into_iter().chain(is) {
            self.judge(ip);
        }
    }

    pub fn set_namespace(&mut self, namespace: &str, new: Option<Labels>) {
        if self.namespaces.get(namespace) == new.as_ref() {
            return;
        }
        let pods: Vec<Pod> = self.in_namespace(namespace).map(|(_, pod)| pod.clone()).collect();
        let selecting = |m: &Members| matches!(m.scope.namespaces, Namespaces::Selected(_));
        let sets: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| selecting(m))
            .map(|(n, _)| n.clone())
            .collect();
        for set in &sets {
            pods.iter().for_each(|pod| self.count(set, Some(pod), false));
        }
        match new {
            Some(labels) => self.namespaces.insert(namespace.to_string(), labels),
            None => self.namespaces.remove(namespace),
        };
        for set in &sets {
            pods.iter().for_each(|pod| self.count(set, Some(pod), true));
        }
    }

    pub fn set_policy(&mut self, key: PolicyKey, new: Option<Policy>) {
        if self.policies.get(&key).map(|h| &h.policy) == new.as_ref() {
            return;
        }
        let old = self.policies.remove(&key);
        if let Some(policy) = &new {
            let mut sets = Vec::new();
            for direction in Direction::BOTH {
                let rules = direction.rules(policy);
                let chain = rules.map(|rules| Chain {
                    base: None,
                    rules: rules
                        .iter()
                        .flat_map(|r| self.rule(direction, r, policy, &mut sets))
                        .collect(),
                });
                self.table.set_chain(&policy_chain(direction, &key), chain);
            }
            let policy = policy.clone();
            self.policies.insert(key.clone(), Held { policy, sets });
        } else {
            for direction in Direction::BOTH {
                self.table.set_chain(&policy_chain(direction, &key), None);
            }
        }
        // After the new rules have taken theirs, so that what both use stays.
        for set in old.iter().flat_map(|h| &h.sets) {
            self.release(set);
        }
        let here: Vec<IpAddr> = self
            .in_namespace(&key.0)
            .filter(|(_, p)| p.local)
            .flat_map(|(_, p)| p.addresses.clone())
            .filter(|ip| self.ours(ip))
            .collect();
        here.into_iter().for_each(|ip| self.judge(ip));
    }

    fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a PodKey, &'a Pod)> {
        let first = (namespace.to_string(), String::new(), String::new());
        self.pods.range(first..).take_while(move |(k, _)| k.0 == namespace)
    }

    /// The rules of one rule of a policy: each peer by each kind of port.
    fn rule(&mut self, direction: Direction, rule: &Rule, policy: &Policy, sets: &mut Vec<String>) -> Vec<Vec<Expr>> {
        let accept = || Expr::Verdict(Verdict::Accept);
        let look = |load: Vec<Load>, set: String| Expr::InSet {
            load,
            set,
            negate: false,
        };
        // Which sources or destinations, and which pods are among them, for names of ports.
        let mut peers: Vec<(Option<Expr>, Option<Scope>)> = Vec::new();
        let peer_load = || vec![direction.peer_address(self.family)];
        let (mut blocks, mut scopes) = (Vec::new(), Vec::new());
        for peer in &rule.peers {
            match peer {
                Peer::Block { range, except } => blocks.push((*range, except.clone())),
                Peer::Pods(scope) if !scopes.contains(scope) => scopes.push(scope.clone()),
                Peer::Pods(_) => {}
            }
        }
        let loads = (peer_load(), peer_load());
        if rule.peers.is_empty() {
            peers.push((None, None));
        }
        if let Some(set) = self.blocks(&blocks, sets) {
            peers.push((Some(look(loads.0, set)), None));
        }
        for scope in scopes {
            let set = self.members(scope.clone(), What::Addresses, sets);
            peers.push((Some(look(loads.1.clone(), set)), Some(scope)));
        }
        let to_port = || vec![Load::L4Proto, Load::DestinationPort];
        let mut made = Vec::new();
        for (peer, scope) in peers {
            if rule.ports.is_empty() {
                made.push(peer.clone().into_iter().chain([accept()]).collect());
                continue;
            }
            if let Some(set) = self.numbers(&rule.ports, sets) {
                made.push(
                    peer.clone()
                        .into_iter()
                        .chain([look(to_port(), set), accept()])
                        .collect(),
                );
            }
            for port in &rule.ports {
                if let Port::Name { protocol, name } = port {
                    // A name is the destination's: of a pod that the policy selects, or of a peer.
                    let named = match direction {
                        Direction::Ingress => Scope {
                            namespaces: Namespaces::One(policy.namespace.clone()),
                            pods: policy.pods.clone(),
                        },
                        Direction::Egress => scope.clone().unwrap_or_else(Scope::all),
                    };
                    let what = What::Named {
                        protocol: *protocol,
                        name: name.clone(),
                    };
                    let set = self.members(named, what, sets);
                    let mut load = vec![Load::DestinationAddr(self.family)];
                    load.extend(to_port());
                    made.push(peer.clone().into_iter().chain([look(load, set), accept()]).collect());
                }
            }
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
        let set = Set {
            name: name(kind, &content.join(",")),
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

    /// The set of this scope's pods, made when the first rule asks for it.
    fn members(&mut self, scope: Scope, what: What, sets: &mut Vec<String>) -> String {
        let (kind, text, key) = match &what {
            What::Addresses => ("pods", scope.text(), vec![self.family.address()]),
            What::Named { protocol, name } => (
                "named",
                format!("{name}/{protocol}@{}", scope.text()),
                vec![self.family.address(), KeyType::Proto, KeyType::Port],
            ),
        };
        let set = name(kind, &text);
        sets.push(set.clone());
        if let Some(members) = self.members.get_mut(&set) {
            members.uses += 1;
            return set;
        }
        let mut members = Members {
            scope,
            what,
            uses: 1,
            counts: BTreeMap::new(),
        };
        for pod in self.pods.values() {
            for element in self.elements(&members, pod) {
                *members.counts.entry(element).or_default() += 1;
            }
        }
        let definition = Set {
            name: set.clone(),
            key,
            data: None,
            intervals: false,
            dynamic_timeout_ms: None,
        };
        self.table.add_set(definition, members.counts.keys().cloned().collect());
        self.members.insert(set.clone(), members);
        set
    }

    fn release(&mut self, set: &str) {
        let uses = match self.members.get_mut(set) {
            Some(members) => &mut members.uses,
            None => self.constants.entry(set.into()).or_insert(1),
        };
        *uses -= 1;
        if *uses == 0 {
            self.members.remove(set);
            self.constants.remove(set);
            self.table.remove_set(set);
        }
    }

    /// What a pod gives a set.
    fn elements(&self, members: &Members, pod: &Pod) -> Vec<Element> {
        let scope = &members.scope;
        let Some(pod_labels) = &pod.labels else {
            return Vec::new();
        };
        if !scope.has_namespace(&pod.namespace, self.namespaces.get(&pod.namespace))
            || !labels::matches(Some(&scope.pods), Some(pod_labels))
        {
            return Vec::new();
        }
        let addresses = pod.addresses.iter().filter(|ip| self.ours(ip));
        let mut found = Vec::new();
        for ip in addresses {
            match &members.what {
                What::Addresses => found.push(Element::of(vec![Datum::Addr(*ip)])),
                What::Named { protocol, name } => {
                    let same = pod.ports.iter().filter(|p| p.protocol == *protocol && p.name == *name);
                    found.extend(
                        same.map(|p| {
                            Element::of(vec![Datum::Addr(*ip), Datum::Proto(p.protocol), Datum::Port(p.number)])
                        }),
                    );
                }
            }
        }
        found
    }

    fn count(&mut self, set: &str, pod: Option<&Pod>, comes: bool) {
        let (Some(pod), Some(members)) = (pod, self.members.get(set)) else {
            return;
        };
        let elements = self.elements(members, pod);
        let Some(members) = self.members.get_mut(set) else {
            return;
        };
        for element in elements {
            let count = members.counts.entry(element.clone()).or_default();
            if comes {
                *count += 1;
                if *count == 1 {
                    self.table.add_element(set, element);
                }
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    members.counts.remove(&element);
                    self.table.remove_element(set, &element);
                }
            }
        }
    }

    /// The chains of a pod of this node, and how the maps lead there.
    fn judge(&mut self, ip: IpAddr) {
        for direction in Direction::BOTH {
            let chain_name = pod_chain(direction, ip);
            let (verdict, chain) = match self.judgement(direction, ip) {
                None => (None, None),
                Some(policies) if policies.is_empty() => (Some(Verdict::Accept), None),
                Some(policies) => {
                    let jump = |key: &PolicyKey| vec![Expr::Verdict(Verdict::Jump(policy_chain(direction, key)))];
                    // A pod is never cut off from itself, not even by way of a service.
                    let own = Expr::Match {
                        load: direction.peer_address(self.family),
                        cmp: Cmp::Eq,
                        value: Datum::Addr(ip),
                    };
                    let mut rules = vec![vec![own, Expr::Verdict(Verdict::Accept)]];
                    rules.extend(policies.iter().map(jump));
                    rules.push(vec![Expr::Verdict(Verdict::Drop)]);
                    (
                        Some(Verdict::Goto(chain_name.clone())),
                        Some(Chain { base: None, rules }),
                    )
                }
            };
            self.table.set_chain(&chain_name, chain);
            let old = match &verdict {
                Some(verdict) => self.verdicts.insert((direction, ip), verdict.clone()),
                None => self.verdicts.remove(&(direction, ip)),
            };
            if old != verdict {
                let element = |v: Verdict| Element::to(vec![Datum::Addr(ip)], v);
                if let Some(old) = old {
                    self.table.remove_element(direction.word(), &element(old));
                }
                if let Some(new) = verdict {
                    self.table.add_element(direction.word(), element(new));
                }
            }
        }
    }

    /// The policies that isolate the pod at this address; `None`: it isn't known who that is, so it stays closed.
    fn judgement(&self, direction: Direction, ip: IpAddr) -> Option<Vec<PolicyKey>> {
        let owners = self.owners.get(&ip)?;
        let key = owners.first().filter(|_| owners.len() == 1)?;
        let pod = self.pods.get(key)?;
        let first = (pod.namespace.clone(), String::new());
        let of_namespace = self.policies.range(first..).take_while(|(k, _)| k.0 == pod.namespace);
        let mut of_namespace = of_namespace.filter(|(_, h)| direction.rules(&h.policy).is_some());
        let Some(pod_labels) = &pod.labels else {
            return of_namespace.next().is_none().then(Vec::new);
        };
        let selecting = of_namespace.filter(|(_, h)| labels::matches(Some(&h.policy.pods), Some(pod_labels)));
        Some(selecting.map(|(k, _)| k.clone()).collect())
    }
}
