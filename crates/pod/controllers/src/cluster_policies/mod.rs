//! The cluster's network policies: what of one is not enforced is said in its status. Nodes enforce the rest (`keelson-policy`).

mod definition;

use crate::context::{Context, now};
use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use keelson_client::cluster_policies::{ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule};
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, is_not_found,
};
use serde_json::json;

pub use definition::definition;
pub(crate) use definition::{conditions, selector};

const IDENTITY: &str = "keelson-cluster-policies";
/// The condition's type.
const ENFORCED: &str = "keelson.dev/Enforced";
/// What a message may have; the API takes more.
const LONGEST: usize = 4096;

pub fn start(context: &Context) {
    if !context.config.cluster_policies {
        return;
    }
    let policies = context.informer::<ClusterNetworkPolicy>();
    let controller = Controller::new("cluster-network-policy")
        .input(&policies)
        .output(ClusterNetworkPolicy::RESOURCE);
    let queue = controller.queue();
    policies.on_change(move |change| queue.add(change.object().key()));
    let objects = Objects::new(&context.rest(IDENTITY));
    context.run(controller, Teller { policies, objects });
}

struct Teller {
    policies: Informer<ClusterNetworkPolicy>,
    objects: Objects<ClusterNetworkPolicy>,
}

#[async_trait]
impl Reconcile for Teller {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(policy) = self.policies.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(condition) = wanted(&policy, Time(now())) else {
            return Ok(Outcome::Done);
        };
        let body = json!({
            "apiVersion": ClusterNetworkPolicy::RESOURCE.api_version(),
            "kind": ClusterNetworkPolicy::RESOURCE.kind,
            "metadata": {"name": key.name, "uid": policy.uid()},
            "status": {"conditions": [condition]},
        });
        let patch = Patch::Apply {
            body: &body,
            manager: IDENTITY,
            force: true,
        };
        match self.objects.patch_status("", &key.name, patch).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

/// The condition to be written; `None`: the one that is there says it.
fn wanted(policy: &ClusterNetworkPolicy, at: Time) -> Option<Condition> {
    let missing = unenforced(policy);
    let (status, reason, message) = match missing.is_empty() {
        true => ("True", "Enforced", "It is enforced as it is written.".to_string()),
        false => ("False", "NotSupported", message(&missing)),
    };
    let generation = policy.metadata.generation;
    let there = policy
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .find(|c| c.type_ == ENFORCED);
    let is_said = |c: &Condition| {
        c.status == status && c.message == message && c.observed_generation == generation && c.reason == reason
    };
    if there.is_some_and(is_said) {
        return None;
    }
    Some(Condition {
        type_: ENFORCED.into(),
        status: status.into(),
        reason: reason.into(),
        last_transition_time: match there.filter(|c| c.status == status) {
            Some(before) => before.last_transition_time.clone(),
            None => at,
        },
        observed_generation: generation,
        message,
    })
}

fn message(missing: &[String]) -> String {
    let mut text = missing.join("; ");
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

/// What isn't done as it is written, rule by rule. How such rules fail is the API's word: closed.
fn unenforced(policy: &ClusterNetworkPolicy) -> Vec<String> {
    let spec = &policy.spec;
    let mut all = Vec::new();
    if !matches!(spec.tier.as_str(), "Admin" | "Baseline") || !is_pods(&spec.subject) {
        all.push("its tier or subject is not known here: it isn't enforced at all".to_string());
    }
    for (direction, rules) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
        for (index, rule) in rules.iter().enumerate() {
            if let Some(what) = of_rule(rule) {
                let instead = match rule.action.as_str() {
                    "Accept" => "so it accepts nothing",
                    _ => "so it denies everything",
                };
                all.push(format!("{direction} rule {}: {what}, {instead}", rule.shown(index)));
            }
        }
    }
    all
}

fn is_pods(peer: &ClusterPeer) -> bool {
    peer.namespaces.is_some() != peer.pods.is_some()
}

fn of_rule(rule: &ClusterRule) -> Option<&'static str> {
    let known = |p: &ClusterPeer| is_pods(p) || p.nodes.is_some() || !p.networks.is_empty();
    let known_protocol = |p: &ClusterProtocol| {
        p.tcp.is_some() || p.udp.is_some() || p.sctp.is_some() || !p.destination_named_port.is_empty()
    };
    if rule.peers().any(|p| !p.domain_names.is_empty()) {
        return Some("domainNames are not enforced here");
    }
    if !rule.peers().all(known) {
        return Some("it has a peer that is not known here");
    }
    (!rule.protocols.iter().all(known_protocol)).then_some("it has a protocol that is not known here")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn policy(egress: Value) -> ClusterNetworkPolicy {
        serde_json::from_value(json!({"metadata": {"name": "p", "generation": 3},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": egress}}))
        .unwrap()
    }

    #[test]
    fn what_is_not_enforced_is_said_once_and_by_name() {
        let at = Time(jiff::Timestamp::UNIX_EPOCH);
        let whole = policy(json!([{"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}, {"nodes": {}}]}]));
        let said = wanted(&whole, at.clone()).unwrap();
        assert_eq!((said.status.as_str(), said.observed_generation), ("True", Some(3)));
        let mut part = policy(json!([
            {"name": "web", "action": "Accept", "to": [{"domainNames": ["a.example"]}]},
            {"action": "Deny", "to": [{"later": {}}]},
            {"action": "Pass", "to": [{"namespaces": {}}], "protocols": [{"quic": {}}]}]));
        let said = wanted(&part, at.clone()).unwrap();
        assert_eq!(
            said.message,
            "egress rule 1 (web): domainNames are not enforced here, so it accepts nothing; \
             egress rule 2: it has a peer that is not known here, so it denies everything; \
             egress rule 3: it has a protocol that is not known here, so it denies everything"
        );
        part.status = Some(keelson_client::cluster_policies::ClusterPolicyStatus { conditions: vec![said] });
        assert!(wanted(&part, at).is_none());
    }

    #[test]
    fn rules_are_upstreams() {
        let all = definition();
        assert_eq!(
            all["metadata"]["name"],
            "clusternetworkpolicies.policy.networking.k8s.io"
        );
        let spec = &all["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        let of = |direction: &str| spec[direction]["items"]["properties"].as_object().unwrap().clone();
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&of("egress")["to"]["items"]["properties"]).len(), 5);
        assert_eq!(
            names(&of("ingress")["from"]["items"]["properties"]),
            ["namespaces", "pods"]
        );
        assert_eq!(spec["priority"]["maximum"], 1000);
    }
}
