//! Host ports and masquerading, as one nftables table of fixed rules whose maps hold the changing facts.

use crate::PortMapping;
use ipnet::IpNet;
use keelson_sys::nft::{
    Base, ChainKind, Cmp, DataType, Datum, Element, ElementData, Expr, Family, Hook, KeyType, Load, Nat, Op, Set,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TABLE: &str = "keelson-network";
/// Every host end of a pod link is named so.
pub const LINK_PREFIX: &str = "kls";

const ANY: &str = "hostports";
const BY_ADDRESS: &str = "hostports-by-address";

/// The table from nothing: what must hold whatever pods there are, and the mappings of the pods that live.
pub fn initial(cluster_cidr: IpNet, mappings: &[(IpAddr, Vec<PortMapping>)]) -> Vec<Op> {
    let family = Family::of(cluster_cidr.addr());
    let (loopback, loopback_prefix) = match family {
        Family::Ip6 => (IpAddr::from(Ipv6Addr::LOCALHOST), 128),
        _ => (Ipv4Addr::LOCALHOST.into(), 8),
    };
    let target = || Some(DataType::Concat(vec![family.address(), KeyType::Port]));
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
        exprs: [
            Some(Expr::DestinationLocal(Cmp::Eq)),
            // There is no way from ::1 to a pod: the kernel lets it leave by no link.
            (family == Family::Ip6).then_some(Expr::MatchPrefix {
                load: Load::DestinationAddr(family),
                cmp: Cmp::Neq,
                addr: loopback,
                prefix: loopback_prefix,
            }),
            Some(Expr::Verdict(keelson_sys::nft::Verdict::Jump("hostports".into()))),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    let proto_port = vec![Load::L4Proto, Load::DestinationPort];
    let mut addr_proto_port = vec![Load::DestinationAddr(family)];
    addr_proto_port.extend(&proto_port);
    let map = |load: Vec<Load>, map: &str| Op::AddRule {
        chain: "hostports".into(),
        exprs: vec![Expr::Dnat(Nat::Map {
            family,
            load,
            map: map.into(),
        })],
    };
    let range = |load, cmp| Expr::MatchPrefix {
        load,
        cmp,
        addr: cluster_cidr.network(),
        prefix: cluster_cidr.prefix_len(),
    };
    let mut ops = vec![
        Op::AddTable,
        Op::DeleteTable,
        Op::AddTable,
        set(ANY, vec![KeyType::Proto, KeyType::Port]),
        set(BY_ADDRESS, vec![family.address(), KeyType::Proto, KeyType::Port]),
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
                    load: Load::SourceAddr(family),
                    cmp: Cmp::Eq,
                    addr: loopback,
                    prefix: loopback_prefix,
                },
                Expr::Masquerade,
            ],
        },
        Op::AddSet(Set {
            name: "hairpin".into(),
            key: vec![family.address(), family.address()],
            data: None,
            intervals: false,
            dynamic_timeout_ms: None,
        }),
        Op::AddRule {
            chain: "postrouting".into(),
            exprs: vec![
                Expr::Dnatted,
                Expr::InSet {
                    load: vec![Load::SourceAddr(family), Load::DestinationAddr(family)],
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
                range(Load::SourceAddr(family), Cmp::Eq),
                range(Load::DestinationAddr(family), Cmp::Neq),
                Expr::OutputName {
                    cmp: Cmp::Neq,
                    prefix: LINK_PREFIX.into(),
                },
                Expr::Masquerade,
            ],
        },
    ];
    let of_family = mappings.iter().filter(|(ip, _)| Family::of(*ip) == family);
    ops.extend(of_family.flat_map(|(ip, m)| add(*ip, m)));
    ops
}

fn hairpin(pod: IpAddr) -> Element {
    Element::of(vec![Datum::Addr(pod), Datum::Addr(pod)])
}

fn element(pod: IpAddr, m: &PortMapping) -> (&'static str, Element) {
    let mut key = vec![Datum::Proto(m.protocol.number()), Datum::Port(m.host_port)];
    let set = match m.host_ip {
        Some(ip) if !ip.is_unspecified() => {
            key.insert(0, Datum::Addr(ip));
            BY_ADDRESS
        }
        _ => ANY,
    };
    let data = Some(ElementData::Concat(vec![
        Datum::Addr(pod),
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
pub fn add(pod: IpAddr, mappings: &[PortMapping]) -> Vec<Op> {
    let mappings: Vec<&PortMapping> = mappings.iter().filter(|m| applies(m, pod)).collect();
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
pub fn remove(pod: IpAddr, mappings: &[PortMapping]) -> Vec<Op> {
    let mappings: Vec<&PortMapping> = mappings.iter().filter(|m| applies(m, pod)).collect();
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

/// Whether a mapping is for a pod's address of this family: a port of one address is not to be open on those of the other,
/// and `0.0.0.0` and `::` are all of their own family, as for the plug-in `portmap`.
pub fn applies(m: &PortMapping, pod: IpAddr) -> bool {
    let of_family = |ip: IpAddr| ip.is_ipv4() == pod.is_ipv4();
    m.host_port != 0 && m.host_ip.is_none_or(of_family)
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
        let (four, six) = ("10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap());
        for (ip, for_four, for_six) in [
            (None, true, true),
            (Some("::"), false, true),
            (Some("0.0.0.0"), true, false),
            (Some("2001:db8::1"), false, true),
            (Some("10.0.0.1"), true, false),
        ] {
            let m = m(Protocol::Tcp, ip);
            assert_eq!((applies(&m, four), applies(&m, six)), (for_four, for_six), "{ip:?}");
        }
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
