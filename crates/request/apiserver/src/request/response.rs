//! Responses that need no resource: statuses, JSON documents, plain text.

use super::{Body, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use keelson_api::codec::encode_status;
use keelson_api::{ApiError, Value};

/// JSON with the given code.
pub fn json(code: StatusCode, value: &Value) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => bytes_of(code, "application/json", bytes.into()),
        Err(e) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("encoding the response failed: {e}\n"),
        ),
    }
}

/// JSON as upstream writes documents that people read: indented by two.
pub fn indented(code: StatusCode, value: &Value) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(bytes) => bytes_of(code, "application/json", bytes.into()),
        Err(e) => error(&ApiError::internal(e)),
    }
}

/// A failure as `metav1.Status` in JSON, with `Retry-After` where the error carries it.
pub fn error(e: &ApiError) -> Response {
    let code = StatusCode::from_u16(e.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = bytes_of(code, "application/json", encode_status(&e.to_status()).into());
    if let Some(seconds) = e.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

pub fn text(code: StatusCode, text: impl Into<String>) -> Response {
    let mut response = bytes_of(code, "text/plain; charset=utf-8", Bytes::from(text.into()));
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub fn bytes_of(code: StatusCode, content_type: &'static str, bytes: Bytes) -> Response {
    let length = HeaderValue::from(bytes.len());
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response
}
