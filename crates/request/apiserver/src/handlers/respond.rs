//! Answers: objects, lists, tables and statuses in the negotiated format.

use super::negotiate::{Output, Shape};
use super::table;
use crate::request::{Body, Response};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use keelson_api::codec::{Format, json, proto, yaml};
use keelson_api::{ApiError, ApiResult, Map, Object, SchemaRef, Value, builtin};
use keelson_cache::{Cache, Entry};
use keelson_registry::ResourceDef;
use keelson_registry::codec::{self, partial_metadata};
use keelson_registry::engine::{Engine, Page};
use std::sync::Arc;

/// So many objects go into one chunk of a list.
const CHUNK: usize = 64;

pub fn with_body(code: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    crate::request::response::bytes_of(code, content_type, body)
}

/// A value without a schema of its own concern, as JSON or YAML.
fn text(code: StatusCode, out: Output, value: Value) -> ApiResult<Response> {
    let bytes: Bytes = match out.format {
        Format::Yaml => yaml::encode(&value).into(),
        _ if out.pretty => pretty(&value)?,
        _ => {
            let mut bytes = match value {
                Value::Object(m) => codec::to_json(&Object(m)).to_vec(),
                other => json::encode(&other),
            };
            bytes.push(b'\n');
            bytes.into()
        }
    };
    Ok(with_body(code, out.content_type(), bytes))
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
                def.gvr.version,
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

/// Whether cached bytes can be sent as they are.
pub fn cached_form(def: &ResourceDef, out: Output) -> Option<keelson_cache::Form> {
    if def.custom || !def.is_storage_version() || out.beta {
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
        let bytes = cache.encoded(entry, form).map_err(ApiError::internal)?;
        let body = match out.format {
            Format::Protobuf => {
                let (api_version, kind) = shown_kind(def, out);
                proto::envelope(&api_version, &kind, &bytes).into()
            }
            _ => Bytes::from([&bytes[..], b"\n"].concat()),
        };
        return Ok(with_body(StatusCode::OK, out.content_type(), body));
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

fn list_meta(page: &Page) -> Map {
    let mut meta = Map::new();
    if !page.continue_token.is_empty() {
        meta.insert("continue", page.continue_token.as_str());
    }
    if let Some(n) = page.remaining {
        meta.insert("remainingItemCount", i64::try_from(n).unwrap_or(i64::MAX));
    }
    meta.insert("resourceVersion", page.revision.to_string());
    meta
}

/// A list, streamed chunk by chunk from the entries of a snapshot.
pub async fn list(
    engine: &Engine,
    cache: Cache,
    out: Output,
    def: &Arc<ResourceDef>,
    page: Page,
    include: &str,
) -> ApiResult<Response> {
    if let Some(error) = page.entries.iter().find_map(|e| e.unreadable()) {
        return Err(error.clone());
    }
    if out.shape == Shape::Metadata {
        return Err(ApiError::new(
            keelson_api::Reason::NotAcceptable,
            format!(
                "you requested PartialObjectMetadata, but the requested object is a list (*{}.{})",
                def.gvr.version, def.list_kind
            ),
        ));
    }
    if out.shape == Shape::Table {
        let objects = engine.objects(def, &page.entries).await?;
        let mut table = table::table(def, objects, out, include, &page.revision.to_string(), true)?;
        table.set_at(&["metadata"], list_meta(&page));
        return text(StatusCode::OK, out, table);
    }
    match (cached_form(def, out), out.format) {
        (Some(form), Format::Json) if !out.pretty => Ok(json_list(cache, form, out, def, page)),
        (Some(form), Format::Protobuf) => protobuf_list(&cache, form, out, def, &page),
        _ => whole_list(engine, out, def, page).await,
    }
}

fn list_kind(def: &ResourceDef, out: Output) -> (String, String) {
    match out.shape {
        Shape::Object => (def.api_version(), def.list_kind.to_string()),
        _ => (out.meta_version().to_string(), "PartialObjectMetadataList".to_string()),
    }
}

fn json_list(cache: Cache, form: keelson_cache::Form, out: Output, def: &ResourceDef, page: Page) -> Response {
    let (api_version, kind) = list_kind(def, out);
    let meta = String::from_utf8_lossy(&json::encode_map(&list_meta(&page))).into_owned();
    let head = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{meta},\"items\":[");
    let whole_items = out.shape != Shape::Object;
    let step = move |mut state: (std::vec::IntoIter<Arc<Entry>>, Option<String>, bool)| {
        let (entries, head, first) = (&mut state.0, state.1.take(), state.2);
        let mut chunk = head.clone().map(String::into_bytes).unwrap_or_default();
        let mut first_item = first;
        let mut encode = || -> ApiResult<bool> {
            for _ in 0..CHUNK {
                let Some(entry) = entries.next() else {
                    return Ok(true);
                };
                let bytes = cache.encoded(&entry, form).map_err(ApiError::internal)?;
                if !std::mem::take(&mut first_item) {
                    chunk.push(b',');
                }
                if whole_items {
                    chunk.extend_from_slice(&bytes);
                } else {
                    chunk.extend_from_slice(&codec::without_kind(&bytes)?);
                }
            }
            Ok(false)
        };
        match encode() {
            Ok(done) => {
                if done {
                    chunk.extend_from_slice(b"]}\n");
                }
                state.2 = first_item;
                Ok((Bytes::from(chunk), state, done))
            }
            Err(e) => Err(e),
        }
    };
    let start = Some((page.entries.into_iter(), Some(head), true));
    let body = stream::unfold(start, move |state| {
        let next = state.map(&step);
        async move {
            match next? {
                Ok((chunk, state, done)) => Some((Ok::<_, ApiError>(chunk), (!done).then_some(state))),
                Err(e) => Some((Err(e), None)),
            }
        }
    });
    let mut response = Response::new(Body::from_stream(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(out.content_type()));
    response
}

/// The envelope names the length of what it holds, so all items are encoded before the first byte is sent.
fn protobuf_list(
    cache: &Cache,
    form: keelson_cache::Form,
    out: Output,
    def: &ResourceDef,
    page: &Page,
) -> ApiResult<Response> {
    let (api_version, kind) = list_kind(def, out);
    let meta_schema = builtin::builtin_type("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")
        .ok_or_else(|| ApiError::internal("no schema of ListMeta"))?;
    let meta = proto::encode_message(&list_meta(page), &meta_schema).map_err(ApiError::internal)?;
    let mut message = Vec::with_capacity(page.entries.len() * 512 + 64);
    field(&mut message, 1, &meta);
    for entry in &page.entries {
        field(
            &mut message,
            2,
            &cache.encoded(entry, form).map_err(ApiError::internal)?,
        );
    }
    let body = proto::envelope(&api_version, &kind, &message);
    Ok(with_body(StatusCode::OK, out.content_type(), body.into()))
}

/// A length-delimited field of a protobuf message.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
}

/// Lists that are decoded: other versions, custom resources, YAML.
async fn whole_list(engine: &Engine, out: Output, def: &ResourceDef, page: Page) -> ApiResult<Response> {
    let meta = list_meta(&page);
    let mut objects = engine.objects(def, &page.entries).await?;
    let (api_version, kind) = list_kind(def, out);
    for o in &mut objects {
        if out.shape == Shape::MetadataList {
            *o = partial_metadata(o, out.meta_version());
        } else if !def.custom {
            o.remove("apiVersion");
            o.remove("kind");
        }
    }
    let mut list = Object::new();
    list.set_gvk(&api_version, &kind);
    list.insert("metadata", meta);
    list.insert("items", objects.into_iter().map(Value::from).collect::<Vec<_>>());
    match out.format {
        Format::Protobuf => {
            let schema = builtin::builtin_kind_at(&api_version, &kind)
                .ok_or_else(|| ApiError::internal(format!("no schema of {kind}")))?;
            typed(StatusCode::OK, out, list, &schema)
        }
        _ => text(StatusCode::OK, out, list.into()),
    }
}
