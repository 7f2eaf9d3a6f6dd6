//! Real links in real namespaces: pods reach each other, the host and host ports, and teardown leaves nothing.
//! Needs root; every namespace is made here and dies with its thread.

#![allow(clippy::unwrap_used)]

use keelson_network::{Config, PodNetwork, PodNetworkRequest, PortMapping, Protocol, Routed};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

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
