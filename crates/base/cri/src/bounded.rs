//! How long calls of a runtime may take: each that has one answer ends in time, as upstream's kubelet has it, whatever the
//! runtime does. The runtime is told of the time, too (`grpc-timeout`); what it makes of a caller that has gone is its own
//! business.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http_body::Frame;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::clients::CriService;

/// So much longer than other calls one may take: the time that it asks the runtime to wait itself. Put among a request's
/// extensions.
#[derive(Clone, Copy, Debug)]
pub struct Waits(pub Duration);

/// A transport whose calls end.
#[derive(Clone)]
pub struct Bounded {
    inner: CriService,
    limit: Duration,
}

impl Bounded {
    pub fn new(inner: CriService, limit: Duration) -> Self {
        Bounded { inner, limit }
    }
}

impl Service<http::Request<Body>> for Bounded {
    type Response = http::Response<Body>;
    type Error = <CriService as Service<http::Request<Body>>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let waits = request.extensions().get::<Waits>().map(|w| w.0);
        let Some(limit) = bound(method, self.limit, waits) else {
            return self.inner.call(request);
        };
        if let Ok(header) = HeaderValue::from_str(&header(limit)) {
            request.headers_mut().insert("grpc-timeout", header);
        }
        let call = self.inner.call(request);
        Box::pin(async move {
            let mut until = Box::pin(tokio::time::sleep(limit));
            tokio::select! {
                biased;
                answer = call => Ok(answer?.map(|body| Body::new(Until { body, until }))),
                () = &mut until => Ok(late().into_http()),
            }
        })
    }
}

/// In the words of upstream's client.
fn late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// What of an answer comes after its head: in the same time.
struct Until {
    body: Body,
    until: Pin<Box<Sleep>>,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let ready @ Poll::Ready(_) = Pin::new(&mut self.body).poll_frame(cx) {
            return ready;
        }
        self.until.as_mut().poll(cx).map(|()| Some(Err(late())))
    }
}

/// How long a call may take; `None` for those that last as long as there is something to do: streams, pulls (which go on
/// while something comes), and commands without a time of their own.
fn bound(method: &str, limit: Duration, waits: Option<Duration>) -> Option<Duration> {
    match method {
        "PullImage" | "GetContainerEvents" => None,
        stream if stream.starts_with("Stream") => None,
        "ExecSync" => waits.map(|waits| limit.saturating_add(waits)),
        // Its network may take long to set up.
        "RunPodSandbox" => Some(limit.saturating_mul(2)),
        _ => Some(limit.saturating_add(waits.unwrap_or_default())),
    }
}

/// As gRPC says it: eight digits at most, and a unit.
fn header(limit: Duration) -> String {
    match limit.as_millis() {
        short @ ..=99_999_999 => format!("{short}m"),
        _ => format!("{}S", limit.as_secs().min(99_999_999)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_end_when_upstreams_do() {
        let (limit, ten) = (Duration::from_secs(120), Duration::from_secs(10));
        let of = |method| bound(method, limit, None);
        assert_eq!(of("ListContainers"), Some(limit));
        assert_eq!(of("RemoveImage"), Some(limit));
        assert_eq!(of("RunPodSandbox"), Some(limit * 2));
        assert_eq!(bound("StopContainer", limit, Some(ten)), Some(limit + ten));
        assert_eq!(bound("ExecSync", limit, Some(ten)), Some(limit + ten));
        for endless in ["ExecSync", "PullImage", "GetContainerEvents", "StreamContainers"] {
            assert_eq!(of(endless), None, "{endless}");
        }
        assert_eq!(bound("StopContainer", limit, Some(Duration::MAX)), Some(Duration::MAX));
    }

    #[test]
    fn times_are_said_in_eight_digits() {
        assert_eq!(header(Duration::from_millis(1500)), "1500m");
        assert_eq!(header(Duration::from_secs(200_000)), "200000S");
        assert_eq!(header(Duration::MAX), "99999999S");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_hangs_keeps_nobody() {
        use crate::v1::{ListContainersRequest, StopContainerRequest};
        let silent = tower::service_fn(|request: http::Request<Body>| async move {
            assert!(request.headers().contains_key("grpc-timeout"));
            std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>().await
        });
        let bounded = CriService::new(Bounded::new(CriService::new(silent), Duration::from_secs(120)));
        let mut client = crate::RuntimeServiceClient::new(bounded);
        let began = tokio::time::Instant::now();
        let error = client
            .list_containers(ListContainersRequest { filter: None })
            .await
            .unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert_eq!(error.message(), "context deadline exceeded");
        assert_eq!(began.elapsed().as_secs(), 120);
        let mut request = tonic::Request::new(StopContainerRequest::default());
        request.extensions_mut().insert(Waits(Duration::from_secs(30)));
        client.stop_container(request).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 270);
    }

    #[tokio::test(start_paused = true)]
    async fn nor_does_one_whose_answer_never_ends() {
        struct Endless;
        impl http_body::Body for Endless {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Pending
            }
        }
        let begins = tower::service_fn(|_: http::Request<Body>| {
            let answer = http::Response::builder().header("content-type", "application/grpc");
            std::future::ready(Ok::<_, std::convert::Infallible>(
                answer.body(Body::new(Endless)).unwrap(),
            ))
        });
        let bounded = CriService::new(Bounded::new(CriService::new(begins), Duration::from_secs(120)));
        let began = tokio::time::Instant::now();
        let all = crate::v1::ListContainersRequest { filter: None };
        let error = crate::RuntimeServiceClient::new(bounded)
            .list_containers(all)
            .await
            .unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert_eq!(began.elapsed().as_secs(), 120);
    }
}
