//! The judgement of one connection, from facts: what the rules of [`crate::plan`] do with its packets, for whoever wants to
//! know why. The tests hold both to the same reference.

use crate::cluster::{self, Action, Node, Tier};
use crate::facts::{Peer, Pod, Policy, Port, Rule, Scope};
use keelson_client::labels::{self, Labels};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One end of a connection: an address, and the pod that has it.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub address: IpAddr,
    pub pod: Option<&'a Pod>,
}

#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    pub from: End<'a>,
    pub to: End<'a>,
    pub protocol: u8,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// All that judges.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub policies: Vec<Policy>,
    /// In the order in which they are asked: see [`Rules::sort`].
    pub cluster: Vec<cluster::Policy>,
    pub namespaces: BTreeMap<String, Labels>,
    pub nodes: Vec<Node>,
}

impl Rules {
    pub fn sort(mut self) -> Rules {
        let order = |p: &cluster::Policy| (p.tier, p.priority, p.name.clone());
        self.cluster.sort_by_key(order);
        self
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<'a> {
    /// No policy is for this pod and direction, or none has a rule for the connection: everything is allowed.
    Open,
    AllowedBy(&'a Policy),
    /// These are for it, and none allows the connection.
    Denied(Vec<&'a Policy>),
    /// A rule of the cluster accepts or denies it.
    Ruled(&'a cluster::Policy, &'a cluster::Rule),
}

impl Verdict<'_> {
    pub fn is_allowed(&self) -> bool {
        match self {
            Verdict::Open | Verdict::AllowedBy(_) => true,
            Verdict::Denied(_) => false,
            Verdict::Ruled(_, rule) => rule.action == Action::Accept,
        }
    }
}

/// What policies say to a connection at its end that the direction names: where it comes from for egress, where it goes to
/// for ingress. An end without a pod is nobody's matter. A pod that reaches itself does so by a service: otherwise its packets
/// never come to the node.
pub fn judge<'a>(connection: &Connection, direction: Direction, rules: &'a Rules) -> Verdict<'a> {
    let (own, other) = match direction {
        Direction::Ingress => (connection.to, connection.from),
        Direction::Egress => (connection.from, connection.to),
    };
    let Some(pod) = own.pod else {
        return Verdict::Open;
    };
    let asked = Asked {
        connection,
        direction,
        pod,
        other,
        rules,
    };
    if let Some(ruled) = asked.tier(Tier::Admin) {
        return ruled;
    }
    match asked.policies() {
        Verdict::Denied(_) if own.address == other.address => Verdict::Open,
        Verdict::Open => asked.tier(Tier::Baseline).unwrap_or(Verdict::Open),
        said => said,
    }
}

/// A connection at one of its ends.
struct Asked<'a, 'c> {
    connection: &'c Connection<'c>,
    direction: Direction,
    pod: &'c Pod,
    other: End<'c>,
    rules: &'a Rules,
}

impl<'a> Asked<'a, '_> {
    fn selects(&self, scope: &Scope) -> bool {
        let namespace = self.rules.namespaces.get(&self.pod.namespace);
        scope.has_namespace(&self.pod.namespace, namespace)
            && labels::matches(Some(&scope.pods), self.pod.labels.as_ref())
    }

    fn matches(&self, peers: &[Peer], ports: &[Port]) -> bool {
        (peers.is_empty() || peers.iter().any(|p| is_peer(p, &self.other, self.rules)))
            && (ports.is_empty() || ports.iter().any(|p| is_port(p, self.connection)))
    }

    /// The first rule that the connection meets; `None` if there is none, or it passes on.
    fn tier(&self, tier: Tier) -> Option<Verdict<'a>> {
        let asked = self
            .rules
            .cluster
            .iter()
            .filter(|p| p.tier == tier && self.selects(&p.pods));
        let rules = asked.flat_map(|p| {
            let rules = match self.direction {
                Direction::Ingress => &p.ingress,
                Direction::Egress => &p.egress,
            };
            rules.iter().map(move |rule| (p, rule))
        });
        let mut met = rules.filter(|(_, rule)| self.matches(&rule.peers, &rule.ports));
        let (policy, rule) = met.next()?;
        (rule.action != Action::Pass).then_some(Verdict::Ruled(policy, rule))
    }

    fn policies(&self) -> Verdict<'a> {
        let rules = |p: &'a Policy| match self.direction {
            Direction::Ingress => p.ingress.as_deref(),
            Direction::Egress => p.egress.as_deref(),
        };
        let is_for =
            |p: &Policy| p.namespace == self.pod.namespace && labels::matches(Some(&p.pods), self.pod.labels.as_ref());
        let all = self.rules.policies.iter().filter(|p| is_for(p));
        let own: Vec<(&Policy, &[Rule])> = all.filter_map(|p| Some((p, rules(p)?))).collect();
        if own.is_empty() {
            return Verdict::Open;
        }
        let allows = |rule: &Rule| self.matches(&rule.peers, &rule.ports);
        match own.iter().find(|(_, rules)| rules.iter().any(allows)) {
            Some((policy, _)) => Verdict::AllowedBy(policy),
            None => Verdict::Denied(own.into_iter().map(|(policy, _)| policy).collect()),
        }
    }
}

fn is_peer(peer: &Peer, end: &End, rules: &Rules) -> bool {
    match peer {
        Peer::Block { range, except } => {
            range.contains(&end.address) && !except.iter().any(|e| e.contains(&end.address))
        }
        Peer::Nodes(selector) => {
            let mut selected = rules
                .nodes
                .iter()
                .filter(|n| labels::matches(Some(selector), Some(&n.labels)));
            selected.any(|n| n.addresses.contains(&end.address))
        }
        Peer::Pods(scope) => end.pod.is_some_and(|pod| {
            scope.has_namespace(&pod.namespace, rules.namespaces.get(&pod.namespace))
                && labels::matches(Some(&scope.pods), pod.labels.as_ref())
        }),
    }
}

fn is_port(port: &Port, connection: &Connection) -> bool {
    match port {
        Port::Numbers { protocol, first, last } => {
            *protocol == connection.protocol && (*first..=*last).contains(&connection.port)
        }
        Port::Name { protocol, name } => {
            let ports = connection.to.pod.into_iter().flat_map(|p| &p.ports);
            let mut named = ports.filter(|p| p.name == *name && p.protocol == *protocol);
            *protocol == connection.protocol && named.any(|p| p.number == connection.port)
        }
    }
}
