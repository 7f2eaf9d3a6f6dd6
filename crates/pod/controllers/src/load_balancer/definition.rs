//! The definition of pools of addresses.

use crate::cluster_policies::{conditions, selector};
use crate::volumes::snapshot_definitions::{MANAGED_BY, US};
use keelson_balancing::{Announce, DEFINITION, GROUP, VERSION};
use serde_json::{Value, json};

/// Ranges of a pool.
const MOST: u32 = 64;
/// Two addresses of IPv6 and what divides them.
const LONGEST: u32 = 95;
const ENDS: &str =
    "self.contains('-') ? (self.split('-').size() == 2 && self.split('-').all(end, isIP(end.trim()))) : isCIDR(self)";
const FAMILY: &str = "!self.contains('-') || self.split('-').size() != 2 || !self.split('-').all(end, isIP(end.trim())) || \
    ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()";

fn announce() -> Value {
    let link = json!({"type": "string", "pattern": r"^[^/\s]{1,15}$"});
    json!({"type": "object", "default": {}, "description": "How others learn where the addresses are.", "properties": {
        "protocol": {"type": "string", "enum": [Announce::LAYER2, Announce::BGP, Announce::NONE], "default": Announce::LAYER2,
            "description": "Layer2: one node answers for an address, by ARP and NDP. BGP: nodes tell BGPPeers. None: somebody else leads packets to the nodes."},
        "nodeSelector": selector("Which nodes announce; without it all that take part in load balancers."),
        "interfaces": {"type": "array", "items": link, "maxItems": 16, "x-kubernetes-list-type": "set",
            "description": "On which links they answer; without any, on those that have the node's addresses."},
        "advertisements": {"type": "array", "items": advertisement(), "maxItems": 16, "x-kubernetes-list-type": "atomic",
            "description": "What peers are told of the addresses; without any, all are told each address. Of two with the same network the first counts."}},
        "x-kubernetes-validations": [{
            "rule": "self.protocol != 'None' || (!has(self.nodeSelector) && (!has(self.interfaces) || self.interfaces.size() == 0))",
            "message": "nodeSelector and interfaces say how addresses are announced: with protocol None they aren't"}, {
            "rule": "self.protocol == 'Layer2' || !has(self.interfaces) || self.interfaces.size() == 0",
            "message": "interfaces are for protocol Layer2"}, {
            "rule": "self.protocol == 'BGP' || !has(self.advertisements) || self.advertisements.size() == 0",
            "message": "advertisements are for protocol BGP"}]})
}

/// What a community may be.
const COMMUNITY: &str = "self.matches('^[0-9]{1,5}:[0-9]{1,5}$') ? self.split(':').all(n, int(n) <= 65535) : \
    self.matches('^(large:)?[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') ? \
    self.replace('large:', '').split(':').all(n, int(n) <= 4294967295) : \
    self in ['no-export', 'no-advertise', 'no-export-subconfed', 'no-peer', 'blackhole', 'graceful-shutdown']";

fn advertisement() -> Value {
    let community = json!({"type": "string", "maxLength": 40, "x-kubernetes-validations": [{"rule": COMMUNITY,
        "message": "must be A:B with numbers up to 65535, A:B:C or large:A:B:C with numbers up to 4294967295, or one of no-export, \
            no-advertise, no-export-subconfed, no-peer, blackhole, graceful-shutdown"}]});
    let name = json!({"type": "string", "minLength": 1, "maxLength": 253});
    let length = |default: u32, most: u32, of: &str| {
        let description = format!("The length of the networks that addresses of {of} are told as.");
        json!({"type": "integer", "minimum": 1, "maximum": most, "default": default, "description": description})
    };
    json!({"type": "object", "properties": {
        "peers": {"type": "array", "items": name, "maxItems": 32, "x-kubernetes-list-type": "set",
            "description": "Names of BGPPeers; without any, all."},
        "nodeSelector": selector("Only from these nodes."),
        "aggregationLength": length(32, 32, "IPv4"),
        "aggregationLengthV6": length(128, 128, "IPv6"),
        "localPreference": {"type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX, "default": 100,
            "description": "Is told peers of the nodes' own autonomous system."},
        "communities": {"type": "array", "items": community, "maxItems": 16, "x-kubernetes-list-type": "set",
            "description": "Communities and large communities of the routes."}}})
}

pub(super) fn count(description: &str) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "description": description})
}

fn status() -> Value {
    json!({"type": "object", "description": "What of it is in use.", "properties": {
        "conditions": conditions(),
        "assignedIPv4": count("Addresses that services have."), "assignedIPv6": count("Addresses that services have."),
        "availableIPv4": count("Addresses that nobody has."), "availableIPv6": count("Addresses that nobody has.")}})
}

pub fn definition() -> Value {
    let address = json!({"type": "string", "maxLength": LONGEST, "x-kubernetes-validations": [
        {"rule": ENDS, "message": "must be a CIDR, or two addresses with a - between them"},
        {"rule": FAMILY, "message": "must be a range of one family"}]});
    let spec = json!({"type": "object", "required": ["addresses"], "description": "What is wanted.", "properties": {
        "addresses": {"type": "array", "items": address, "minItems": 1, "maxItems": MOST, "x-kubernetes-list-type": "atomic",
            "description": "CIDRs (192.0.2.0/28) and ranges (192.0.2.16-192.0.2.31), of either family."},
        "autoAssign": {"type": "boolean", "default": true,
            "description": "Also for services that don't ask for this pool or one of its addresses."},
        "avoidBuggyIPs": {"type": "boolean", "default": false,
            "description": "Without the addresses of IPv4 that end in .0 and .255."},
        "serviceSelector": selector("Only for these services."),
        "namespaceSelector": selector("Only for services of these namespaces."),
        "announce": announce()}});
    let names = json!({"kind": "LoadBalancerIPPool", "listKind": "LoadBalancerIPPoolList",
        "plural": "loadbalancerippools", "singular": "loadbalancerippool", "shortNames": ["lbippool", "lbippools"]});
    let columns = [
        ["Auto Assign", "boolean", ".spec.autoAssign"],
        ["Announce", "string", ".spec.announce.protocol"],
        ["Addresses", "string", ".spec.addresses"],
        ["Valid", "string", ".status.conditions[?(@.type==\"Valid\")].status"],
    ];
    let description = "Addresses for services of type LoadBalancer, and how they are announced.";
    define(DEFINITION, names, &columns, description, spec, status())
}

/// The definition of a kind of ours that is of no namespace; columns by name, type and path.
pub(super) fn define(
    name: &str,
    names: Value,
    columns: &[[&str; 3]],
    description: &str,
    spec: Value,
    status: Value,
) -> Value {
    let age = ["Age", "date", ".metadata.creationTimestamp"];
    let columns = columns.iter().chain([&age]);
    let columns: Vec<Value> = columns
        .map(|[name, kind, path]| json!({"name": name, "type": kind, "jsonPath": path}))
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": {MANAGED_BY: US}},
        "spec": {
            "group": GROUP, "scope": "Cluster", "names": names,
            "versions": [{
                "name": VERSION, "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["metadata", "spec"], "description": description,
                    "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
                        "metadata": {"type": "object"}, "spec": spec, "status": status}}},
            }],
        },
    })
}
