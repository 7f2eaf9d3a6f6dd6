//! Flows of UDP services that lead to where nothing serves any more.
//!
//! Connection tracking keeps sending a flow where its first packet went, whatever the rules say now. TCP notices and
//! connects anew; a UDP client that goes on sending keeps its flow alive for ever: to an endpoint that is gone, or past the
//! service when it sent before there was an endpoint. Such flows are taken out of the kernel's table, and the next packet
//! goes by the rules.
//!
//! What is stale is a pure decision, [`Frontends::stale`]; [`keelson_sys::conntrack`] reads and deletes.

use crate::model::ServicePort;
use keelson_client::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use keelson_sys::conntrack::{Flow, UDP};

type Target = (IpAddr, u16);

/// By identity, what serves at a place. Of several services that claim one place the first has it, as in the rules.
type Claims = BTreeMap<String, Arc<BTreeSet<Target>>>;

/// Where UDP services are reached, and what serves there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    addresses: BTreeMap<Target, Claims>,
    /// By family too: IPv4, or not.
    node_ports: BTreeMap<(bool, u16), Claims>,
    services: BTreeMap<ObjectKey, Vec<Claim>>,
}

/// What one port of a service claims.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    identity: String,
    addresses: BTreeSet<Target>,
    node_port: Option<(bool, u16)>,
    serving: Arc<BTreeSet<Target>>,
}

impl Claim {
    fn of(s: &ServicePort) -> Claim {
        Claim {
            identity: s.identity.clone(),
            addresses: s
                .external_ips
                .iter()
                .chain([&s.cluster_ip])
                .map(|ip| (*ip, s.port))
                .collect(),
            // A node port is known by its number only, which flows to elsewhere have too: without an endpoint there is
            // nothing to tell them apart from, so they are left alone.
            node_port: s
                .node_port
                .filter(|_| !s.serving.is_empty())
                .map(|port| (s.cluster_ip.is_ipv4(), port)),
            serving: Arc::new(s.serving.clone()),
        }
    }
}

impl Frontends {
    /// The service as it is now; whether the table of flows must be read for that.
    pub fn set(&mut self, service: &ObjectKey, facts: &[ServicePort]) -> bool {
        let new: Vec<Claim> = facts.iter().filter(|s| s.protocol == UDP).map(Claim::of).collect();
        let old = self.services.remove(service).unwrap_or_default();
        let changed = old != new;
        for claim in old {
            claim
                .addresses
                .iter()
                .for_each(|at| give_up(&mut self.addresses, at, &claim.identity));
            claim
                .node_port
                .iter()
                .for_each(|at| give_up(&mut self.node_ports, at, &claim.identity));
        }
        for claim in &new {
            let claimed = || (claim.identity.clone(), claim.serving.clone());
            for at in &claim.addresses {
                self.addresses.entry(*at).or_default().extend([claimed()]);
            }
            if let Some(port) = claim.node_port {
                self.node_ports.entry(port).or_default().extend([claimed()]);
            }
        }
        if !new.is_empty() {
            self.services.insert(service.clone(), new);
        }
        changed
    }

    /// Whether `flow` goes to one of these, and on to what doesn't serve it. Policies and readiness don't count: they choose
    /// for new flows only, as they do for TCP.
    pub fn stale(&self, flow: &Flow) -> bool {
        let serving = || {
            let by_address = self.addresses.get(&flow.destination);
            let claims =
                by_address.or_else(|| self.node_ports.get(&(flow.destination.0.is_ipv4(), flow.destination.1)));
            claims.and_then(|c| c.first_key_value()).map(|(_, serving)| serving)
        };
        flow.protocol == UDP && serving().is_some_and(|s| !s.contains(&flow.answers_from))
    }
}

fn give_up<K: Ord>(places: &mut BTreeMap<K, Claims>, at: &K, identity: &str) {
    if let Some(claims) = places.get_mut(at) {
        claims.remove(identity);
        if claims.is_empty() {
            places.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Target {
        let address: std::net::SocketAddr = text.parse().unwrap();
        (address.ip(), address.port())
    }

    fn dns(serving: &[&str]) -> ServicePort {
        ServicePort {
            protocol: UDP,
            port: 53,
            external_ips: vec!["192.0.2.1".parse().unwrap()],
            node_port: Some(30053),
            serving: serving.iter().map(|s| at(s)).collect(),
            ..ServicePort::at("kube-system/kube-dns/dns/udp", "10.96.0.10".parse().unwrap())
        }
    }

    fn frontends(facts: &[ServicePort]) -> Frontends {
        let mut frontends = Frontends::default();
        frontends.set(&ObjectKey::new("kube-system", "kube-dns"), facts);
        frontends
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
        let now = frontends(&[dns(&["10.244.0.5:53", "10.244.0.6:53"])]);
        for frontend in ["10.96.0.10:53", "192.0.2.1:53", "172.16.0.1:30053"] {
            assert!(!now.stale(&flow(frontend, "10.244.0.5:53")), "{frontend}");
            assert!(now.stale(&flow(frontend, "10.244.0.7:53")), "{frontend}: gone");
            assert!(now.stale(&flow(frontend, "10.244.0.5:54")), "{frontend}: other port");
            assert!(now.stale(&flow(frontend, frontend)), "{frontend}: never translated");
        }
    }

    #[test]
    fn flows_that_are_no_services_are_left_alone() {
        let now = frontends(&[dns(&["10.244.0.5:53"])]);
        assert!(!now.stale(&flow("10.96.0.10:54", "10.244.0.7:53")));
        assert!(!now.stale(&flow("192.0.2.2:53", "192.0.2.2:53")));
        let mut tcp = flow("10.96.0.10:53", "10.244.0.7:53");
        tcp.protocol = 6;
        assert!(!now.stale(&tcp));
    }

    #[test]
    fn without_endpoints_only_the_service_s_own_addresses_are_certain() {
        let now = frontends(&[dns(&[])]);
        assert!(now.stale(&flow("10.96.0.10:53", "10.244.0.5:53")));
        assert!(!now.stale(&flow("198.51.100.1:30053", "198.51.100.1:30053")));
    }

    #[test]
    fn only_a_change_of_udp_endpoints_asks_for_the_table() {
        let service = ObjectKey::new("kube-system", "kube-dns");
        let mut now = Frontends::default();
        assert!(
            now.set(&service, &[dns(&["10.244.0.5:53"])]),
            "a restart may have missed a change"
        );
        assert!(!now.set(&service, &[dns(&["10.244.0.5:53"])]));
        assert!(now.set(&service, &[dns(&[])]), "the last one went");
        assert!(now.set(&service, &[dns(&["10.244.0.5:53"])]), "the first one came");
        let mut tcp = dns(&["10.244.0.5:53"]);
        tcp.protocol = 6;
        assert!(!Frontends::default().set(&service, &[tcp]));
        assert!(now.set(&service, &[]));
        assert_eq!(now, Frontends::default(), "nothing stays");
    }

    #[test]
    fn of_two_claims_to_an_address_the_first_counts_until_it_goes() {
        let first = ObjectKey::new("a", "a");
        let mut now = frontends(&[dns(&["10.244.0.5:53"])]);
        let mut other = dns(&["10.244.0.6:53"]);
        other.identity = "a/a/dns/udp".into();
        now.set(&first, &[other]);
        assert!(now.stale(&flow("192.0.2.1:53", "10.244.0.5:53")));
        now.set(&first, &[]);
        assert!(!now.stale(&flow("192.0.2.1:53", "10.244.0.5:53")));
    }
}
