//! Informers and requests against a scripted server: each request is answered by the next line of the script.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use keelson_client::{
    ApiObject, Change, Expectations, Informer, InformerOptions, ObjectKey, Objects, Rest, Together, in_process,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

type Lines = mpsc::UnboundedSender<String>;

/// What to answer: a status, and a body that stays open until its sender is dropped.
struct Answer {
    code: u16,
    body: mpsc::UnboundedReceiver<String>,
}

#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn answer(&self, code: u16) -> Lines {
        let (sender, body) = mpsc::unbounded_channel();
        self.answers.lock().push_back(Answer { code, body });
        sender
    }

    fn rest(&self) -> Rest {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                server
                    .asked
                    .lock()
                    .push(format!("{} {}", request.method(), request.uri()));
                let answer = server.answers.lock().pop_front();
                let (code, body) = match answer {
                    Some(answer) => (answer.code, answer.body),
                    None => (503, mpsc::unbounded_channel().1),
                };
                let stream = futures::stream::unfold(body, |mut body| async move {
                    body.recv()
                        .await
                        .map(|line| (Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(line))), body))
                });
                let body: UnsyncBoxBody<Bytes, Infallible> = BodyExt::boxed_unsync(StreamBody::new(stream));
                let mut response = Response::new(body);
                *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
                Ok::<_, Infallible>(response)
            }
        });
        Rest::new(in_process(service, "default", |body| body), "test")
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

fn event(kind: &str, name: &str, uid: &str, revision: u32) -> String {
    format!(
        "{{\"type\":\"{kind}\",\"object\":{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"ns\",\"uid\":\"{uid}\",\"resourceVersion\":\"{revision}\",\"managedFields\":[{{\"manager\":\"m\"}}]}}}}}}\n"
    )
}

fn end(revision: u32) -> String {
    format!(
        "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"{revision}\",\"annotations\":{{\"k8s.io/initial-events-end\":\"true\"}}}}}}}}\n"
    )
}

fn follow(server: &Server) -> (Informer<ConfigMap>, Arc<Mutex<Vec<String>>>, CancellationToken) {
    let stop = CancellationToken::new();
    let informer = Informer::<ConfigMap>::start(&server.rest(), InformerOptions::default(), &stop);
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    informer.on_change(move |change| {
        let word = match change {
            Change::Added(_) => "add",
            Change::Updated { .. } => "update",
            Change::Deleted(_) => "delete",
        };
        log.lock().push(format!(
            "{word} {}@{}",
            change.object().name(),
            change.object().meta().resource_version.as_deref().unwrap_or("")
        ));
    });
    (informer, told, stop)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never happened: {what}");
}

#[tokio::test]
async fn a_streamed_list_then_changes_then_a_resumed_watch() {
    let server = Server::default();
    let first = server.answer(200);
    let second = server.answer(200);
    let (informer, told, _stop) = follow(&server);
    first
        .send(event("ADDED", "a", "1", 5) + &event("ADDED", "b", "2", 6))
        .expect("open");
    assert!(
        tokio::time::timeout(Duration::from_millis(20), informer.synced())
            .await
            .is_err(),
        "not synced before the bookmark"
    );
    first.send(end(7)).expect("open");
    informer.synced().await;
    assert_eq!(*told.lock(), ["add a@5", "add b@6"]);
    assert!(
        informer
            .store()
            .get("ns", "a")
            .is_some_and(|a| a.metadata.managed_fields.is_none())
    );

    let changed = event("MODIFIED", "a", "1", 8);
    let (left, right) = changed.split_at(40);
    first.send(left.to_string()).expect("open");
    first
        .send(right.to_string() + &event("DELETED", "b", "2", 9))
        .expect("open");
    until("deleted", || told.lock().len() == 4).await;
    assert_eq!(told.lock()[2..], ["update a@8", "delete b@9"]);
    drop(first);

    second.send(event("ADDED", "a", "9", 11)).expect("open");
    until("replaced", || told.lock().len() == 6).await;
    assert_eq!(
        told.lock()[4..],
        ["delete a@8", "add a@11"],
        "another uid is another object"
    );
    let asked = server.asked();
    assert!(
        asked[0].contains("sendInitialEvents=true") && asked[0].contains("resourceVersionMatch=NotOlderThan"),
        "{asked:?}"
    );
    assert!(
        asked[1].contains("resourceVersion=9") && !asked[1].contains("sendInitialEvents"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_lost_revision_is_read_anew_and_nothing_between_is_lost() {
    let server = Server::default();
    let first = server.answer(200);
    let (informer, told, _stop) = follow(&server);
    first
        .send(event("ADDED", "a", "1", 5) + &event("ADDED", "b", "2", 6) + &end(6))
        .expect("open");
    informer.synced().await;
    let gone = server.answer(410);
    gone.send(r#"{"kind":"Status","status":"Failure","reason":"Expired","code":410,"message":"too old"}"#.into())
        .expect("open");
    drop(gone);
    let again = server.answer(200);
    again
        .send(event("ADDED", "b", "2", 8) + &event("ADDED", "c", "3", 9) + &end(10))
        .expect("open");
    drop(first);
    until("relisted", || told.lock().len() == 5).await;
    assert_eq!(told.lock()[2..], ["delete a@5", "update b@8", "add c@9"]);
    assert_eq!(informer.store().revision(), 10);
}

#[tokio::test]
async fn without_streaming_lists_pages_are_listed() {
    let server = Server::default();
    let refused = server.answer(422);
    refused
        .send(r#"{"kind":"Status","status":"Failure","reason":"Invalid","code":422}"#.into())
        .expect("open");
    drop(refused);
    for (page, next) in [("a", "t"), ("b", "")] {
        let body = server.answer(200);
        body.send(format!(r#"{{"kind":"ConfigMapList","metadata":{{"resourceVersion":"20","continue":"{next}"}},"items":[{{"metadata":{{"name":"{page}","namespace":"ns","uid":"{page}","resourceVersion":"3"}}}}]}}"#)).expect("open");
    }
    let watch = server.answer(200);
    let (informer, told, _stop) = follow(&server);
    informer.synced().await;
    assert_eq!(*told.lock(), ["add a@3", "add b@3"]);
    watch.send(event("ADDED", "c", "3", 21)).expect("open");
    until("watched", || told.lock().len() == 3).await;
    let asked = server.asked();
    assert!(asked[2].contains("continue=t"), "{asked:?}");
    assert!(
        asked[3].contains("resourceVersion=20") && asked[3].contains("watch=true"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn decisions_wait_for_the_cache_to_show_the_last_write() {
    let server = Server::default();
    let watch = server.answer(200);
    let (informer, _told, _stop) = follow(&server);
    watch.send(event("ADDED", "a", "1", 5) + &end(6)).expect("open");
    informer.synced().await;
    let created = server.answer(201);
    created
        .send(r#"{"metadata":{"name":"new","namespace":"ns","uid":"7","resourceVersion":"9"}}"#.into())
        .expect("open");
    drop(created);
    let objects = Objects::<ConfigMap>::new(&server.rest());
    let written = objects.create(&ConfigMap::default()).await.expect("scripted");
    let key = ObjectKey::new("ns", "owner");
    let expectations = Expectations::default();
    expectations.wrote(&key, written.meta());
    expectations.deleted(&key, informer.store().get("ns", "a").expect("there").meta());
    let settle = async { expectations.settle(&key, informer.store()).await.is_ok() };
    tokio::pin!(settle);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), &mut settle)
            .await
            .is_err()
    );
    watch.send(event("ADDED", "new", "7", 9)).expect("open");
    assert!(
        tokio::time::timeout(Duration::from_millis(20), &mut settle)
            .await
            .is_err(),
        "the deletion isn't seen yet"
    );
    watch.send(event("DELETED", "a", "1", 10)).expect("open");
    assert!(settle.await);
}

fn pod(kind: &str, name: &str, node: &str, revision: u32) -> String {
    format!(
        "{{\"type\":\"{kind}\",\"object\":{{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"ns\",\"uid\":\"{name}\",\"resourceVersion\":\"{revision}\"}},\"spec\":{{\"containers\":[],\"nodeName\":\"{node}\"}}}}}}\n"
    )
}

#[tokio::test]
async fn parts_of_a_collection_share_one_watch() {
    let server = Server::default();
    let lines = server.answer(200);
    let rest = server.rest().together(Together::new(4));
    let stop = CancellationToken::new();
    let follow = |node: &str, stop: &CancellationToken| {
        let options = InformerOptions {
            fields: format!("spec.nodeName={node}"),
            ..InformerOptions::default()
        };
        Informer::<Pod>::start(&rest, options, stop)
    };
    let names = |informer: &Informer<Pod>| -> Vec<String> {
        let pods = informer.store().list();
        pods.iter().map(|p| p.name().to_owned()).collect()
    };
    let (a, b) = (follow("a", &stop), follow("b", &stop));
    lines
        .send(pod("ADDED", "x", "a", 1) + &pod("ADDED", "y", "b", 2))
        .unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!a.is_synced() && !b.is_synced());
    lines.send(end(3)).unwrap();
    a.synced().await;
    b.synced().await;
    assert_eq!((names(&a), names(&b)), (vec!["x".into()], vec!["y".into()]));

    // Who comes later has what there is, and is told of what comes.
    let ending = CancellationToken::new();
    let late = follow("a", &ending);
    late.synced().await;
    assert_eq!(names(&late), ["x"]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    late.on_change(move |change| {
        let pod = change.object();
        log.lock().push(format!("{} {}", pod.name(), change.is_deleted()));
    });
    lines
        .send(pod("ADDED", "z", "a", 4) + &pod("MODIFIED", "y", "b", 5) + &pod("DELETED", "x", "a", 6))
        .unwrap();
    until("the last", || names(&late) == ["z"]).await;
    assert_eq!(*told.lock(), ["x false", "z false", "x true"]);
    // Who has been told to stop isn't told more.
    ending.cancel();
    lines.send(pod("DELETED", "z", "a", 7)).unwrap();
    until("the end", || names(&a).is_empty()).await;
    assert_eq!(names(&late), ["z"]);
    assert_eq!(server.asked().len(), 1);
    assert!(
        server.asked()[0].contains("fieldSelector=spec.nodeName%21%3D"),
        "{:?}",
        server.asked()
    );
    // The watch ends with the last who follows.
    drop((a, b, late));
    until("the watch's end", || lines.is_closed()).await;
}
