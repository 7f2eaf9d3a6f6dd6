//! A piece of work that is under way.

use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, KeyValue, Value};
use std::borrow::Cow;

/// Ends when it is dropped. What isn't taken is nothing, and what is told of it costs nothing.
#[must_use = "what isn't held has ended"]
#[derive(Debug, Default)]
pub struct Span(Option<Context>);

impl Span {
    pub fn none() -> Span {
        Span(None)
    }

    pub(crate) fn of(context: Context) -> Span {
        Span(Some(context))
    }

    pub(crate) fn context(&self) -> Option<Context> {
        self.0.clone()
    }

    /// What else is known of it: asked for only if somebody hears it.
    pub fn tell<V: Into<Value>>(&self, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(context) = self.taken() {
            context.span().set_attribute(KeyValue::new(key, value()));
        }
    }

    /// Something happened in the course of it.
    pub fn event(&self, name: &'static str) {
        if let Some(context) = self.taken() {
            context.span().add_event(name, Vec::new());
        }
    }

    /// It went wrong.
    pub fn fail(&self, why: impl Into<Cow<'static, str>>) {
        if let Some(context) = self.taken() {
            context.span().set_status(Status::error(why));
        }
    }

    /// The result, with its error told.
    pub fn told<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Result<T, E> {
        if let (Some(_), Err(why)) = (self.taken(), &result) {
            self.fail(why.to_string());
        }
        result
    }

    /// The id of its trace, if that is taken.
    pub fn trace(&self) -> Option<String> {
        self.taken().map(|cx| cx.span().span_context().trace_id().to_string())
    }

    fn taken(&self) -> Option<&Context> {
        self.0.as_ref().filter(|cx| cx.span().is_recording())
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}
