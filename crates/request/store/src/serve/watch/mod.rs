//! Watches: as many on a stream as the client wants, each followed by a task of its own, all of which answer by one queue.
//!
//! The queue is short: a client that doesn't read stops the tasks, which leave the store's queues, and go on from the past when the
//! client reads again. So nothing is lost, and a watch that isn't read costs the one batch that it couldn't send.

mod events;
mod follow;

use super::pb::watch_request::RequestUnion;
use super::pb::watch_server::Watch;
use super::pb::{WatchCreateRequest, WatchRequest, WatchResponse};
use super::{Server, range, status};
use crate::{Error, Event, KeyRange, Revision, WatchStream};
use bytes::Bytes;
use events::Shown;
use follow::{Followed, Follower};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Answers that wait for the client.
const QUEUE: usize = 16;
/// Watches on a stream; what more are asked for is refused.
const WATCHES: usize = 10_000;
/// An answer that is of no watch, or of all.
const NO_WATCH: i64 = -1;

type Out = mpsc::Sender<Result<WatchResponse, Status>>;

#[tonic::async_trait]
impl Watch for Server {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (out, answers) = mpsc::channel(QUEUE);
        let session = Session {
            server: self.clone(),
            out: out.clone(),
            watches: BTreeMap::new(),
            next: 0,
            advanced: Arc::default(),
            wanted: None,
        };
        let requests = request.into_inner();
        tokio::spawn(async move {
            // Ends with the client's side, or as soon as nobody reads: its watches end with it.
            tokio::select! {
                () = session.run(requests) => {}
                () = out.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

struct Session {
    server: Server,
    out: Out,
    watches: BTreeMap<i64, Followed>,
    next: i64,
    /// A watch has sent something, or has ended.
    advanced: Arc<Notify>,
    /// The client wants to know when all watches have come so far.
    wanted: Option<Revision>,
}

impl Session {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        loop {
            let more = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.take(request).await,
                    Some(Err(_)) | None => return,
                },
                () = self.advanced.notified() => self.tell_progress().await,
            };
            if let Err(status) = more {
                let _ = self.out.send(Err(status)).await;
                return;
            }
        }
    }

    /// Nobody reads it: the stream is about to end.
    async fn send(&self, response: WatchResponse) {
        let _ = self.out.send(Ok(response)).await;
    }

    async fn take(&mut self, request: WatchRequest) -> Result<(), Status> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                let now = self.now().await?;
                self.wanted.get_or_insert(now);
                self.watches.values().for_each(Followed::ask);
                self.tell_progress().await
            }
            None => Ok(()),
        }
    }

    async fn now(&self) -> Result<Revision, Status> {
        self.server.store.current_revision().await.map_err(status::of)
    }

    async fn create(&mut self, create: WatchCreateRequest) -> Result<(), Status> {
        let now = self.now().await?;
        let id = match self.judge(&create) {
            Ok(id) => id,
            Err(reason) => {
                let refused = WatchResponse {
                    header: self.server.header(now),
                    watch_id: NO_WATCH,
                    created: true,
                    canceled: true,
                    cancel_reason: reason.into(),
                    ..Default::default()
                };
                self.send(refused).await;
                return Ok(());
            }
        };
        // From now on, or from a revision that may be past or to come.
        let start = Revision::try_from(create.start_revision)
            .ok()
            .filter(|start| *start > 0);
        let start = start.unwrap_or(now + 1);
        let range = range::keys(&key(&create), &create.range_end);
        let created = WatchResponse {
            header: self.server.header(now),
            watch_id: id,
            created: true,
            ..Default::default()
        };
        self.send(created).await;
        let begun = match self.begin(&range, start, now).await {
            Ok(begun) => begun,
            Err(Error::Compacted { compact_revision }) => {
                self.send(follow::compacted(&self.server, id, compact_revision, now))
                    .await;
                return Ok(());
            }
            Err(error) => return Err(status::of(error)),
        };
        let follower = Follower {
            server: self.server.clone(),
            out: self.out.clone(),
            id,
            shown: Shown::of(&create, start),
            range,
            advanced: self.advanced.clone(),
            progress: create.progress_notify.then_some(self.server.options.progress_interval),
            fragment: create.fragment,
        };
        let (source, position, first) = begun;
        let followed = follower.begin(source, position, first);
        if self.wanted.is_some() {
            followed.ask();
        }
        self.watches.insert(id, followed);
        Ok(())
    }

    /// After which revision it goes on, and what changed up to there: at the revision that was compacted to, etcd lets watches begin.
    async fn begin(
        &self,
        range: &KeyRange,
        start: Revision,
        now: Revision,
    ) -> crate::Result<(WatchStream, Revision, Vec<Event>)> {
        let (store, position) = (&self.server.store, (start - 1).min(now));
        match store.watch(range.clone(), position).await {
            Ok(source) => Ok((source, position, Vec::new())),
            Err(Error::Compacted { compact_revision }) if compact_revision == start => {
                let first = store.changes(range.clone(), start).await?;
                Ok((store.watch(range.clone(), start).await?, start, first))
            }
            Err(error) => Err(error),
        }
    }

    /// Its number, or why there is no such watch.
    fn judge(&mut self, create: &WatchCreateRequest) -> Result<i64, &'static str> {
        self.watches.retain(|_, watch| !watch.has_ended());
        let end = &create.range_end[..];
        if create.start_revision < 0 {
            return Err("etcdserver: mvcc: required revision has been compacted");
        }
        if !matches!(end, [] | [0]) && key(create) >= create.range_end {
            return Err("mvcc: watcher range is empty");
        }
        if self.watches.len() >= WATCHES {
            return Err("keelson: too many watches on one stream");
        }
        if create.watch_id != 0 {
            return match self.watches.contains_key(&create.watch_id) {
                true => Err("mvcc: duplicate watch ID provided on the WatchStream"),
                false => Ok(create.watch_id),
            };
        }
        while self.watches.contains_key(&self.next) {
            self.next += 1;
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Status> {
        let Some(watch) = self.watches.remove(&id) else {
            return Ok(());
        };
        // Nothing of it comes after this.
        watch.end().await;
        let canceled = WatchResponse {
            header: self.server.header(self.now().await?),
            watch_id: id,
            canceled: true,
            ..Default::default()
        };
        self.send(canceled).await;
        Ok(())
    }

    /// All watches have sent everything up to a revision: the client is told of it once.
    async fn tell_progress(&mut self) -> Result<(), Status> {
        let Some(wanted) = self.wanted else { return Ok(()) };
        self.watches.retain(|_, watch| !watch.has_ended());
        let Some(reached) = self.watches.values().map(Followed::sent).min() else {
            self.wanted = None;
            return Ok(());
        };
        if reached >= wanted {
            self.wanted = None;
            let progress = WatchResponse {
                header: self.server.header(reached),
                watch_id: NO_WATCH,
                ..Default::default()
            };
            self.send(progress).await;
        }
        Ok(())
    }
}

/// Nothing stands for the first key there can be.
fn key(create: &WatchCreateRequest) -> Bytes {
    match create.key.is_empty() {
        true => Bytes::from_static(b"\0"),
        false => create.key.clone(),
    }
}
