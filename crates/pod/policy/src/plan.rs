//! Facts as rules, kept up to date piece by piece.
//!
//! A packet's way: the map `egress` sends what a pod of this node sends to the pod's chain, the map `ingress` what goes to
//! one; a pod that no policy selects is accepted there, and an address in neither map is dropped. So a pod starts closed
//! and is open only when its rules are in force. A pod's chain jumps to the chains of the policies that select it, which
//! accept or return, and drops what none accepted. Before that it jumps to the rules of the cluster's Admin tier, and, where
//! no policy selects the pod, to those of the Baseline tier ([`tiers`]). Both directions have a base chain of their own, so that an accept of
//! the first leaves the second to judge.
//!
//! Every packet that goes the way of its connection's first one is judged, not only the first: a flow ends when policies
//! no longer allow it. Answers pass. Peers are sets of pod addresses, one for each selector, whoever uses it: a pod that
//! comes or goes is an element in the sets whose selectors match it.
//!
//! Invariant: after any sequence of changes the table is what the facts would give from nothing.

mod members;
mod met;
mod rules;
mod tiers;

use crate::cluster::{Node, Tier};
use crate::facts::{Namespaces, Pod, Policy, Rule, Scope};
use keelson_client::labels::{self, Labels};
use keelson_network::LINK_PREFIX;
use keelson_sys::nft::names::name;
use keelson_sys::nft::{
    Base, Chain, ChainKind, Cmp, DataType, Datum, Element, Expr, Family, Hook, Load, Op, Ruleset, Set, SetState, Table,
    Verdict,
};
use members::{Members, Whose};
pub use met::{GROUP, LENGTH, Met};
use rules::Said;
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
    nodes: BTreeMap<String, Node>,
    cluster: tiers::Cluster,
    /// Namespaces of which denied packets are told.
    logged: BTreeSet<String>,
    /// What counters' names stand for.
    met: BTreeMap<String, Met>,
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
            nodes: BTreeMap::new(),
            cluster: tiers::Cluster::default(),
            logged: BTreeSet::new(),
            met: BTreeMap::new(),
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
        self.policies.len() + self.cluster.policies()
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
        self.recount_pod(old.as_ref(), new.as_ref());
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
        let selecting =
            |m: &Members| matches!(&m.whose, Whose::Pods(scope) if matches!(scope.namespaces, Namespaces::Selected(_)));
        let sets: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| selecting(m))
            .map(|(n, _)| n.clone())
            .collect();
        for set in &sets {
            pods.iter().for_each(|pod| self.count_pod(set, Some(pod), false));
        }
        match new {
            Some(labels) => self.namespaces.insert(namespace.to_string(), labels),
            None => self.namespaces.remove(namespace),
        };
        for set in &sets {
            pods.iter().for_each(|pod| self.count_pod(set, Some(pod), true));
        }
        // Whom policies of the cluster are for may hang on a namespace's labels.
        if self.cluster.policies() > 0 {
            self.judge_all(pods.iter());
        }
    }

    /// A machine of the cluster, which its policies may name as a peer.
    pub fn set_node(&mut self, name: &str, new: Option<Node>) {
        if self.nodes.get(name) == new.as_ref() {
            return;
        }
        let old = match new.clone() {
            Some(new) => self.nodes.insert(name.to_string(), new),
            None => self.nodes.remove(name),
        };
        let of_nodes = |(_, m): &(&String, &Members)| matches!(m.whose, Whose::Nodes(_));
        let sets: Vec<String> = self.members.iter().filter(of_nodes).map(|(n, _)| n.clone()).collect();
        for set in &sets {
            self.count_node(set, old.as_ref(), false);
            self.count_node(set, new.as_ref(), true);
        }
    }

    pub fn set_policy(&mut self, key: PolicyKey, new: Option<Policy>) {
        if self.policies.get(&key).map(|h| &h.policy) == new.as_ref() {
            return;
        }
        let old = self.policies.remove(&key);
        if let Some(policy) = &new {
            let mut sets = Vec::new();
            let subject = Scope {
                namespaces: Namespaces::One(policy.namespace.clone()),
                pods: policy.pods.clone(),
            };
            for direction in Direction::BOTH {
                let rules = direction.rules(policy);
                let chain = rules.map(|rules| Chain {
                    base: None,
                    rules: rules
                        .iter()
                        .flat_map(|r| self.rule(direction, &allowing(r, &subject, direction, &key), &mut sets))
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
        let here: Vec<Pod> = self.in_namespace(&key.0).map(|(_, p)| p.clone()).collect();
        self.judge_all(here.iter());
    }

    /// Those of them that run here.
    fn judge_all<'a>(&mut self, pods: impl Iterator<Item = &'a Pod>) {
        let here: BTreeSet<IpAddr> = pods
            .filter(|p| p.local)
            .flat_map(|p| p.addresses.iter().copied())
            .filter(|ip| self.ours(ip))
            .collect();
        here.into_iter().for_each(|ip| self.judge(ip));
    }

    fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a PodKey, &'a Pod)> {
        let first = (namespace.to_string(), String::new(), String::new());
        self.pods.range(first..).take_while(move |(k, _)| k.0 == namespace)
    }

    /// The chains of a pod of this node, and how the maps lead there.
    fn judge(&mut self, ip: IpAddr) {
        for direction in Direction::BOTH {
            let chain_name = pod_chain(direction, ip);
            let judgement = self.judgement(direction, ip);
            let tiers = self.use_tiers(direction, ip, judgement.as_ref());
            let (verdict, chain) = match judgement {
                None => (None, None),
                Some(judgement) if judgement.is_empty() => (Some(Verdict::Accept), None),
                Some(judgement) => {
                    let rules = self.pod_rules(direction, ip, &judgement.policies, tiers);
                    let way = Verdict::Goto(chain_name.clone());
                    (Some(way), Some(Chain { base: None, rules }))
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

    fn pod_rules(
        &mut self,
        direction: Direction,
        ip: IpAddr,
        policies: &[PolicyKey],
        [admin, baseline]: [Option<String>; 2],
    ) -> Vec<Vec<Expr>> {
        let jump = |chain: String| vec![Expr::Verdict(Verdict::Jump(chain))];
        let mut rules: Vec<Vec<Expr>> = admin.into_iter().map(jump).collect();
        if policies.is_empty() {
            rules.extend(baseline.into_iter().map(jump));
            rules.push(vec![Expr::Verdict(Verdict::Accept)]);
            return rules;
        }
        // No network policy cuts a pod off from itself, not even by way of a service.
        let own = Expr::Match {
            load: direction.peer_address(self.family),
            cmp: Cmp::Eq,
            value: Datum::Addr(ip),
        };
        rules.push(vec![own, Expr::Verdict(Verdict::Accept)]);
        rules.extend(policies.iter().map(|key| jump(policy_chain(direction, key))));
        // All of one namespace.
        let namespace = policies.first().map_or("", |key| key.0.as_str());
        let met = Met::of(direction, namespace, "", "deny");
        if self.logged.contains(namespace) {
            rules.push(Planner::log(&met).to_vec());
        }
        rules.push(vec![self.counter(met), Expr::Verdict(Verdict::Drop)]);
        rules
    }

    /// Who judges the pod at this address; `None`: it isn't known who that is, so it stays closed.
    fn judgement(&self, direction: Direction, ip: IpAddr) -> Option<Judgement> {
        let owners = self.owners.get(&ip)?;
        let key = owners.first().filter(|_| owners.len() == 1)?;
        let pod = self.pods.get(key)?;
        let labels_of_namespace = self.namespaces.get(&pod.namespace);
        let first = (pod.namespace.clone(), String::new());
        let of_namespace = self.policies.range(first..).take_while(|(k, _)| k.0 == pod.namespace);
        let mut of_namespace = of_namespace.filter(|(_, h)| direction.rules(&h.policy).is_some());
        let Some(pod_labels) = &pod.labels else {
            let open = of_namespace.next().is_none() && !self.cluster.may_judge(direction, pod, labels_of_namespace);
            return open.then(Judgement::default);
        };
        let selecting = of_namespace.filter(|(_, h)| labels::matches(Some(&h.policy.pods), Some(pod_labels)));
        let policies: Vec<PolicyKey> = selecting.map(|(k, _)| k.clone()).collect();
        let tier = |tier| self.cluster.judging(tier, direction, pod, labels_of_namespace);
        Some(Judgement {
            admin: tier(Tier::Admin),
            baseline: match policies.is_empty() {
                true => tier(Tier::Baseline),
                false => Vec::new(),
            },
            policies,
        })
    }
}

fn allowing<'a>(rule: &'a Rule, subject: &'a Scope, direction: Direction, key: &PolicyKey) -> Said<'a> {
    Said {
        peers: &rule.peers,
        ports: &rule.ports,
        subject,
        verdict: Verdict::Accept,
        met: Met::of(direction, &key.0, &key.1, "accept"),
        logged: false,
    }
}

/// Who judges a pod in one direction, in this order.
#[derive(Default)]
struct Judgement {
    admin: Vec<tiers::Key>,
    policies: Vec<PolicyKey>,
    /// Only if no policy does.
    baseline: Vec<tiers::Key>,
}

impl Judgement {
    fn is_empty(&self) -> bool {
        self.admin.is_empty() && self.policies.is_empty() && self.baseline.is_empty()
    }
}
