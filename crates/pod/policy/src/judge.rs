//! The judgement of one connection, from facts: what the rules of [`crate::plan`] do with its packets, for whoever wants to
//! know why. The tests hold both to the same reference.

use crate::facts::{Peer, Pod, Policy, Port, Rule};
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

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<'a> {
    /// No policy is for this pod and direction: everything is allowed.
    Open,
    AllowedBy(&'a Policy),
    /// These are for it, and none allows the connection.
    Denied(Vec<&'a Policy>),
}

impl Verdict<'_> {
    pub fn is_allowed(&self) -> bool {
        !matches!(self, Verdict::Denied(_))
    }
}

/// What policies say to a connection at its end that the direction names: where it comes from for egress, where it goes to
/// for ingress. An end without a pod is nobody's matter.
pub fn judge<'a>(
    connection: &Connection,
    direction: Direction,
    policies: &'a [Policy],
    namespaces: &BTreeMap<String, Labels>,
) -> Verdict<'a> {
    let (own, other) = match direction {
        Direction::Ingress => (connection.to, connection.from),
        Direction::Egress => (connection.from, connection.to),
    };
    // A pod always reaches itself.
    let Some(pod) = own.pod.filter(|_| own.address != other.address) else {
        return Verdict::Open;
    };
    let rules = |p: &'a Policy| match direction {
        Direction::Ingress => p.ingress.as_deref(),
        Direction::Egress => p.egress.as_deref(),
    };
    let is_for = |p: &Policy| p.namespace == pod.namespace && labels::matches(Some(&p.pods), pod.labels.as_ref());
    let own: Vec<(&Policy, &[Rule])> = policies
        .iter()
        .filter(|p| is_for(p))
        .filter_map(|p| Some((p, rules(p)?)))
        .collect();
    if own.is_empty() {
        return Verdict::Open;
    }
    let allows = |rule: &Rule| {
        (rule.peers.is_empty() || rule.peers.iter().any(|p| is_peer(p, &other, namespaces)))
            && (rule.ports.is_empty() || rule.ports.iter().any(|p| is_port(p, connection)))
    };
    match own.iter().find(|(_, rules)| rules.iter().any(allows)) {
        Some((policy, _)) => Verdict::AllowedBy(policy),
        None => Verdict::Denied(own.into_iter().map(|(policy, _)| policy).collect()),
    }
}

fn is_peer(peer: &Peer, end: &End, namespaces: &BTreeMap<String, Labels>) -> bool {
    match peer {
        Peer::Block { range, except } => {
            range.contains(&end.address) && !except.iter().any(|e| e.contains(&end.address))
        }
        Peer::Pods(scope) => end.pod.is_some_and(|pod| {
            scope.has_namespace(&pod.namespace, namespaces.get(&pod.namespace))
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
