//! A watch: one stream of etcd's, so that a progress report is about this watch and no other.
//!
//! Nothing is queued here. A watch that isn't read stops its stream by HTTP/2's window, and etcd then reads the past for it
//! once it goes on; if that past is compacted meanwhile, the watch ends with [`Error::Compacted`]. When the stream breaks the
//! watch ends, and its holder begins another from where it was.

use super::call::{self, Failure};
use super::members::Picked;
use super::wire::etcdserverpb::watch_client::WatchClient;
use super::wire::etcdserverpb::watch_create_request::FilterType;
use super::wire::etcdserverpb::watch_request::RequestUnion;
use super::wire::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use super::wire::{at, bounds, event, number, odd, revision};
use crate::{Error, Event, KeyRange, Result, Revision, WatchBatch, WatchSource};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

/// Requests on their way to etcd; a progress request that finds no place is made again.
const REQUESTS: usize = 16;
/// etcd drops a progress request while it still reads the past for the watch, which it looks after ten times a second.
const ASK_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct EtcdWatch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    picked: Picked,
    /// The holder has everything up to it.
    synced: Revision,
    /// The end of a fragment: more of its last revision may come with the next.
    held: Vec<Event>,
    /// Progress reports asked for and not yet come.
    owed: usize,
    ask_again: Instant,
    over: bool,
    /// Counts the watches that somebody holds.
    _counted: Arc<()>,
}

impl EtcdWatch {
    pub async fn open(
        picked: Picked,
        range: &KeyRange,
        after: Revision,
        counted: Arc<()>,
    ) -> Result<EtcdWatch, Failure> {
        let (key, range_end) = bounds(range);
        let nothing = range.is_empty();
        let create = WatchCreateRequest {
            key,
            // etcd refuses ranges that can hold nothing; a watch of one that filters everything is the same.
            range_end: if nothing { Default::default() } else { range_end },
            filters: match nothing {
                true => vec![FilterType::Noput.into(), FilterType::Nodelete.into()],
                false => Vec::new(),
            },
            // etcd tells no progress of a watch that begins later than the store stands. What is of `after` itself is dropped.
            start_revision: number(after.max(1)),
            progress_notify: true,
            prev_kv: true,
            fragment: true,
            watch_id: 0,
        };
        let (requests, queue) = mpsc::channel(REQUESTS);
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // The queue is new and has place.
        let _ = requests.try_send(create);
        let mut request = Request::new(ReceiverStream::new(queue));
        // Rather an end than silence, when the member is cut off from the others.
        request
            .metadata_mut()
            .insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        let mut client = WatchClient::new(picked.channel.clone()).max_decoding_message_size(usize::MAX);
        let responses = match client.watch(request).await {
            Ok(responses) => responses.into_inner(),
            Err(status) => return Err(call::meaning(&picked, &status)),
        };
        let mut watch = EtcdWatch {
            requests,
            responses,
            picked,
            synced: after,
            held: Vec::new(),
            owed: 0,
            ask_again: Instant::now(),
            over: false,
            _counted: counted,
        };
        let created = watch.receive().await.map_err(Failure::Unsent)?;
        ended(&created).map_err(Failure::Unsent)?;
        Ok(watch)
    }

    async fn receive(&mut self) -> Result<WatchResponse> {
        match self.responses.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(Error::Unavailable {
                what: format!("{} ended the watch", self.picked.name()),
            }),
            Err(status) => Err(match call::meaning(&self.picked, &status) {
                Failure::Unsure(Error::Stalled { what } | Error::Answered { what }) => Error::Unavailable { what },
                failure => failure.plain(),
            }),
        }
    }

    fn ask(&mut self) {
        let request = WatchRequest {
            request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
        };
        // If there is no place, it is asked again in a moment; if the stream is over, the next message says so.
        let _ = self.requests.try_send(request);
        self.ask_again = Instant::now() + ASK_AGAIN;
    }

    /// `None`: it tells the holder nothing.
    fn take(&mut self, response: WatchResponse) -> Result<Option<WatchBatch>> {
        ended(&response)?;
        if response.created {
            return Ok(None);
        }
        let reached = at(response.header.as_ref())?;
        let mut events = std::mem::take(&mut self.held);
        if response.events.is_empty() {
            self.owed = self.owed.saturating_sub(1);
            self.synced = self.synced.max(reached);
        } else {
            for one in response.events {
                let at = one.kv.as_ref().map_or(0, |kv| revision(kv.mod_revision));
                if at > self.synced {
                    events.push(event(one)?);
                }
            }
            if response.fragment {
                let last = events.last().map_or(0, Event::revision);
                let complete = events.partition_point(|e| e.revision() < last);
                self.held = events.split_off(complete);
            }
            // The header may be ahead of what came: etcd sends a long past in portions.
            let Some(last) = events.last() else { return Ok(None) };
            self.synced = last.revision();
        }
        Ok(Some(WatchBatch {
            events,
            synced: self.synced,
        }))
    }
}

/// Whether etcd has given the watch up, and why.
fn ended(response: &WatchResponse) -> Result<()> {
    match response {
        r if r.compact_revision > 0 => Err(Error::Compacted {
            compact_revision: revision(r.compact_revision),
        }),
        r if r.canceled && r.cancel_reason.is_empty() => Err(odd("the end of a watch without a reason")),
        r if r.canceled => Err(Error::Unavailable {
            what: format!("etcd ended the watch: {}", r.cancel_reason),
        }),
        _ => Ok(()),
    }
}

#[async_trait]
impl WatchSource for EtcdWatch {
    async fn next(&mut self) -> Option<Result<WatchBatch>> {
        while !self.over {
            let (waiting, again) = (self.owed > 0, self.ask_again);
            let received = tokio::select! {
                biased;
                received = self.receive() => received,
                () = tokio::time::sleep_until(again), if waiting => {
                    self.ask();
                    continue;
                }
            };
            match received.and_then(|response| self.take(response)) {
                Ok(Some(batch)) => return Some(Ok(batch)),
                Ok(None) => {}
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    fn request_progress(&mut self) {
        self.owed += 1;
        self.ask();
    }
}

/// The revision before which etcd has given up the past; 0 if nothing is. etcd tells it only to a watch of that past.
pub(super) async fn compacted(picked: Picked) -> Result<Revision, Failure> {
    let nothing = KeyRange::new("\u{1}", "\u{1}");
    let mut watch = EtcdWatch::open(picked, &nothing, 0, Arc::default()).await?;
    watch.request_progress();
    match watch.next().await {
        // It has read all the past that there ever was.
        Some(Ok(_)) => Ok(0),
        Some(Err(Error::Compacted { compact_revision })) => Ok(compact_revision),
        Some(Err(error)) => Err(Failure::Unsent(error)),
        None => Err(Failure::Unsent(Error::Closed)),
    }
}
