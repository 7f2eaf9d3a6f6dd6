//! Leader election against a server that keeps one Lease, in virtual time: its answers can be late, or never come.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use keelson_client::leader::{Election, Leading, acquire};
use keelson_client::{Rest, in_process};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The Lease, if there is one, with its revision.
struct Server {
    lease: watch::Sender<(u64, Option<Value>)>,
}

/// One candidate's way to the server.
#[derive(Clone, Default)]
struct Way {
    /// How long after the deed a write's answer comes.
    late: Arc<Mutex<Duration>>,
    /// Nothing gets through, from now on.
    cut: CancellationToken,
}

fn body(lines: impl futures::Stream<Item = String> + Send + 'static) -> Body {
    use futures::StreamExt;
    let frames = lines.map(|line| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(line))));
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

fn answer(code: u16, content: &Value) -> Response<Body> {
    let mut response = Response::new(body(futures::stream::iter([content.to_string()])));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
    response
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code});
    answer(code, &status)
}

impl Server {
    fn new() -> Arc<Server> {
        Arc::new(Server {
            lease: watch::Sender::new((1, None)),
        })
    }

    fn rest(self: &Arc<Self>, way: &Way) -> Rest {
        let (server, way) = (self.clone(), way.clone());
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (server, way) = (server.clone(), way.clone());
            async move {
                let cut = way.cut.clone();
                let answered = async {
                    let write = request.method() != Method::GET;
                    let answer = server.answer(request).await;
                    if write {
                        let late = *way.late.lock();
                        sleep(late).await;
                    }
                    answer
                };
                tokio::select! {
                    // What is cut answers nothing, however soon an answer would be there.
                    biased;
                    () = cut.cancelled() => std::future::pending().await,
                    answer = answered => Ok::<_, Infallible>(answer),
                }
            }
        });
        Rest::new(in_process(service, "default", |body| body), "test")
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, content) = request.into_parts();
        if parts.uri.query().unwrap_or_default().contains("watch=true") {
            assert!(
                parts.uri.query().unwrap().contains("metadata.name%3Dwork"),
                "{}",
                parts.uri
            );
            return Response::new(self.watched());
        }
        let content = content.collect().await.unwrap().to_bytes();
        let (revision, current) = self.lease.borrow().clone();
        match (parts.method, current) {
            (Method::GET, Some(lease)) => answer(200, &lease),
            (Method::GET | Method::PUT, None) => failure(404, "NotFound"),
            (Method::POST, Some(_)) => failure(409, "AlreadyExists"),
            (Method::PUT, Some(current)) => {
                let new: Value = serde_json::from_slice(&content).unwrap();
                if new["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"] {
                    return failure(409, "Conflict");
                }
                answer(200, &self.put(revision, new))
            }
            (Method::POST, None) => answer(201, &self.put(revision, serde_json::from_slice(&content).unwrap())),
            (method, _) => panic!("{method}"),
        }
    }

    fn put(&self, revision: u64, mut lease: Value) -> Value {
        lease["metadata"]["resourceVersion"] = (revision + 1).to_string().into();
        self.lease.send_replace((revision + 1, Some(lease.clone())));
        lease
    }

    fn watched(&self) -> Body {
        let event = |kind: &str, object: Value| json!({"type": kind, "object": object}).to_string() + "\n";
        let mut changes = self.lease.subscribe();
        let (revision, current) = changes.borrow_and_update().clone();
        let mark = json!({"metadata": {"resourceVersion": revision.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}});
        let first = current
            .map(|lease| event("ADDED", lease))
            .into_iter()
            .chain([event("BOOKMARK", mark)]);
        let first: Vec<String> = first.collect();
        use futures::StreamExt;
        let later = futures::stream::unfold(changes, move |mut changes| async move {
            changes.changed().await.ok()?;
            let lease = changes.borrow_and_update().1.clone()?;
            Some((event("MODIFIED", lease), changes))
        });
        body(futures::stream::iter(first).chain(later))
    }

    fn spec(&self, field: &str) -> Value {
        self.lease.borrow().1.as_ref().unwrap()["spec"][field].clone()
    }
}

/// The calendar goes with tokio's clock: what is renewed has another time each time.
fn calendar() -> impl Sized {
    keelson_clock::simulate("2026-11-28T00:00:00Z".parse().unwrap())
}

struct Other {
    /// When it leads.
    task: tokio::task::JoinHandle<(Instant, Leading)>,
}

fn candidate(server: &Arc<Server>, name: &str) -> Other {
    let (rest, election) = (server.rest(&Way::default()), Election::new("work", name));
    let task = tokio::spawn(async move {
        let leading = acquire(&rest, election, &CancellationToken::new()).await.unwrap();
        (Instant::now(), leading)
    });
    Other { task }
}

#[tokio::test(start_paused = true)]
async fn a_planned_stop_hands_over_at_once_after_the_work() {
    let _calendar = calendar();
    let server = Server::new();
    let stop = CancellationToken::new();
    let first = acquire(&server.rest(&Way::default()), Election::new("work", "first"), &stop)
        .await
        .unwrap();
    let second = candidate(&server, "second");
    sleep(Duration::from_secs(31)).await;
    assert!(!second.task.is_finished() && !first.token().is_cancelled());

    stop.cancel();
    assert!(first.token().is_cancelled(), "no more work is begun");
    // What was begun takes longer than the lease: nobody else leads meanwhile.
    sleep(Duration::from_secs(20)).await;
    assert!(!second.task.is_finished());
    assert_eq!(server.spec("holderIdentity"), "first");
    let ended = Instant::now();
    first.finish().await;
    let (leads, _leading) = second.task.await.unwrap();
    assert!(leads - ended < Duration::from_secs(1), "{:?}", leads - ended);
    assert_eq!(server.spec("leaseTransitions"), 1);
    assert_eq!(server.spec("leaseDurationSeconds"), 15);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_is_nobodys() {
    let _calendar = calendar();
    let server = Server::new();
    let stop = CancellationToken::new();
    let leading = acquire(&server.rest(&Way::default()), Election::new("work", "first"), &stop)
        .await
        .unwrap();
    // Whoever forgets to finish gives it back too.
    drop(leading);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.spec("holderIdentity"), "");
    assert_eq!(server.spec("leaseDurationSeconds"), 1);
    assert_eq!(server.spec("acquireTime"), server.spec("renewTime"));

    // One that stops while its attempt is under way holds nothing afterwards.
    let (way, stop) = (Way::default(), CancellationToken::new());
    *way.late.lock() = Duration::from_secs(5);
    let rest = server.rest(&way);
    let waiting = tokio::spawn({
        let stop = stop.clone();
        async move { acquire(&rest, Election::new("work", "second"), &stop).await.is_some() }
    });
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.spec("holderIdentity"), "second");
    *way.late.lock() = Duration::ZERO;
    stop.cancel();
    assert!(!waiting.await.unwrap());
    assert_eq!(server.spec("holderIdentity"), "");
}

#[tokio::test(start_paused = true)]
async fn a_crash_costs_the_lease_and_no_two_lead() {
    let _calendar = calendar();
    let server = Server::new();
    let (way, stop) = (Way::default(), CancellationToken::new());
    let first = acquire(&server.rest(&way), Election::new("work", "first"), &stop)
        .await
        .unwrap();
    let second = candidate(&server, "second");
    sleep(Duration::from_secs(7)).await;
    let crashed = Instant::now();
    way.cut.cancel();
    first.token().cancelled().await;
    let noticed = Instant::now();
    let (leads, _leading) = second.task.await.unwrap();
    assert!(noticed < leads);
    let election = Election::new("work", "");
    assert!(noticed - crashed <= election.renew, "{:?}", noticed - crashed);
    let within = election.lease + election.retry;
    assert!(
        leads - crashed <= within && leads - crashed > election.renew,
        "{:?}",
        leads - crashed
    );
}

/// The server grants a renewal, is slow to say so, and is then gone. What counts is when it may have granted it.
#[tokio::test(start_paused = true)]
async fn a_late_answer_makes_no_lease_longer() {
    let _calendar = calendar();
    let server = Server::new();
    let (way, stop) = (Way::default(), CancellationToken::new());
    let first = acquire(&server.rest(&way), Election::new("work", "first"), &stop)
        .await
        .unwrap();
    let second = candidate(&server, "second");
    sleep(Duration::from_secs(3)).await;
    *way.late.lock() = Duration::from_secs(7);
    let mut changes = server.lease.subscribe();
    changes.mark_unchanged();
    changes.changed().await.unwrap();
    let granted = Instant::now();
    sleep(Duration::from_secs(7) + Duration::from_millis(1)).await;
    assert!(!first.token().is_cancelled(), "the answer came in time");
    way.cut.cancel();
    let lease = Election::new("work", "").lease;
    timeout(Duration::from_secs(60), first.token().cancelled())
        .await
        .unwrap();
    let noticed = granted.elapsed();
    let (leads, _leading) = second.task.await.unwrap();
    assert!(noticed < lease, "{noticed:?} after it was granted, for {lease:?}");
    assert!(leads - granted >= lease, "{:?}", leads - granted);

    // Nor does one that is granted, but told too late to be held.
    let (way, server) = (Way::default(), Server::new());
    *way.late.lock() = Duration::from_secs(11);
    let rest = server.rest(&way);
    let began = Instant::now();
    tokio::spawn({
        let way = way.clone();
        async move {
            sleep(Duration::from_secs(10)).await;
            *way.late.lock() = Duration::ZERO;
        }
    });
    let leading = acquire(&rest, Election::new("work", "third"), &stop).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(11) && !leading.token().is_cancelled());
    sleep(Duration::from_secs(30)).await;
    assert!(!leading.token().is_cancelled());
}
