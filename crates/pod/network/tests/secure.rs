//! WireGuard between two machines that are namespaces: pods reach each other by both families, nothing of them is to be seen on
//! the cable, and an exchange of keys costs a running connection no more than a handshake. Needs root, and a kernel that has
//! WireGuard: where it hasn't, that is said, unless `KEELSON_WIREGUARD=needed`.

#![allow(clippy::unwrap_used)]

use keelson_network::underlay::{self, Identity, Known, Mode, Peer, PrivateKey, PublicKey, Settings};
use keelson_network::{Config, PodNetwork, PodNetworkRequest, Routed};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Namespace, block_on};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[allow(dead_code)] // Each test needs a part of it.
mod support;

/// What pods tell each other here, and nobody else may read.
const SECRET: &[u8] = b"between-two-pods";

const CLUSTER: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];

fn identity() -> Arc<Identity> {
    let private = PrivateKey::generate().unwrap();
    let public = underlay::public_key(&private).unwrap();
    Arc::new(Identity { private, public })
}

fn ip(machine: &Namespace, commands: &[String]) {
    let commands = commands.to_vec();
    machine.run(move || {
        for command in commands {
            let status = std::process::Command::new("ip").args(command.split(' ')).status();
            assert!(status.expect("the ip program, for this test").success(), "ip {command}");
        }
    });
}

/// One of two machines, with a pod.
struct Machine {
    name: &'static str,
    host: Namespace,
    pod: Namespace,
    ips: Vec<IpAddr>,
    tell: watch::Sender<Known>,
    in_force: watch::Receiver<Option<PublicKey>>,
    underlay: std::thread::JoinHandle<()>,
    peer: Peer,
}

fn machine(name: &'static str, number: u8, host: Namespace, dir: &std::path::Path, stop: CancellationToken) -> Machine {
    let address: IpAddr = format!("192.0.2.{number}").parse().unwrap();
    let ranges: Vec<ipnet::IpNet> = [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")]
        .map(|r| r.parse().unwrap())
        .to_vec();
    let pod = Namespace::new();
    let config = Config {
        state_dir: dir.join(name),
        cluster_cidrs: CLUSTER.map(|r| r.parse().unwrap()).to_vec(),
        pod_cidrs: ranges.clone(),
        mtu: 1440,
    };
    let request = PodNetworkRequest {
        sandbox_id: "sandbox".into(),
        netns: pod.path.clone(),
        ..PodNetworkRequest::default()
    };
    let (tell, known) = watch::channel(Known::default());
    let (force, in_force) = watch::channel(None);
    let settings = Settings {
        node_name: name.into(),
        node_ip: address,
        mode: Mode::Wireguard,
        cluster: CLUSTER.map(|r| r.parse().unwrap()).to_vec(),
    };
    let (ips, underlay) = host.run(move || {
        let ips = block_on(async { Routed::new(config).unwrap().setup(&request).await.unwrap().ips });
        let underlay = std::thread::spawn(move || block_on(underlay::run(settings, known, force, stop)).unwrap());
        (ips, underlay)
    });
    Machine {
        name,
        host,
        pod,
        ips,
        tell,
        in_force,
        underlay,
        peer: Peer {
            name: name.into(),
            addresses: vec![address],
            ranges,
            keys: Vec::new(),
        },
    }
}

/// What both machines know from now on.
fn tell(machines: [&Machine; 2], keys: [&[PublicKey]; 2], identities: [&Arc<Identity>; 2]) {
    let nodes: Vec<Peer> = (0..2)
        .map(|n| Peer {
            keys: keys[n].to_vec(),
            ..machines[n].peer.clone()
        })
        .collect();
    for (machine, identity) in machines.iter().zip(identities) {
        machine.tell.send_replace(Known {
            nodes: nodes.clone(),
            identity: Some(identity.clone()),
        });
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}");
}

/// Every frame on the machine's cable until the end, by a packet socket: how many of them were WireGuard's, and whether one held
/// `SECRET` or was between pods' addresses.
fn watched(machine: &Namespace, until: Arc<AtomicBool>) -> std::thread::JoinHandle<(usize, usize)> {
    use nix::sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let (socket, cable) = machine.run(|| {
        let all = SockProtocol::EthAll;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), all).unwrap();
        let patience = nix::sys::time::TimeVal::new(0, 100_000);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
        (socket, nix::net::if_::if_nametoindex("eth0").unwrap() as usize)
    });
    std::thread::spawn(move || {
        let (mut encrypted, mut clear) = (0, 0);
        let mut frame = vec![0; 65536];
        while !until.load(Ordering::Relaxed) {
            // Of all links of the machine: the pod's own and the device itself are not the cable.
            let (length, link) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
                Ok((length, Some(link))) => (length, link.ifindex()),
                _ => continue,
            };
            if link != cable {
                continue;
            }
            let frame = &frame[..length];
            let has = |bytes: &[u8], at: usize| frame.get(at..at + bytes.len()) == Some(bytes);
            // The source address of IPv4, and of IPv6.
            let of_pods = has(&[10, 244], 26) || has(&[0xfd, 0, 0x02, 0x44], 22);
            clear += usize::from(of_pods || frame.windows(SECRET.len()).any(|w| w == SECRET));
            // UDP to WireGuard's port.
            encrypted += usize::from(has(&[17], 23) && has(&51820u16.to_be_bytes(), 36));
        }
        (encrypted, clear)
    })
}

/// Answers every message of `SECRET` with itself.
fn echo(pod: &Namespace) {
    pod.run(|| {
        let listener = TcpListener::bind(("::", 81)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(8) {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut message = [0; SECRET.len()];
                    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
                });
            }
        });
    });
}

/// A connection that speaks all the time, until the end: the longest that an answer took.
fn speaking(pod: &Namespace, to: IpAddr, until: Arc<AtomicBool>) -> std::thread::JoinHandle<Duration> {
    let mut stream = pod.run(move || TcpStream::connect_timeout(&(to, 81).into(), Duration::from_secs(5)).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    std::thread::spawn(move || {
        let (mut longest, mut message) = (Duration::ZERO, [0; SECRET.len()]);
        while !until.load(Ordering::Relaxed) {
            let began = Instant::now();
            stream.write_all(SECRET).unwrap();
            stream.read_exact(&mut message).unwrap();
            longest = longest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        longest
    })
}

#[test]
fn pods_of_two_machines_speak_in_secret_and_go_on_when_keys_change() {
    if let Err(error) = underlay::supported(Mode::Wireguard) {
        assert!(std::env::var_os("KEELSON_WIREGUARD").is_none(), "{error:#}");
        eprintln!("not tried: {error:#}");
        return;
    }
    let dir = std::env::temp_dir().join(format!("keelson-secure-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (one, two) = (Namespace::new(), Namespace::new());
    let far = two.path.display().to_string();
    let pid = far.split('/').nth(4).unwrap().to_string();
    let cable = format!("link add eth0 type veth peer name eth0 netns {pid}");
    ip(&one, &[cable]);
    for (machine, number) in [(&one, 1), (&two, 2)] {
        let up = |link: &str| format!("link set {link} up");
        ip(
            machine,
            &[
                up("lo"),
                up("eth0"),
                format!("address add 192.0.2.{number}/24 dev eth0"),
            ],
        );
        // As on a machine with a way to the world: what has no other way would go there.
        ip(machine, &[format!("route add default via 192.0.2.{}", 3 - number)]);
    }
    let stop = CancellationToken::new();
    let (one, two) = (
        machine("one", 1, one, &dir, stop.clone()),
        machine("two", 2, two, &dir, stop.clone()),
    );
    let end = Arc::new(AtomicBool::new(false));
    let seen = watched(&one.host, end.clone());
    two.pod.serve_both(80);
    echo(&two.pod);
    let (a, b, next) = (identity(), identity(), identity());
    // Before keys are known, nothing leaves.
    tell([&one, &two], [&[], &[]], [&a, &b]);
    eventually("the kernel has the keys", || {
        *one.in_force.borrow() == Some(a.public) && *two.in_force.borrow() == Some(b.public)
    });
    assert!(one.pod.ask((two.ips[0], 80).into()).is_err(), "nobody knows a key yet");
    tell([&one, &two], [&[a.public], &[b.public]], [&a, &b]);
    for (from, to) in one.ips.iter().zip(&two.ips) {
        eventually("pod to pod of the other machine", || {
            one.pod.ask((*to, 80).into()) == Ok(from.to_string())
        });
        assert!(one.host.ask((*to, 80).into()).is_ok(), "host to pod: {to}");
    }
    // Keys change while pods speak: shown, used, said.
    let still = Arc::new(AtomicBool::new(false));
    let speakers = [
        speaking(&one.pod, two.ips[0], still.clone()),
        speaking(&one.pod, two.ips[1], still.clone()),
    ];
    std::thread::sleep(Duration::from_millis(300));
    tell([&one, &two], [&[a.public, next.public], &[b.public]], [&a, &b]);
    std::thread::sleep(Duration::from_millis(500));
    tell([&one, &two], [&[a.public, next.public], &[b.public]], [&next, &b]);
    eventually("the kernel has the next key", || {
        *one.in_force.borrow() == Some(next.public)
    });
    tell([&one, &two], [&[next.public], &[b.public]], [&next, &b]);
    std::thread::sleep(Duration::from_secs(2));
    still.store(true, Ordering::Relaxed);
    for speaker in speakers {
        let longest = speaker.join().unwrap();
        eprintln!("the longest answer took {longest:?}");
        // Less than the time after which a handshake is tried again.
        assert!(longest < Duration::from_secs(4), "{longest:?}");
    }
    // The device is removed by somebody: what is sent meanwhile stays here, and it is mended.
    ip(&one.host, &[format!("link del {}", underlay::WIREGUARD)]);
    eventually("the device is mended", || one.pod.ask((two.ips[0], 80).into()).is_ok());
    end.store(true, Ordering::Relaxed);
    let (encrypted, clear) = seen.join().unwrap();
    eprintln!("{encrypted} packets were WireGuard's, {clear} in clear");
    assert!(encrypted > 20 && clear == 0, "{encrypted} {clear}");
    stop.cancel();
    for machine in [one, two] {
        machine.underlay.join().unwrap();
        let left = machine.host.run(|| {
            block_on(underlay::remove()).unwrap();
            let show = |args: &[&str]| {
                let out = std::process::Command::new("ip").args(args).output().unwrap();
                String::from_utf8(out.stdout).unwrap()
            };
            show(&["link"]) + &show(&["route"]) + &show(&["-6", "route"])
        });
        assert!(
            !left.contains(underlay::WIREGUARD) && !left.contains("unreachable"),
            "{}: {left}",
            machine.name
        );
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
