//! Real links in real namespaces: pods reach each other, the host and host ports, and teardown leaves nothing.
//! Needs root; every namespace is made here and dies with its thread.

#![allow(clippy::unwrap_used)]

use keelson_network::underlay::{self, Known, Mode, Peer, Settings};
use keelson_network::{Config, PodNetwork, PodNetworkRequest, PortMapping, Protocol, Routed};
use keelson_sys::nft::{self, Base, ChainKind, Family, Hook, Op};
use rtnetlink::{LinkUnspec, LinkVeth};
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use support::{Namespace, block_on, datagram};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod support;

#[test]
fn pods_reach_each_other_and_host_ports_and_teardown_leaves_nothing() {
    let dir = std::env::temp_dir().join(format!("keelson-network-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (host, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
        mtu: 0,
    };
    let request = |ns: &Namespace, id: &str, ports: Vec<PortMapping>| PodNetworkRequest {
        sandbox_id: id.into(),
        netns: ns.path.clone(),
        port_mappings: ports,
        ..PodNetworkRequest::default()
    };
    let port = PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    };
    let (ra, rb) = (request(&a, "sandbox-a", vec![port]), request(&b, "sandbox-b", vec![]));
    let cfg = config.clone();
    let (ip_a, ip_b): (IpAddr, IpAddr) = host.run(move || {
        block_on(async {
            let network = Routed::new(cfg).unwrap();
            network.ready().await.unwrap();
            let lo = network.setup(&ra).await.unwrap();
            assert_eq!(network.setup(&ra).await.unwrap(), lo, "a repeated setup gives the same");
            (lo.ips[0], network.setup(&rb).await.unwrap().ips[0])
        })
    });
    a.serve(80);
    b.serve(80);
    let gateway = "10.244.3.1";
    assert_eq!(host.ask((ip_b, 80).into()), Ok(gateway.to_string()), "host to pod");
    assert_eq!(
        a.ask((ip_b, 80).into()),
        Ok(ip_a.to_string()),
        "pod to pod keeps the source"
    );
    assert_eq!(
        b.ask((gateway.parse::<IpAddr>().unwrap(), 8080).into()),
        Ok(ip_b.to_string()),
        "pod to host port"
    );
    assert!(
        a.ask((gateway.parse::<IpAddr>().unwrap(), 8080).into()).is_ok(),
        "a pod reaches its own host port"
    );
    let c = config.clone();
    host.run(move || {
        block_on(async {
            // A new process: reservations and host ports come back from disk.
            let network = Routed::new(c).unwrap();
            network.gc(&["sandbox-a".into()]).await.unwrap();
        })
    });
    assert!(
        a.ask((ip_b, 80).into()).is_err(),
        "the collected sandbox is unreachable"
    );
    assert!(
        a.ask((gateway.parse::<IpAddr>().unwrap(), 8080).into()).is_ok(),
        "host ports survive a restart"
    );
    let links = host.run(move || {
        block_on(async {
            let network = Routed::new(config).unwrap();
            network.teardown("sandbox-a").await.unwrap();
            network.teardown("sandbox-a").await.unwrap();
        });
        std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
    });
    assert!(!links.contains("kls"), "{links}");
    assert_eq!(std::fs::read_dir(dir.join("addresses")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.join("ports")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.join("pods")).unwrap().count(), 0);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Two families a pod: links, routes, host ports, the way out with the node's address, and nobody speaks for another.
#[test]
fn pods_of_two_families_reach_each_other_and_host_ports_by_both() {
    let dir = std::env::temp_dir().join(format!("keelson-families-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (host, a, b, world) = (Namespace::new(), Namespace::new(), Namespace::new(), Namespace::new());
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidrs: vec!["fd00:244::/48".parse().unwrap(), "10.244.0.0/16".parse().unwrap()],
        pod_cidrs: vec!["fd00:244:0:3::/64".parse().unwrap(), "10.244.3.0/24".parse().unwrap()],
        mtu: 0,
    };
    let far = world.path.clone();
    host.run(move || {
        block_on(netlink(async |h| {
            let far = std::fs::File::open(far).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&far);
            let peer = LinkUnspec::new_with_name("eth0").setns_by_fd(fd).build();
            let cable = LinkVeth::new("eth0", "eth0").set_info_data(rtnetlink::packet_route::link::InfoData::Veth(
                rtnetlink::packet_route::link::InfoVeth::Peer(peer),
            ));
            h.link().add(cable.build()).execute().await.unwrap();
        }));
        // As a host that listens to routers has it.
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
    });
    for (machine, address) in [(&host, "2001:db8::1/64"), (&world, "2001:db8::2/64")] {
        machine.run(move || {
            for args in [
                "link set lo up".to_string(),
                format!("address add {address} dev eth0 nodad"),
                "link set eth0 up".to_string(),
            ] {
                let status = std::process::Command::new("ip").args(args.split(' ')).status();
                assert!(status.expect("the ip program, for this test").success(), "ip {args}");
            }
        });
    }
    let request = |ns: &Namespace, id: &str, port_mappings: Vec<PortMapping>| PodNetworkRequest {
        sandbox_id: id.into(),
        netns: ns.path.clone(),
        port_mappings,
        ..PodNetworkRequest::default()
    };
    let port = PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    };
    let (ra, rb) = (request(&a, "sandbox-a", vec![port]), request(&b, "sandbox-b", vec![]));
    let c = config.clone();
    let (ips_a, ips_b) = host.run(move || {
        block_on(async {
            let network = Routed::new(c).unwrap();
            network.ready().await.unwrap();
            let first = network.setup(&ra).await.unwrap();
            assert_eq!(
                network.setup(&ra).await.unwrap(),
                first,
                "a repeated setup gives the same"
            );
            (first.ips, network.setup(&rb).await.unwrap().ips)
        })
    });
    assert_eq!(ips_a[0].to_string(), "fd00:244:0:3::2", "the primary family first");
    assert_eq!(ips_a[1].to_string(), "10.244.3.2");
    [&a, &b, &world].iter().for_each(|space| space.serve_both(80));
    for (from, to) in ips_a.iter().zip(&ips_b) {
        assert_eq!(
            a.ask((*to, 80).into()),
            Ok(from.to_string()),
            "pod to pod keeps the source"
        );
        assert!(host.ask((*to, 80).into()).is_ok(), "host to pod: {to}");
    }
    let node: IpAddr = "2001:db8::1".parse().unwrap();
    let outside: IpAddr = "2001:db8::2".parse().unwrap();
    assert_eq!(
        a.ask((outside, 80).into()),
        Ok(node.to_string()),
        "pods speak to the world with the node's address"
    );
    assert_eq!(
        world.ask((node, 8080).into()),
        Ok(outside.to_string()),
        "a host port, from elsewhere"
    );
    assert!(b.ask((node, 8080).into()).is_ok(), "from a pod");
    assert!(a.ask((node, 8080).into()).is_ok(), "from its own pod");
    assert!(
        b.ask(("10.244.3.1".parse::<IpAddr>().unwrap(), 8080).into()).is_ok(),
        "by IPv4"
    );
    // Another's address, and what only routers say.
    let spoofed: IpAddr = "fd00:244:0:3::77".parse().unwrap();
    let gateway: IpAddr = "fd00:244:0:3::1".parse().unwrap();
    a.run(move || {
        let args = format!("address add {spoofed}/128 dev lo nodad");
        let status = std::process::Command::new("ip").args(args.split(' ')).status();
        assert!(status.unwrap().success());
    });
    let own = (ips_a[0], 700).into();
    assert_eq!(datagram(&a, own, &host, (gateway, 500).into()), Some(own));
    assert_eq!(datagram(&a, (spoofed, 700).into(), &host, (gateway, 501).into()), None);
    host.run(|| {
        let read = |key: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{key}")).unwrap();
        assert_eq!(
            read("eth0/accept_ra").trim(),
            "2",
            "the host goes on listening to its routers"
        );
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let pods = links.lines().filter_map(|l| l.trim().split(':').next());
        let pods: Vec<&str> = pods.filter(|n| n.starts_with("kls")).collect();
        assert_eq!(pods.len(), 2);
        for link in pods {
            assert_eq!(read(&format!("{link}/accept_ra")).trim(), "0");
        }
    });
    host.run(move || {
        block_on(async {
            // A new process takes all back.
            let network = Routed::new(config).unwrap();
            network.teardown("sandbox-a").await.unwrap();
            network.gc(&[]).await.unwrap();
        })
    });
    assert!(world.ask((node, 8080).into()).is_err(), "the host port is gone");
    for kept in ["addresses", "ports", "pods"] {
        assert_eq!(std::fs::read_dir(dir.join(kept)).unwrap().count(), 0, "{kept}");
    }
    let state = dir.clone();
    host.run(move || {
        keelson_network::remove(&state).unwrap();
        let read = |key: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{key}")).unwrap();
        assert_eq!(
            (read("all/forwarding").trim(), read("eth0/accept_ra").trim()),
            ("0", "1")
        );
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A client that goes on sending from one port reaches whoever has the host port now: the host, a pod, the host again.
#[test]
fn udp_flows_follow_a_host_port_from_hand_to_hand() {
    let dir = std::env::temp_dir().join(format!("keelson-flows-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (host, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
        mtu: 0,
    };
    let request = |ns: &Namespace, id: &str, port_mappings: Vec<PortMapping>| PodNetworkRequest {
        sandbox_id: id.into(),
        netns: ns.path.clone(),
        port_mappings,
        ..PodNetworkRequest::default()
    };
    let port = PortMapping {
        protocol: Protocol::Udp,
        container_port: 8080,
        host_port: 8080,
        host_ip: None,
    };
    let (server, client) = (request(&a, "server", vec![port]), request(&b, "client", vec![]));
    let setup = |request: PodNetworkRequest| {
        let config = config.clone();
        host.run(move || block_on(async { Routed::new(config).unwrap().setup(&request).await.unwrap().ips[0] }))
    };
    let ip = setup(client);
    let to: std::net::SocketAddr = ("10.244.3.1".parse::<IpAddr>().unwrap(), 8080).into();
    let from = (ip, 700).into();
    assert_eq!(datagram(&b, from, &host, to), Some(from), "nobody has it: the host");
    setup(server);
    assert_eq!(datagram(&b, from, &a, to), Some(from), "the pod");
    let c = config.clone();
    host.run(move || block_on(async { Routed::new(c).unwrap().teardown("server").await.unwrap() }));
    assert_eq!(datagram(&b, from, &host, to), Some(from), "the host again");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A pod can't send with another's address, nor to the host's loopback, though the link's host ports make that routable;
/// its link takes no IPv6 from it, and has the uplink's MTU.
#[test]
fn a_pod_can_neither_spoof_nor_reach_the_hosts_loopback() {
    let dir = std::env::temp_dir().join(format!("keelson-guard-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (host, a) = (Namespace::new(), Namespace::new());
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
        mtu: 1400,
    };
    let request = PodNetworkRequest {
        sandbox_id: "sandbox-a".into(),
        netns: a.path.clone(),
        port_mappings: vec![PortMapping {
            protocol: Protocol::Udp,
            container_port: 80,
            host_port: 8080,
            host_ip: None,
        }],
        ..PodNetworkRequest::default()
    };
    let c = config.clone();
    let ip = host.run(move || {
        block_on(async {
            let network = Routed::new(c).unwrap();
            network.setup(&request).await.unwrap().ips[0]
        })
    });
    let gateway: IpAddr = "10.244.3.1".parse().unwrap();
    assert_eq!(
        datagram(&a, (ip, 700).into(), &host, (gateway, 500).into()),
        Some((ip, 700).into()),
        "its own address"
    );
    let other: IpAddr = "10.244.3.77".parse().unwrap();
    assert_eq!(
        datagram(&a, (other, 700).into(), &host, (gateway, 501).into()),
        None,
        "another's address"
    );
    let link = host.run(|| {
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        links
            .lines()
            .find_map(|l| {
                l.trim()
                    .split(':')
                    .next()
                    .filter(|n| n.starts_with("kls"))
                    .map(String::from)
            })
            .unwrap()
    });
    let name = link.clone();
    host.run(move || {
        let read = |key: &str| std::fs::read_to_string(format!("/proc/sys/net/{key}")).map(|s| s.trim().to_string());
        assert_eq!(read(&format!("ipv4/conf/{name}/route_localnet")).unwrap(), "1");
        assert_eq!(read(&format!("ipv6/conf/{name}/mtu")).unwrap_or("1400".into()), "1400");
        for (key, value) in [("accept_ra", "0"), ("disable_ipv6", "1")] {
            assert_eq!(read(&format!("ipv6/conf/{name}/{key}")).unwrap_or(value.into()), value);
        }
    });
    // The pod routes the host's loopback to the host, as a pod with NET_ADMIN can.
    a.run(|| {
        for key in ["all", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{key}/route_localnet"), "1").unwrap();
        }
        let run = |args: &str| {
            let status = std::process::Command::new("ip").args(args.split(' ')).status();
            assert!(status.expect("the ip program, for this test").success(), "ip {args}");
        };
        run("rule add pref 1 lookup local");
        run("rule del pref 0");
        run("route add 127.0.0.0/8 via 10.244.3.1 dev eth0 table 100");
        run("rule add pref 0 lookup 100");
    });
    host.run(|| {
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
    });
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    assert_eq!(
        datagram(&a, (ip, 700).into(), &host, (loopback, 502).into()),
        None,
        "the host's loopback is out of reach"
    );
    host.run(|| nft::apply(Family::Ip, "keelson-network", &[Op::AddTable, Op::DeleteTable]).unwrap());
    assert_eq!(
        datagram(&a, (ip, 700).into(), &host, (loopback, 503).into()),
        Some((ip, 700).into()),
        "without the guard it isn't: the test means something"
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Docker's way: whatever is forwarded is dropped by iptables' table. Pods are accepted there, also when the table comes
/// later or loses the rules, and a flush of everything is mended.
#[test]
fn other_firewalls_and_a_flush_do_not_cut_pods_off() {
    let dir = std::env::temp_dir().join(format!("keelson-beside-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (host, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
        mtu: 0,
    };
    let request = |ns: &Namespace, id: &str| PodNetworkRequest {
        sandbox_id: id.into(),
        netns: ns.path.clone(),
        ..PodNetworkRequest::default()
    };
    let (ra, rb) = (request(&a, "sandbox-a"), request(&b, "sandbox-b"));
    let docker = || {
        let forward = Op::AddChain {
            name: "FORWARD".into(),
            base: Some(Base {
                kind: ChainKind::Filter,
                hook: Hook::Forward,
                priority: 0,
            }),
        };
        let drop = Op::AddRule {
            chain: "FORWARD".into(),
            exprs: vec![nft::Expr::Verdict(nft::Verdict::Drop)],
        };
        nft::apply(Family::Ip, "filter", &[Op::AddTable, forward, drop]).unwrap();
    };
    let ours = || nft::rules(Family::Ip, "filter", "FORWARD").unwrap().len() == 3;
    let state = dir.clone();
    let ip_b = host.run(move || {
        block_on(async {
            let network = Arc::new(Routed::new(config).unwrap());
            network.setup(&ra).await.unwrap();
            network.setup(&rb).await.unwrap().ips[0]
        })
    });
    b.serve(80);
    assert!(a.ask((ip_b, 80).into()).is_ok());
    host.run(docker);
    assert!(a.ask((ip_b, 80).into()).is_err(), "the test's firewall drops");
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        pod_cidrs: Vec::new(),
        mtu: 0,
    };
    host.run(move || {
        block_on(async {
            let network = Arc::new(Routed::new(config).unwrap());
            assert!(ours(), "accepted at start");
            let watched = network.clone();
            let watching = tokio::spawn(async move { watched.watch().await });
            tokio::time::sleep(Duration::from_millis(200)).await;
            let eventually = async |holds: &dyn Fn() -> bool, what: &str| {
                for _ in 0..100 {
                    if holds() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                panic!("not within 5 s: {what}");
            };
            let other = |table: &'static str, docker_again: bool| {
                std::thread::scope(|s| {
                    // Another program: not by way of this process's netlink ports.
                    s.spawn(|| {
                        let status = std::process::Command::new("nft").args(table.split(' ')).status();
                        assert!(status.expect("the nft program, for this test").success());
                    });
                });
                if docker_again {
                    docker();
                }
            };
            let standing = || nft::chains().unwrap().iter().any(|c| c.table == "keelson-network");
            other("flush ruleset", true);
            eventually(
                &|| standing() && ours(),
                "a flush is mended, and the chain that came accepts",
            )
            .await;
            other("delete table ip keelson-network", false);
            eventually(&standing, "the table comes back").await;
            watching.abort();
        })
    });
    assert!(a.ask((ip_b, 80).into()).is_ok(), "pods reach each other again");
    host.run(move || {
        keelson_network::remove(&state).unwrap();
        let left: Vec<_> = nft::chains()
            .unwrap()
            .into_iter()
            .filter(|c| c.table.starts_with("keelson"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(
            nft::rules(Family::Ip, "filter", "FORWARD").unwrap().len(),
            1,
            "only the firewall's own rule stays"
        );
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// What netlink does in a namespace, by its program's own library.
async fn netlink<T>(work: impl AsyncFnOnce(&rtnetlink::Handle) -> T) -> T {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let driver = tokio::spawn(connection);
    let done = work(&handle).await;
    driver.abort();
    done
}

async fn link_index(handle: &rtnetlink::Handle, name: &str) -> Option<u32> {
    let mut found = handle.link().get().match_name(name.to_string()).execute();
    futures::TryStreamExt::try_next(&mut found)
        .await
        .ok()?
        .map(|l| l.header.index)
}

/// Gives a machine its end of the cable.
fn plugged(machine: &Namespace, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    machine.run(move || {
        block_on(netlink(async |h| {
            for name in ["lo", "eth0"] {
                let index = link_index(h, name).await.unwrap();
                h.link()
                    .set(LinkUnspec::new_with_index(index).up().build())
                    .execute()
                    .await
                    .unwrap();
            }
            let index = link_index(h, "eth0").await.unwrap();
            h.address().add(index, address, 24).execute().await.unwrap();
        }));
    });
}

/// Runs the underlay in a machine until the token fires; who takes its links away then waits for the thread first.
fn connected(
    machine: &Namespace,
    name: &str,
    ip: &str,
    nodes: watch::Receiver<Known>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let settings = Settings {
        node_name: name.into(),
        node_ip: ip.parse().unwrap(),
        mode: Mode::Vxlan,
        cluster: vec!["10.244.0.0/16".parse().unwrap()],
    };
    machine.run(move || {
        std::thread::spawn(move || block_on(underlay::run(settings, nodes, watch::Sender::new(None), stop)).unwrap())
    })
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..100 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}");
}

#[test]
fn pods_of_two_machines_reach_each_other_through_the_tunnel_and_it_goes_with_the_last_peer() {
    let dir = std::env::temp_dir().join(format!("keelson-underlay-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (one, two, a, b) = (Namespace::new(), Namespace::new(), Namespace::new(), Namespace::new());
    let far = two.path.clone();
    one.run(move || {
        block_on(netlink(async |h| {
            let far = std::fs::File::open(far).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&far);
            let peer = LinkUnspec::new_with_name("eth0").setns_by_fd(fd).build();
            let cable = LinkVeth::new("eth0", "eth0").set_info_data(rtnetlink::packet_route::link::InfoData::Veth(
                rtnetlink::packet_route::link::InfoVeth::Peer(peer),
            ));
            h.link().add(cable.build()).execute().await.unwrap();
        }));
    });
    plugged(&one, "192.0.2.1");
    plugged(&two, "192.0.2.2");
    let pod = |machine: &Namespace, pod: &Namespace, name: &str, range: &str| -> IpAddr {
        let config = Config {
            state_dir: dir.join(name),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            pod_cidrs: vec![range.parse().unwrap()],
            mtu: 1450,
        };
        let request = PodNetworkRequest {
            sandbox_id: "sandbox".into(),
            netns: pod.path.clone(),
            ..PodNetworkRequest::default()
        };
        machine.run(move || block_on(async { Routed::new(config).unwrap().setup(&request).await.unwrap().ips[0] }))
    };
    let (ip_a, ip_b) = (
        pod(&one, &a, "one", "10.244.1.0/24"),
        pod(&two, &b, "two", "10.244.2.0/24"),
    );
    b.serve(80);
    let node = |name: &str, ip: &str, range: &str| Peer {
        name: name.into(),
        addresses: vec![ip.parse().unwrap()],
        ranges: vec![range.parse().unwrap()],
        keys: Vec::new(),
    };
    let known = |nodes: &[Peer]| Known {
        nodes: nodes.to_vec(),
        identity: None,
    };
    let all = vec![
        node("one", "192.0.2.1", "10.244.1.0/24"),
        node("two", "192.0.2.2", "10.244.2.0/24"),
    ];
    let (nodes, seen) = watch::channel(known(&all));
    let stop = CancellationToken::new();
    let first = connected(&one, "one", "192.0.2.1", seen.clone(), stop.clone());
    let second = connected(&two, "two", "192.0.2.2", seen, stop.clone());
    eventually("pod to pod of the other machine", || {
        a.ask((ip_b, 80).into()) == Ok(ip_a.to_string())
    });
    // The host itself, with its gateway's address.
    assert_eq!(one.ask((ip_b, 80).into()), Ok("10.244.1.1".into()));
    // Somebody removes the tunnel: the kernel tells, and it is made again with all that was on it.
    let remove = || {
        block_on(netlink(async |h| {
            let index = link_index(h, underlay::TUNNEL).await.unwrap();
            h.link().del(index).execute().await.unwrap();
        }))
    };
    one.run(remove);
    eventually("the tunnel is mended", || a.ask((ip_b, 80).into()).is_ok());
    nodes.send_replace(known(&all[..1]));
    let links = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    eventually("the tunnel goes with the last peer", || {
        !one.run(links).contains(underlay::TUNNEL)
    });
    nodes.send_replace(known(&all));
    eventually("a peer that comes back", || a.ask((ip_b, 80).into()).is_ok());
    stop.cancel();
    first.join().unwrap();
    second.join().unwrap();
    two.run(|| block_on(underlay::remove()).unwrap());
    assert!(!two.run(links).contains(underlay::TUNNEL));
    let routes = two.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap());
    assert!(!routes.contains("0001F40A"), "a route to 10.244.1.0: {routes}");
    std::fs::remove_dir_all(&dir).unwrap();
}
