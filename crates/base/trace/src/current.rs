//! What is under way in a task, for whoever works deeper down.

use crate::span::Span;
use crate::tracer::Tracer;
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use pin_project_lite::pin_project;
use std::borrow::Cow;
use std::fmt::Display;
use std::pin::Pin;
use std::task::Poll;

/// A part of what is under way here; nothing where nothing is, or it isn't taken.
pub fn child(name: impl std::convert::Into<Cow<'static, str>>) -> Span {
    child_of_kind(crate::Kind::Internal, name)
}

pub(crate) fn child_of_kind(kind: crate::Kind, name: impl std::convert::Into<Cow<'static, str>>) -> Span {
    let taken = Context::map_current(|cx| match cx.get::<Tracer>() {
        Some(tracer) if cx.span().is_recording() => Some((tracer.clone(), cx.clone())),
        _ => None,
    });
    match taken {
        Some((tracer, parent)) => tracer.start(kind, name.into(), &parent, Vec::new()),
        None => Span::none(),
    }
}

/// Whether anything is under way here, taken or not.
pub(crate) fn is_any() -> bool {
    Context::map_current(|cx| cx.get::<Tracer>().is_some())
}

/// Does the work as what the span tells of.
pub fn within<F>(span: &Span, work: F) -> Within<F> {
    Within {
        work,
        context: span.context(),
    }
}

/// The same for work that another task does.
pub fn carried<F>(work: F) -> Within<F> {
    Within {
        work,
        context: is_any().then(Context::current),
    }
}

/// Does the work as a part of what is under way here.
pub async fn step<T, E: Display>(name: &'static str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let span = child(name);
    span.told(within(&span, work).await)
}

pin_project! {
    /// Work whose current span is another than its caller's.
    pub struct Within<F> {
        #[pin]
        work: F,
        context: Option<Context>,
    }
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _current = this.context.clone().map(Context::attach);
        this.work.poll(cx)
    }
}
