//! Two nodes and a client on one bridge: an address of each family is reached at one node, and at the other a moment after the first was
//! killed; nothing is left of who stops. Needs root; every namespace is made here and dies with its thread.

#![allow(clippy::unwrap_used)]

use futures::TryStreamExt;
use keelson_announce::Speaker;
use keelson_announce::node::{self, Settings};
use keelson_announce::plan::{self, Address, Facts, Node, Shown};
use keelson_client::ObjectKey;
use keelson_proxy::model::ServicePort;
use keelson_proxy::plan::Planner;
use keelson_sys::nft::{self, Family};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use support::{Namespace, block_on};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

#[path = "../../network/tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

const CLIENT: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const NODES: [[&str; 2]; 2] = [["192.0.2.11", "2001:db8::11"], ["192.0.2.12", "2001:db8::12"]];
const RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
const BACKENDS: [[&str; 2]; 2] = [["10.244.1.1", "fd00:244:0:1::1"], ["10.244.2.1", "fd00:244:0:2::1"]];
/// What an address may need to be at another node.
const LONGEST: Duration = Duration::from_secs(2);

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

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// A cable from the switch to somebody's `eth0`.
fn plug(
    switch: &Namespace,
    number: usize,
    who: &Namespace,
    addresses: &[&'static str; 2],
    backend: Option<[&'static str; 2]>,
) {
    let far = who.path.clone();
    switch.run(move || {
        block_on(netlink(async |h| {
            let far = std::fs::File::open(far).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&far);
            let (name, peer) = (
                format!("p{number}"),
                LinkUnspec::new_with_name("eth0").setns_by_fd(fd).build(),
            );
            let cable = LinkVeth::new(&name, "eth0").set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
            h.link().add(cable.build()).execute().await.unwrap();
            let on = LinkUnspec::new_with_index(index(&name))
                .controller(index("br0"))
                .up()
                .build();
            h.link().change(on).execute().await.unwrap();
        }));
    });
    let addresses = *addresses;
    who.run(move || {
        // Nobody else has them.
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").unwrap();
        block_on(netlink(async |h| {
            for name in ["lo", "eth0"] {
                let up = LinkUnspec::new_with_index(index(name)).up().build();
                h.link().change(up).execute().await.unwrap();
            }
            for (address, length) in addresses.into_iter().zip([24, 64]) {
                h.address()
                    .add(index("eth0"), ip(address), length)
                    .execute()
                    .await
                    .unwrap();
            }
            for (address, length) in backend.into_iter().flatten().zip([32, 128]) {
                h.address()
                    .add(index("lo"), ip(address), length)
                    .execute()
                    .await
                    .unwrap();
            }
        }));
    });
}

/// A node that runs, and how it ends.
struct Running {
    stop: CancellationToken,
    kill: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
    _links: watch::Receiver<Vec<plan::Link>>,
}

struct World {
    client: Namespace,
    nodes: [Namespace; 2],
    facts: watch::Sender<Facts>,
    running: BTreeMap<String, Running>,
    _switch: Namespace,
}

impl World {
    fn new() -> World {
        let (switch, client, nodes) = (Namespace::new(), Namespace::new(), [Namespace::new(), Namespace::new()]);
        switch.run(|| {
            block_on(netlink(async |h| {
                h.link()
                    .add(LinkBridge::new("br0").up().build())
                    .execute()
                    .await
                    .unwrap();
            }));
        });
        plug(&switch, 0, &client, &CLIENT, None);
        let mut facts = Facts {
            announced: true,
            ..Facts::default()
        };
        for (n, node) in nodes.iter().enumerate() {
            plug(&switch, n + 1, node, &NODES[n], Some(BACKENDS[n]));
            node.serve_both(8080);
            let known = Node {
                may_answer: true,
                addresses: NODES[n].map(ip).to_vec(),
                ..Node::default()
            };
            facts.nodes.insert(format!("n{n}"), known);
        }
        World {
            client,
            nodes,
            facts: watch::Sender::new(facts),
            running: BTreeMap::new(),
            _switch: switch,
        }
    }

    /// What the node's proxy would write: traffic to the address stays on the node, and keeps its source.
    fn serve(&self, vips: [IpAddr; 2]) {
        for (n, node) in self.nodes.iter().enumerate() {
            for (family, vip) in vips.into_iter().enumerate() {
                let target = BTreeSet::from([(ip(BACKENDS[n][family]), 8080)]);
                let facts = ServicePort {
                    external_ips: vec![vip],
                    balancer_ips: vec![vip],
                    external_local: true,
                    endpoints: target.clone(),
                    local_endpoints: target,
                    ..ServicePort::at("shop/web/http/tcp", ip(["10.96.1.1", "fd00:96::101"][family]))
                };
                node.run(move || {
                    let mut planner = Planner::new(RANGES[family].parse().unwrap());
                    planner.set(&ObjectKey::new("shop", "web"), vec![facts]);
                    nft::apply(Family::of(vip), keelson_proxy::TABLE, &planner.take_whole()).unwrap();
                });
            }
        }
    }

    /// Starts a node, which is then known by its key.
    fn start(&mut self, name: &str) {
        let number: usize = name[1..].parse().unwrap();
        let speaker = Speaker::new(name).unwrap();
        let shown = Shown {
            key: speaker.public(),
            links: ["eth0".to_string()].into(),
        };
        self.facts
            .send_modify(|f| f.nodes.get_mut(name).unwrap().shown = Some(shown));
        let settings = Settings {
            name: name.into(),
            addresses: NODES[number].map(ip).to_vec(),
            port: 10270,
        };
        let (stop, (kill, killed)) = (CancellationToken::new(), oneshot::channel());
        let (told, stopped, facts) = (watch::channel(Vec::new()), stop.clone(), self.facts.subscribe());
        let thread = self.nodes[number].run(move || {
            std::thread::spawn(move || {
                block_on(async {
                    // Nothing of it runs any more after that: as if the process had been killed.
                    tokio::select! {
                        done = node::run(settings, speaker, facts, told.0, stopped) => done.unwrap(),
                        _ = killed => {}
                    }
                })
            })
        });
        let running = Running {
            stop,
            kill,
            thread,
            _links: told.1,
        };
        self.running.insert(name.into(), running);
    }

    /// The hardware address by which the client reaches an address.
    fn mac(&self, vip: IpAddr) -> Option<Vec<u8>> {
        self.client
            .run(move || block_on(netlink(async |h| neighbour(h, vip).await)))
    }

    fn node_mac(&self, name: &str) -> Vec<u8> {
        let number: usize = name[1..].parse().unwrap();
        self.nodes[number].run(|| {
            let all = nix::ifaddrs::getifaddrs().unwrap();
            let mut macs = all
                .filter(|i| i.interface_name == "eth0")
                .filter_map(|i| i.address?.as_link_addr()?.addr());
            macs.next().unwrap().to_vec()
        })
    }

    /// How long until the client reaches these addresses at the node.
    fn until_at(&self, vips: [IpAddr; 2], name: &str, since: Instant) -> Duration {
        let wanted = Some(self.node_mac(name));
        loop {
            let macs = vips.map(|vip| self.mac(vip));
            if macs.iter().all(|mac| *mac == wanted) {
                return since.elapsed();
            }
            assert!(
                since.elapsed() < Duration::from_secs(15),
                "{macs:?}, not {wanted:?} of {name}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn asks(&self, vips: [IpAddr; 2]) {
        for (vip, own) in vips.into_iter().zip(CLIENT) {
            assert_eq!(
                self.client.ask((vip, 80).into()),
                Ok(own.to_string()),
                "{vip}, with the client's own address"
            );
        }
    }
}

async fn neighbour(handle: rtnetlink::Handle, vip: IpAddr) -> Option<Vec<u8>> {
    let mut all = handle.neighbours().get().execute();
    while let Some(Ok(found)) = all.try_next().await.transpose() {
        let is = |a: &NeighbourAttribute| match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => IpAddr::from(*ip) == vip,
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => IpAddr::from(*ip) == vip,
            _ => false,
        };
        let mac = found.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
            _ => None,
        });
        if found.attributes.iter().any(is) && mac.is_some() {
            return mac;
        }
    }
    None
}

#[test]
fn an_address_is_at_one_node_and_moves_when_that_is_killed() {
    let mut world = World::new();
    world.start("n0");
    world.start("n1");
    let all: BTreeSet<String> = ["n0", "n1"].map(String::from).into();
    let facts = world.facts.borrow().clone();
    let owner = |vip: IpAddr| plan::owner(&facts, vip, &Address::default(), &all).unwrap().to_string();
    // One of each family that the same node answers for.
    let first = owner(ip("192.0.2.200"));
    let six = (0..64)
        .map(|n| ip(&format!("2001:db8::aa:{n}")))
        .find(|vip| owner(*vip) == first);
    let vips = [ip("192.0.2.200"), six.unwrap()];
    let second = all.iter().find(|name| **name != first).unwrap().clone();
    world.serve(vips);
    let began = Instant::now();
    world
        .facts
        .send_modify(|f| f.addresses = vips.map(|vip| (vip, Address::default())).into());
    while vips.iter().any(|vip| world.client.ask((*vip, 80).into()).is_err()) {
        assert!(began.elapsed() < Duration::from_secs(10), "both are reached");
    }
    world.asks(vips);
    world.until_at(vips, &first, began);

    // What is asked for once more is answered by the same one only.
    std::thread::sleep(Duration::from_millis(1500));
    let Running { kill, thread, .. } = world.running.remove(&first).unwrap();
    let killed = Instant::now();
    kill.send(()).unwrap();
    thread.join().unwrap();
    let took = world.until_at(vips, &second, killed);
    println!(
        "{} ms after a node was killed its addresses are at the other one",
        took.as_millis()
    );
    assert!(took <= LONGEST, "{took:?}");
    world.asks(vips);

    let returned = Instant::now();
    world.start(&first);
    println!(
        "{} ms after it came back so are they",
        world.until_at(vips, &first, returned).as_millis()
    );
    world.asks(vips);

    std::thread::sleep(Duration::from_millis(1500));
    // To drop its other end kills it.
    let Running { stop, thread, kill, .. } = world.running.remove(&first).unwrap();
    let stopped = Instant::now();
    stop.cancel();
    thread.join().unwrap();
    drop(kill);
    let took = world.until_at(vips, &second, stopped);
    println!("{} ms after it was stopped they are at the other one", took.as_millis());
    assert!(took <= Duration::from_secs(1), "{took:?}: who leaves says so");
    world.asks(vips);

    let number: usize = first[1..].parse().unwrap();
    let left = world.nodes[number].run(|| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
        (
            read("packet"),
            read("igmp6"),
            nix::ifaddrs::getifaddrs()
                .unwrap()
                .map(|i| format!("{:?}", i.address))
                .collect::<Vec<_>>(),
        )
    });
    assert_eq!(left.0.lines().count(), 1, "no socket of packets: {}", left.0);
    let IpAddr::V6(six) = vips[1] else { panic!("of IPv6") };
    let group = format!(
        "{:024x}{:08x}",
        0xff02_u128 << 80 | 1,
        0xff00_0000 | (u128::from(six) & 0xff_ffff)
    );
    assert!(!left.1.contains(&group), "{group} in {}", left.1);
    assert!(left.2.iter().all(|a| !a.contains("192.0.2.200")), "{:?}", left.2);
}
