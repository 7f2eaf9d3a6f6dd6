//! A piece of work that is under way.

use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, KeyValue, Value};
use std::borrow::Cow;

/// Bytes of a text that is told. Callers' words are told, too, and thousands of spans may wait for a collector.
pub(crate) const LONGEST: usize = 512;

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
            context
                .span()
                .set_attribute(KeyValue::new(key, bounded_value(value().into())));
        }
    }

    /// Something happened in the course of it.
    pub fn event(&self, name: &'static str) {
        if let Some(context) = self.taken() {
            context.span().add_event(name, Vec::new());
        }
    }

    /// Something happened of which one thing more is to be said.
    pub fn event_of<V: Into<Value>>(&self, name: &'static str, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(context) = self.taken() {
            let said = KeyValue::new(key, bounded_value(value().into()));
            context.span().add_event(name, vec![said]);
        }
    }

    /// It went wrong.
    pub fn fail(&self, why: impl Into<Cow<'static, str>>) {
        if let Some(context) = self.taken() {
            context.span().set_status(Status::error(bounded(why.into())));
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

/// As much of a text as is told.
pub(crate) fn bounded(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() <= LONGEST {
        return text;
    }
    let mut end = LONGEST;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(text[..end].to_owned())
}

fn bounded_value(value: Value) -> Value {
    match value {
        Value::String(text) if text.as_str().len() > LONGEST => {
            Value::String(bounded(Cow::Owned(text.as_str().to_owned())).into())
        }
        other => other,
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(bounded("short".into()), "short");
        let long = bounded(format!("x{}", "é".repeat(LONGEST)).into());
        assert_eq!(long.len(), LONGEST - 1);
        let value = bounded_value(Value::from("y".repeat(LONGEST * 2)));
        assert_eq!(value.as_str().len(), LONGEST);
        assert_eq!(bounded_value(Value::from(7i64)), Value::from(7i64));
    }
}
