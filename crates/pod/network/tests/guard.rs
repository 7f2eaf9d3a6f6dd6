//! What a pod may not send, whatever it makes of its own namespace, through the kernel. Needs root; every namespace is made
//! here and dies with its thread.

#![allow(clippy::unwrap_used)]

use keelson_network::{Config, PodNetwork, PodNetworkRequest, PortMapping, Protocol, Routed};
use keelson_sys::nft::{self, Family};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use support::{Namespace, block_on, datagram};

#[allow(dead_code)] // What other tests need.
mod support;

const TABLE: &str = "keelson-network";

fn six(state: &Path) -> Config {
    Config {
        state_dir: state.into(),
        cluster_cidrs: vec!["fd00:244::/48".parse().unwrap()],
        pod_cidrs: vec!["fd00:244:0:3::/64".parse().unwrap()],
        mtu: 0,
    }
}

fn fresh(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("keelson-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

fn program(name: &'static str, args: &str) {
    let status = std::process::Command::new(name).args(args.split(' ')).status();
    let status = status.unwrap_or_else(|e| panic!("the program {name}, for this test: {e}"));
    assert!(status.success(), "{name} {args}");
}

/// The host's end of the only pod's link.
fn link(host: &Namespace) -> String {
    host.run(|| {
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let mut names = links.lines().filter_map(|l| l.trim().split(':').next());
        names.find(|n| n.starts_with("kls")).map(String::from).unwrap()
    })
}

fn set(space: &Namespace, key: &str, value: &'static str) {
    let path = format!("/proc/sys/net/{key}");
    space.run(move || std::fs::write(path, value).unwrap());
}

fn setup(host: &Namespace, config: Config, request: PodNetworkRequest) -> IpAddr {
    host.run(move || block_on(async { Routed::new(config).unwrap().setup(&request).await.unwrap().ips[0] }))
}

/// Pods that have IPv6 only can give themselves what addresses they like of IPv4: nothing of it comes in, also after another
/// program took the table away, and their links don't route the host's loopback.
#[test]
fn nothing_comes_by_ipv4_where_pods_have_none() {
    let dir = fresh("guard-four");
    let (host, a) = (Namespace::new(), Namespace::new());
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
    assert!(setup(&host, six(&dir), request).is_ipv6());
    let name = link(&host);
    let path = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
    let routed = host.run(move || std::fs::read_to_string(path).unwrap());
    assert_eq!(routed.trim(), "0", "there is no host port of IPv4 behind it");
    // As lax a host as there is, and a pod with NET_ADMIN.
    for key in ["all", &name] {
        set(&host, &format!("ipv4/conf/{key}/rp_filter"), "0");
    }
    host.run(move || {
        program("ip", "link set lo up");
        program("ip", "address add 192.0.2.1/32 dev lo");
        program("ip", &format!("route add 192.0.2.7/32 dev {name}"));
    });
    a.run(|| {
        program("ip", "address add 192.0.2.7/32 dev eth0");
        program("ip", "route add 192.0.2.1/32 dev eth0");
    });
    let from = ("192.0.2.7".parse::<IpAddr>().unwrap(), 700).into();
    let to = |port: u16| ("192.0.2.1".parse::<IpAddr>().unwrap(), port).into();
    assert_eq!(datagram(&a, from, &host, to(500)), None);
    host.run(|| nft::remove(Family::Ip, TABLE).unwrap());
    assert_eq!(
        datagram(&a, from, &host, to(501)),
        Some(from),
        "without the guard it comes: the test means something"
    );
    let config = six(&dir);
    host.run(move || {
        block_on(async {
            let network = Arc::new(Routed::new(config).unwrap());
            let watching = tokio::spawn(async move { network.watch().await });
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::thread::scope(|s| {
                s.spawn(|| program("nft", "delete table ip keelson-network"));
            });
            let standing = || {
                let chains = nft::chains().unwrap();
                chains.iter().any(|c| c.family == Family::Ip && c.table == TABLE)
            };
            for _ in 0..100 {
                if standing() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(standing(), "the guard comes back");
            watching.abort();
        })
    });
    assert_eq!(datagram(&a, from, &host, to(502)), None);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn icmp6() -> OwnedFd {
    let icmp = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::IcmpV6,
    )
    .unwrap();
    setsockopt(&icmp, sockopt::ReceiveTimeout, &TimeVal::milliseconds(300)).unwrap();
    icmp
}

const ROUTER_ADVERTISEMENT: u8 = 134;

/// A pod says that it is a router for half an hour.
fn advertise(pod: &Namespace, to: Ipv6Addr) {
    pod.run(move || {
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        let scope = if to.is_multicast() { index } else { 0 };
        let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, scope));
        let message = [
            ROUTER_ADVERTISEMENT,
            0,
            0,
            0,
            255,
            0,
            0x07,
            0x08,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let icmp = icmp6();
        // What comes from farther away is believed by nobody.
        setsockopt(&icmp, sockopt::Ipv6Ttl, &255).unwrap();
        setsockopt(&icmp, sockopt::Ipv6MulticastHops, &255).unwrap();
        sendto(icmp.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
    });
}

/// Whether one arrives that `send` sends.
fn hears(space: &Namespace, send: impl FnOnce()) -> bool {
    let icmp = space.run(icmp6);
    send();
    let mut buffer = [0; 64];
    // What else is said meanwhile: neighbours look for each other.
    (0..20)
        .map_while(|_| {
            recv(icmp.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .ok()
                .map(|_| buffer[0])
        })
        .any(|kind| kind == ROUTER_ADVERTISEMENT)
}

/// A pod that calls itself a router is heard by nobody; if it were, the host would not believe it.
#[test]
fn nobody_takes_a_pod_for_a_router() {
    let dir = fresh("guard-router");
    let (host, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    let request = |space: &Namespace, id: &str| PodNetworkRequest {
        sandbox_id: id.into(),
        netns: space.path.clone(),
        ..PodNetworkRequest::default()
    };
    setup(&host, six(&dir), request(&a, "sandbox-a"));
    let name = link(&host);
    let IpAddr::V6(other) = setup(&host, six(&dir), request(&b, "sandbox-b")) else {
        panic!("an address of IPv6")
    };
    let routes = || {
        host.run(|| {
            let mut ip = std::process::Command::new("ip");
            let shown = ip.args(["-6", "route", "show", "default"]).output().unwrap();
            String::from_utf8(shown.stdout).unwrap()
        })
    };
    let everybody: Ipv6Addr = "ff02::1".parse().unwrap();
    let gateway: Ipv6Addr = "fd00:244:0:3::1".parse().unwrap();
    for to in [everybody, gateway] {
        assert!(!hears(&host, || advertise(&a, to)), "the host, by {to}");
    }
    for to in [everybody, other] {
        assert!(!hears(&b, || advertise(&a, to)), "another pod, by {to}");
    }
    assert_eq!(routes(), "");
    host.run(|| nft::remove(Family::Ip6, TABLE).unwrap());
    for to in [everybody, gateway] {
        assert!(hears(&host, || advertise(&a, to)), "without the guard, by {to}");
    }
    assert!(hears(&b, || advertise(&a, other)), "without the guard");
    assert_eq!(routes(), "", "heard, and not believed");
    set(&host, &format!("ipv6/conf/{name}/accept_ra"), "2");
    // Until the pod's link has an address of its own, which is what routers speak with.
    let believed = (0..40).any(|_| {
        advertise(&a, everybody);
        std::thread::sleep(Duration::from_millis(50));
        !routes().is_empty()
    });
    assert!(believed, "where it is believed: the test means something");
    std::fs::remove_dir_all(&dir).unwrap();
}
