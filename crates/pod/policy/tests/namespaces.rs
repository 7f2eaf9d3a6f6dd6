//! Policies between real pods: closed until judged, then as the policies say, for flows that stand too.
//! Needs root; every namespace is made here and dies with its thread.

#![allow(clippy::unwrap_used)]

use keelson_network::{Config, PodNetwork, PodNetworkRequest, Routed};
use keelson_policy::plan::{GROUP, LENGTH, Planner};
use keelson_policy::{cluster as tiers, facts};
use keelson_sys::nflog::Listener;
use keelson_sys::nft::{self, Family};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Namespace, block_on};

#[path = "../../network/tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

const PODS: [&str; 3] = ["client", "server", "other"];

struct Cluster {
    host: Namespace,
    pods: Vec<(Namespace, IpAddr)>,
    planner: Arc<Mutex<Planner>>,
}

impl Cluster {
    /// Tells the planner, and has the host's kernel follow.
    fn change(&self, change: impl FnOnce(&mut Planner) + Send + 'static) {
        let planner = self.planner.clone();
        self.host.run(move || {
            let mut planner = planner.lock().unwrap();
            change(&mut planner);
            nft::apply(Family::Ip, keelson_policy::TABLE, &planner.take()).unwrap();
        });
    }

    fn policy(&self, name: &str, spec: Option<serde_json::Value>) {
        let key = ("ns".to_string(), name.to_string());
        let policy = spec.map(|spec| {
            let object = json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
            facts::policy(&serde_json::from_value(object).unwrap()).unwrap()
        });
        self.change(move |planner| planner.set_policy(key, policy));
    }

    fn cluster_policy(&self, name: &'static str, spec: Option<serde_json::Value>) {
        let policy = spec.map(|spec| {
            let annotations = json!({"keelson.dev/log-denied": "true"});
            let object = json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec});
            tiers::policy(&serde_json::from_value(object).unwrap()).unwrap()
        });
        self.change(move |planner| planner.set_cluster_policy(name, policy));
    }

    fn tell_pods(&self) {
        for (i, name) in PODS.iter().enumerate() {
            let pod = facts::Pod {
                namespace: "ns".into(),
                labels: Some([("app".to_string(), name.to_string())].into()),
                addresses: vec![self.pods[i].1],
                ports: Vec::new(),
                local: true,
            };
            self.change(move |planner| planner.set_pod(("ns".into(), name.to_string(), String::new()), Some(pod)));
        }
    }

    /// Packets that a policy of the cluster has denied, by the kernel's count.
    fn denied_by(&self, policy: &'static str) -> u64 {
        let planner = self.planner.clone();
        self.host.run(move || {
            let counters = nft::counters(Family::Ip, keelson_policy::TABLE).unwrap();
            let mut planner = planner.lock().unwrap();
            let met = planner.met();
            let of = |name: &str| met.get(name).is_some_and(|m| m.policy == policy && m.action == "deny");
            counters.iter().filter(|c| of(&c.name)).map(|c| c.packets).sum()
        })
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.pods[from].0.ask(SocketAddr::new(self.pods[to].1, 80)).is_ok()
    }
}

fn cluster(dir: &std::path::Path) -> Cluster {
    let host = Namespace::new();
    let config = Config {
        state_dir: dir.to_path_buf(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
        mtu: 0,
    };
    let spaces: Vec<Namespace> = PODS.iter().map(|_| Namespace::new()).collect();
    let paths: Vec<_> = spaces.iter().map(|n| n.path.clone()).collect();
    let addresses = host.run(move || {
        keelson_policy::close([Family::Ip, Family::Ip6]).unwrap();
        keelson_policy::close([Family::Ip, Family::Ip6]).unwrap();
        block_on(async {
            let network = Routed::new(config).unwrap();
            let mut addresses = Vec::new();
            for (name, netns) in PODS.iter().zip(paths) {
                let request = PodNetworkRequest {
                    sandbox_id: format!("sandbox-{name}"),
                    namespace: "ns".into(),
                    name: name.to_string(),
                    netns,
                    ..PodNetworkRequest::default()
                };
                addresses.push(network.setup(&request).await.unwrap().ips[0]);
            }
            let known: Vec<String> = network
                .local_pods()
                .follow()
                .borrow()
                .values()
                .map(|p| p.name.clone())
                .collect();
            assert_eq!(known, ["client", "other", "server"]);
            addresses
        })
    });
    let pods: Vec<(Namespace, IpAddr)> = spaces.into_iter().zip(addresses).collect();
    pods.iter().for_each(|(space, _)| space.serve(80));
    let mut planner = Planner::new(Family::Ip);
    // What stands is the closed table, which is what a new planner has.
    planner.take();
    Cluster {
        host,
        pods,
        planner: Arc::new(Mutex::new(planner)),
    }
}

#[test]
fn pods_are_closed_until_judged_and_then_as_policies_say() {
    let dir = std::env::temp_dir().join(format!("keelson-policy-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let c = cluster(&dir);
    let (client, server, other) = (0, 1, 2);
    assert!(!c.reaches(client, server), "closed before anybody judged");
    let node = c.host.ask(SocketAddr::new(c.pods[server].1, 80));
    assert!(node.is_ok(), "the node reaches its pods even so: {node:?}");
    c.tell_pods();
    assert!(
        c.reaches(client, server) && c.reaches(other, server),
        "no policy, no limit"
    );

    c.policy(
        "deny",
        Some(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
    );
    assert!(!c.reaches(client, server) && !c.reaches(client, other));
    assert!(
        c.host.ask(SocketAddr::new(c.pods[server].1, 80)).is_ok(),
        "probes go on"
    );
    assert!(c.reaches(server, server), "a pod reaches itself");
    c.policy(
        "in",
        Some(json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 80}]}]})),
    );
    assert!(!c.reaches(client, server), "the sender's side is still shut");
    c.policy(
        "out",
        Some(
            json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.9.0/24"]}}],
            "ports": [{"port": 70, "endPort": 90}]}]}),
        ),
    );
    assert!(c.reaches(client, server) && !c.reaches(client, other) && !c.reaches(other, server));

    // A connection that stands ends with what allowed it.
    let address = SocketAddr::new(c.pods[server].1, 85);
    c.policy(
        "in",
        Some(json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{}]})),
    );
    let listener = c.pods[server]
        .0
        .run(move || TcpListener::bind(("0.0.0.0", 85)).unwrap());
    let mut near = c.pods[client].0.run(move || TcpStream::connect(address).unwrap());
    let (mut far, _) = listener.accept().unwrap();
    near.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut byte = [0];
    near.write_all(b"x").unwrap();
    far.read_exact(&mut byte).unwrap();
    far.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    c.policy("in", None);
    near.write_all(b"y").unwrap();
    assert!(
        far.read_exact(&mut byte).is_err(),
        "what is sent after the policy went does not arrive"
    );
    c.policy("in", Some(json!({"podSelector": {}, "ingress": [{}]})));
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    far.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"y", "and does when it may again");

    for name in ["deny", "in", "out"] {
        c.policy(name, None);
    }
    assert!(c.reaches(other, client));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn rules_of_the_cluster_come_before_and_after_network_policies() {
    let dir = std::env::temp_dir().join(format!("keelson-tiers-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let c = cluster(&dir);
    c.tell_pods();
    let (client, server, other) = (0, 1, 2);
    let rule = |tier: &str, priority: u32, action: &str, app: &str| {
        Some(
            json!({"tier": tier, "priority": priority, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"pods": {"podSelector": {"matchLabels": {"app": app}}}}]}]}),
        )
    };
    let told = c.host.run(|| {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            block_on(async {
                let listener = Listener::open(GROUP, LENGTH).unwrap();
                tell.send(None).unwrap();
                let packets = tokio::time::timeout(Duration::from_secs(10), listener.next()).await;
                tell.send(packets.unwrap().unwrap().into_iter().next()).unwrap();
            });
        });
        told
    });
    assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), None, "it listens");

    c.cluster_policy("guard", rule("Admin", 5, "Deny", "other"));
    c.policy("in", Some(json!({"podSelector": {}, "ingress": [{}]})));
    assert!(
        c.reaches(client, server) && !c.reaches(other, server),
        "a network policy can't lift it"
    );
    let packet = told.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    let way = (
        packet.source,
        packet.destination,
        packet.protocol,
        packet.ports.unwrap().1,
    );
    assert_eq!(way, (c.pods[other].1, c.pods[server].1, facts::TCP, 80));
    assert!(c.denied_by("guard") > 0);

    c.cluster_policy("before", rule("Admin", 1, "Pass", "other"));
    let denied = c.denied_by("guard");
    assert!(
        c.reaches(other, server),
        "it is passed on to network policies, which allow it"
    );
    assert_eq!(c.denied_by("guard"), denied);
    c.policy("in", None);
    c.cluster_policy("last", rule("Baseline", 1, "Deny", "other"));
    assert!(
        !c.reaches(other, server),
        "without network policies the last word is the baseline's"
    );
    assert!(c.reaches(client, server));
    c.policy("in", Some(json!({"podSelector": {}, "ingress": [{}]})));
    assert!(c.reaches(other, server), "which network policies override");
    c.cluster_policy(
        "out",
        Some(json!({"tier": "Admin", "priority": 0, "subject": {"namespaces": {}},
            "egress": [{"action": "Accept", "to": [{"networks": ["10.244.0.0/16"]}], "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]},
                {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]})),
    );
    c.policy("shut", Some(json!({"podSelector": {}, "policyTypes": ["Egress"]})));
    assert!(c.reaches(client, server), "accepted before network policies are asked");
    for name in ["guard", "before", "last", "out"] {
        c.cluster_policy(name, None);
    }
    assert!(!c.reaches(client, server), "their word again");
    std::fs::remove_dir_all(&dir).unwrap();
}
