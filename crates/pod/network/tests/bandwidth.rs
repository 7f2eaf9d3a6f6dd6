//! Pods with bounds send and get no faster, by real packets; without bounds nothing holds them back; a restart keeps the bounds,
//! and what made them goes with the pod. Needs root; every namespace is made here and dies with its thread.

#![allow(clippy::unwrap_used)]

use keelson_network::{Config, PodNetwork, PodNetworkRequest, Routed};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use support::{Namespace, block_on};

#[allow(dead_code)]
mod support;

/// Bits per second.
const IN: u64 = 16_000_000;
const OUT: u64 = 8_000_000;
const BYTES: usize = 3_000_000;

/// How long `BYTES` take from one namespace to another, to the last one's receipt.
fn time(from: &Namespace, to: &Namespace, ip: IpAddr, port: u16) -> Duration {
    let listener = to.run(move || TcpListener::bind((if ip.is_ipv4() { "0.0.0.0" } else { "::" }, port)).unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let (mut buffer, mut got) = (vec![0; 1 << 16], 0);
        while got < BYTES {
            got += stream.read(&mut buffer).unwrap();
        }
        stream.write_all(b".").unwrap();
    });
    from.run(move || {
        let address = SocketAddr::new(ip, port);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let began = Instant::now();
        stream.write_all(&vec![0; BYTES]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        began.elapsed()
    })
}

/// No faster than the bound but for what a bucket holds, and not held back by much more.
fn assert_bound(what: &str, took: Duration, bits: u64) {
    let at_once = bits as f64 / 8.0 / 20.0 + 65_536.0;
    let least = (BYTES as f64 - at_once) * 8.0 / bits as f64;
    println!("{what}: {:.2} Mbit/s", BYTES as f64 * 8.0 / 1e6 / took.as_secs_f64());
    assert!(took.as_secs_f64() >= least, "{what}: {took:?}, not {least} s");
    assert!(
        took.as_secs_f64() < least * 3.0,
        "{what}: {took:?}, where {least} s would do"
    );
}

fn devices(host: &Namespace) -> Vec<String> {
    let names = host.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let names = names
        .lines()
        .filter_map(|l| Some(l.split_once(':')?.0.trim().to_string()));
    let mut ours: Vec<String> = names.filter(|n| n.starts_with("kbw") || n.starts_with("kls")).collect();
    ours.sort();
    ours
}

#[test]
fn bounded_pods_are_as_fast_as_their_bounds() {
    let dir = std::env::temp_dir().join(format!("keelson-bandwidth-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (host, bounded, free, other) = (Namespace::new(), Namespace::new(), Namespace::new(), Namespace::new());
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
        pod_cidrs: vec!["10.244.3.0/24".parse().unwrap(), "fd00:244:0:3::/64".parse().unwrap()],
        mtu: 1450,
    };
    let request = |ns: &Namespace, id: &str, ingress, egress| PodNetworkRequest {
        sandbox_id: id.into(),
        netns: ns.path.clone(),
        ingress_bandwidth: ingress,
        egress_bandwidth: egress,
        ..PodNetworkRequest::default()
    };
    let requests = [
        request(&bounded, "bounded", IN, OUT),
        request(&free, "free", 0, 0),
        request(&other, "other", 0, 0),
    ];
    let cfg = config.clone();
    let addresses: Vec<Vec<IpAddr>> = host.run(move || {
        block_on(async {
            let network = Routed::new(cfg).unwrap();
            let mut addresses = Vec::new();
            for request in &requests {
                addresses.push(network.setup(request).await.unwrap().ips);
            }
            // A repeated setup gives the same.
            assert_eq!(network.setup(&requests[0]).await.unwrap().ips, addresses[0]);
            addresses
        })
    });
    assert_eq!(devices(&host), ["kbwbounded", "klsbounded", "klsfree", "klsother"]);

    let unbound = time(&free, &other, addresses[2][0], 81);
    println!("unbounded: {unbound:?}");
    for (family, port) in [(0, 82), (1, 84)] {
        assert_bound("in", time(&free, &bounded, addresses[0][family], port), IN);
        assert_bound("out", time(&bounded, &free, addresses[1][family], port + 1), OUT);
    }
    let least = Duration::from_secs_f64(BYTES as f64 * 8.0 / IN as f64);
    assert!(unbound < least / 2, "{unbound:?}");

    // Another process finds what stands, and leaves it.
    let cfg = config.clone();
    host.run(move || {
        block_on(async {
            let network = Routed::new(cfg).unwrap();
            network.gc(&["bounded".into(), "other".into()]).await.unwrap();
        })
    });
    assert_eq!(devices(&host).len(), 3);
    assert_bound("in, after a restart", time(&other, &bounded, addresses[0][0], 86), IN);
    host.run(move || {
        block_on(async {
            let network = Routed::new(config).unwrap();
            network.teardown("bounded").await.unwrap();
        })
    });
    assert_eq!(devices(&host), ["klsother"]);
    std::fs::remove_dir_all(&dir).unwrap();
}
