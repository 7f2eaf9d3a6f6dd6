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
use tokio::time::Instant;

/// An extension of a response: by when its last byte has to be written.
#[derive(Clone, Copy, Debug)]
pub struct WriteBy(pub Instant);

type Boxed = UnsyncBoxBody<Bytes, BoxError>;

/// What the connection keeps of an answer that has a time.
pub(crate) struct Slot(Mutex<Option<Boxed>>);

impl Slot {
    /// Takes the body away.
    pub fn clear(&self) {
        let body = self.0.lock().take();
        drop(body);
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
    pub fn new<B>(body: B, by: Option<Instant>, conn: &Arc<Conn>, mut open: Open) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let body = body.map_err(Into::into).boxed_unsync();
        let body = match by {
            None => Source::Free(body),
            Some(by) => {
                let slot = Arc::new(Slot(Mutex::new(Some(body))));
                open.timed(conn.answer(by, &slot));
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
            Source::Timed(slot) => match slot.0.lock().as_mut() {
                Some(body) => Pin::new(body).poll_frame(cx),
                None => Poll::Ready(Some(Err("the answer was not read in time".into()))),
            },
        }
    }
    fn is_end_stream(&self) -> bool {
        match &self.body {
            Source::Free(body) => body.is_end_stream(),
            Source::Timed(slot) => slot.0.lock().as_ref().is_some_and(Body::is_end_stream),
        }
    }
    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Source::Free(body) => body.size_hint(),
            Source::Timed(slot) => slot.0.lock().as_ref().map_or_else(SizeHint::new, Body::size_hint),
        }
    }
}
