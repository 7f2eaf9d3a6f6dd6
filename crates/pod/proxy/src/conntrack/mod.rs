//! Flows of UDP services that lead to where nothing serves any more.
//!
//! Connection tracking keeps sending a flow where its first packet went, whatever the rules say now. TCP notices and
//! connects anew; a UDP client that goes on sending keeps its flow alive for ever: to an endpoint that is gone, or past the
//! service when it sent before there was an endpoint. Such flows are taken out of the kernel's table, and the next packet
//! goes by the rules.
//!
//! What is stale is a pure decision, [`Frontends::stale`]; [`table`] reads and deletes.

pub mod table;

use crate::model::ServicePort;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

pub const UDP: u8 = 17;

type Target = (Ipv4Addr, u16);

/// A flow as its first packet was sent, and who answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub protocol: u8,
    pub destination: Target,
    pub answers_from: Target,
}

/// Where UDP services are reached, and what serves there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    addresses: BTreeMap<Target, BTreeSet<Target>>,
    node_ports: BTreeMap<u16, BTreeSet<Target>>,
}

impl Frontends {
    pub fn of(facts: &[ServicePort]) -> Frontends {
        let mut found = Frontends::default();
        // Of two services that claim one address the first has it, as in the rules.
        for s in facts.iter().filter(|s| s.protocol == UDP) {
            for ip in s.external_ips.iter().chain([&s.cluster_ip]) {
                let at = (*ip, s.port);
                found.addresses.entry(at).or_insert_with(|| s.serving.clone());
            }
            // A node port is known by its number only, which flows to elsewhere have too: without an endpoint there is
            // nothing to tell them apart from, so they are left alone.
            if let Some(port) = s.node_port.filter(|_| !s.serving.is_empty()) {
                found.node_ports.entry(port).or_insert_with(|| s.serving.clone());
            }
        }
        found
    }

    /// Whether the table must be read: after a start, and when a frontend or what serves there changed.
    pub fn changed(&self, before: Option<&Frontends>) -> bool {
        before.unwrap_or(&Frontends::default()) != self
    }

    /// Whether `flow` goes to one of these, and on to what doesn't serve it. Policies and readiness don't count: they choose
    /// for new flows only, as they do for TCP.
    pub fn stale(&self, flow: &Flow) -> bool {
        let serving = || {
            let by_address = self.addresses.get(&flow.destination);
            by_address.or_else(|| self.node_ports.get(&flow.destination.1))
        };
        flow.protocol == UDP && serving().is_some_and(|s| !s.contains(&flow.answers_from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Target {
        let address: std::net::SocketAddrV4 = text.parse().unwrap();
        (*address.ip(), address.port())
    }

    fn dns(serving: &[&str]) -> ServicePort {
        ServicePort {
            identity: "kube-system/kube-dns/dns/udp".into(),
            protocol: UDP,
            port: 53,
            cluster_ip: "10.96.0.10".parse().unwrap(),
            external_ips: vec!["192.0.2.1".parse().unwrap()],
            balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            node_port: Some(30053),
            affinity: None,
            internal_local: false,
            external_local: false,
            health_port: None,
            endpoints: BTreeSet::new(),
            local_endpoints: BTreeSet::new(),
            serving: serving.iter().map(|s| at(s)).collect(),
        }
    }

    fn flow(destination: &str, answers_from: &str) -> Flow {
        Flow {
            protocol: UDP,
            destination: at(destination),
            answers_from: at(answers_from),
        }
    }

    #[test]
    fn flows_to_what_serves_no_more_are_stale() {
        let now = Frontends::of(&[dns(&["10.244.0.5:53", "10.244.0.6:53"])]);
        for frontend in ["10.96.0.10:53", "192.0.2.1:53", "172.16.0.1:30053"] {
            assert!(!now.stale(&flow(frontend, "10.244.0.5:53")), "{frontend}");
            assert!(now.stale(&flow(frontend, "10.244.0.7:53")), "{frontend}: gone");
            assert!(now.stale(&flow(frontend, "10.244.0.5:54")), "{frontend}: other port");
            assert!(now.stale(&flow(frontend, frontend)), "{frontend}: never translated");
        }
    }

    #[test]
    fn flows_that_are_no_services_are_left_alone() {
        let now = Frontends::of(&[dns(&["10.244.0.5:53"])]);
        assert!(!now.stale(&flow("10.96.0.10:54", "10.244.0.7:53")));
        assert!(!now.stale(&flow("192.0.2.2:53", "192.0.2.2:53")));
        let mut tcp = flow("10.96.0.10:53", "10.244.0.7:53");
        tcp.protocol = 6;
        assert!(!now.stale(&tcp));
    }

    #[test]
    fn without_endpoints_only_the_service_s_own_addresses_are_certain() {
        let now = Frontends::of(&[dns(&[])]);
        assert!(now.stale(&flow("10.96.0.10:53", "10.244.0.5:53")));
        assert!(!now.stale(&flow("198.51.100.1:30053", "198.51.100.1:30053")));
    }

    #[test]
    fn only_a_change_of_udp_endpoints_asks_for_the_table() {
        let one = Frontends::of(&[dns(&["10.244.0.5:53"])]);
        assert!(one.changed(None), "a restart may have missed a change");
        assert!(!one.changed(Some(&one)));
        assert!(Frontends::of(&[dns(&[])]).changed(Some(&one)), "the last one went");
        assert!(one.changed(Some(&Frontends::of(&[dns(&[])]))), "the first one came");
        let mut tcp = dns(&["10.244.0.5:53"]);
        tcp.protocol = 6;
        assert!(!Frontends::of(&[tcp]).changed(None));
    }
}
