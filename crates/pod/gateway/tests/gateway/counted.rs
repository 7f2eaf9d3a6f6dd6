//! What is counted and logged of requests.

use crate::backends::{Fake, Gate, read, table, to, whole};
use crate::plans::world;
use http::{Request, Response};
use hyper::body::Incoming;
use keelson_gateway::plan::plan;
use keelson_gateway::serve::Certificates;
use keelson_gateway::table::{Host, Listener, Port, Protocol, Speaks, Table};
use keelson_measure::Measures;
use parking_lot::Mutex;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// The page's counters of requests, sorted, once there are so many requests.
async fn counted(measures: &Measures, requests: u64) -> Vec<String> {
    let mut found = Vec::new();
    for _ in 0..200 {
        let page = measures.page();
        let mut lines = page
            .lines()
            .filter_map(|l| l.strip_prefix("keelson_gateway_requests_total"));
        found = lines.by_ref().map(String::from).collect();
        let all: u64 = found
            .iter()
            .filter_map(|l| l.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum();
        if all == requests {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    found.sort();
    found
}

/// A table whose one listener is for a host.
fn only(gate: &Gate, host: &str, backend: &Fake) -> Table {
    let at = gate.at.port();
    let one = table(at, to(&[backend.at], Protocol::Http1), &[]);
    let listener = Listener {
        host: Host::new(host),
        ..one.ports[&at].listeners[0].clone()
    };
    let port = Port {
        listeners: vec![listener],
        ..(*one.ports[&at]).clone()
    };
    Table {
        ports: [(at, Arc::new(port))].into(),
    }
}

async fn ask(gate: &Gate, host: &str, path: &str) -> (u16, String) {
    let request = Request::get(path).header("host", host).body(whole("")).unwrap();
    read(gate.http1().await.send_request(request).await.unwrap()).await
}

async fn answers(request: Request<Incoming>) -> Response<crate::backends::Body> {
    let code = request.uri().path()[1..].parse().unwrap_or(200);
    if code == 0 {
        std::future::pending::<()>().await;
    }
    Response::builder().status(code).body(whole("12345")).unwrap()
}

#[tokio::test]
async fn requests_are_counted_by_what_is_there_and_by_codes_that_have_a_name() {
    let (measures, backend) = (Measures::default(), Fake::start(answers).await);
    let gate = Gate::counting(Speaks::Http, &measures).await;
    gate.serving.set(only(&gate, "x.org", &backend), Certificates::new());
    for path in ["/200", "/200", "/404", "/799", "/%2e%2e/x"] {
        ask(&gate, "x.org", path).await;
    }
    for i in 0..20 {
        ask(&gate, &format!("{i}.nobody.org"), "/200").await;
    }
    let mut left = gate.http1().await;
    let request = Request::get("/000").header("host", "x.org").body(whole("")).unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(100), left.send_request(request)).await;
    assert!(asked.is_err());
    drop(left);
    let of = r#"listener="Gateway/n/g/web",route="HTTPRoute/n/r""#;
    let nobodys = r#"listener="",route="""#;
    let expected = [
        format!(r#"{{code="200",{of}}} 2"#),
        format!(r#"{{code="400",{nobodys}}} 1"#),
        format!(r#"{{code="404",{nobodys}}} 20"#),
        format!(r#"{{code="404",{of}}} 1"#),
        format!(r#"{{code="gone",{of}}} 1"#),
        format!(r#"{{code="other",{of}}} 1"#),
    ];
    assert_eq!(counted(&measures, 26).await, expected);
    let durations = format!("keelson_gateway_request_duration_seconds_count{{{of}}} 5");
    assert!(measures.page().lines().any(|l| l == durations), "{}", measures.page());
    // What is there no more is told no more, nor when a request for it ends only then.
    let mut late = gate.http1().await;
    let request = Request::get("/000").header("host", "x.org").body(whole("")).unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(100), late.send_request(request)).await;
    assert!(asked.is_err());
    gate.serving.set(Table::default(), Certificates::new());
    drop(late);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let left = counted(&measures, 21).await;
    assert!(left.iter().all(|line| line.contains(nobodys)), "{left:?}");
    assert!(!measures.page().contains("HTTPRoute"), "{}", measures.page());
}

#[test]
fn listeners_and_routes_are_named_by_whose_they_are() {
    let plan = plan(&world(
        "
kind: Gateway
metadata: {name: g, namespace: shop}
spec: {gatewayClassName: keelson, allowedListeners: {namespaces: {from: All}}, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
kind: ListenerSet
metadata: {name: set, namespace: blue}
spec: {parentRef: {name: g, namespace: shop}, listeners: [{name: own, port: 80, protocol: HTTP, hostname: y.org}]}
---
kind: GRPCRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}]}]}
",
    ));
    let port = plan.table.ports.values().next().unwrap();
    let names: Vec<&str> = port.listeners.iter().map(|l| &*l.name).collect();
    assert_eq!(names, ["ListenerSet/blue/set/own", "Gateway/shop/g/web"]);
    assert_eq!(&*port.listeners[1].hosts[""][0].route, "GRPCRoute/shop/r");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_log_tells_who_asked_for_what_and_no_more_than_the_path() {
    let log = Log::default();
    let own = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time();
    let subscriber = subscriber
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || own.clone());
    let _logging = tracing::subscriber::set_default(subscriber.finish());
    let backend = Fake::start(answers).await;
    let gate = Gate::to(to(&[backend.at], Protocol::Http1)).await;
    ask(&gate, "x.org", "/201?token=secret").await;
    let mut lines = Vec::new();
    for _ in 0..100 {
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        lines = text
            .lines()
            .filter(|l| l.contains("keelson_gateway::access"))
            .map(String::from)
            .collect();
        if !lines.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    for part in [
        "GET /201 HTTP/1.1 remote=127.0.0.1:",
        r#"host="x.org" code="201" bytes=5 seconds=0."#,
        "listener=Gateway/n/g/web route=HTTPRoute/n/r",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("secret"), "{line}");
}
