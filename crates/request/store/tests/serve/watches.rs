//! Watches on one stream, as clients of etcd have them.

use crate::front::Front;
use keelson_store::serve::pb::watch_client::WatchClient;
use keelson_store::serve::pb::watch_request::RequestUnion;
use keelson_store::serve::pb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use keelson_store::{Expect, Memory, Revision, Store};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(20);

struct Stream {
    asks: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    _front: Front,
}

async fn stream(store: std::sync::Arc<Memory>) -> Stream {
    let front = Front::of(store).await;
    let channel = Channel::from_shared(front.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let (asks, asked) = mpsc::channel(8);
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let answers = client.watch(ReceiverStream::new(asked)).await.unwrap().into_inner();
    Stream {
        asks,
        answers,
        _front: front,
    }
}

impl Stream {
    async fn ask(&self, request: RequestUnion) {
        let request_union = Some(request);
        self.asks.send(WatchRequest { request_union }).await.unwrap();
    }
    async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(create)).await;
        let created = self.next().await;
        assert!(created.created, "{created:?}");
        created
    }
    async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        next.expect("nothing comes").unwrap().expect("the stream has ended")
    }
    /// The next answer with changes.
    async fn changes(&mut self) -> WatchResponse {
        loop {
            let next = self.next().await;
            if !next.events.is_empty() || next.canceled {
                return next;
            }
        }
    }
}

fn of(key: &'static str, id: i64, start: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.into(),
        watch_id: id,
        start_revision: start,
        ..Default::default()
    }
}

async fn put(store: &Memory, key: &'static str, size: usize) -> Revision {
    let put = store.put(key.into(), vec![7; size].into(), Expect::Any, None).await;
    put.unwrap().done().unwrap()
}

fn revision(answer: &WatchResponse) -> i64 {
    answer.header.as_ref().unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_on_a_stream_each_with_its_number_until_it_is_canceled() {
    let store = Memory::new();
    let mut stream = stream(store.clone()).await;
    assert_eq!(stream.create(of("a", 0, 0)).await.watch_id, 0);
    assert_eq!(stream.create(of("a", 0, 0)).await.watch_id, 1);
    assert_eq!(stream.create(of("b", 5, 0)).await.watch_id, 5);
    let twice = stream.create(of("b", 5, 0)).await;
    assert_eq!((twice.watch_id, twice.canceled), (-1, true));
    assert_eq!(
        twice.cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    let empty = WatchCreateRequest {
        range_end: "a".into(),
        ..of("b", 0, 0)
    };
    assert_eq!(stream.create(empty).await.cancel_reason, "mvcc: watcher range is empty");
    put(&store, "b", 1).await;
    assert_eq!(stream.changes().await.watch_id, 5);
    let id = 5;
    stream
        .ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id }))
        .await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && canceled.watch_id == id && canceled.compact_revision == 0);
    put(&store, "b", 1).await;
    put(&store, "a", 1).await;
    let mut seen = [stream.changes().await.watch_id, stream.changes().await.watch_id];
    seen.sort_unstable();
    assert_eq!(seen, [0, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_comes_after_what_it_tells_of() {
    let store = Memory::new();
    let mut stream = stream(store.clone()).await;
    stream.create(of("a", 0, 0)).await;
    stream.create(of("b", 0, 0)).await;
    let mut last = 1;
    for _ in 0..50 {
        last = put(&store, "a", 1).await;
    }
    stream.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let mut seen = Vec::new();
    loop {
        let next = stream.next().await;
        if next.watch_id == -1 {
            assert_eq!(revision(&next), last as i64);
            break;
        }
        seen.extend(next.events.into_iter().map(|e| e.kv.unwrap().mod_revision));
    }
    assert!(seen.into_iter().eq(2..=last as i64));
    // Of itself, for who wants it.
    let create = WatchCreateRequest {
        progress_notify: true,
        ..of("c", 9, 0)
    };
    stream.create(create).await;
    let told = stream.next().await;
    assert_eq!((told.watch_id, revision(&told), told.events.len()), (9, last as i64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_may_begin_later_and_not_before_what_is_kept() {
    let store = Memory::new();
    let mut stream = stream(store.clone()).await;
    stream.create(of("a", 0, 5)).await;
    for _ in 0..6 {
        put(&store, "a", 1).await;
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&7) {
        seen.extend(
            stream
                .changes()
                .await
                .events
                .into_iter()
                .map(|e| e.kv.unwrap().mod_revision),
        );
    }
    assert_eq!(seen, [5, 6, 7]);
    store.compact(6).await.unwrap();
    assert!(!stream.create(of("a", 3, 2)).await.canceled);
    let ended = stream.changes().await;
    assert_eq!((ended.watch_id, ended.canceled, ended.compact_revision), (3, true, 6));
}

/// Of what a client may open by the thousand, each would hold as much as the store lets queue for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_queues_for_a_client_that_does_not_read() {
    let store = Memory::new();
    let mut stream = stream(store.clone()).await;
    stream.create(of("a", 0, 0)).await;
    put(&store, "a", 1).await;
    assert_eq!(revision(&stream.changes().await), 2);
    let queues = async |wanted: usize| {
        let comes = async {
            while store.status().await.unwrap().watchers != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, comes)
            .await
            .expect("another number is queued for");
    };
    queues(1).await;
    // More than the connection and the stream's answers take.
    let mut last = 2;
    for _ in 0..400 {
        last = put(&store, "a", 100 << 10).await;
    }
    queues(0).await;
    put(&store, "a", 1).await;
    let mut next = 3;
    while next <= last as i64 + 1 {
        for event in stream.changes().await.events {
            assert_eq!(event.kv.unwrap().mod_revision, next);
            next += 1;
        }
    }
}

/// Far more than the store's queue and the stream's take, while the client reads nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_late_gets_all_of_it() {
    let store = Memory::new();
    let mut stream = stream(store.clone()).await;
    let create = WatchCreateRequest {
        fragment: true,
        prev_kv: true,
        ..of("a", 0, 0)
    };
    stream.create(create).await;
    let mut last = 1;
    for n in 0..12_000 {
        last = put(&store, "a", if n % 100 == 0 { 100 << 10 } else { 10 }).await;
    }
    let mut next = 2;
    while next <= last as i64 {
        for event in stream.changes().await.events {
            assert_eq!(event.kv.unwrap().mod_revision, next);
            assert_eq!(event.prev_kv.map_or(1, |kv| kv.mod_revision), next - 1);
            next += 1;
        }
    }
}
