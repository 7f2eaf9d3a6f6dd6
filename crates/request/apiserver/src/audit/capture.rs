//! Bodies, for the levels that log them: copied while they pass, and read once the request has ended.
//!
//! A copy has a bound; of a body that is larger nothing is kept, and the event says so with the annotation that
//! kube-apiserver's truncating backend writes.

use crate::request::{Body, BodyError};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use keelson_api::Value;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Format, Strictness, decode_text, json, proto};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes of a body that are kept at most: with the event's other parts what upstream's truncating backend lets through.
const MOST: usize = 1 << 20;

/// What has passed of a body.
#[derive(Clone, Default)]
pub struct Copy(Arc<Mutex<Passed>>);

#[derive(Default)]
struct Passed {
    content_type: String,
    bytes: Vec<u8>,
    too_large: bool,
}

/// A body as an event has it.
pub enum Captured {
    None,
    Object(Box<RawValue>),
    TooLarge,
}

impl Copy {
    /// The body, and where a copy of it will be. `headers` are those that came with it.
    pub fn of(body: Body, headers: &HeaderMap) -> (Body, Copy) {
        let copy = Copy::default();
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        copy.0.lock().content_type = content_type.unwrap_or("application/json").to_ascii_lowercase();
        let tee = Tee {
            body,
            copy: copy.clone(),
        };
        (Body::new(tee), copy)
    }

    fn add(&self, bytes: &[u8]) {
        let mut passed = self.0.lock();
        if passed.too_large || passed.bytes.len() + bytes.len() > MOST {
            passed.too_large = true;
            passed.bytes = Vec::new();
        } else {
            passed.bytes.extend_from_slice(bytes);
        }
    }

    /// Reads the copy. What is no object (a log, a stream) is not logged.
    pub fn read(&self, omit_managed_fields: bool) -> Captured {
        let passed = std::mem::take(&mut *self.0.lock());
        if passed.too_large {
            return Captured::TooLarge;
        }
        let object = decode(&passed.content_type, &passed.bytes).and_then(|mut value| {
            if omit_managed_fields {
                forget_managers(&mut value);
            }
            let text = String::from_utf8(json::encode(&value)).ok()?;
            RawValue::from_string(text).ok()
        });
        object.map_or(Captured::None, Captured::Object)
    }
}

fn decode(content_type: &str, bytes: &[u8]) -> Option<Value> {
    if bytes.is_empty() {
        return None;
    }
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    match kind {
        "application/vnd.kubernetes.protobuf" => {
            let envelope = proto::open(bytes).ok()?;
            let schema = builtin_kind_at(envelope.api_version, envelope.kind)?;
            Some(Value::from(envelope.decode(&schema).ok()?.0))
        }
        "application/yaml" | "application/apply-patch+yaml" => text(bytes, Format::Yaml),
        k if k == "application/json" || k.ends_with("+json") => text(bytes, Format::Json),
        _ => None,
    }
}

fn text(bytes: &[u8], format: Format) -> Option<Value> {
    Some(decode_text(bytes, format, None, Strictness::Lenient).ok()?.value)
}

fn forget_managers(value: &mut Value) {
    value.remove_at(&["metadata", "managedFields"]);
    if let Some(Value::Array(items)) = value.get_mut("items") {
        for item in items {
            item.remove_at(&["metadata", "managedFields"]);
        }
    }
}

struct Tee {
    body: Body,
    copy: Copy,
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.copy.add(data);
        }
        polled
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn passed(content_type: &str, body: impl Into<Body>, omit: bool) -> Captured {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        let (body, copy) = Copy::of(body.into(), &headers);
        body.collect(usize::MAX).await.unwrap();
        copy.read(omit)
    }

    #[tokio::test]
    async fn objects_are_logged_as_json_whatever_their_form() {
        let Captured::Object(object) = passed(
            "application/yaml",
            "kind: ConfigMap\nmetadata: {name: a, managedFields: [{manager: m}]}\n",
            true,
        )
        .await
        else {
            panic!("nothing")
        };
        assert_eq!(object.get(), r#"{"kind":"ConfigMap","metadata":{"name":"a"}}"#);
        let patch = passed("application/json-patch+json", r#"[{"op":"remove","path":"/a"}]"#, true).await;
        assert!(matches!(patch, Captured::Object(o) if o.get().starts_with("[{")));
        assert!(matches!(passed("text/plain", "a log", false).await, Captured::None));
        assert!(matches!(passed("application/json", "", false).await, Captured::None));
        assert!(matches!(passed("application/json", "{", false).await, Captured::None));
    }

    #[tokio::test]
    async fn a_large_body_is_not_kept() {
        let large = format!("\"{}\"", "x".repeat(MOST));
        assert!(matches!(
            passed("application/json", large, false).await,
            Captured::TooLarge
        ));
    }
}
