//! Who asks for much is served by threads that come behind, and nobody else is.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use keelson_listen::{Asker, Counted, Limits, Server, for_all, run_plain};
use keelson_sys::thread::had;
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const SHARE: Duration = Duration::from_millis(40);

struct Burner;

fn thread() -> String {
    std::thread::current().name().unwrap_or_default().to_string()
}

async fn burn() {
    for _ in 0..10 {
        let began = had();
        while had() < began + Duration::from_millis(6) {
            std::hint::spin_loop();
        }
        tokio::task::yield_now().await;
    }
}

impl Server for Burner {
    type Peer = ();
    type Body = Full<Bytes>;
    fn connected(&self, _: SocketAddr, _: Option<&[CertificateDer<'_>]>, _: &CancellationToken) {}
    /// Where the answer begins, where it ends, and where what is for all runs.
    async fn answer(&self, _: &Arc<()>, request: http::Request<Incoming>) -> http::Response<Full<Bytes>> {
        let asker = request.extensions().get::<Asker>().cloned();
        if let (Some(asker), Some(name)) = (&asker, request.headers().get("name")) {
            asker.is(name.to_str().unwrap());
        }
        let began = thread();
        match request.uri().path() {
            "/burn" => burn().await,
            "/write" => tokio::spawn(Counted::new(asker, burn())).await.unwrap(),
            _ => {}
        }
        let for_all = for_all().spawn(async { thread() }).await.unwrap();
        http::Response::new(format!("{began} {} {for_all}", thread()).into())
    }
}

struct Asking {
    client: Client<HttpConnector, Empty<Bytes>>,
    name: &'static str,
    at: SocketAddr,
}

impl Asking {
    fn new(at: SocketAddr, name: &'static str, http2: bool) -> Asking {
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
        Asking { client, name, at }
    }
    async fn ask(&self, path: &str) -> String {
        let request = http::Request::get(format!("http://{}{path}", self.at)).header("name", self.name);
        let answer = self.client.request(request.body(Empty::new()).unwrap()).await.unwrap();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}

async fn start(share: Option<Duration>) -> (SocketAddr, CancellationToken) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let stop = CancellationToken::new();
    let limits = Limits {
        share,
        ..Limits::default()
    };
    tokio::spawn(run_plain(socket, Arc::new(Burner), limits, stop.clone()));
    (at, stop)
}

fn in_a_runtime(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).thread_name("first").enable_all();
    runtime.build().unwrap().block_on(test);
}

#[test]
fn who_asks_for_much_comes_behind_and_comes_back() {
    in_a_runtime(async {
        for http2 in [false, true] {
            let (at, stop) = start(Some(SHARE)).await;
            let (greedy, polite) = (Asking::new(at, "greedy", http2), Asking::new(at, "polite", http2));
            assert_eq!(greedy.ask("/").await, "first first first");
            // Within one request, between two of its steps.
            assert_eq!(greedy.ask("/burn").await, "first behind first", "HTTP/2: {http2}");
            assert_eq!(greedy.ask("/").await, "behind behind first");
            // By another connection, too, which begins as the address does.
            let another = Asking::new(at, "greedy", http2);
            another.ask("/").await;
            assert_eq!(another.ask("/").await, "behind behind first");
            assert_eq!(polite.ask("/").await, "first first first");
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!(greedy.ask("/").await, "first first first");
            // What goes on without its connection counts as well.
            assert_eq!(greedy.ask("/write").await, "first behind first");
            stop.cancel();
        }
    });
}

#[test]
fn without_a_share_nobody_comes_behind() {
    in_a_runtime(async {
        let (at, _stop) = start(None).await;
        let greedy = Asking::new(at, "greedy", true);
        for _ in 0..3 {
            assert_eq!(greedy.ask("/burn").await, "first first first");
        }
    });
}

#[test]
fn a_listener_ends_with_clients_that_come_behind() {
    in_a_runtime(async {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let stop = CancellationToken::new();
        let limits = Limits {
            share: Some(SHARE),
            drain: Duration::from_secs(20),
            ..Limits::default()
        };
        let running = tokio::spawn(run_plain(socket, Arc::new(Burner), limits, stop.clone()));
        let greedy = Asking::new(at, "greedy", true);
        greedy.ask("/burn").await;
        assert_eq!(greedy.ask("/").await, "behind behind first");
        let under_way = tokio::spawn(async move { greedy.ask("/burn").await });
        tokio::time::sleep(Duration::from_millis(5)).await;
        stop.cancel();
        assert_eq!(under_way.await.unwrap(), "behind behind first");
        running.await.unwrap().unwrap();
    });
}
