//! Small worlds in which things often meet: few namespaces, labels, addresses and ports.

use crate::interpret::Packet;
use crate::{NODE, World, reference};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use keelson_client::cluster_policies::ClusterNetworkPolicy;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};

pub struct Random(u64);

const PORTS: [u16; 6] = [53, 80, 81, 90, 443, 8080];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const BLOCKS: [&str; 6] = [
    "0.0.0.0/0",
    "10.244.0.0/16",
    "10.244.0.0/29",
    "10.244.0.4/32",
    "192.0.2.0/24",
    "2001:db8::/32",
];

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493))
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn namespace(&mut self) -> String {
        format!("ns-{}", self.below(3))
    }

    fn labels(&mut self) -> Value {
        let mut labels = serde_json::Map::new();
        for key in ["app", "tier"] {
            if !self.one_in(3) {
                labels.insert(key.into(), self.of(&["a", "b", "c"]).into());
            }
        }
        labels.into()
    }

    pub fn namespace_object(&mut self, name: &str) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": self.labels()}})).unwrap()
    }

    /// The address is a function of the name: two pods of one name are the same address at different times.
    pub fn pod(&mut self, key: &(String, String)) -> Pod {
        let number = |s: &str| s.rsplit('-').next().unwrap().parse::<u8>().unwrap();
        let ip = Ipv4Addr::new(10, 244, 0, 2 + number(&key.0) * 6 + number(&key.1));
        let local = !self.one_in(3);
        self.pod_at(key, ip, local)
    }

    pub fn pod_at(&mut self, key: &(String, String), ip: Ipv4Addr, local: bool) -> Pod {
        let mut ports = Vec::new();
        for name in ["web", "dns"] {
            if !self.one_in(3) {
                ports.push(json!({"name": name, "containerPort": self.of(&PORTS), "protocol": self.of(&PROTOCOLS)}));
            }
        }
        let mut status = json!({"phase": if self.one_in(8) { "Succeeded" } else { "Running" }});
        if !self.one_in(6) {
            status["podIP"] = ip.to_string().into();
            status["podIPs"] = json!([{"ip": ip}]);
        }
        serde_json::from_value(json!({
            "metadata": {"namespace": key.0, "name": key.1, "uid": "u", "labels": self.labels()},
            "spec": {"nodeName": if local { NODE } else { "there" }, "hostNetwork": self.one_in(10),
                "containers": [{"name": "c", "ports": ports}]},
            "status": status,
        }))
        .unwrap()
    }

    fn selector(&mut self) -> Value {
        match self.below(7) {
            0 | 1 => json!({}),
            2 | 3 => json!({"matchLabels": {"app": self.of(&["a", "b", "c"])}}),
            4 => {
                json!({"matchExpressions": [{"key": "app", "operator": self.of(&["In", "NotIn"]), "values": ["a", "b"]}]})
            }
            5 => json!({"matchExpressions": [{"key": "tier", "operator": self.of(&["Exists", "DoesNotExist"])}]}),
            _ => json!({"matchLabels": {"tier": "a"}, "matchExpressions": [{"key": "app", "operator": "Exists"}]}),
        }
    }

    fn peer(&mut self) -> Value {
        match self.below(5) {
            0 => json!({"podSelector": self.selector()}),
            1 => json!({"namespaceSelector": self.selector()}),
            2 => json!({"namespaceSelector": self.selector(), "podSelector": self.selector()}),
            _ => match self.of(&BLOCKS) {
                "0.0.0.0/0" => json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.8/29", "192.0.2.0/25"]}}),
                "10.244.0.0/16" => {
                    json!({"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.0.0/30", "10.244.0.2/32"]}})
                }
                block => json!({"ipBlock": {"cidr": block}}),
            },
        }
    }

    fn port(&mut self) -> Value {
        let protocol = self.of(&PROTOCOLS);
        match self.below(6) {
            0 => json!({"protocol": protocol}),
            1 => json!({"protocol": protocol, "port": self.of(&["web", "dns"])}),
            2 => json!({"port": 80, "endPort": self.of(&[80, 85, 443])}),
            3 => json!({"protocol": protocol, "port": 0, "endPort": 65535}),
            _ => json!({"protocol": protocol, "port": self.of(&PORTS)}),
        }
    }

    fn rules(&mut self, peers: &str) -> Value {
        let count = self.below(3);
        (0..count)
            .map(|_| {
                let mut rule = json!({});
                let (n, m) = (self.below(3), self.below(4));
                if n > 0 {
                    rule[peers] = (0..n).map(|_| self.peer()).collect();
                }
                if m > 0 {
                    rule["ports"] = (0..m).map(|_| self.port()).collect();
                }
                rule
            })
            .collect()
    }

    pub fn policy(&mut self, key: &(String, String)) -> NetworkPolicy {
        let mut spec = json!({"podSelector": self.selector()});
        if !self.one_in(3) {
            spec["ingress"] = self.rules("from");
        }
        if !self.one_in(3) {
            spec["egress"] = self.rules("to");
        }
        match self.below(4) {
            0 => {}
            1 => spec["policyTypes"] = json!(["Ingress"]),
            2 => spec["policyTypes"] = json!(["Egress"]),
            _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
        }
        serde_json::from_value(json!({"metadata": {"namespace": key.0, "name": key.1}, "spec": spec})).unwrap()
    }

    pub fn node_object(&mut self, name: &str) -> Node {
        let address = |n: u64| json!({"type": "InternalIP", "address": format!("192.0.2.{n}")});
        let own: Vec<Value> = (0..self.below(3))
            .map(|_| address([7, 200][self.below(2) as usize]))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": name, "labels": self.labels()},
            "status": {"addresses": own}}))
        .unwrap()
    }

    fn cluster_peer(&mut self, of_target: bool) -> Value {
        let pods = || json!({});
        match self.below(if of_target { 12 } else { 6 }) {
            0..=2 => json!({"namespaces": self.selector()}),
            3..=5 => {
                let mut peer = json!({"pods": pods()});
                peer["pods"]["podSelector"] = self.selector();
                peer["pods"]["namespaceSelector"] = self.selector();
                peer
            }
            6 | 7 => json!({"nodes": self.selector()}),
            8..=10 => json!({"networks": [self.of(&BLOCKS), self.of(&BLOCKS)]}),
            _ => json!({"domainNames": ["a.example"]}),
        }
    }

    fn protocol(&mut self) -> Value {
        let kind = self.of(&["tcp", "udp", "sctp"]);
        match self.below(5) {
            0 => json!({"destinationNamedPort": self.of(&["web", "dns"])}),
            1 => json!({kind: {"destinationPort": {"range": {"start": 53, "end": self.of(&[80, 90, 443])}}}}),
            2 => json!({kind: {}}),
            _ => json!({kind: {"destinationPort": {"number": self.of(&PORTS)}}}),
        }
    }

    pub fn cluster_policy(&mut self, name: &str) -> ClusterNetworkPolicy {
        let rules = |random: &mut Random, peers: &str| -> Value {
            let count = random.below(4);
            (0..count)
                .map(|_| {
                    let mut rule = json!({"action": random.of(&["Accept", "Deny", "Pass"])});
                    rule[peers] = (0..=random.below(2))
                        .map(|_| random.cluster_peer(peers == "to"))
                        .collect();
                    if random.one_in(2) {
                        rule["protocols"] = (0..=random.below(2)).map(|_| random.protocol()).collect();
                    }
                    rule
                })
                .collect()
        };
        let mut spec = json!({"tier": self.of(&["Admin", "Baseline"]), "priority": self.below(3),
            "ingress": rules(self, "from"), "egress": rules(self, "to")});
        spec["subject"] = self.cluster_peer(false);
        let logged = self.of(&["true", "false"]);
        let meta = json!({"name": name, "annotations": {"keelson.dev/log-denied": logged}});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    pub fn packet(&mut self, world: &World) -> Packet {
        let end = |random: &mut Random| -> IpAddr {
            let living: Vec<IpAddr> = world.pods.values().filter_map(reference::address).collect();
            match random.below(8) {
                0 => [192, 0, 2, random.of(&[7, 200])].into(),
                1 => [10, 244, 0, random.below(24) as u8].into(),
                _ if living.is_empty() => [203, 0, 113, 1].into(),
                _ => random.of(&living),
            }
        };
        let (source, destination) = (end(self), end(self));
        let here = |ip: IpAddr| {
            let pod = world.pods.values().find(|p| reference::address(p) == Some(ip));
            pod.is_some_and(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some(NODE))
        };
        Packet {
            source,
            destination,
            protocol: self.of(&[6, 6, 17, 132, 1]),
            port: self.of(&PORTS),
            // Some come by a pod's link from an address that nobody knows (yet).
            from_link: here(source) || self.one_in(20),
            to_link: here(destination) || self.one_in(20),
            reply: self.one_in(15),
        }
    }
}
