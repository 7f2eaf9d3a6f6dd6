//! `/openapi/v2` and `/openapi/v3`: what `kubectl explain` and clients' validation read.
//!
//! Documents are built when they are first asked for, off the request threads, and kept compressed; clients that take
//! gzip get them as they are kept. Custom resources are handed in by [`OpenApi::publish`].

mod custom;
mod describe;
mod documents;
mod paths;
mod proto_v2;
mod schemas;

pub use custom::CustomKind;

use crate::aggregation;
use crate::request::{Request, RequestContext, Response, response};
use crate::state::ServerState;
use bytes::Bytes;
use documents::BuiltIn;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use keelson_api::codec::Strictness;
use keelson_api::codec::json::decode;
use keelson_api::{ApiError, Map, Value, value};
use keelson_registry::ResourceTable;
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha512};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;

/// A document as it is kept: compressed, with the hash that names its content.
#[derive(Clone)]
struct Kept {
    hash: String,
    gzip: Bytes,
}

#[derive(Clone)]
pub struct OpenApi {
    inner: Arc<Inner>,
}

struct Inner {
    table: Arc<ResourceTable>,
    custom: RwLock<BTreeMap<String, Vec<Arc<CustomKind>>>>,
    built_in: Mutex<Option<Arc<BuiltIn>>>,
    v2: Mutex<Option<Kept>>,
    v2_proto: Mutex<Option<Kept>>,
    v3: Mutex<HashMap<(String, String), Kept>>,
}

/// Clients ask for `…v2@v1.0+protobuf`, which is no well-formed media type: the answer names it by this one, as upstream's.
const PROTO_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

impl OpenApi {
    pub fn new(table: Arc<ResourceTable>) -> Self {
        OpenApi {
            inner: Arc::new(Inner {
                table,
                custom: RwLock::default(),
                built_in: Mutex::default(),
                v2: Mutex::default(),
                v2_proto: Mutex::default(),
                v3: Mutex::default(),
            }),
        }
    }

    /// Publishes the served versions of a CRD (named `plural.group`); none: takes them out.
    pub fn publish(&self, crd: &str, versions: Vec<CustomKind>) {
        let mut custom = self.inner.custom.write();
        if versions.is_empty() {
            custom.remove(crd);
        } else {
            custom.insert(crd.to_string(), versions.into_iter().map(Arc::new).collect());
        }
    }

    /// Answers a path below `/openapi`; `None` for other paths.
    pub async fn serve(&self, server: &ServerState, context: &RequestContext, request: &Request) -> Option<Response> {
        let rest = context.info.path.strip_prefix("/openapi/")?.trim_end_matches('/');
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        if rest == "v2" {
            return Some(self.serve_v2(request.headers()).await);
        }
        if rest == "v3" {
            return Some(response::json(StatusCode::OK, &self.index(server)));
        }
        let path = rest.strip_prefix("v3/")?;
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => (String::new(), (*version).to_string()),
            ["apis", group, version] => ((*group).to_string(), (*version).to_string()),
            _ => return None,
        };
        if let Some(service) = server.services.find(&group, &version) {
            return Some(self.of_extension(server, &service, context, request).await);
        }
        if !self.inner.group_versions().contains(&(group.clone(), version.clone())) {
            return None;
        }
        Some(self.serve_v3(group, version, path, context, request.headers()).await)
    }

    async fn serve_v2(&self, headers: &HeaderMap) -> Response {
        let accept = headers
            .get(header::ACCEPT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let proto = accept
            .split(',')
            .next()
            .unwrap_or_default()
            .contains("proto-openapi.spec.v2");
        let inner = self.inner.clone();
        let made = tokio::task::spawn_blocking(move || if proto { inner.v2_proto() } else { inner.v2() }).await;
        match made {
            Ok(kept) => answer(&kept, if proto { PROTO_V2 } else { "application/json" }, headers).await,
            Err(e) => response::error(&ApiError::internal(e)),
        }
    }

    async fn serve_v3(
        &self,
        group: String,
        version: String,
        path: &str,
        context: &RequestContext,
        headers: &HeaderMap,
    ) -> Response {
        let hash = self.inner.v3_hash(&group, &version);
        let asked = context.info.query.get("hash");
        if asked.is_some_and(|asked| asked != hash) {
            let mut moved = response::text(StatusCode::MOVED_PERMANENTLY, "");
            if let Ok(location) = HeaderValue::from_str(&format!("/openapi/v3/{path}?hash={hash}")) {
                moved.headers_mut().insert(header::LOCATION, location);
            }
            return moved;
        }
        let inner = self.inner.clone();
        let made = tokio::task::spawn_blocking(move || inner.v3(&group, &version)).await;
        let mut response = match made {
            Ok(kept) => answer(&kept, "application/json", headers).await,
            Err(e) => return response::error(&ApiError::internal(e)),
        };
        if asked.is_some() {
            // The hash names the content: it can be kept for good.
            let lasting = HeaderValue::from_static("public, immutable");
            response.headers_mut().insert(header::CACHE_CONTROL, lasting);
            let year = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
            if let Ok(expires) = HeaderValue::from_str(&year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()) {
                response.headers_mut().insert(header::EXPIRES, expires);
            }
        }
        response
    }

    async fn of_extension(
        &self,
        server: &ServerState,
        service: &aggregation::Remote,
        context: &RequestContext,
        request: &Request,
    ) -> Response {
        let mut copy = http::Request::new(crate::request::Body::empty());
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        aggregation::proxy(server, service, context, copy).await
    }

    /// `/openapi/v3`
    fn index(&self, server: &ServerState) -> Value {
        let mut paths = Map::new();
        for (group, version) in self.inner.group_versions() {
            let path = if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            };
            let hash = self.inner.v3_hash(&group, &version);
            paths.insert(
                path.as_str(),
                value!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            );
        }
        for s in server.services.remote() {
            let path = format!("apis/{}/{}", s.group, s.version);
            paths.insert(
                path.as_str(),
                value!({"serverRelativeURL": format!("/openapi/v3/{path}")}),
            );
        }
        Value::from(Map::from_iter([("paths", paths)]))
    }
}

impl Inner {
    fn custom(&self) -> Vec<Arc<CustomKind>> {
        self.custom.read().values().flatten().cloned().collect()
    }
    fn group_versions(&self) -> BTreeSet<(String, String)> {
        let table = self.table.snapshot();
        let built_in = table
            .iter()
            .filter(|d| !d.custom)
            .map(|d| (d.gvr.group.to_string(), d.gvr.version.to_string()));
        let custom = self
            .custom()
            .into_iter()
            .map(|k| (k.group.to_string(), k.version.to_string()));
        built_in.chain(custom).collect()
    }

    /// Built-in documents follow from the program's version; custom ones from what was published.
    fn v3_hash(&self, group: &str, version: &str) -> String {
        let of_version = self
            .custom()
            .into_iter()
            .filter(|k| k.group == group && k.version == version);
        hash_of(&format!("v3 {group} {version}"), of_version)
    }

    fn v3(&self, group: &str, version: &str) -> Kept {
        let hash = self.v3_hash(group, version);
        let key = (group.to_string(), version.to_string());
        if let Some(kept) = self.v3.lock().get(&key).filter(|k| k.hash == hash) {
            return kept.clone();
        }
        let bytes = documents::v3(&self.table.snapshot(), &self.custom(), group, version);
        let kept = Kept {
            hash,
            gzip: documents::gzip(&bytes),
        };
        let mut documents = self.v3.lock();
        let served = self.group_versions();
        documents.retain(|k, _| served.contains(k));
        documents.insert(key, kept.clone());
        kept
    }

    fn v2(&self) -> Kept {
        let custom = self.custom();
        let hash = hash_of("v2", custom.iter().cloned());
        let mut slot = self.v2.lock();
        if let Some(kept) = slot.as_ref().filter(|k| k.hash == hash) {
            return kept.clone();
        }
        let built_in = self.built_in();
        let kept = Kept {
            hash,
            gzip: documents::v2(&built_in, &custom),
        };
        *slot = Some(kept.clone());
        kept
    }

    fn built_in(&self) -> Arc<BuiltIn> {
        let mut slot = self.built_in.lock();
        slot.get_or_insert_with(|| Arc::new(BuiltIn::build(&self.table.snapshot())))
            .clone()
    }

    fn v2_proto(&self) -> Kept {
        let json = self.v2();
        let mut slot = self.v2_proto.lock();
        if let Some(kept) = slot.as_ref().filter(|k| k.hash == json.hash) {
            return kept.clone();
        }
        let document = decode(&inflate(&json.gzip), None, Strictness::Lenient).map(|d| d.value);
        let document = document.unwrap_or_else(|e| {
            tracing::error!("the OpenAPI document can't be had in protobuf: {e}");
            Value::default()
        });
        let kept = Kept {
            hash: json.hash,
            gzip: documents::gzip(&proto_v2::encode(&document)),
        };
        *slot = Some(kept.clone());
        kept
    }
}

fn hash_of(what: &str, custom: impl Iterator<Item = Arc<CustomKind>>) -> String {
    let mut hash = Sha512::new();
    hash.update(crate::version::GIT_VERSION);
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(option_env!("KEELSON_COMMIT").unwrap_or_default());
    hash.update(what);
    for kind in custom {
        hash.update(format!(
            "{}/{}/{}/{}/{:?}",
            kind.group, kind.version, kind.kind, kind.plural, kind.selectable
        ));
        hash.update([
            u8::from(kind.has_status),
            u8::from(kind.has_scale),
            u8::from(kind.namespaced),
        ]);
        if let Some(schema) = &kind.schema {
            hash.update(serde_json::to_vec(schema).unwrap_or_default());
        }
    }
    hex::encode_upper(hash.finalize())
}

fn inflate(gzip: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if let Err(e) = MultiGzDecoder::new(gzip).read_to_end(&mut out) {
        tracing::error!("a kept document could not be read: {e}");
    }
    out
}

/// Sends a document: as it is kept to clients that take gzip, inflated to others; 304 to those who have it.
async fn answer(kept: &Kept, content_type: &'static str, headers: &HeaderMap) -> Response {
    let etag = format!("\"{}\"", kept.hash);
    let has = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|v| v.to_str().ok());
    let mut response = if has
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().trim_start_matches("W/") == etag)
    {
        let mut response = Response::new(crate::request::Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if takes_gzip(headers) {
        let mut response = response::bytes_of(StatusCode::OK, content_type, kept.gzip.clone());
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let gzip = kept.gzip.clone();
        let bytes = tokio::task::spawn_blocking(move || inflate(&gzip))
            .await
            .unwrap_or_default();
        response::bytes_of(StatusCode::OK, content_type, bytes.into())
    };
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    response
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let offers = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok());
    offers.flat_map(|v| v.split(',')).any(|o| {
        let mut parts = o.split(';').map(str::trim);
        parts.next() == Some("gzip") && parts.next() != Some("q=0")
    })
}

#[cfg(test)]
mod tests;
