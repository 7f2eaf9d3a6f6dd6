//! An answer on its way to a client that may not read it.
//!
//! The HTTP library asks a body for more only when there is room for it, so a body can't watch its own time: a client
//! that opens no window would keep it for ever. The connection does ([`crate::conn`]): what is late loses its body from
//! outside, and with it whatever was held for as long as it lasts (a seat, memory, a watch).

use crate::BoxError;
use crate::conn::{Conn, Open};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// An extension of a response: by when its last byte has to be written.
#[derive(Clone, Copy, Debug)]
pub struct WriteBy(pub Instant);

/// An extension of a response: its connection takes no more requests, what is under way on it goes on.
#[derive(Clone, Copy, Debug)]
pub struct LastOne;

type Boxed = UnsyncBoxBody<Bytes, BoxError>;

/// What the connection keeps of an answer that has a time.
pub(crate) struct Slot(Mutex<Kept>);

struct Kept {
    body: Option<Boxed>,
    by: Option<Instant>,
    unread: Option<Duration>,
    /// Since when the library has had enough; `None`: it waits for more.
    enough: Option<Instant>,
}

impl Slot {
    fn new(body: Boxed, by: Option<Instant>, unread: Option<Duration>) -> Self {
        Slot(Mutex::new(Kept {
            body: Some(body),
            by,
            unread,
            // A client may not even open a window for the first byte.
            enough: unread.map(|_| Instant::now()),
        }))
    }

    #[cfg(test)]
    pub fn empty(by: Option<Instant>) -> Arc<Slot> {
        let body = http_body_util::Empty::new().map_err(|never| match never {});
        Arc::new(Slot::new(body.boxed_unsync(), by, None))
    }

    /// When it has to be looked at again; `None`: it is late.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let kept = self.0.lock();
        let unread = kept.unread.map(|time| kept.enough.unwrap_or(now) + time);
        let next = [kept.by, unread].into_iter().flatten().min()?;
        (next > now).then_some(next)
    }

    /// Takes the body away.
    pub fn clear(&self) {
        let body = self.0.lock().body.take();
        drop(body);
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut kept = self.0.lock();
        let Some(body) = &mut kept.body else {
            return Poll::Ready(Some(Err("the answer was not read in time".into())));
        };
        let polled = Pin::new(body).poll_frame(cx);
        kept.enough = (kept.unread.is_some() && polled.is_ready()).then(Instant::now);
        polled
    }
}

/// A body as the HTTP library sees it.
pub(crate) struct Outgoing {
    body: Source,
    _open: Open,
}

enum Source {
    Free(Boxed),
    Timed(Arc<Slot>),
}

impl Outgoing {
    pub fn new<B>(body: B, by: Option<Instant>, unread: Option<Duration>, conn: &Arc<Conn>, mut open: Open) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let body = body.map_err(Into::into).boxed_unsync();
        let body = match (by, unread) {
            (None, None) => Source::Free(body),
            _ => {
                let slot = Arc::new(Slot::new(body, by, unread));
                open.timed(conn.answer(&slot));
                Source::Timed(slot)
            }
        };
        Outgoing { body, _open: open }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().body {
            Source::Free(body) => Pin::new(body).poll_frame(cx),
            Source::Timed(slot) => slot.poll_frame(cx),
        }
    }
    fn is_end_stream(&self) -> bool {
        match &self.body {
            Source::Free(body) => body.is_end_stream(),
            Source::Timed(slot) => slot.0.lock().body.as_ref().is_some_and(Body::is_end_stream),
        }
    }
    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Source::Free(body) => body.size_hint(),
            Source::Timed(slot) => slot.0.lock().body.as_ref().map_or_else(SizeHint::new, Body::size_hint),
        }
    }
}
