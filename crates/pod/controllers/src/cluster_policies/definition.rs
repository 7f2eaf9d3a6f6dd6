//! The custom resource of `policy.networking.k8s.io/v1alpha2`: names, columns and rules are upstream's, of the channel that has all fields.

use crate::volumes::snapshot_definitions::{MANAGED_BY, US};
use keelson_client::cluster_policies::{DEFINITION, GROUP, VERSION};
use serde_json::{Value, json};

const APPROVED: &str = "https://github.com/kubernetes-sigs/network-policy-api/pull/347";
/// Peers, rules and protocols in one list.
const MOST: u32 = 25;
const DOMAIN: &str = r"^(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$";
const REASON: &str = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$";
const CONDITION: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";
const NO_NAMES: &str = "!(self.to.exists(peer, has(peer.networks) || has(peer.nodes) || has(peer.domainNames)) && \
    has(self.protocols) && self.protocols.exists(protocol, has(protocol.destinationNamedPort)))";

pub(crate) fn selector(description: &str) -> Value {
    let expression = json!({"type": "object", "required": ["key", "operator"], "properties": {
        "key": {"type": "string"}, "operator": {"type": "string"},
        "values": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"}}});
    json!({"type": "object", "description": description, "x-kubernetes-map-type": "atomic", "properties": {
        "matchExpressions": {"type": "array", "items": expression, "x-kubernetes-list-type": "atomic"},
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}}})
}

/// An object of which exactly one field is set.
fn one_of(description: &str, properties: Value) -> Value {
    json!({"type": "object", "description": description, "minProperties": 1, "maxProperties": 1, "properties": properties})
}

fn pods() -> Value {
    json!({"type": "object", "required": ["podSelector"], "description": "Pods by their labels and their namespaces'.",
        "properties": {
            "namespaceSelector": selector("Which namespaces; all, if it is empty."),
            "podSelector": selector("Which pods in them; all, if it is empty.")}})
}

fn of_pods() -> Value {
    json!({"namespaces": selector("All pods of these namespaces."), "pods": pods()})
}

fn set_of(item: Value, description: &str) -> Value {
    json!({"type": "array", "items": item, "minItems": 1, "maxItems": MOST, "x-kubernetes-list-type": "set",
        "description": description})
}

fn targets() -> Value {
    let mut peers = of_pods();
    peers["nodes"] = selector("The addresses of these nodes.");
    peers["networks"] = set_of(
        json!({"type": "string", "maxLength": 43, "x-kubernetes-validations": [
            {"message": "Invalid CIDR format provided", "rule": "isCIDR(self)"}]}),
        "Ranges of addresses. What goes to pods is met too, if they are in one.",
    );
    peers["domainNames"] = set_of(
        json!({"type": "string", "pattern": DOMAIN}),
        "Names of domains, of which `*.` at the beginning stands for one or more labels. Not enforced here: see the status.",
    );
    peers
}

fn number(description: &str) -> Value {
    json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535, "description": description})
}

fn protocols() -> Value {
    let range = json!({"type": "object", "required": ["end", "start"], "description": "From one port to another.",
        "properties": {"start": number("The first."), "end": number("The last.")},
        "x-kubernetes-validations": [
            {"message": "Start port must be less than End port", "rule": "self.start < self.end"}]});
    let port = one_of(
        "Which ports; without it all of the protocol.",
        json!({"number": number("One port."), "range": range}),
    );
    let transport = |name: &str| {
        json!({"type": "object", "minProperties": 1, "description": format!("Packets of {name}."),
            "properties": {"destinationPort": port}})
    };
    let protocol = one_of(
        "One protocol and its ports.",
        json!({"tcp": transport("TCP"), "udp": transport("UDP"), "sctp": transport("SCTP"),
            "destinationNamedPort": {"type": "string", "description": "A port by the name that the pod's container gives it."}}),
    );
    json!({"type": "array", "items": protocol, "minItems": 1, "maxItems": MOST,
        "description": "Which packets; without it all."})
}

fn rules(list: &str, peers: Value, description: &str) -> Value {
    let peer = one_of("Who is at the other end.", peers);
    let mut rule = json!({"type": "object", "required": ["action", list], "properties": {
        "name": {"type": "string", "maxLength": 100, "description": "By which people find the rule."},
        "action": {"type": "string", "enum": ["Accept", "Deny", "Pass"],
            "description": "Accept and Deny are final. Pass leaves it to the next tier."},
        list: {"type": "array", "items": peer, "minItems": 1, "maxItems": MOST, "description": "Any of these."},
        "protocols": protocols()}});
    if list == "to" {
        rule["x-kubernetes-validations"] = json!([{"rule": NO_NAMES,
            "message": "networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for networks/nodes/domainNames"}]);
    }
    json!({"type": "array", "items": rule, "maxItems": MOST, "description": description})
}

/// The schema of a list of conditions.
pub(crate) fn conditions() -> Value {
    let condition = json!({"type": "object", "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": REASON},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "type": {"type": "string", "maxLength": 316, "pattern": CONDITION}}});
    json!({"type": "array", "items": condition,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})
}

fn status() -> Value {
    json!({"type": "object", "required": ["conditions"], "description": "Whether it is enforced as it is written.",
        "properties": {"conditions": conditions()}})
}

pub fn definition() -> Value {
    let spec = json!({"type": "object", "required": ["priority", "subject", "tier"], "description": "What is wanted.",
        "properties": {
            "tier": {"type": "string", "enum": ["Admin", "Baseline"],
                "description": "Admin: before network policies. Baseline: for pods that no network policy isolates."},
            "priority": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000,
                "description": "Policies of a tier are asked from the lowest to the highest."},
            "subject": one_of("For whom it is. Pods in their node's network are never meant.", of_pods()),
            "ingress": rules("from", of_pods(), "For what comes to them. The first rule that is met decides."),
            "egress": rules("to", targets(), "For what they send. The first rule that is met decides.")}});
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": DEFINITION, "labels": {MANAGED_BY: US}, "annotations": {
            "api-approved.kubernetes.io": APPROVED,
            "policy.networking.k8s.io/bundle-version": "v0.2.0",
            "policy.networking.k8s.io/channel": "experimental"}},
        "spec": {
            "group": GROUP, "scope": "Cluster",
            "names": {"kind": "ClusterNetworkPolicy", "listKind": "ClusterNetworkPolicyList",
                "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy", "shortNames": ["cnp"]},
            "versions": [{
                "name": VERSION, "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [column("Tier", "string", ".spec.tier"),
                    column("Priority", "string", ".spec.priority"),
                    column("Age", "date", ".metadata.creationTimestamp")],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["metadata", "spec"],
                    "description": "The cluster's own rules for packets of its pods, before and after network policies.",
                    "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
                        "metadata": {"type": "object"}, "spec": spec, "status": status()}}},
            }],
        },
    })
}
