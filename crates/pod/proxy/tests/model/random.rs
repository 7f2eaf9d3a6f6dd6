//! Random services, endpoints and packets, and the API objects that say the same.

use crate::interpret::{NODE, Packet, told, told_range};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_sys::nft::Family;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;

pub struct World {
    pub services: Vec<Service>,
}

pub struct Service {
    pub name: String,
    pub cluster_ip: Ipv4Addr,
    pub protocol: u8,
    pub port: u16,
    pub node_port: Option<u16>,
    pub external: Option<Ipv4Addr>,
    pub balancer: Option<Ipv4Addr>,
    pub ranges: Vec<Ipv4Net>,
    pub external_local: bool,
    pub internal_local: bool,
    pub sticky: bool,
    pub endpoints: Vec<Endpoint>,
}

pub struct Endpoint {
    pub ip: Ipv4Addr,
    pub here: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

/// A linear congruential generator: the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }
}

fn pod(n: u64, here: bool) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, if here { 3 } else { 4 }, 5 + n as u8)
}

fn endpoint(random: &mut Random, n: u64, hinted: u64) -> Endpoint {
    let here = random.chance(2);
    let (ready, serving, terminating) = random.pick(&[
        (true, true, false),
        (true, true, false),
        (false, true, true),
        (false, false, true),
        (false, false, false),
    ]);
    let mut hint = |own: &str, other: &str| vec![random.pick(&[own.to_string(), other.to_string()])];
    let zones = hint("west", "east");
    let nodes = hint("here", "there");
    Endpoint {
        ip: pod(n, here),
        here,
        ready,
        serving,
        terminating,
        zones: if hinted > 0 { zones } else { Vec::new() },
        nodes: if hinted > 1 { nodes } else { Vec::new() },
    }
}

pub fn world(random: &mut Random) -> World {
    let count = 1 + random.below(4);
    let services = (0..count).map(|n| {
        let hinted = random.below(3);
        let endpoints = (0..random.below(5)).map(|k| endpoint(random, k, hinted)).collect();
        let balancers = [None, Some(NODE[0]), Some(Ipv4Addr::new(203, 0, 113, 9))];
        Service {
            name: format!("web-{n}"),
            cluster_ip: Ipv4Addr::new(10, 96, 1, 1 + n as u8),
            protocol: random.pick(&[6, 17, 132]),
            port: 80 + n as u16,
            node_port: random.chance(2).then_some(30080 + n as u16),
            external: random.chance(3).then_some(Ipv4Addr::new(198, 51, 100, 1 + n as u8)),
            balancer: random.pick(&balancers),
            ranges: random.pick(&[
                vec![],
                vec!["203.0.113.0/24".parse().unwrap()],
                vec!["192.0.2.0/24".parse().unwrap()],
            ]),
            external_local: random.chance(2),
            internal_local: random.chance(3),
            sticky: random.chance(4),
            endpoints,
        }
    });
    World {
        services: services.collect(),
    }
}

pub fn packet(random: &mut Random, world: &World) -> Packet {
    let s = &world.services[random.below(world.services.len() as u64) as usize];
    let from_node = random.chance(4);
    let mut destinations = vec![
        s.cluster_ip,
        NODE[0],
        NODE[1],
        Ipv4Addr::new(10, 96, 77, 7),
        Ipv4Addr::new(8, 8, 8, 8),
    ];
    destinations.extend(s.external.into_iter().chain(s.balancer));
    let sources = [
        pod(random.below(5), true),
        pod(random.below(5), false),
        Ipv4Addr::new(192, 0, 2, 77),
        Ipv4Addr::new(203, 0, 113, 77),
    ];
    let ports = [s.port, s.port, s.node_port.unwrap_or(30079), 7];
    Packet {
        source: if from_node { NODE[0] } else { random.pick(&sources) },
        destination: random.pick(&destinations),
        protocol: if random.chance(8) { 6 } else { s.protocol },
        port: random.pick(&ports),
        from_node,
    }
}

impl Service {
    fn protocol_name(&self) -> &'static str {
        match self.protocol {
            6 => "TCP",
            17 => "UDP",
            _ => "SCTP",
        }
    }

    pub fn object(&self, family: Family) -> ApiService {
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let ingress: Vec<Value> = self
            .balancer
            .iter()
            .map(|ip| json!({"ip": told(*ip, family), "ipMode": "VIP"}))
            .collect();
        // A proxying balancer's address is not the proxy's matter.
        let ingress: Vec<Value> = ingress
            .into_iter()
            .chain([json!({"ip": "8.8.8.8", "ipMode": "Proxy"})])
            .collect();
        let ranges: Vec<String> = self.ranges.iter().map(|r| told_range(*r, family).to_string()).collect();
        let mut object = json!({
            "metadata": {"namespace": "shop", "name": self.name},
            "spec": {
                "type": "LoadBalancer", "clusterIP": told(self.cluster_ip, family),
                "loadBalancerSourceRanges": ranges,
                "externalTrafficPolicy": policy(self.external_local), "internalTrafficPolicy": policy(self.internal_local),
                "ports": [{"port": self.port, "protocol": self.protocol_name(), "nodePort": self.node_port}],
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        object["spec"]["externalIPs"] = json!(self.external.into_iter().map(|ip| told(ip, family)).collect::<Vec<_>>());
        if self.sticky {
            object["spec"]["sessionAffinity"] = json!("ClientIP");
        }
        serde_json::from_value(object).unwrap()
    }

    pub fn slice(&self, family: Family) -> Arc<EndpointSlice> {
        let names = |list: &[String]| list.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let one = |e: &Endpoint| {
            json!({
                "addresses": [told(e.ip, family)], "nodeName": if e.here { "here" } else { "there" },
                "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
                "hints": {"forZones": names(&e.zones), "forNodes": names(&e.nodes)},
            })
        };
        let endpoints: Vec<Value> = self.endpoints.iter().map(one).collect();
        let slice = json!({
            "metadata": {"namespace": "shop", "name": format!("{}-1", self.name)}, "addressType": if family == Family::Ip6 { "IPv6" } else { "IPv4" },
            "ports": [{"name": "", "port": 8080, "protocol": self.protocol_name()}], "endpoints": endpoints,
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    }
}
