//! Calls of gRPC, on either side.

use crate::current::{child_of_kind, within};
use crate::headers;
use crate::span::Span;
use crate::tracer::{Origin, Tracer};
use crate::{Kind, Within};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use std::task::{Context, Poll};
use tower::Service;

/// A call to another that is a part of what is under way here; the other is told of what.
pub fn call<B>(request: &mut Request<B>) -> Span {
    let span = child_of_kind(Kind::Client, name(request.uri().path()));
    described(&span, request.uri().path());
    // What isn't taken here isn't taken there.
    let _current = span.context().map(opentelemetry::Context::attach);
    headers::inject(request.headers_mut());
    span
}

/// What the head of an answer says: that of a call that fails at once has the status.
pub fn answered(span: &Span, head: &HeaderMap) {
    let status = head.get("grpc-status").and_then(|s| s.to_str().ok()).unwrap_or("0");
    span.tell("rpc.grpc.status_code", || status.parse::<i64>().unwrap_or(2));
    if status != "0" {
        let said = head
            .get("grpc-message")
            .and_then(|m| m.to_str().ok())
            .unwrap_or_default();
        span.fail(said.to_owned());
    }
}

/// `runtime.v1.RuntimeService/RunPodSandbox`
fn name(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn described(span: &Span, path: &str) {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    span.tell("rpc.system", || "grpc");
    span.tell("rpc.service", || service.to_owned());
    span.tell("rpc.method", || method.to_owned());
}

/// A server whose calls are told of, as parts of what their callers say. For sockets that only root reaches.
#[derive(Clone, Debug)]
pub struct Served<S> {
    inner: S,
    tracer: Tracer,
}

impl<S> Served<S> {
    pub fn new(inner: S, tracer: Tracer) -> Self {
        Served { inner, tracer }
    }
}

impl<S, B, A> Service<Request<B>> for Served<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    A: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !self.tracer.is_on() || !request.headers().contains_key("traceparent") {
            return Box::pin(self.inner.call(request));
        }
        let path = request.uri().path();
        let span = self
            .tracer
            .begin(Kind::Server, name(path), Origin::Caller(request.headers()));
        described(&span, path);
        let work: Within<S::Future> = within(&span, self.inner.call(request));
        Box::pin(async move {
            let answer = work.await?;
            answered(&span, answer.headers());
            Ok(answer)
        })
    }
}
