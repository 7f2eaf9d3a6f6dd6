//! What becomes of packets, by policy: counters in the kernel, by whose names packets that are told of are known too.

use super::{Direction, Planner};
use keelson_sys::nft::Expr;
use keelson_sys::nft::names::name;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The group that packets are told to, and how much of one is: headers.
pub const GROUP: u16 = 0x6b6c;
pub const LENGTH: u32 = 96;
/// Packets that are told of a second, for each policy of the cluster, and for the network policies of each namespace.
const PER_SECOND: u64 = 10;
const BURST: u32 = 20;

/// The policy that a packet met, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// Of a network policy.
    pub namespace: String,
    /// Empty: the network policies of the namespace that isolate a pod, of which none allows the packet.
    pub policy: String,
    /// `accept`, `deny` or `pass`.
    pub action: &'static str,
}

impl Met {
    pub(super) fn of(direction: Direction, namespace: &str, policy: &str, action: &'static str) -> Met {
        Met {
            direction: direction.word(),
            namespace: namespace.into(),
            policy: policy.into(),
            action,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self.namespace.is_empty() {
            true => "ClusterNetworkPolicy",
            false => "NetworkPolicy",
        }
    }

    fn word(&self) -> String {
        name(
            &format!("{}-{}", self.action, self.direction),
            &format!("{}/{}", self.namespace, self.policy),
        )
    }
}

impl Planner {
    pub(super) fn counter(&mut self, met: Met) -> Expr {
        let word = met.word();
        self.met.insert(word.clone(), met);
        Expr::Counter(word)
    }

    /// Tells some of the packets.
    pub(super) fn log(met: &Met) -> [Expr; 2] {
        let limit = Expr::Limit {
            per_second: PER_SECOND,
            burst: BURST,
        };
        let log = Expr::Log {
            group: GROUP,
            length: LENGTH,
            prefix: met.word(),
        };
        [limit, log]
    }

    /// What rules count now, by the counters' names.
    pub fn met(&mut self) -> &BTreeMap<String, Met> {
        let counters = &self.table.wanted().counters;
        if self.met.len() > counters.len() {
            self.met.retain(|word, _| counters.contains(word));
        }
        &self.met
    }

    /// Denied packets of a namespace's network policies are told, or aren't.
    pub fn set_logged(&mut self, namespace: &str, logged: bool) {
        let changed = match logged {
            true => self.logged.insert(namespace.to_string()),
            false => self.logged.remove(namespace),
        };
        if changed {
            let here: Vec<_> = self.in_namespace(namespace).map(|(_, p)| p.clone()).collect();
            self.judge_all(here.iter());
        }
    }

    /// The pod at an address: namespace and name.
    pub fn pod_at(&self, ip: IpAddr) -> Option<(&str, &str)> {
        let here = self.owners.get(&ip).and_then(|owners| owners.first());
        let found = here.or_else(|| {
            let mut all = self.pods.iter();
            all.find(|(_, pod)| pod.addresses.contains(&ip)).map(|(key, _)| key)
        });
        found.map(|key| (key.0.as_str(), key.1.as_str()))
    }

    /// The network policies that isolate a pod of this node.
    pub fn isolating(&self, met: &Met, ip: IpAddr) -> Vec<String> {
        let direction = match met.direction {
            "ingress" => Direction::Ingress,
            _ => Direction::Egress,
        };
        let judgement = self.judgement(direction, ip);
        let policies = judgement.into_iter().flat_map(|j| j.policies);
        policies
            .map(|(namespace, name)| format!("{namespace}/{name}"))
            .collect()
    }
}
