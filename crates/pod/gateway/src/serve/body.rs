//! Bodies on their way. They are passed on piece by piece as there is room, never kept: HTTP's own windows bound what is under way.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use keelson_listen::BoxError;
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

pub type Outgoing = UnsyncBoxBody<Bytes, BoxError>;

pub fn plain(status: StatusCode, text: &'static str) -> Response<Outgoing> {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

/// Where a body is while nobody has begun to send it: a backend that isn't reached gives it back for the next one.
pub type Returned = Arc<Mutex<Option<Incoming>>>;

/// A client's body, lent to an attempt to send it.
pub struct Lent {
    body: Option<Incoming>,
    begun: bool,
    back: Returned,
    copies: Vec<Copying>,
}

/// Who gets a copy; one that is slow loses the rest of it, and is told so.
pub struct Copying {
    pub to: mpsc::Sender<Bytes>,
    pub whole: Arc<AtomicBool>,
}

impl Lent {
    pub fn new(body: Incoming, copies: Vec<Copying>) -> (Lent, Returned) {
        let back = Returned::default();
        let lent = Lent {
            body: Some(body),
            begun: false,
            back: back.clone(),
            copies,
        };
        (lent, back)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.begun {
            *self.back.lock() = self.body.take();
        }
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        this.begun = true;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.copies.retain(|copy| copy.to.try_send(data.clone()).is_ok());
                }
            }
            Some(Err(_)) => this.copies.clear(),
            None => this
                .copies
                .drain(..)
                .for_each(|copy| copy.whole.store(true, Ordering::Release)),
        }
        Poll::Ready(frame.map(|f| f.map_err(Into::into)))
    }
    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::new, Body::size_hint)
    }
}

/// An answer's body, with what is held as long as it lasts.
pub struct Kept {
    pub body: Incoming,
    pub _place: OwnedSemaphorePermit,
}

impl Body for Kept {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
