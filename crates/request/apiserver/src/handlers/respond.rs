//! Answers: objects and statuses in the negotiated format. Lists stand in [`listing`](super::listing).

use super::negotiate::{Output, Shape};
use super::table;
use crate::request::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use keelson_api::codec::{Format, encode_status, json, proto, yaml};
use keelson_api::{ApiError, ApiResult, Map, Object, SchemaRef, Value, builtin};
use keelson_cache::{Cache, Entry, Form};
use keelson_registry::ResourceDef;
use keelson_registry::codec::{self, partial_metadata};
use keelson_registry::engine::Engine;
use std::sync::Arc;

pub fn with_body(code: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    crate::request::response::bytes_of(code, content_type, body)
}

/// The package of upstream's that has a kind's internal type, as messages name it.
pub(super) fn go_package(def: &ResourceDef) -> &str {
    match def.gvr.group.as_str() {
        _ if def.custom => "unstructured",
        "" | "events.k8s.io" => "core",
        "rbac.authorization.k8s.io" => "rbac",
        group => group.split('.').next().unwrap_or(group),
    }
}

/// A value without a schema of its own concern, as JSON or YAML.
pub(super) fn text(code: StatusCode, out: Output, value: Value) -> ApiResult<Response> {
    let bytes: Bytes = match out.format {
        Format::Yaml => yaml::encode(&value).into(),
        _ if out.pretty => pretty(&value)?,
        _ => {
            let mut bytes = match value {
                Value::Object(m) if is_status(&m) => encode_status(&Value::Object(m)),
                Value::Object(m) => codec::to_json(&Object(m)).to_vec(),
                other => json::encode(&other),
            };
            bytes.push(b'\n');
            bytes.into()
        }
    };
    Ok(with_body(code, out.content_type(), bytes))
}

fn is_status(object: &Map) -> bool {
    let says = |key: &str, what: &str| object.get(key).and_then(Value::as_str) == Some(what);
    says("kind", "Status") && says("apiVersion", "v1")
}

fn pretty(value: &Value) -> ApiResult<Bytes> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(ApiError::internal)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// Any object of a known type, whatever its shape is called.
pub fn typed(code: StatusCode, out: Output, object: Object, schema: &SchemaRef) -> ApiResult<Response> {
    match out.format {
        Format::Protobuf => {
            let bytes = proto::encode(&object, schema).map_err(ApiError::internal)?;
            Ok(with_body(code, out.content_type(), bytes.into()))
        }
        _ => text(code, out, object.into()),
    }
}

/// A Status, or another body of `v1`, `meta.k8s.io/v1` or a built-in group.
pub fn built_in(code: StatusCode, out: Output, object: Object) -> ApiResult<Response> {
    match builtin::builtin_kind_at(object.api_version(), object.kind()) {
        Some(schema) => typed(code, out, object, &schema),
        None => text(
            code,
            Output {
                format: Format::Json,
                ..out
            },
            object.into(),
        ),
    }
}

/// A failure, in the client's format where it has one.
pub fn error(e: &ApiError, out: Option<Output>, continue_token: Option<&str>) -> Response {
    let code = StatusCode::from_u16(e.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut status = e.to_status();
    if let Some(token) = continue_token {
        status.set_at(&["metadata", "continue"], token);
    }
    let out = out.unwrap_or(Output::PLAIN);
    let response = Object::try_from(status)
        .map_err(|_| ApiError::internal("a status is an object"))
        .and_then(|status| {
            built_in(
                code,
                Output {
                    shape: Shape::Object,
                    ..out
                },
                status,
            )
        });
    let mut response = response.unwrap_or_else(|_| crate::request::response::error(e));
    if let Some(seconds) = e.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// One object of a resource, shaped as asked.
pub fn object(
    code: StatusCode,
    out: Output,
    def: &ResourceDef,
    schema: &SchemaRef,
    object: Object,
    include: &str,
) -> ApiResult<Response> {
    match out.shape {
        Shape::Object => typed(code, out, object, schema),
        Shape::Metadata => typed(
            code,
            out,
            partial_metadata(&object, out.meta_version()),
            &codec::partial_schema()?,
        ),
        Shape::MetadataList => Err(ApiError::new(
            keelson_api::Reason::NotAcceptable,
            format!(
                "you requested PartialObjectMetadataList, but the requested object is not a list (*{}.{})",
                go_package(def),
                object.kind()
            ),
        )),
        Shape::Table => {
            let version = object.resource_version().to_string();
            let table = table::table(def, vec![object], out, include, &version, true)?;
            text(code, out, table)
        }
    }
}

/// The form of the cache's bytes that the answer is made of, if it can be.
pub fn cached_form(def: &ResourceDef, out: Output) -> Option<Form> {
    if !def.is_storage_version() || out.beta {
        return None;
    }
    match (out.shape, out.format) {
        (Shape::Object, Format::Json) => Some(codec::JSON),
        (Shape::Object, Format::Protobuf) => Some(codec::PROTO),
        (Shape::Metadata | Shape::MetadataList, Format::Json) => Some(codec::META_JSON),
        (Shape::Metadata | Shape::MetadataList, Format::Protobuf) => Some(codec::META_PROTO),
        _ => None,
    }
}

/// The beginning of an object in JSON; the members that a cache has follow, and a brace.
pub fn json_start(def: &ResourceDef, out: Output) -> String {
    let (api_version, kind) = shown_kind(def, out);
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\"")
}

/// Appends an object in protobuf and its envelope. False: the cache's bytes don't serve, and nothing was written.
pub fn append_enveloped(
    cache: &Cache,
    form: Form,
    kind: (&str, &str),
    entry: &Arc<Entry>,
    bytes: &mut Vec<u8>,
) -> bool {
    let Ok(length) = cache.length(entry, form) else {
        return false;
    };
    let start = bytes.len();
    let (mut head, tail) = proto::envelope_around(kind.0, kind.1, length);
    bytes.append(&mut head);
    let written = cache.append(entry, form, bytes).is_ok();
    match written {
        true => bytes.extend_from_slice(tail),
        false => bytes.truncate(start),
    }
    written
}

/// An entry of the cache, by its cached bytes where that is possible.
pub async fn entry(
    engine: &Engine,
    cache: &Cache,
    out: Output,
    def: &ResourceDef,
    entry: &Arc<Entry>,
    include: &str,
) -> ApiResult<Response> {
    if let Some(form) = cached_form(def, out).filter(|_| !out.pretty && out.shape != Shape::MetadataList) {
        let mut bytes = Vec::with_capacity(entry.value().len() + entry.value().len() / 2 + 64);
        let written = match out.format {
            Format::Protobuf => {
                let (api_version, kind) = shown_kind(def, out);
                append_enveloped(cache, form, (&api_version, &kind), entry, &mut bytes)
            }
            _ => {
                bytes.extend_from_slice(json_start(def, out).as_bytes());
                let written = cache.append(entry, form, &mut bytes).is_ok();
                bytes.extend_from_slice(b"}\n");
                written
            }
        };
        if written {
            return Ok(with_body(StatusCode::OK, out.content_type(), bytes.into()));
        }
    }
    let o = engine.object(def, entry).await?;
    object(StatusCode::OK, out, def, &def.schema, o, include)
}

/// `apiVersion` and `kind` of an object of the resource in the shape asked for.
pub fn shown_kind(def: &ResourceDef, out: Output) -> (String, String) {
    match out.shape {
        Shape::Object => (def.api_version(), def.kind.to_string()),
        _ => (out.meta_version().to_string(), "PartialObjectMetadata".to_string()),
    }
}
