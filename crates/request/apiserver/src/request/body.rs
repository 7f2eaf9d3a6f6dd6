//! The body of every request and response: a stream of bytes whose origin is forgotten.

use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use keelson_api::{ApiError, Reason};
use keelson_listen::Ended;
use parking_lot::Mutex;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_util::sync::CancellationToken;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(BoxError);

impl BodyError {
    pub fn of(why: impl Into<BoxError>) -> BodyError {
        BodyError(why.into())
    }
}

/// What upstream accepts of a request's body.
pub const MAX_REQUEST_BODY: usize = 3 * 1024 * 1024;

/// A body of a request or a response. The lock makes it shareable, so that a handler may hold a request by reference
/// while it waits; it is never contended.
pub struct Body(Mutex<UnsyncBoxBody<Bytes, BodyError>>);

impl Body {
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Body(Mutex::new(body.map_err(|e| BodyError(e.into())).boxed_unsync()))
    }
    pub fn empty() -> Self {
        Body::new(Empty::new())
    }
    /// A body of chunks: what a watch or a long list is sent as.
    pub fn from_stream<S, E>(stream: S) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        Body::new(StreamBody::new(stream.map_ok(Frame::data)))
    }
    /// A body that keeps `guard` until it ends or is dropped.
    pub fn guarded<G: Send + Unpin + 'static>(body: Body, guard: G) -> Self {
        Body::new(Guarded { body, _guard: guard })
    }
    /// A body that tells how many bytes of it were sent when it ends or is dropped.
    pub fn counted(body: Body, tell: impl Fn(usize) + Send + Unpin + 'static) -> Self {
        Body::new(Counted { body, bytes: 0, tell })
    }
    /// A body that ends early, and cleanly, when `stop` is cancelled.
    pub fn until(body: Body, stop: CancellationToken) -> Self {
        Body::new(Until {
            body,
            stop: Ended::of(stop),
        })
    }
    /// A body that breaks off when `cut` is cancelled, whatever is there of it, and that keeps `guard` until then.
    pub fn cut<G: Send + Unpin + 'static>(body: Body, cut: CancellationToken, guard: G) -> Self {
        Body::new(Broken {
            body,
            cut: Ended::of(cut),
            _guard: guard,
        })
    }
    /// The whole body, at most `limit` bytes of it; more is upstream's 413.
    pub async fn collect(self, limit: usize) -> Result<Bytes, ApiError> {
        self.collect_noting(limit, |_| Ok(())).await
    }
    /// The same; each piece is told of before it is kept, and may be refused.
    pub async fn collect_noting(
        self,
        limit: usize,
        mut note: impl FnMut(usize) -> Result<(), ApiError>,
    ) -> Result<Bytes, ApiError> {
        let mut body = self;
        let mut first = Bytes::new();
        let mut more: Option<BytesMut> = None;
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ApiError::bad_request(format!("unable to read the request body: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length > limit {
                return Err(ApiError::new(
                    Reason::RequestEntityTooLarge,
                    format!("Request entity too large: limit is {limit}"),
                ));
            }
            note(data.len())?;
            match &mut more {
                Some(more) => more.extend_from_slice(&data),
                None if first.is_empty() => first = data,
                None => {
                    let mut joined = BytesMut::from(first.as_ref());
                    joined.extend_from_slice(&data);
                    more = Some(joined);
                }
            }
        }
        Ok(more.map_or(first, BytesMut::freeze))
    }
}

impl Default for Body {
    fn default() -> Self {
        Body::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Body::empty()
        } else {
            Body::new(Full::new(bytes))
        }
    }
}
impl From<String> for Body {
    fn from(s: String) -> Self {
        Bytes::from(s).into()
    }
}
impl From<Vec<u8>> for Body {
    fn from(v: Vec<u8>) -> Self {
        Bytes::from(v).into()
    }
}
impl From<&'static str> for Body {
    fn from(s: &'static str) -> Self {
        Bytes::from_static(s.as_bytes()).into()
    }
}

struct Until {
    body: Body,
    stop: Ended,
}

impl HttpBody for Until {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // What is there goes out before the end.
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => self.stop.poll(cx).map(|()| None),
            ready => ready,
        }
    }
}

struct Broken<G> {
    body: Body,
    cut: Ended,
    _guard: G,
}

impl<G: Unpin> HttpBody for Broken<G> {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.cut.poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(BodyError("the request's credentials were revoked".into())))),
            Poll::Pending => Pin::new(&mut self.body).poll_frame(cx),
        }
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Guarded<G> {
    body: Body,
    _guard: G,
}

impl<G: Unpin> HttpBody for Guarded<G> {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Counted<F: Fn(usize)> {
    body: Body,
    bytes: usize,
    tell: F,
}

impl<F: Fn(usize) + Unpin> HttpBody for Counted<F> {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        frame
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<F: Fn(usize)> Drop for Counted<F> {
    fn drop(&mut self) {
        (self.tell)(self.bytes);
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(self.0.get_mut()).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}
