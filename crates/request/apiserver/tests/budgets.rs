//! What a greedy client takes is its own: seats, bodies, answers that nobody reads.

#![allow(clippy::unwrap_used)]

mod harness;

use futures::StreamExt;
use harness::Api;
use http_body_util::BodyExt;
use keelson_api::value;
use keelson_apiserver::request::{Body, Response, UserInfo};
use keelson_store::Memory;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A server of few seats, where every service account may do everything.
async fn few_seats() -> Api {
    let api = Api::starting_with(Memory::new(), |config| config.max_requests_in_flight = 30);
    api.server.ready().await;
    let binding = value!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:serviceaccounts"}],
    });
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        .await
        .expect(201);
    let began = Instant::now();
    while ask(&api, "greedy", "GET", MAPS, Body::empty()).await.status() != 200 {
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    api
}

async fn ask(api: &Api, account: &str, method: &str, path: &str, body: Body) -> Response {
    let name = format!("system:serviceaccount:default:{account}");
    let user = UserInfo::new(&name, &["system:serviceaccounts", "system:authenticated"]);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .header("accept", "application/json");
    let request = request.body(body).unwrap();
    api.server.service(user).oneshot(request).await.unwrap()
}

/// Seats taken at the service accounts' level.
fn seats(api: &Api) -> usize {
    let usage = api.server.state().flow.usage();
    usage.iter().find(|l| l.level == "workload-low").unwrap().executing
}

async fn until(what: &str, ok: impl Fn() -> bool) {
    let began = Instant::now();
    while !ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn bodies_that_do_not_come_hold_no_seat() {
    let api = std::sync::Arc::new(few_seats().await);
    let stalled: Vec<_> = (0..300)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move {
                let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
                ask(&api, "greedy", "POST", MAPS, body).await.status()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    until("no seat is held", || seats(&api) == 0).await;
    assert!(stalled.iter().all(|s| !s.is_finished()));
    // The greedy one's neighbour, and itself, are served as ever; also what comes in pieces.
    for account in ["other", "greedy"] {
        let map = serde_json::to_vec(&value!({"metadata": {"name": account}})).unwrap();
        let pieces = futures::stream::iter(map.chunks(7).map(bytes::Bytes::copy_from_slice).collect::<Vec<_>>());
        let slow = pieces.then(|piece| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, std::io::Error>(piece)
        });
        let answer = timeout(
            Duration::from_secs(5),
            ask(&api, account, "POST", MAPS, Body::from_stream(slow)),
        )
        .await;
        assert_eq!(answer.unwrap().status(), 201);
    }
    stalled.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_given_up_at_the_deadline() {
    let api = Api::new().await;
    let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let request = http::Request::post(MAPS)
        .header("content-type", "application/json")
        .body(body)
        .unwrap();
    let began = Instant::now();
    let service = api.server.service(UserInfo::new("a", &["system:masters"]));
    assert_eq!(service.oneshot(request).await.unwrap().status(), 504);
    assert_eq!(began.elapsed().as_secs(), 60);
}

async fn fill(api: &Api, n: usize) {
    let data = "x".repeat(20_000);
    for i in 0..n {
        let map = value!({"metadata": {"name": format!("m{i}")}, "data": {"x": data.as_str()}});
        api.post(MAPS, map).await.expect(201);
    }
}

#[tokio::test]
async fn a_long_answer_lets_others_have_their_turns() {
    let api = Api::new().await;
    for n in 0..20 {
        let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{n}")}, "data": {"a": "x".repeat(40_000)}});
        api.post(MAPS, map).await.expect(201);
    }
    let turns = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let others = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let admin = UserInfo::new("admin", &["system:masters"]);
    let list = http::Request::get("/api/v1/configmaps").body(Body::empty()).unwrap();
    let answer = api.server.service(admin).oneshot(list).await.unwrap();
    let (before, mut frames) = (turns.load(Ordering::Relaxed), 0);
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        frame.unwrap();
        frames += 1;
    }
    others.abort();
    let had = turns.load(Ordering::Relaxed) - before;
    assert!(
        frames > 5 && had + 2 >= frames,
        "{had} turns while {frames} pieces were told"
    );
}

#[tokio::test]
async fn an_answer_has_its_seats_to_the_last_byte() {
    let api = few_seats().await;
    fill(&api, 10).await;
    let unread = ask(&api, "greedy", "GET", MAPS, Body::empty()).await;
    assert_eq!(unread.status(), 200);
    // 200 kB are three seats, but no request of this level is wider than two of its few.
    assert_eq!(seats(&api), 2);
    let bytes = unread.into_body().collect(1 << 20).await.unwrap();
    assert!(bytes.len() > 200_000);
    assert_eq!(seats(&api), 0);
    let dropped = ask(&api, "greedy", "GET", MAPS, Body::empty()).await;
    drop(dropped);
    // A small answer is as good as sent.
    let small = ask(&api, "greedy", "GET", "/api/v1/namespaces/default", Body::empty()).await;
    assert_eq!((small.status().as_u16(), seats(&api)), (200, 0));
}

#[tokio::test]
async fn a_watch_has_a_seat_while_it_begins() {
    let api = few_seats().await;
    fill(&api, 300).await;
    let path =
        format!("{MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan");
    let answer = ask(&api, "greedy", "GET", &path, Body::empty()).await;
    assert_eq!((answer.status().as_u16(), seats(&api)), (200, 2));
    let mut body = answer.into_body();
    let mut events = 0;
    while events < 301 {
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        events += data.iter().filter(|b| **b == b'\n').count();
    }
    // What comes next is waited for without a seat.
    assert!(timeout(Duration::from_millis(50), body.frame()).await.is_err());
    assert_eq!(seats(&api), 0);
    // One that nobody reads has its seat as long as any request.
    let unread = ask(&api, "greedy", "GET", &path, Body::empty()).await;
    assert_eq!(seats(&api), 2);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(seats(&api), 0);
    drop(unread);
}

#[tokio::test]
async fn who_finds_no_seat_is_told_when_to_come_back() {
    let api = few_seats().await;
    fill(&api, 10).await;
    // Lists that nobody reads, until there is no seat left and none to borrow.
    let mut unread = Vec::new();
    let path = format!("{MAPS}?timeout=20s");
    let refused = loop {
        let answer = ask(&api, "greedy", "GET", &path, Body::empty()).await;
        if answer.status() != 200 {
            break answer;
        }
        unread.push(answer);
        assert!(unread.len() <= 30);
    };
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(refused.headers().contains_key("x-kubernetes-pf-flowschema-uid"));
    let text = refused.into_body().collect(1024).await.unwrap();
    assert_eq!(text, "Too many requests, please try again later.\n");
    // Another level has its own.
    assert_eq!(api.get(MAPS).await.code, 200);
}
