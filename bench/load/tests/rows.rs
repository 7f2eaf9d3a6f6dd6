//! The instrument's rows, in miniature, on a real API server in this process: none of them may fail.

#![allow(clippy::unwrap_used)]

use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{ApiServer, Config};
use keelson_load::greedy::Users;
use keelson_load::measure::{ALONE, BESIDE, Bench, Figures, Sizes};
use keelson_load::rounds::cases;
use keelson_load::target::Target;
use keelson_load::world::World;
use keelson_pki::{Authority, CertSpec, Kubeconfig, San, ServiceAccountKeys};
use keelson_store::Memory;
use regex::Regex;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// An API server on loopback, in a runtime of its own, until it is dropped.
struct Server {
    admin: Kubeconfig,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Server {
        let ca = Authority::generate("kubernetes").unwrap();
        let serving = ca
            .issue(&CertSpec::server("kube-apiserver", vec![San::parse("127.0.0.1")]))
            .unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let url = format!("https://{}", socket.local_addr().unwrap());
        let known = |name: &str, group| {
            let issued = ca.issue(&CertSpec::client(name, group)).unwrap();
            Kubeconfig::with_certificate(&url, ca.cert_pem(), name, &issued.cert_pem, &issued.key_pem)
        };
        let dir = tempfile::tempdir().unwrap();
        for name in ["polite", "greedy"] {
            known(name, None).write(&dir.path().join(name)).unwrap();
        }
        let admin = known("admin", Some("system:masters"));
        let mut config = Config::new(ServiceAccountKeys::generate().unwrap());
        config.publish_kubernetes_service = false;
        config.client_ca_pem = ca.cert_pem().to_owned();
        let (stop, (ready, is_ready)) = (CancellationToken::new(), std::sync::mpsc::channel());
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let api = ApiServer::new(config, Memory::new()).unwrap();
                api.ready().await;
                ready.send(()).unwrap();
                let cert = ServingCert::new(&serving.cert_pem, &serving.key_pem).unwrap();
                let socket = TcpListener::from_std(socket).unwrap();
                api.serve(socket, cert, stopping).await.unwrap();
                api.shutdown();
            });
        });
        is_ready.recv().unwrap();
        Server {
            admin,
            dir,
            stop,
            thread: Some(thread),
        }
    }

    fn bench(&self, http1: bool) -> Bench {
        let sizes = Sizes {
            share: 0.005,
            some: 20,
            listed: 20,
            watchers: 5,
            informers: 5,
            greedy: Duration::from_secs(1),
            settles: Duration::from_millis(5),
            limit: Duration::from_secs(60),
        };
        let at = |name: &str| self.dir.path().join(name);
        Bench {
            world: World::new(Target::of(&self.admin, http1).unwrap(), &sizes),
            sizes,
            http1,
            servers: vec![std::process::id()],
            users: Some(Users {
                polite: at("polite"),
                greedy: at("greedy"),
                program: Path::new(env!("CARGO_BIN_EXE_request-bench")).to_owned(),
            }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn is_sound(figures: &Figures) -> bool {
    figures.requests > 0
        && figures.per_second > 0.0
        && figures.server_us > 0.0
        && figures.p50_us > 0.0
        && figures.p99_us >= figures.p50_us
}

async fn measure(bench: &mut Bench, rows: &str) -> Vec<(String, usize, Figures)> {
    let mut all = Vec::new();
    for case in cases(&Regex::new(rows).unwrap()) {
        let found = bench.measure(case.row, case.clients).await;
        let found = found.unwrap_or_else(|e| panic!("{}, {} clients: {e:#}", case.row.name, case.clients));
        all.extend(found.into_iter().map(|(name, figures)| (name, case.clients, figures)));
    }
    all
}

#[tokio::test]
async fn every_row_can_be_measured() {
    let server = Server::start();
    let mut bench = server.bench(false);
    // Of many clients one row shows it.
    let found = measure(&mut bench, "^[^/]*/(1|16)$|^get a ConfigMap[^/]*/256$").await;
    for (name, clients, figures) in &found {
        // Whose time it was can't be told while somebody else floods the server.
        let sound = is_sound(figures) != (name == BESIDE);
        assert!(sound, "{name}, {clients} clients: {figures:?}");
    }
    let of = |name: &str| {
        &found
            .iter()
            .find(|(found, ..)| found == name)
            .unwrap_or_else(|| panic!("no {name}"))
            .2
    };
    // Twenty pods in JSON, and of each only who it is.
    let (whole, metadata) = (of("list 5,000 pods, JSON"), of("list, metadata only"));
    assert!(whole.bytes / whole.requests as u64 > 20 * 7_000, "{whole:?}");
    assert!(
        metadata.bytes / (metadata.requests as u64) < whole.bytes / whole.requests as u64,
        "{metadata:?}"
    );
    // Each event reached each watcher, each informer has all there is.
    let events = of("an event to each of 1,000 watchers, a write after the other");
    assert_eq!(events.requests % 5, 0);
    assert_eq!(of("start of 500 informers, list and watch").requests, 5);
    assert!(of("start of 500 informers, watch alone").bytes > 5 * 20 * 1024);
    let asked = bench.world.hooked();
    let hooked = found
        .iter()
        .filter(|(name, ..)| name == "create a ConfigMap, a webhook asked");
    assert!(
        asked >= hooked.map(|(.., f)| f.requests).sum::<usize>(),
        "{asked} reviews"
    );
    // 25 of each kind a second, due by the clock.
    assert_eq!((of(ALONE).requests, of(BESIDE).requests), (50, 50));
    bench.world.leave().await.unwrap();
}

#[tokio::test]
async fn a_row_is_measured_over_the_older_protocol_too() {
    let server = Server::start();
    let mut bench = server.bench(true);
    for (name, clients, figures) in measure(&mut bench, "^(get a ConfigMap of|create a pod)[^/]*/16$").await {
        assert!(is_sound(&figures), "{name}, {clients} clients: {figures:?}");
    }
}

#[tokio::test]
async fn an_answer_that_isnt_the_rows_is_a_failure() {
    let server = Server::start();
    let mut bench = server.bench(false);
    bench.world = World::new(
        Target::read(&server.dir.path().join("polite"), false).unwrap(),
        &bench.sizes,
    );
    let row = cases(&Regex::new("^create a pod/1$").unwrap())[0];
    let why = format!("{:#}", bench.measure(row.row, 1).await.unwrap_err());
    assert!(why.contains("answered 403") && why.contains("forbidden"), "{why}");
}
