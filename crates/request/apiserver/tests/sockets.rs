//! Watches by WebSocket: what is agreed, what the messages are, and that a client costs no more by it than by any watch.

#![allow(clippy::unwrap_used)]

mod harness;

use futures::SinkExt;
use harness::Api;
use harness::socket::{ask, event, next, opened, request};
use keelson_api::codec::proto;
use keelson_api::{Value, value};
use keelson_apiserver::audit::{Policy, Settings};
use keelson_apiserver::request::{Body, Response, UserInfo};
use keelson_store::Memory;
use std::time::Duration;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tower::ServiceExt;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WATCH: &str = "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=600";

async fn send(api: &Api, request: http::Request<Body>) -> Response {
    let user = UserInfo::new("tester", &["system:masters"]);
    api.server.service(user).oneshot(request).await.unwrap()
}

async fn make(api: &Api, name: &str, data: &str) {
    let map = value!({"metadata": {"name": name}, "data": {"x": data}});
    api.post(MAPS, map).await.expect(201);
}

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    value.at(path).and_then(Value::as_str).unwrap_or_default()
}

async fn until(what: &str, mut ok: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !ok().await {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn close_code(message: Option<Message>) -> CloseCode {
    match message {
        Some(Message::Close(Some(frame))) => frame.code,
        other => panic!("{other:?} is no end"),
    }
}

#[tokio::test]
async fn each_event_is_a_message() {
    let api = Api::new().await;
    make(&api, "a", "1").await;
    make(&api, "b", "2").await;
    let mut socket = opened(send(&api, request(WATCH)).await).await;
    for name in ["a", "b"] {
        let added = event(&mut socket).await;
        assert_eq!(
            (text(&added, &["type"]), text(&added, &["object", "metadata", "name"])),
            ("ADDED", name)
        );
    }
    api.delete(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(text(&event(&mut socket).await, &["type"]), "DELETED");
    // As a line of an ordinary watch: the same bytes.
    let path = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let lines = api.call("GET", &path, "", "application/json", vec![]).await.bytes;
    let mut again = opened(send(&api, request(WATCH)).await).await;
    let Some(Message::Text(line)) = next(&mut again).await else {
        panic!()
    };
    assert_eq!(line.as_bytes(), &lines[..]);

    // A table is a table, and the columns are told once.
    let table = ask(WATCH).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let mut socket = opened(send(&api, table.body(Body::empty()).unwrap()).await).await;
    let row = event(&mut socket).await;
    assert_eq!(text(&row, &["object", "kind"]), "Table");
}

#[tokio::test]
async fn protobuf_is_binary_and_has_no_length_before_it() {
    let api = Api::new().await;
    make(&api, "a", "1").await;
    let asked = ask(WATCH).header("accept", "application/vnd.kubernetes.protobuf");
    let mut socket = opened(send(&api, asked.body(Body::empty()).unwrap()).await).await;
    let Some(Message::Binary(bytes)) = next(&mut socket).await else {
        panic!()
    };
    let (kind, object) = proto::open_watch_event(&bytes).unwrap();
    assert_eq!((kind, proto::open(object).unwrap().kind), ("ADDED", "ConfigMap"));
}

#[tokio::test]
async fn the_end_of_a_watch_is_told() {
    let api = Api::new().await;
    let path = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let mut socket = opened(send(&api, request(&path)).await).await;
    assert_eq!(close_code(next(&mut socket).await), CloseCode::Normal);
}

#[tokio::test]
async fn a_handshake_is_judged_as_upstream_judges_it() {
    let api = Api::new().await;
    let told = async |change: &dyn Fn(&mut http::HeaderMap)| {
        let mut request = request(WATCH);
        change(request.headers_mut());
        let answer = send(&api, request).await;
        let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.to_string());
        (
            answer.status().as_u16(),
            header("sec-websocket-protocol"),
            header("sec-websocket-version"),
        )
    };
    let set = |name: &'static str, value: &'static str| {
        move |headers: &mut http::HeaderMap| drop(headers.insert(name, value.parse().unwrap()))
    };
    let none = |name: &'static str| move |headers: &mut http::HeaderMap| drop(headers.remove(name));
    assert_eq!(told(&|_| {}).await, (101, None, None));
    let one = set("sec-websocket-protocol", "whatever");
    assert_eq!(told(&one).await, (101, Some("whatever".into()), None));
    let two = set("sec-websocket-protocol", "whatever, other");
    assert_eq!(told(&two).await.0, 400);
    assert_eq!(told(&none("origin")).await.0, 403);
    assert_eq!(told(&set("origin", "null")).await.0, 403);
    assert_eq!(
        told(&set("sec-websocket-version", "8")).await,
        (400, None, Some("13".into()))
    );
    assert_eq!(told(&none("sec-websocket-key")).await.0, 400);
    // Who doesn't say that the connection is to change has an ordinary watch.
    assert_eq!(told(&set("connection", "keep-alive")).await.0, 200);
    // And what isn't allowed is refused as ever, before anything changes.
    let user = UserInfo::new("nobody", &["system:authenticated"]);
    let answer = api.server.service(user).oneshot(request(WATCH)).await.unwrap();
    assert_eq!(answer.status(), 403);
}

/// A number of the server's page about ConfigMaps.
async fn measured(api: &Api, name: &str) -> u64 {
    let page = api.get("/metrics").await.expect(200);
    let page = String::from_utf8_lossy(&page.bytes).into_owned();
    let ours = |line: &&str| {
        let of = line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
        of && line.contains("\"configmaps\"") && !line.contains("scope=\"cluster\"")
    };
    let values = page
        .lines()
        .filter(ours)
        .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

/// Watches that are served now.
async fn open(api: &Api) -> u64 {
    measured(api, "apiserver_longrunning_requests").await
}

/// Events that were written for some watcher.
async fn sent(api: &Api) -> u64 {
    measured(api, "apiserver_watch_events_total").await
}

#[tokio::test]
async fn a_client_has_nothing_to_say_but_that_it_goes() {
    let api = Api::new().await;
    let before = open(&api).await;
    let mut socket = opened(send(&api, request(WATCH)).await).await;
    until("it is counted", async || open(&api).await == before + 1).await;
    socket.send(Message::text("hello")).await.unwrap();
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    let Some(Message::Pong(said)) = next(&mut socket).await else {
        panic!()
    };
    assert_eq!(said, "are you there");
    make(&api, "a", "1").await;
    assert_eq!(text(&event(&mut socket).await, &["type"]), "ADDED");
    socket.close(None).await.unwrap();
    assert!(matches!(next(&mut socket).await, Some(Message::Close(_))));
    until("it has ended", async || open(&api).await == before).await;

    // One that goes without a word, and one that says more than anybody has to.
    drop(opened(send(&api, request(WATCH)).await).await);
    until("it has ended", async || open(&api).await == before).await;
    let mut socket = opened(send(&api, request(WATCH)).await).await;
    assert_eq!(text(&event(&mut socket).await, &["type"]), "ADDED");
    let _broken = socket.send(Message::text("x".repeat(1 << 20))).await;
    until("it has ended", async || open(&api).await == before).await;
    drop(socket);
}

/// Seats taken at the level of the service accounts.
fn seats(api: &Api) -> usize {
    let usage = api.server.state().flow.usage();
    usage.iter().find(|l| l.level == "workload-low").unwrap().executing
}

#[tokio::test]
async fn who_reads_slowly_is_bound_as_by_any_watch() {
    let api = Api::starting_with(Memory::new(), |config| config.max_requests_in_flight = 30);
    api.server.ready().await;
    let binding = value!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:serviceaccounts"}],
    });
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    api.post(path, binding).await.expect(201);
    let data = "x".repeat(20_000);
    for i in 0..300 {
        make(&api, &format!("m{i}"), &data).await;
    }
    let user = UserInfo::new(
        "system:serviceaccount:default:slow",
        &["system:serviceaccounts", "system:authenticated"],
    );
    let path =
        format!("{MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan");
    let asked = async || api.server.service(user.clone()).oneshot(request(&path)).await.unwrap();
    until("it may", async || asked().await.status() == 101).await;
    until("none is left", async || seats(&api) == 0).await;

    let mut socket = opened(asked().await).await;
    assert_eq!(seats(&api), 2, "while it begins");
    for _ in 0..301 {
        event(&mut socket).await;
    }
    until("what comes next is waited for without a seat", async || {
        seats(&api) == 0
    })
    .await;

    // What it doesn't read waits where the events of every watcher wait, and nothing is made of it meanwhile.
    make(&api, "a", "0").await;
    let before = sent(&api).await;
    for i in 0..200 {
        let map = value!({"metadata": {"name": "a"}, "data": {"i": i.to_string().as_str(), "x": data.as_str()}});
        api.put(&format!("{MAPS}/a"), map).await.expect(200);
    }
    let made = sent(&api).await - before;
    assert!((1..50).contains(&made), "{made}");
    let mut numbers = Vec::new();
    while numbers.len() < 200 {
        let event = event(&mut socket).await;
        numbers.extend(text(&event, &["object", "data", "i"]).parse::<usize>().ok());
    }
    assert!(numbers.into_iter().eq(0..200));

    // One that never reads has its seat as long as any request.
    let unread = opened(asked().await).await;
    assert_eq!(seats(&api), 2);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(seats(&api), 0);
    drop(unread);
}

#[tokio::test]
async fn it_is_audited_from_its_beginning_to_its_end() {
    let path = std::env::temp_dir().join(format!("keelson-audit-sockets-{}.log", std::process::id()));
    let rules = "omitStages: [RequestReceived]\nrules:\n- {level: Metadata, users: [tester], verbs: [watch]}\n";
    let policy = Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}")).unwrap();
    let settings = Settings::at(path.clone());
    let api = Api::starting_with(Memory::new(), |config| config.audit = Some((policy, settings)));
    api.server.ready().await;
    let events = || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let events = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        events
            .map(|e| (text_of(&e), e.at(&["responseStatus", "code"]).and_then(Value::as_i64)))
            .collect::<Vec<_>>()
    };
    fn text_of(event: &Value) -> String {
        text(event, &["stage"]).to_string()
    }
    let mut socket = opened(send(&api, request(WATCH)).await).await;
    until("it is told", async || !events().is_empty()).await;
    assert_eq!(events(), [("ResponseStarted".to_string(), Some(101))]);
    socket.close(None).await.unwrap();
    until("its end is told", async || events().len() == 2).await;
    assert_eq!(events()[1], ("ResponseComplete".to_string(), Some(101)));
    std::fs::remove_file(&path).unwrap();
}
