//! What a pod may not do to its node and its neighbours, as rules of the network's table, before anything else looks at a
//! packet: send with another's address (a policy or a service trusts the source), or to the host's loopback (which links
//! with host ports would take: CVE-2020-8558). Router advertisements (CVE-2020-10749) are the links' own matter.

use crate::ports::LINK_PREFIX;
use keelson_sys::nft::{Base, ChainKind, Cmp, Datum, Element, Expr, Family, Hook, KeyType, Load, Op, Set, Verdict};
use std::net::Ipv4Addr;

/// Pairs of a link and the address that may come by it.
const SOURCES: &str = "sources";

/// Before connection tracking, which should not hear of what is dropped here.
const RAW: i32 = -300;

pub fn initial() -> Vec<Op> {
    let from_pod = || Expr::InputName {
        cmp: Cmp::Eq,
        prefix: LINK_PREFIX.into(),
    };
    let drop = || Expr::Verdict(Verdict::Drop);
    let rule = |exprs| Op::AddRule {
        chain: "guard".into(),
        exprs,
    };
    vec![
        Op::AddSet(Set {
            name: SOURCES.into(),
            key: vec![KeyType::Interface, KeyType::Ipv4],
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
                load: Load::DestinationAddr(Family::Ip),
                cmp: Cmp::Eq,
                addr: Ipv4Addr::LOCALHOST.into(),
                prefix: 8,
            },
            drop(),
        ]),
        rule(vec![
            from_pod(),
            Expr::InSet {
                load: vec![Load::InputInterface, Load::SourceAddr(Family::Ip)],
                set: SOURCES.into(),
                negate: true,
            },
            drop(),
        ]),
    ]
}

fn element(link: &str, pod: Ipv4Addr) -> Element {
    Element::of(vec![Datum::Interface(link.into()), Datum::Addr(pod.into())])
}

pub fn admit(link: &str, pod: Ipv4Addr) -> Op {
    Op::AddElement {
        set: SOURCES.into(),
        element: element(link, pod),
    }
}

pub fn dismiss(link: &str, pod: Ipv4Addr) -> Op {
    Op::DeleteElement {
        set: SOURCES.into(),
        element: element(link, pod),
    }
}
