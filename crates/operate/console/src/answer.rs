//! Answers of the console's own.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use keelson_listen::BoxError;
use serde_json::{Value, json};

pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn with_type(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(full(bytes));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    with_type(status, "application/json", value.to_string())
}

/// In the API's own form, so that pages read one.
pub fn failure(status: StatusCode, reason: &str, says: &str) -> Response<Body> {
    json(status, &status_of(status.as_u16(), reason, says))
}

pub fn status_of(code: u16, reason: &str, says: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": says, "code": code})
}

/// The API didn't answer.
pub fn unreachable(error: &dyn std::fmt::Display) -> Response<Body> {
    failure(StatusCode::BAD_GATEWAY, UNREACHABLE, &says_unreachable(error))
}

pub const UNREACHABLE: &str = "Unreachable";

pub fn says_unreachable(error: &dyn std::fmt::Display) -> String {
    format!("the API can't be reached: {error}")
}
