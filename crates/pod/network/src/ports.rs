//! Host ports and masquerading, as one nftables table of fixed rules whose maps hold the changing facts.

use crate::PortMapping;
use ipnet::Ipv4Net;
use keelson_sys::nft::{
    Base, ChainKind, Cmp, DataType, Datum, Element, ElementData, Expr, Family, Hook, KeyType, Load, Nat, Op, Set,
};
use std::net::{IpAddr, Ipv4Addr};

pub const TABLE: &str = "keelson-network";
/// Every host end of a pod link is named so.
pub const LINK_PREFIX: &str = "kls";

const ANY: &str = "hostports";
const BY_ADDRESS: &str = "hostports-by-address";

/// The table from nothing: what must hold whatever pods there are, and the mappings of the pods that live.
pub fn initial(cluster_cidr: Ipv4Net, mappings: &[(Ipv4Addr, Vec<PortMapping>)]) -> Vec<Op> {
    let target = || Some(DataType::Concat(vec![KeyType::Ipv4, KeyType::Port]));
    let set = |name: &str, key: Vec<KeyType>| {
        Op::AddSet(Set {
            name: name.into(),
            key,
            data: target(),
            intervals: false,
            dynamic_timeout_ms: None,
        })
    };
    let base = |name: &str, hook, priority| Op::AddChain {
        name: name.into(),
        base: Some(Base {
            kind: ChainKind::Nat,
            hook,
            priority,
        }),
    };
    let jump = |chain: &str| Op::AddRule {
        chain: chain.into(),
        exprs: vec![
            Expr::DestinationLocal(Cmp::Eq),
            Expr::Verdict(keelson_sys::nft::Verdict::Jump("hostports".into())),
        ],
    };
    let proto_port = vec![Load::L4Proto, Load::DestinationPort];
    let mut addr_proto_port = vec![Load::DestinationAddr(Family::Ip)];
    addr_proto_port.extend(&proto_port);
    let map = |load: Vec<Load>, map: &str| Op::AddRule {
        chain: "hostports".into(),
        exprs: vec![Expr::Dnat(Nat::Map {
            family: Family::Ip,
            load,
            map: map.into(),
        })],
    };
    let range = |load, cmp| Expr::MatchPrefix {
        load,
        cmp,
        addr: cluster_cidr.network().into(),
        prefix: cluster_cidr.prefix_len(),
    };
    let mut ops = vec![
        Op::AddTable,
        Op::DeleteTable,
        Op::AddTable,
        set(ANY, vec![KeyType::Proto, KeyType::Port]),
        set(BY_ADDRESS, vec![KeyType::Ipv4, KeyType::Proto, KeyType::Port]),
        Op::AddChain {
            name: "hostports".into(),
            base: None,
        },
        map(addr_proto_port, BY_ADDRESS),
        map(proto_port, ANY),
        // Before the service proxy: a host port wins over a node port.
        base("prerouting", Hook::Prerouting, -101),
        jump("prerouting"),
        base("output", Hook::Output, -101),
        jump("output"),
        base("postrouting", Hook::Postrouting, 99),
        // A pod that reaches itself by its own host port, and the host by loopback, need an answer by way of the host.
        Op::AddRule {
            chain: "postrouting".into(),
            exprs: vec![
                Expr::Dnatted,
                Expr::MatchPrefix {
                    load: Load::SourceAddr(Family::Ip),
                    cmp: Cmp::Eq,
                    addr: Ipv4Addr::LOCALHOST.into(),
                    prefix: 8,
                },
                Expr::Masquerade,
            ],
        },
        Op::AddSet(Set {
            name: "hairpin".into(),
            key: vec![KeyType::Ipv4, KeyType::Ipv4],
            data: None,
            intervals: false,
            dynamic_timeout_ms: None,
        }),
        Op::AddRule {
            chain: "postrouting".into(),
            exprs: vec![
                Expr::Dnatted,
                Expr::InSet {
                    load: vec![Load::SourceAddr(Family::Ip), Load::DestinationAddr(Family::Ip)],
                    set: "hairpin".into(),
                    negate: false,
                },
                Expr::Masquerade,
            ],
        },
        // Pods speak to the world with the node's address, to each other with their own.
        Op::AddRule {
            chain: "postrouting".into(),
            exprs: vec![
                range(Load::SourceAddr(Family::Ip), Cmp::Eq),
                range(Load::DestinationAddr(Family::Ip), Cmp::Neq),
                Expr::OutputName {
                    cmp: Cmp::Neq,
                    prefix: LINK_PREFIX.into(),
                },
                Expr::Masquerade,
            ],
        },
    ];
    ops.extend(mappings.iter().flat_map(|(ip, m)| add(*ip, m)));
    ops
}

fn hairpin(pod: Ipv4Addr) -> Element {
    Element::of(vec![Datum::Addr(pod.into()), Datum::Addr(pod.into())])
}

fn element(pod: Ipv4Addr, m: &PortMapping) -> (&'static str, Element) {
    let mut key = vec![Datum::Proto(m.protocol.number()), Datum::Port(m.host_port)];
    let set = match m.host_ip {
        Some(IpAddr::V4(ip)) if !ip.is_unspecified() => {
            key.insert(0, Datum::Addr(ip.into()));
            BY_ADDRESS
        }
        _ => ANY,
    };
    let data = Some(ElementData::Concat(vec![
        Datum::Addr(pod.into()),
        Datum::Port(m.container_port),
    ]));
    (
        set,
        Element {
            data,
            ..Element::of(key)
        },
    )
}

/// What one pod's host ports add.
pub fn add(pod: Ipv4Addr, mappings: &[PortMapping]) -> Vec<Op> {
    if mappings.is_empty() {
        return Vec::new();
    }
    let mut ops: Vec<Op> = mappings
        .iter()
        .map(|m| {
            let (set, element) = element(pod, m);
            Op::AddElement {
                set: set.into(),
                element,
            }
        })
        .collect();
    ops.push(Op::AddElement {
        set: "hairpin".into(),
        element: hairpin(pod),
    });
    ops
}

/// What one pod's host ports take back.
pub fn remove(pod: Ipv4Addr, mappings: &[PortMapping]) -> Vec<Op> {
    if mappings.is_empty() {
        return Vec::new();
    }
    let mut ops: Vec<Op> = mappings
        .iter()
        .map(|m| {
            let (set, element) = element(pod, m);
            Op::DeleteElement {
                set: set.into(),
                element: Element { data: None, ..element },
            }
        })
        .collect();
    ops.push(Op::DeleteElement {
        set: "hairpin".into(),
        element: hairpin(pod),
    });
    ops
}

/// Every rule is for IPv4: a port of one IPv6 address is not to be open on all others.
pub fn supported(m: &PortMapping) -> bool {
    m.host_port != 0 && m.host_ip.is_none_or(|ip| ip.is_ipv4() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    #[test]
    fn a_pods_host_ports_read_as_map_elements() {
        let m = |protocol, host_ip: Option<&str>| PortMapping {
            protocol,
            container_port: 80,
            host_port: 8080,
            host_ip: host_ip.map(|s| s.parse().unwrap()),
        };
        assert!(supported(&m(Protocol::Tcp, None)) && supported(&m(Protocol::Tcp, Some("::"))));
        assert!(!supported(&m(Protocol::Tcp, Some("2001:db8::1"))));
        let ops = add(
            "10.244.0.5".parse().unwrap(),
            &[m(Protocol::Tcp, None), m(Protocol::Udp, Some("10.0.0.1"))],
        );
        let text: Vec<String> = ops.iter().map(Op::to_string).collect();
        assert_eq!(
            text,
            [
                "add element hostports { tcp . 8080 : 10.244.0.5 . 80 }",
                "add element hostports-by-address { 10.0.0.1 . udp . 8080 : 10.244.0.5 . 80 }",
                "add element hairpin { 10.244.0.5 . 10.244.0.5 }",
            ]
        );
    }
}
