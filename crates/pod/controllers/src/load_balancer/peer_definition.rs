//! The definition of peers that nodes tell of addresses by BGP.

use super::definition::{count, define};
use crate::cluster_policies::selector;
use keelson_balancing::PEER_DEFINITION;
use keelson_balancing::peer::{PASSWORDS, PASSWORDS_NAMESPACE, PeerStatus};
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
        "ttlSecurityHops": number("How many hops away the peer may be, by what comes from it (RFC 5082).", 1, 254),
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
    let names = json!({"kind": "BGPPeer", "listKind": "BGPPeerList", "plural": "bgppeers", "singular": "bgppeer"});
    let columns = [
        ["Address", "string", ".spec.peerAddress"],
        ["ASN", "integer", ".spec.peerASN"],
        ["Local ASN", "integer", ".spec.localASN"],
        ["Nodes", "integer", ".status.nodes"],
        ["Established", "integer", ".status.established"],
        ["Error", "string", ".status.sessions[0].error"],
    ];
    let description = "A router that nodes tell of load balancers' addresses, by BGP.";
    define(PEER_DEFINITION, names, &columns, description, spec(), status())
}
