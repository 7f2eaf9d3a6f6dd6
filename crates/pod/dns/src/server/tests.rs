//! The server on loopback, with servers of the rest of the world that the tests play.

use super::*;
use crate::answer::question;
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{RData, Record, RecordType};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::{Instant, timeout};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A server that knows `big.test.` (60 addresses), `chain.test.` (an alias to it), `one.test.`, and nothing else.
struct World {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

fn world(request: &Message) -> Message {
    let query = &request.queries[0];
    let mut answer = Message::response(request.metadata.id, OpCode::Query);
    answer.add_query(query.clone());
    let big = || (0..60).map(|n| Record::from_rdata(name("big.test."), 60, RData::A(A([192, 0, 2, n].into()))));
    match query.name().to_lowercase().to_ascii().as_str() {
        "big.test." => drop(answer.add_answers(big())),
        "chain.test." => {
            answer.add_answer(Record::from_rdata(
                name("chain.test."),
                60,
                RData::CNAME(CNAME(name("big.test."))),
            ));
            answer.add_answers(big());
        }
        "one.test." => {
            answer.add_answer(Record::from_rdata(
                name("one.test."),
                1,
                RData::A(A([192, 0, 2, 1].into())),
            ));
        }
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(name("ns.test."), name("mail.test."), 1, 1, 1, 1, 20);
            answer.add_authority(Record::from_rdata(name("test."), 60, RData::SOA(soa)));
        }
    }
    answer
}

impl World {
    async fn start() -> World {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((n, client)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let request = Message::from_vec(&buffer[..n]).unwrap();
                let reply = Reply {
                    message: world(&request),
                    limit: limit(&request),
                    by: By::Nobody,
                };
                udp.send_to(&reply.encode(true).unwrap(), client).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let bytes = receive(&mut stream).await.unwrap();
                let reply = world(&Message::from_vec(&bytes).unwrap()).to_vec().unwrap();
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        World { address, asked }
    }
}

struct Dns {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: tokio_util::sync::DropGuard,
}

async fn dns(upstreams: &[SocketAddr]) -> Dns {
    let shared = Arc::new(Shared::default());
    let service = |n: &str, spec: serde_json::Value| {
        let object = serde_json::json!({"metadata": {"name": n, "namespace": "shop"}, "spec": spec});
        Arc::new(serde_json::from_value(object).unwrap())
    };
    let mut services = vec![service("web", serde_json::json!({"clusterIP": "10.96.0.20"}))];
    for target in ["big.test", "chain.test", "none.test"] {
        let spec = serde_json::json!({"type": "ExternalName", "externalName": target});
        services.push(service(&target.replace(".test", ""), spec));
    }
    *shared.zone.write() = Zone::build("cluster.local", &services, &[]);
    shared.outside.follow(upstreams);
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, stop) = (sockets.address(), CancellationToken::new());
    tokio::spawn(serve(sockets, shared.clone(), stop.clone()));
    Dns {
        address,
        shared,
        _stop: stop.drop_guard(),
    }
}

impl Dns {
    async fn udp(&self, host: &str, payload: Option<u16>) -> Message {
        let mut request = question(&name(host), RecordType::A);
        request.metadata.id = 4711;
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            request.set_edns(edns);
        }
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&request.to_vec().unwrap(), self.address).await.unwrap();
        let mut buffer = [0; 8192];
        let n = timeout(Duration::from_secs(10), socket.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        let answer = Message::from_vec(&buffer[..n]).unwrap();
        assert_eq!((answer.metadata.id, answer.queries.len()), (4711, 1));
        answer
    }

    async fn tcp(&self, host: &str) -> Message {
        let bytes = question(&name(host), RecordType::A).to_vec().unwrap();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        Message::from_vec(&receive(&mut stream).await.unwrap()).unwrap()
    }
}

#[tokio::test]
async fn long_answers_are_whole_or_said_to_be_cut() {
    let world = World::start().await;
    let dns = dns(&[world.address]).await;
    for (host, records) in [
        ("big.test.", 60),
        ("big.shop.svc.cluster.local.", 61),
        ("chain.shop.svc.cluster.local.", 62),
    ] {
        for payload in [None, Some(512)] {
            let cut = dns.udp(host, payload).await;
            assert!(cut.metadata.truncation && cut.answers.is_empty(), "{host} {payload:?}");
        }
        assert_eq!(dns.udp(host, Some(4096)).await.answers.len(), records, "{host}");
        assert_eq!(dns.tcp(host).await.answers.len(), records, "{host} by TCP");
    }
    let none = dns.udp("none.shop.svc.cluster.local.", None).await;
    assert_eq!(
        none.metadata.response_code,
        ResponseCode::NXDomain,
        "the target's absence is the alias's"
    );
    assert_eq!((none.answers.len(), none.authorities.len()), (1, 1));
}

#[tokio::test]
async fn what_is_known_is_not_asked_again_and_no_longer_than_it_holds() {
    let world = World::start().await;
    let dns = dns(&[world.address]).await;
    for host in ["nobody.test.", "Nobody.TEST.", "nobody.test."] {
        let answer = dns.udp(host, None).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(
            answer.queries[0].name().to_ascii(),
            host,
            "the question comes back as it was written"
        );
    }
    assert_eq!(world.asked.load(Ordering::SeqCst), 1);
    dns.udp("one.test.", None).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(dns.udp("one.test.", None).await.answers.len(), 1);
    assert_eq!(world.asked.load(Ordering::SeqCst), 3, "its second is over");
}

#[tokio::test]
async fn dead_servers_are_passed_over_and_do_not_keep_the_cluster_waiting() {
    // Bound, and never read: a server that says nothing.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dead = silent.local_addr().unwrap();
    let world = World::start().await;
    let dns = dns(&[dead, world.address]).await;
    for n in 0..2 {
        assert_eq!(
            dns.udp(&format!("x{n}.test."), None).await.metadata.response_code,
            ResponseCode::NXDomain
        );
    }
    let began = Instant::now();
    for n in 2..12 {
        assert_eq!(
            dns.udp(&format!("x{n}.test."), None).await.metadata.response_code,
            ResponseCode::NXDomain
        );
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "the dead one was asked: {:?}",
        began.elapsed()
    );

    dns.shared.outside.follow(&[dead]);
    let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for n in 0..1500 {
        let bytes = question(&name(&format!("y{n}.test.")), RecordType::A).to_vec().unwrap();
        flood.send_to(&bytes, dns.address).await.unwrap();
        if n % 100 == 0 {
            let began = Instant::now();
            assert_eq!(dns.udp("web.shop.svc.cluster.local.", None).await.answers.len(), 1);
            assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
        }
    }
    assert_eq!(
        dns.udp("z.test.", None).await.metadata.response_code,
        ResponseCode::ServFail
    );
}

#[tokio::test]
async fn strangers_are_refused() {
    let shared = Shared::default();
    *shared.zone.write() = Zone::build("cluster.local", &[], &[]);
    let shared = Shared {
        clients: Clients {
            ranges: vec!["10.244.0.0/16".parse().unwrap()],
            nodes: RwLock::new(["192.0.2.10".parse().unwrap()].into()),
        },
        ..shared
    };
    let bytes = question(&name("example.org."), RecordType::A).to_vec().unwrap();
    let came = |client: IpAddr| Came {
        server: "dns://127.0.0.1:53",
        proto: "udp",
        client,
        began: std::time::Instant::now(),
        bytes: bytes.len(),
    };
    let asks = |ip: &str| match at_once(&bytes, &came(ip.parse().unwrap()), &shared) {
        Step::Ask(_) => true,
        Step::Done(reply) => {
            assert_eq!(reply.message.metadata.response_code, ResponseCode::Refused);
            false
        }
        Step::Ignore => panic!("nothing said"),
    };
    assert!(asks("10.244.3.4") && asks("192.0.2.10") && asks("127.0.0.1"));
    assert!(!asks("192.0.2.11") && !asks("203.0.113.5") && !asks("10.245.0.1"));
}
