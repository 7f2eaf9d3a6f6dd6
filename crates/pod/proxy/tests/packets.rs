//! Services with real packets: pods of one node, the node itself, and a client beside it on a link.
//! Needs root; every namespace is made here and dies with its thread.

#![allow(clippy::unwrap_used)]

use keelson_client::ObjectKey;
use keelson_network::{Config, PodNetwork, PodNetworkRequest, Routed};
use keelson_proxy::model::ServicePort;
use keelson_proxy::plan::Planner;
use keelson_sys::nft::{self, Family};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Namespace, block_on};

#[path = "../../network/tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

/// Connections of one test.
const MOST: usize = 20_000;

/// Who is where, in one family.
#[derive(Clone, Copy)]
struct Addresses {
    node: &'static str,
    client: &'static str,
    prefix: u8,
    cluster_ip: &'static str,
    pods: &'static str,
    pods_here: &'static str,
    services: &'static str,
    /// Ranges with the client, and without.
    near: &'static str,
    far: &'static str,
}

const FOUR: Addresses = Addresses {
    node: "192.0.2.1",
    client: "192.0.2.2",
    prefix: 24,
    cluster_ip: "10.96.1.1",
    pods: "10.244.0.0/16",
    pods_here: "10.244.3.0/24",
    services: "10.96.0.0/16",
    near: "192.0.2.0/24",
    far: "198.51.100.0/24",
};

const SIX: Addresses = Addresses {
    node: "2001:db8::1",
    client: "2001:db8::2",
    prefix: 64,
    cluster_ip: "fd00:96::101",
    pods: "fd00:244::/48",
    pods_here: "fd00:244:0:3::/64",
    services: "fd00:96::/112",
    near: "2001:db8::/64",
    far: "2001:db8:1::/64",
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn netlink<T>(job: impl AsyncFnOnce(rtnetlink::Handle) -> T) -> T {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    let result = job(handle).await;
    connection.abort();
    result
}

/// Gives the end of the cable its address.
fn plugged(space: &Namespace, address: IpAddr, prefix: u8, gateway: Option<IpAddr>) {
    space.run(move || {
        // Nobody else has it.
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").unwrap();
        block_on(netlink(async |h| {
            for (name, address) in [("lo", None), ("eth0", Some(address))] {
                let index = nix::net::if_::if_nametoindex(name).unwrap();
                if let Some(address) = address {
                    h.address().add(index, address, prefix).execute().await.unwrap();
                }
                let up = LinkUnspec::new_with_index(index).up().build();
                h.link().change(up).execute().await.unwrap();
            }
            if let Some(gateway) = gateway {
                let anywhere = if gateway.is_ipv4() { "0.0.0.0" } else { "::" };
                let route = RouteMessageBuilder::<IpAddr>::new()
                    .destination_prefix(ip(anywhere), 0)
                    .and_then(|route| route.gateway(gateway));
                h.route().add(route.unwrap().build()).execute().await.unwrap();
            }
        }));
    });
}

struct World {
    at: Addresses,
    node: Namespace,
    client: Namespace,
    pods: Vec<(Namespace, IpAddr)>,
    planner: Arc<Mutex<Planner>>,
}

impl World {
    fn new(dir: &std::path::Path, at: Addresses) -> World {
        let (node, client) = (Namespace::new(), Namespace::new());
        let far = client.path.clone();
        node.run(move || {
            block_on(netlink(async |h| {
                let far = std::fs::File::open(far).unwrap();
                let fd = std::os::fd::AsRawFd::as_raw_fd(&far);
                let peer = LinkUnspec::new_with_name("eth0").setns_by_fd(fd).build();
                let cable = LinkVeth::new("eth0", "eth0").set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
                h.link().add(cable.build()).execute().await.unwrap();
            }));
        });
        plugged(&node, ip(at.node), at.prefix, None);
        plugged(&client, ip(at.client), at.prefix, Some(ip(at.node)));
        let config = Config {
            state_dir: dir.to_path_buf(),
            cluster_cidrs: vec![at.pods.parse().unwrap()],
            pod_cidrs: vec![at.pods_here.parse().unwrap()],
            mtu: 0,
        };
        let spaces = [Namespace::new(), Namespace::new()];
        let paths = spaces.each_ref().map(|n| n.path.clone());
        let addresses = node.run(move || {
            block_on(async {
                let network = Routed::new(config).unwrap();
                network.ready().await.unwrap();
                let mut addresses = Vec::new();
                for (i, netns) in paths.into_iter().enumerate() {
                    let request = PodNetworkRequest {
                        sandbox_id: format!("sandbox-{i}"),
                        netns,
                        ..PodNetworkRequest::default()
                    };
                    addresses.push(network.setup(&request).await.unwrap().ips[0]);
                }
                addresses
            })
        });
        let pods: Vec<_> = spaces.into_iter().zip(addresses).collect();
        pods.iter().for_each(|(space, _)| space.serve_both(80));
        let mut planner = Planner::new(at.pods.parse().unwrap());
        planner.set_ranges([at.services.parse().unwrap()].into());
        let first = planner.take_whole();
        node.run(move || nft::apply(Family::of(ip(at.node)), keelson_proxy::TABLE, &first).unwrap());
        World {
            at,
            node,
            client,
            pods,
            planner: Arc::new(Mutex::new(planner)),
        }
    }

    /// A service on port 8000 of the node's address, whose endpoints are these pods.
    fn balanced(&self, pods: &[usize]) -> ServicePort {
        let targets: Vec<_> = pods.iter().map(|p| (self.pods[*p].1, 80)).collect();
        ServicePort {
            port: 8000,
            external_ips: vec![ip(self.at.node)],
            balancer_ips: vec![ip(self.at.node)],
            endpoints: targets.iter().copied().collect(),
            local_endpoints: targets.iter().copied().collect(),
            ..ServicePort::at("shop/web/http/tcp", ip(self.at.cluster_ip))
        }
    }

    fn serve(&self, facts: Vec<ServicePort>) {
        let (planner, family) = (self.planner.clone(), Family::of(ip(self.at.node)));
        self.node.run(move || {
            let mut planner = planner.lock().unwrap();
            planner.set(&ObjectKey::new("shop", "web"), facts);
            nft::apply(family, keelson_proxy::TABLE, &planner.take()).unwrap();
        });
    }
}

/// The same in both families.
fn world(name: &str, test: impl Fn(World)) {
    for at in [FOUR, SIX] {
        let dir = std::env::temp_dir().join(format!("keelson-{name}-{}-{}", at.prefix, std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        test(World::new(&dir, at));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn a_nodes_address_balances_for_everybody() {
    world("balancer", |w| {
        let at = (ip(w.at.node), 8000).into();
        assert!(w.client.ask(at).is_err(), "no service yet");
        w.serve(vec![w.balanced(&[0])]);
        let seen = w.client.ask(at).unwrap();
        assert_ne!(
            seen,
            w.at.client.to_string(),
            "sent on with the node's address, as it may go to another node"
        );
        assert!(w.node.ask(at).is_ok(), "the node itself");
        assert!(w.pods[1].0.ask(at).is_ok(), "another pod");
        assert!(w.pods[0].0.ask(at).is_ok(), "the endpoint itself");
        assert!(
            w.pods[0].0.ask((ip(w.at.cluster_ip), 8000).into()).is_ok(),
            "by the cluster IP too"
        );

        let mut local = w.balanced(&[0]);
        local.external_local = true;
        w.serve(vec![local.clone()]);
        assert_eq!(
            w.client.ask(at),
            Ok(w.at.client.to_string()),
            "the client's own address"
        );
        assert!(w.node.ask(at).is_ok() && w.pods[0].0.ask(at).is_ok() && w.pods[1].0.ask(at).is_ok());
        local.local_endpoints.clear();
        w.serve(vec![local]);
        assert!(w.client.ask(at).is_err(), "its endpoints are elsewhere");
        assert!(w.pods[1].0.ask(at).is_ok(), "who is inside isn't bound to local ones");

        let mut guarded = w.balanced(&[0]);
        guarded.source_ranges = vec![w.at.far.parse().unwrap()];
        w.serve(vec![guarded.clone()]);
        assert!(w.client.ask(at).is_err(), "not in the source ranges");
        guarded.source_ranges = vec![w.at.near.parse().unwrap()];
        w.serve(vec![guarded]);
        assert!(w.client.ask(at).is_ok() && w.node.ask(at).is_ok());
        w.serve(Vec::new());
        assert!(w.client.ask(at).is_err(), "the service is gone");
    });
}

#[test]
fn every_connection_finds_an_endpoint_as_they_come_and_go() {
    world("endpoints", |w| {
        let at = (ip(w.at.cluster_ip), 8000).into();
        for pods in [vec![0, 1], vec![1], vec![0], vec![0, 1]] {
            w.serve(vec![w.balanced(&pods)]);
            for n in 0..3 {
                assert!(w.client.ask(at).is_ok(), "{pods:?}, {n}");
            }
        }
        let mut half = w.balanced(&[0]);
        half.endpoints.insert((w.pods[0].1, 81));
        w.serve(vec![half]);
        let served = (0..20).filter(|_| w.client.ask(at).is_ok()).count();
        assert!(
            (1..20).contains(&served),
            "{served} of 20: new connections are shared out"
        );
        // A pod here answers 32 times: the other one has some left.
        let dead = (w.pods[1].1, 81);
        let mut half = w.balanced(&[1]);
        half.endpoints.insert(dead);
        half.affinity = Some(60);
        w.serve(vec![half.clone()]);
        let first = w.client.ask(at).is_ok();
        assert!(
            (0..8).all(|_| w.client.ask(at).is_ok() == first),
            "a client keeps its endpoint"
        );
        half.affinity = Some(30);
        half.endpoints.remove(&dead);
        w.serve(vec![half]);
        assert!(w.client.ask(at).is_ok(), "what it kept is gone");
        w.serve(vec![w.balanced(&[])]);
        // By IPv6 the first refusal comes while the socket is still busy: the second one counts, a second later.
        let refused = w.client.ask(at).unwrap_err();
        assert!(!refused.contains("timed out"), "refused, not dropped: {refused}");
    });
}

/// As at a start, which writes all rules anew while connections are made.
#[test]
fn a_table_that_is_exchanged_refuses_nobody() {
    world("exchange", |w| {
        w.pods[0].0.run(|| {
            let listener = TcpListener::bind(("::", 81)).unwrap();
            std::thread::spawn(move || listener.incoming().take(MOST).for_each(drop));
        });
        let mut service = w.balanced(&[]);
        service.endpoints.insert((w.pods[0].1, 81));
        w.serve(vec![service]);
        let at = (ip(w.at.cluster_ip), 8000).into();
        let over = Arc::new(AtomicBool::new(false));
        let (stop, planner, family) = (over.clone(), w.planner.clone(), Family::of(ip(w.at.node)));
        let (asked, failed) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                w.client.run(move || {
                    let (mut asked, mut failed) = (0, Vec::new());
                    while asked < MOST && !stop.load(Ordering::Relaxed) {
                        asked += 1;
                        failed.extend(TcpStream::connect_timeout(&at, Duration::from_secs(3)).err());
                    }
                    (asked, failed)
                })
            });
            w.node.run(move || {
                for _ in 0..100 {
                    let table = planner.lock().unwrap().take_whole();
                    nft::exchange(family, keelson_proxy::TABLE, &table).unwrap();
                }
            });
            over.store(true, Ordering::Relaxed);
            asking.join().unwrap()
        });
        assert!(asked > 100, "{asked}");
        assert!(failed.is_empty(), "{} of {asked}: {failed:?}", failed.len());
    });
}
