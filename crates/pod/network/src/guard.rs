//! What a pod may not do to its node and its neighbours, as rules of the network's table, before anything else looks at a
//! packet: send with another's address (a policy or a service trusts the source), or to the host's loopback (which links
//! with host ports would take: CVE-2020-8558). By IPv6, whose neighbours find each other by messages, it may speak of itself only:
//! what comes from its link's own address is for that, and router advertisements and redirects (CVE-2020-10749) are dropped.
//! Where pods have no addresses of IPv4, nothing comes by it.

use crate::ports::LINK_PREFIX;
use keelson_sys::nft::{Base, ChainKind, Cmp, Datum, Element, Expr, Family, Hook, KeyType, Load, Op, Set, Verdict};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Pairs of a link and the address that may come by it.
const SOURCES: &str = "sources";

/// Before connection tracking, which should not hear of what is dropped here.
const RAW: i32 = -300;

/// Messages of ICMPv6: who a neighbour is, asked and answered; what only routers say.
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

pub fn initial(family: Family) -> Vec<Op> {
    let from_pod = || Expr::InputName {
        cmp: Cmp::Eq,
        prefix: LINK_PREFIX.into(),
    };
    let drop = || Expr::Verdict(Verdict::Drop);
    let rule = |exprs| Op::AddRule {
        chain: "guard".into(),
        exprs,
    };
    let (loopback, prefix) = match family {
        Family::Ip6 => (IpAddr::from(Ipv6Addr::LOCALHOST), 128),
        _ => (Ipv4Addr::LOCALHOST.into(), 8),
    };
    let mut ops = vec![
        Op::AddSet(Set {
            name: SOURCES.into(),
            key: vec![KeyType::Interface, family.address()],
            data: None,
            intervals: false,
            dynamic_timeout_ms: None,
        }),
        Op::AddChain {
            name: "guard".into(),
            base: Some(Base {
                kind: ChainKind::Filter,
                hook: Hook::Prerouting,
                priority: RAW,
            }),
        },
        rule(vec![
            from_pod(),
            Expr::MatchPrefix {
                load: Load::DestinationAddr(family),
                cmp: Cmp::Eq,
                addr: loopback,
                prefix,
            },
            drop(),
        ]),
    ];
    if family == Family::Ip6 {
        let icmp = |kind: u8| {
            let is = |load, value| Expr::Match {
                load,
                cmp: Cmp::Eq,
                value: Datum::Proto(value),
            };
            [from_pod(), is(Load::L4Proto, ICMPV6), is(Load::IcmpType, kind)]
        };
        let from = |addr: Ipv6Addr, prefix| Expr::MatchPrefix {
            load: Load::SourceAddr(family),
            cmp: Cmp::Eq,
            addr: addr.into(),
            prefix,
        };
        for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
            ops.push(rule(icmp(kind).into_iter().chain([drop()]).collect()));
        }
        for kind in [SOLICITATION, ADVERTISEMENT] {
            // The link's own address, and none: of one who looks whether an address is free.
            for (addr, prefix) in [
                (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
                (Ipv6Addr::UNSPECIFIED, 128),
            ] {
                let exprs = icmp(kind)
                    .into_iter()
                    .chain([from(addr, prefix), Expr::Verdict(Verdict::Accept)]);
                ops.push(rule(exprs.collect()));
            }
        }
    }
    ops.extend([rule(vec![
        from_pod(),
        Expr::InSet {
            load: vec![Load::InputInterface, Load::SourceAddr(family)],
            set: SOURCES.into(),
            negate: true,
        },
        drop(),
    ])]);
    ops
}

fn element(link: &str, pod: IpAddr) -> Element {
    Element::of(vec![Datum::Interface(link.into()), Datum::Addr(pod)])
}

pub fn admit(link: &str, pod: IpAddr) -> Op {
    Op::AddElement {
        set: SOURCES.into(),
        element: element(link, pod),
    }
}

pub fn dismiss(link: &str, pod: IpAddr) -> Op {
    Op::DeleteElement {
        set: SOURCES.into(),
        element: element(link, pod),
    }
}
