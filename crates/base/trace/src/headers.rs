//! Spans across connections: `traceparent` and `tracestate` of the W3C.

use crate::current;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;

/// What the W3C has every program take; longer lists of other vendors are theirs to lose.
const LONGEST: usize = 512;

struct Into<'a>(&'a mut HeaderMap);

impl Injector for Into<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value))
            && value.len() <= LONGEST
            && !value.is_empty()
        {
            self.0.insert(name, value);
        }
    }
}

struct From<'a>(&'a HeaderMap);

impl Extractor for From<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?.to_str().ok()?;
        (value.len() <= LONGEST).then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Tells whoever is asked of what the question is a part, if it is one.
pub fn inject(headers: &mut HeaderMap) {
    if current::is_any() {
        TraceContextPropagator::new().inject_context(&Context::current(), &mut Into(headers));
    }
}

/// Of what a caller says the request to be a part.
pub fn extract(headers: &HeaderMap) -> Option<SpanContext> {
    if !headers.contains_key("traceparent") {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &From(headers));
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_malformed_or_too_long_is_of_nobody() {
        const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let with =
            |value: &str| HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value.parse().unwrap())]);
        let found = extract(&with(GOOD)).unwrap();
        assert_eq!(found.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(found.is_sampled() && found.is_remote());
        for bad in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            &format!("{GOOD}{}", "0".repeat(LONGEST)),
        ] {
            assert!(extract(&with(bad)).is_none(), "{bad}");
        }
        let mut headers = HeaderMap::new();
        inject(&mut headers);
        assert!(headers.is_empty(), "nothing is under way");
    }
}
