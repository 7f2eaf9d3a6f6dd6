//! The cluster's policies as rules: for each sequence of policies that judges some pod here, one chain with all their rules.
//!
//! A rule that passes on returns from the chain of its tier, so that no policy after it is asked and the pod's chain goes on with
//! the next tier. Pods that the same policies judge share the chain: one that joins costs a jump.

use super::rules::Said;
use super::{Direction, Judgement, Met, Planner};
use crate::cluster::{Action, Policy, Rule, Tier};
use crate::facts::Pod;
use keelson_client::labels::{self, Labels};
use keelson_sys::nft::names::name;
use keelson_sys::nft::{Chain, Expr, Verdict};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// In the order in which policies are asked.
pub(super) type Key = (Tier, i32, String);

struct Held {
    policy: Policy,
    ingress: Vec<Vec<Expr>>,
    egress: Vec<Vec<Expr>>,
    /// The sets that its rules look into.
    sets: Vec<String>,
}

/// A chain, and how many pods are led there.
struct Shared {
    direction: Direction,
    keys: Vec<Key>,
    pods: usize,
}

#[derive(Default)]
pub(super) struct Cluster {
    policies: BTreeMap<Key, Held>,
    chains: BTreeMap<String, Shared>,
    used: BTreeMap<(Direction, IpAddr), [Option<String>; 2]>,
}

impl Direction {
    fn rules_of(self, policy: &Policy) -> &[Rule] {
        match self {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        }
    }
}

fn chain_name(direction: Direction, keys: &[Key]) -> Option<String> {
    let tier = match keys.first()?.0 {
        Tier::Admin => "admin",
        Tier::Baseline => "baseline",
    };
    let names: Vec<&str> = keys.iter().map(|k| k.2.as_str()).collect();
    Some(name(&format!("{tier}-{}", direction.word()), &names.join(",")))
}

impl Cluster {
    pub fn policies(&self) -> usize {
        self.policies.len()
    }

    fn of_tier(&self, tier: Tier) -> impl Iterator<Item = (&Key, &Policy)> {
        let all = self.policies.iter().filter(move |(k, _)| k.0 == tier);
        all.map(|(key, held)| (key, &held.policy))
    }

    /// The policies of a tier that have rules for what a pod gets, or sends.
    pub fn judging(&self, tier: Tier, direction: Direction, pod: &Pod, namespace: Option<&Labels>) -> Vec<Key> {
        let selects = |p: &Policy| {
            p.pods.has_namespace(&pod.namespace, namespace) && labels::matches(Some(&p.pods.pods), pod.labels.as_ref())
        };
        let judging = self
            .of_tier(tier)
            .filter(|(_, p)| !direction.rules_of(p).is_empty() && selects(p));
        judging.map(|(key, _)| key.clone()).collect()
    }

    /// Whether some policy may be for a pod of which only the namespace is known.
    pub fn may_judge(&self, direction: Direction, pod: &Pod, namespace: Option<&Labels>) -> bool {
        let may = |p: &Policy| !direction.rules_of(p).is_empty() && p.pods.has_namespace(&pod.namespace, namespace);
        self.policies.values().any(|held| may(&held.policy))
    }

    fn chain(&self, direction: Direction, keys: &[Key]) -> Chain {
        let rules = |held: &Held| match direction {
            Direction::Ingress => held.ingress.clone(),
            Direction::Egress => held.egress.clone(),
        };
        let held = keys.iter().filter_map(|key| self.policies.get(key));
        Chain {
            base: None,
            rules: held.flat_map(rules).collect(),
        }
    }
}

impl Planner {
    /// A policy of the cluster as it is now; `None`: there is none of this name.
    pub fn set_cluster_policy(&mut self, name: &str, new: Option<Policy>) {
        let old = self.cluster.policies.iter().find(|(key, _)| key.2 == name);
        if old.map(|(_, held)| &held.policy) == new.as_ref() {
            return;
        }
        let old = old.map(|(key, _)| key.clone());
        let old = old.and_then(|key| self.cluster.policies.remove(&key));
        if let Some(policy) = new {
            let mut sets = Vec::new();
            let mut rules = |direction: Direction| -> Vec<Vec<Expr>> {
                let list = direction.rules_of(&policy).iter();
                list.flat_map(|rule| self.rule(direction, &said(rule, &policy, direction), &mut sets))
                    .collect()
            };
            let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
            let key = (policy.tier, policy.priority, policy.name.clone());
            let held = Held {
                policy,
                ingress,
                egress,
                sets,
            };
            self.cluster.policies.insert(key, held);
        }
        let all: Vec<Pod> = self.pods.values().filter(|p| p.local).cloned().collect();
        self.judge_all(all.iter());
        for (name, shared) in &self.cluster.chains {
            let chain = self.cluster.chain(shared.direction, &shared.keys);
            self.table.set_chain(name, Some(chain));
        }
        // After the new rules have taken theirs, so that what both use stays.
        for set in old.iter().flat_map(|h| &h.sets) {
            self.release(set);
        }
    }

    /// The chains of both tiers for a pod's packets of one direction; what it used before and doesn't now is given up.
    pub(super) fn use_tiers(
        &mut self,
        direction: Direction,
        ip: IpAddr,
        judgement: Option<&Judgement>,
    ) -> [Option<String>; 2] {
        let sequences = judgement.map(|j| [&j.admin, &j.baseline]);
        let wanted = sequences.map_or([None, None], |s| s.map(|keys| chain_name(direction, keys)));
        for (name, keys) in wanted.iter().zip(sequences.into_iter().flatten()) {
            let Some(name) = name else { continue };
            let shared = self.cluster.chains.entry(name.clone()).or_insert_with(|| Shared {
                direction,
                keys: Vec::new(),
                pods: 0,
            });
            shared.pods += 1;
            // Their priorities may have changed, and not their order.
            shared.keys.clone_from(keys);
            let chain = self.cluster.chain(direction, keys);
            self.table.set_chain(name, Some(chain));
        }
        let before = match wanted.iter().any(Option::is_some) {
            true => self.cluster.used.insert((direction, ip), wanted.clone()),
            false => self.cluster.used.remove(&(direction, ip)),
        };
        for name in before.into_iter().flatten().flatten() {
            if let Some(shared) = self.cluster.chains.get_mut(&name) {
                shared.pods -= 1;
                if shared.pods == 0 {
                    self.cluster.chains.remove(&name);
                    self.table.set_chain(&name, None);
                }
            }
        }
        wanted
    }
}

fn said<'a>(rule: &'a Rule, policy: &'a Policy, direction: Direction) -> Said<'a> {
    let (verdict, action) = match rule.action {
        Action::Accept => (Verdict::Accept, "accept"),
        Action::Deny => (Verdict::Drop, "deny"),
        Action::Pass => (Verdict::Return, "pass"),
    };
    Said {
        peers: &rule.peers,
        ports: &rule.ports,
        subject: &policy.pods,
        verdict,
        met: Met::of(direction, "", &policy.name, action),
        logged: policy.logged && rule.action == Action::Deny,
    }
}
