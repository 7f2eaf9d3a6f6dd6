//! The definition of peers that nodes tell of addresses by BGP.

use crate::cluster_policies::selector;
use crate::volumes::snapshot_definitions::{MANAGED_BY, US};
use keelson_balancing::peer::{PASSWORDS, PASSWORDS_NAMESPACE, PeerStatus};
use keelson_balancing::{GROUP, PEER_DEFINITION, VERSION};
use serde_json::{Value, json};

/// The longest address.
const LONGEST: u32 = 45;
const ADDRESS: &str = "isIP(self) && !ip(self).isUnspecified() && !ip(self).isLoopback() && \
    !ip(self).isLinkLocalUnicast() && !ip(self).isLinkLocalMulticast()";

fn address(description: &str) -> Value {
    json!({"type": "string", "maxLength": LONGEST, "description": description, "x-kubernetes-validations": [
        {"rule": ADDRESS, "message": "must be an address of a host that is neither of a link only nor a loopback"}]})
}

fn number(description: &str, least: u32, most: u32) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": least, "maximum": most, "description": description})
}

fn spec() -> Value {
    let asn = |description: &str| number(description, 1, u32::MAX);
    let with = |mut value: Value, default: Value| {
        value["default"] = default;
        value
    };
    let graceful = json!({"type": "object", "default": {},
        "description": "Whether the peer keeps routes while this program starts anew.", "properties": {
            "enabled": {"type": "boolean", "default": true},
            "restartTimeSeconds": with(number("For how long, at most.", 1, 4095), json!(30))}});
    let hold = with(
        number(
            "After which a peer that is silent, or hears nothing, is given up; 0: never.",
            0,
            65535,
        ),
        json!(90),
    );
    let password =
        format!("The key of Secret {PASSWORDS_NAMESPACE}/{PASSWORDS} with the session's password (RFC 2385).");
    json!({"type": "object", "required": ["localASN", "peerASN", "peerAddress"], "description": "What is wanted.", "properties": {
        "localASN": asn("The nodes' autonomous system."),
        "peerASN": asn("The peer's autonomous system."),
        "peerAddress": address("Where nodes connect to."),
        "peerPort": with(number("The peer's TCP port.", 1, 65535), json!(179)),
        "sourceAddress": address("From where nodes connect; without it from the address that leads there."),
        "holdTimeSeconds": hold,
        "keepaliveTimeSeconds": number("How often nodes say that they are there; without it, and at most, a third of the hold time.", 1, 21845),
        "connectRetrySeconds": with(number("The longest time between two attempts.", 1, 65535), json!(10)),
        "ebgpMultihop": number("How many hops away a peer of another autonomous system may be, by what nodes send.", 2, 255),
        "ttlSecurityHops": number("How many hops away the peer may be, by what comes from it too (RFC 5082).", 1, 254),
        "passwordKey": {"type": "string", "pattern": "^[-._a-zA-Z0-9]{1,253}$", "description": password},
        "gracefulRestart": graceful,
        "nodeSelector": selector("Which nodes have a session with it; without it all.")},
        "x-kubernetes-validations": [
            {"rule": "self.holdTimeSeconds == 0 || self.holdTimeSeconds >= 3", "fieldPath": ".holdTimeSeconds",
             "message": "must be 0, or 3 at least"},
            {"rule": "!has(self.keepaliveTimeSeconds) || self.keepaliveTimeSeconds * 3 <= self.holdTimeSeconds",
             "fieldPath": ".keepaliveTimeSeconds", "message": "must be a third of the hold time at most"},
            {"rule": "!has(self.ebgpMultihop) || self.localASN != self.peerASN", "fieldPath": ".ebgpMultihop",
             "message": "is for peers of another autonomous system"},
            {"rule": "!has(self.ebgpMultihop) || !has(self.ttlSecurityHops)", "fieldPath": ".ttlSecurityHops",
             "message": "can't be together with ebgpMultihop"},
            {"rule": "!has(self.sourceAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) || \
                ip(self.sourceAddress).family() == ip(self.peerAddress).family()", "fieldPath": ".sourceAddress",
             "message": "must be of the peer's family"}]})
}

fn status() -> Value {
    let count =
        |description: &str| json!({"type": "integer", "format": "int64", "minimum": 0, "description": description});
    let session = json!({"type": "object", "required": ["node", "state"], "properties": {
        "node": {"type": "string"},
        "state": {"type": "string", "description": "Established; Connect: it is tried; Idle: it can't be; Unknown: the node is silent."},
        "since": {"type": "string", "format": "date-time"},
        "error": {"type": "string", "description": "Why the last attempt failed."},
        "announced": count("Routes that the peer has from the node."),
        "receivedUpdates": count("UPDATE messages of the peer, which count for nothing.")}});
    json!({"type": "object", "description": "How its sessions are.", "properties": {
        "nodes": count("Nodes that have, or are to have, a session with it."),
        "established": count("Sessions that stand."),
        "sessions": {"type": "array", "items": session, "maxItems": PeerStatus::MOST, "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["node"], "description": "Those that don't stand first."}}})
}

pub fn definition() -> Value {
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": PEER_DEFINITION, "labels": {MANAGED_BY: US}},
        "spec": {
            "group": GROUP, "scope": "Cluster",
            "names": {"kind": "BGPPeer", "listKind": "BGPPeerList", "plural": "bgppeers", "singular": "bgppeer"},
            "versions": [{
                "name": VERSION, "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Address", "string", ".spec.peerAddress"),
                    column("ASN", "integer", ".spec.peerASN"),
                    column("Local ASN", "integer", ".spec.localASN"),
                    column("Nodes", "integer", ".status.nodes"),
                    column("Established", "integer", ".status.established"),
                    column("Error", "string", ".status.sessions[0].error"),
                    column("Age", "date", ".metadata.creationTimestamp")],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["metadata", "spec"],
                    "description": "A router that nodes tell of load balancers' addresses, by BGP.",
                    "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
                        "metadata": {"type": "object"}, "spec": spec(), "status": status()}}},
            }],
        },
    })
}
