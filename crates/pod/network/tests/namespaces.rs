//! Real links in real namespaces: pods reach each other, the host and host ports, and teardown leaves nothing.
//! Needs root; every namespace is made here and dies with its thread.

#![allow(clippy::unwrap_used)]

use keelson_network::underlay::{self, Mode, Peer, Settings};
use keelson_network::{Config, PodNetwork, PodNetworkRequest, PortMapping, Protocol, Routed};
use rtnetlink::{LinkUnspec, LinkVeth};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own that runs what it is given.
struct Namespace {
    path: PathBuf,
    jobs: Sender<Job>,
}

impl Namespace {
    fn new() -> Namespace {
        let (jobs, inbox): (Sender<Job>, Receiver<Job>) = channel();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let tid = nix::unistd::gettid();
            tell.send(PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id())))
                .unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Namespace {
            path: told.recv().unwrap(),
            jobs,
        }
    }
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = channel();
        self.jobs.send(Box::new(move || tx.send(job()).unwrap())).unwrap();
        rx.recv_timeout(Duration::from_secs(20)).expect("the job answered")
    }
    /// Answers each connection with the caller's address, from a thread in the namespace.
    fn serve(&self, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().take(16) {
                    let mut stream = stream.unwrap();
                    let peer = stream.peer_addr().unwrap().ip().to_string();
                    stream.write_all(peer.as_bytes()).unwrap();
                }
            });
        });
    }
    fn ask(&self, to: SocketAddr) -> Result<String, String> {
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|e| e.to_string())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
            Ok(answer)
        })
    }
}

fn block_on<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(f)
}

#[test]
fn pods_reach_each_other_and_host_ports_and_teardown_leaves_nothing() {
    let dir = std::env::temp_dir().join(format!("keelson-network-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (host, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    let config = Config {
        state_dir: dir.clone(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        pod_cidr: Some("10.244.3.0/24".parse().unwrap()),
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

/// Runs the underlay in a machine until the token fires.
fn connected(machine: &Namespace, name: &str, ip: &str, nodes: watch::Receiver<Vec<Peer>>, stop: CancellationToken) {
    let settings = Settings {
        node_name: name.into(),
        node_ip: ip.parse().unwrap(),
        mode: Mode::Vxlan,
    };
    machine.run(move || {
        std::thread::spawn(move || block_on(underlay::run(settings, nodes, stop)).unwrap());
    });
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
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            pod_cidr: Some(range.parse().unwrap()),
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
    };
    let all = vec![
        node("one", "192.0.2.1", "10.244.1.0/24"),
        node("two", "192.0.2.2", "10.244.2.0/24"),
    ];
    let (nodes, seen) = watch::channel(all.clone());
    let stop = CancellationToken::new();
    connected(&one, "one", "192.0.2.1", seen.clone(), stop.clone());
    connected(&two, "two", "192.0.2.2", seen, stop.clone());
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
    nodes.send_replace(all[..1].to_vec());
    let links = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    eventually("the tunnel goes with the last peer", || {
        !one.run(links).contains(underlay::TUNNEL)
    });
    nodes.send_replace(all);
    eventually("a peer that comes back", || a.ask((ip_b, 80).into()).is_ok());
    stop.cancel();
    two.run(|| block_on(underlay::remove()).unwrap());
    assert!(!two.run(links).contains(underlay::TUNNEL));
    let routes = two.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap());
    assert!(!routes.contains("0001F40A"), "a route to 10.244.1.0: {routes}");
    std::fs::remove_dir_all(&dir).unwrap();
}
