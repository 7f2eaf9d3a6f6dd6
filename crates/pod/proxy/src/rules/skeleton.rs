//! What stands whatever services there are: hooks, their order, and the maps that services share.

use super::{daddr, jump, plain, rule, saddr};
use ipnet::IpNet;
use keelson_sys::nft::{
    Base, ChainKind, Cmp, DataType, Expr, Family, Hook, KeyType, Load, Ruleset, Set, SetState, Verdict,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The mark of packets that leave with the node's address.
const MASQUERADE: u32 = 0x4000;
pub(super) const SERVICE_IPS: &str = "service-ips";
pub(super) const NODE_PORTS: &str = "service-nodeports";
pub(super) const NO_ENDPOINTS: &str = "no-endpoint-services";
pub(super) const NO_ENDPOINT_NODE_PORTS: &str = "no-endpoint-nodeports";
pub(super) const CLUSTER_IPS: &str = "cluster-ips";
pub(super) const FIREWALL_IPS: &str = "firewall-ips";
/// Endpoints of this node, as source and destination of what they send to themselves.
pub(super) const HAIRPIN: &str = "hairpin";
/// The ranges of service addresses.
pub const RANGES: &str = "service-ranges";
/// The endpoints of all services, by a hash of whose they are. The kernel goes through the whole of such a map once a second if
/// it changes, which is what makes each of them small.
#[rustfmt::skip]
pub const ENDPOINTS: [&str; 256] = [
    "endpoints-00", "endpoints-01", "endpoints-02", "endpoints-03", "endpoints-04", "endpoints-05", "endpoints-06", "endpoints-07",
    "endpoints-08", "endpoints-09", "endpoints-0a", "endpoints-0b", "endpoints-0c", "endpoints-0d", "endpoints-0e", "endpoints-0f",
    "endpoints-10", "endpoints-11", "endpoints-12", "endpoints-13", "endpoints-14", "endpoints-15", "endpoints-16", "endpoints-17",
    "endpoints-18", "endpoints-19", "endpoints-1a", "endpoints-1b", "endpoints-1c", "endpoints-1d", "endpoints-1e", "endpoints-1f",
    "endpoints-20", "endpoints-21", "endpoints-22", "endpoints-23", "endpoints-24", "endpoints-25", "endpoints-26", "endpoints-27",
    "endpoints-28", "endpoints-29", "endpoints-2a", "endpoints-2b", "endpoints-2c", "endpoints-2d", "endpoints-2e", "endpoints-2f",
    "endpoints-30", "endpoints-31", "endpoints-32", "endpoints-33", "endpoints-34", "endpoints-35", "endpoints-36", "endpoints-37",
    "endpoints-38", "endpoints-39", "endpoints-3a", "endpoints-3b", "endpoints-3c", "endpoints-3d", "endpoints-3e", "endpoints-3f",
    "endpoints-40", "endpoints-41", "endpoints-42", "endpoints-43", "endpoints-44", "endpoints-45", "endpoints-46", "endpoints-47",
    "endpoints-48", "endpoints-49", "endpoints-4a", "endpoints-4b", "endpoints-4c", "endpoints-4d", "endpoints-4e", "endpoints-4f",
    "endpoints-50", "endpoints-51", "endpoints-52", "endpoints-53", "endpoints-54", "endpoints-55", "endpoints-56", "endpoints-57",
    "endpoints-58", "endpoints-59", "endpoints-5a", "endpoints-5b", "endpoints-5c", "endpoints-5d", "endpoints-5e", "endpoints-5f",
    "endpoints-60", "endpoints-61", "endpoints-62", "endpoints-63", "endpoints-64", "endpoints-65", "endpoints-66", "endpoints-67",
    "endpoints-68", "endpoints-69", "endpoints-6a", "endpoints-6b", "endpoints-6c", "endpoints-6d", "endpoints-6e", "endpoints-6f",
    "endpoints-70", "endpoints-71", "endpoints-72", "endpoints-73", "endpoints-74", "endpoints-75", "endpoints-76", "endpoints-77",
    "endpoints-78", "endpoints-79", "endpoints-7a", "endpoints-7b", "endpoints-7c", "endpoints-7d", "endpoints-7e", "endpoints-7f",
    "endpoints-80", "endpoints-81", "endpoints-82", "endpoints-83", "endpoints-84", "endpoints-85", "endpoints-86", "endpoints-87",
    "endpoints-88", "endpoints-89", "endpoints-8a", "endpoints-8b", "endpoints-8c", "endpoints-8d", "endpoints-8e", "endpoints-8f",
    "endpoints-90", "endpoints-91", "endpoints-92", "endpoints-93", "endpoints-94", "endpoints-95", "endpoints-96", "endpoints-97",
    "endpoints-98", "endpoints-99", "endpoints-9a", "endpoints-9b", "endpoints-9c", "endpoints-9d", "endpoints-9e", "endpoints-9f",
    "endpoints-a0", "endpoints-a1", "endpoints-a2", "endpoints-a3", "endpoints-a4", "endpoints-a5", "endpoints-a6", "endpoints-a7",
    "endpoints-a8", "endpoints-a9", "endpoints-aa", "endpoints-ab", "endpoints-ac", "endpoints-ad", "endpoints-ae", "endpoints-af",
    "endpoints-b0", "endpoints-b1", "endpoints-b2", "endpoints-b3", "endpoints-b4", "endpoints-b5", "endpoints-b6", "endpoints-b7",
    "endpoints-b8", "endpoints-b9", "endpoints-ba", "endpoints-bb", "endpoints-bc", "endpoints-bd", "endpoints-be", "endpoints-bf",
    "endpoints-c0", "endpoints-c1", "endpoints-c2", "endpoints-c3", "endpoints-c4", "endpoints-c5", "endpoints-c6", "endpoints-c7",
    "endpoints-c8", "endpoints-c9", "endpoints-ca", "endpoints-cb", "endpoints-cc", "endpoints-cd", "endpoints-ce", "endpoints-cf",
    "endpoints-d0", "endpoints-d1", "endpoints-d2", "endpoints-d3", "endpoints-d4", "endpoints-d5", "endpoints-d6", "endpoints-d7",
    "endpoints-d8", "endpoints-d9", "endpoints-da", "endpoints-db", "endpoints-dc", "endpoints-dd", "endpoints-de", "endpoints-df",
    "endpoints-e0", "endpoints-e1", "endpoints-e2", "endpoints-e3", "endpoints-e4", "endpoints-e5", "endpoints-e6", "endpoints-e7",
    "endpoints-e8", "endpoints-e9", "endpoints-ea", "endpoints-eb", "endpoints-ec", "endpoints-ed", "endpoints-ee", "endpoints-ef",
    "endpoints-f0", "endpoints-f1", "endpoints-f2", "endpoints-f3", "endpoints-f4", "endpoints-f5", "endpoints-f6", "endpoints-f7",
    "endpoints-f8", "endpoints-f9", "endpoints-fa", "endpoints-fb", "endpoints-fc", "endpoints-fd", "endpoints-fe", "endpoints-ff",
];
/// Before translation, which would hide the load balancer's address.
const BEFORE_TRANSLATION: i32 = -110;

fn base(r: &mut Ruleset, chain: &str, kind: ChainKind, hook: Hook, priority: i32) {
    r.chains.entry(chain.to_string()).or_default().base = Some(Base { kind, hook, priority });
}

/// The maps and sets that services share, and the ranges in which their addresses are.
pub const SHARED: [&str; 8] = [
    SERVICE_IPS,
    NODE_PORTS,
    NO_ENDPOINTS,
    NO_ENDPOINT_NODE_PORTS,
    CLUSTER_IPS,
    FIREWALL_IPS,
    HAIRPIN,
    RANGES,
];

/// What one of them is, or one of [`ENDPOINTS`].
pub fn shared_set(name: &str, family: Family) -> Set {
    use KeyType::{Port, Proto};
    let address = family.address();
    if name.starts_with("endpoints-") {
        let target = DataType::Concat(vec![address, Port]);
        let mut set = plain(name, vec![KeyType::Share], Some(target));
        set.intervals = true;
        return set;
    }
    let (key, verdicts) = match name {
        NODE_PORTS | NO_ENDPOINT_NODE_PORTS => (vec![Proto, Port], true),
        CLUSTER_IPS | RANGES => (vec![address], false),
        HAIRPIN => (vec![address, address, Proto, Port], false),
        _ => (vec![address, Proto, Port], true),
    };
    let mut set = plain(name, key, verdicts.then_some(DataType::Verdict));
    set.intervals = name == RANGES;
    set
}

/// What stands whatever services there are.
pub fn skeleton(cluster_cidr: IpNet) -> Ruleset {
    let mut skeleton = Ruleset::default();
    let r = &mut skeleton;
    let family = Family::of(cluster_cidr.addr());
    for name in SHARED.into_iter().chain(ENDPOINTS) {
        r.sets.insert(name.into(), SetState::empty(shared_set(name, family)));
    }
    let by_ip = vec![daddr(family), Load::L4Proto, Load::DestinationPort];
    let by_port = vec![Load::L4Proto, Load::DestinationPort];
    let (loopback, loopback_prefix) = match family {
        Family::Ip6 => (IpAddr::from(Ipv6Addr::LOCALHOST), 128),
        _ => (Ipv4Addr::LOCALHOST.into(), 8),
    };
    let not_loopback = || Expr::MatchPrefix {
        load: daddr(family),
        cmp: Cmp::Neq,
        addr: loopback,
        prefix: loopback_prefix,
    };
    // Who isn't a pod may be answered past this node.
    rule(
        r,
        "services",
        vec![
            cluster_ip(family),
            Expr::MatchPrefix {
                load: saddr(family),
                cmp: Cmp::Neq,
                addr: cluster_cidr.network(),
                prefix: cluster_cidr.prefix_len(),
            },
            jump("masquerade"),
        ],
    );
    rule(
        r,
        "services",
        vec![Expr::LookupVerdict {
            load: by_ip.clone(),
            map: SERVICE_IPS.into(),
        }],
    );
    rule(
        r,
        "services",
        vec![
            Expr::DestinationLocal(Cmp::Eq),
            not_loopback(),
            Expr::LookupVerdict {
                load: by_port.clone(),
                map: NODE_PORTS.into(),
            },
        ],
    );
    for (chain, hook) in [
        ("firewall-prerouting", Hook::Prerouting),
        ("firewall-output", Hook::Output),
    ] {
        base(r, chain, ChainKind::Filter, hook, BEFORE_TRANSLATION);
        let look_up = Expr::LookupVerdict {
            load: by_ip.clone(),
            map: FIREWALL_IPS.into(),
        };
        rule(r, chain, vec![Expr::StateNew, look_up]);
    }
    rule(
        r,
        "endpoint-check",
        vec![Expr::LookupVerdict {
            load: by_ip,
            map: NO_ENDPOINTS.into(),
        }],
    );
    rule(
        r,
        "nodeport-check",
        vec![
            Expr::DestinationLocal(Cmp::Eq),
            not_loopback(),
            Expr::LookupVerdict {
                load: by_port,
                map: NO_ENDPOINT_NODE_PORTS.into(),
            },
        ],
    );
    rule(r, "reject", vec![Expr::Reject { tcp_reset: false }]);
    rule(r, "drop", vec![Expr::Verdict(Verdict::Drop)]);
    rule(r, "masquerade", vec![Expr::MarkOr(MASQUERADE)]);

    for (chain, hook) in [
        ("filter-input", Hook::Input),
        ("filter-forward", Hook::Forward),
        ("filter-output", Hook::Output),
    ] {
        // After translation: what still has its service's address found no endpoint. A client of this node may have been
        // sent on where others are dropped. And before `cluster-ips`, which would refuse what is to be dropped.
        base(r, chain, ChainKind::Filter, hook, -10);
        rule(r, chain, vec![Expr::StateNew, jump("endpoint-check")]);
        // What this node sends to its own ports comes in again by the loopback.
        if hook == Hook::Input {
            rule(r, chain, vec![Expr::StateNew, jump("nodeport-check")]);
        }
    }
    for (chain, hook) in [
        ("cluster-ips-forward", Hook::Forward),
        ("cluster-ips-output", Hook::Output),
    ] {
        // After translation: what still goes to a service's address goes to a port that it doesn't have, and what goes to no
        // service's address but into their range would leave the cluster.
        base(r, chain, ChainKind::Filter, hook, 0);
        rule(
            r,
            chain,
            vec![Expr::StateNew, cluster_ip(family), Expr::Reject { tcp_reset: false }],
        );
        let unused = Expr::InSet {
            load: vec![daddr(family)],
            set: RANGES.into(),
            negate: false,
        };
        rule(r, chain, vec![Expr::StateNew, unused, Expr::Verdict(Verdict::Drop)]);
    }
    base(r, "nat-prerouting", ChainKind::Nat, Hook::Prerouting, -100);
    rule(r, "nat-prerouting", vec![jump("services")]);
    base(r, "nat-output", ChainKind::Nat, Hook::Output, -100);
    rule(r, "nat-output", vec![jump("services")]);
    base(r, "nat-postrouting", ChainKind::Nat, Hook::Postrouting, 100);
    rule(
        r,
        "nat-postrouting",
        vec![
            Expr::MarkIs {
                mask: MASQUERADE,
                cmp: Cmp::Neq,
                value: 0,
            },
            Expr::MarkXor(MASQUERADE),
            Expr::Masquerade,
        ],
    );
    // A pod that reaches itself through its service must get the answer by way of the node.
    rule(
        r,
        "nat-postrouting",
        vec![
            Expr::Dnatted,
            Expr::InSet {
                load: vec![saddr(family), daddr(family), Load::L4Proto, Load::DestinationPort],
                set: HAIRPIN.into(),
                negate: false,
            },
            Expr::Masquerade,
        ],
    );
    skeleton
}

fn cluster_ip(family: Family) -> Expr {
    Expr::InSet {
        load: vec![daddr(family)],
        set: CLUSTER_IPS.into(),
        negate: false,
    }
}
