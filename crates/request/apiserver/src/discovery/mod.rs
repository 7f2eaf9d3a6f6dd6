//! `/api`, `/apis` and below: what is served, drawn from the resource table and the APIServices.
//!
//! Documents are built when they are first asked for after a change, and kept with their ETags.

mod aggregated;
mod plain;

pub use aggregated::{Flavor, parse_group_list};
pub use plain::local_priority;

use crate::aggregation::Services;
use crate::request::{Body, Request, RequestContext, Response, response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use keelson_api::codec::proto;
use keelson_api::{Map, Value, builtin};
use keelson_registry::ResourceTable;
use keelson_registry::table::Snapshot;
use parking_lot::Mutex;
use sha2::Digest;
use std::collections::HashMap;
use std::sync::Arc;

pub struct Discovery {
    table: Arc<ResourceTable>,
    services: Arc<Services>,
    cache: Mutex<Cache>,
    /// By which clients reach the server; `None`: by what they asked.
    address: Option<String>,
}

/// Documents of one state of table and services.
#[derive(Default)]
struct Cache {
    generation: (u64, u64),
    documents: HashMap<(Flavor, &'static str), Arc<Document>>,
}

pub struct Document {
    pub bytes: Bytes,
    pub etag: String,
}

impl Document {
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        let etag = format!("\"{}\"", hex::encode_upper(sha2::Sha512::digest(&bytes)));
        Arc::new(Document {
            bytes: bytes.into(),
            etag,
        })
    }
}

impl Discovery {
    pub fn new(table: Arc<ResourceTable>, services: Arc<Services>) -> Self {
        Discovery {
            table,
            services,
            cache: Mutex::default(),
            address: None,
        }
    }
    pub fn at(self, address: Option<String>) -> Self {
        Discovery { address, ..self }
    }

    /// Answers a discovery path; `None` for other paths, and for groups that aren't served here.
    pub fn serve(&self, context: &RequestContext, request: &Request) -> Option<Response> {
        let path = context.info.path.trim_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        let known = matches!(
            parts.as_slice(),
            ["api"] | ["apis"] | ["api", _] | ["apis", _] | ["apis", _, _]
        );
        if !known {
            return None;
        }
        let table = self.table.snapshot();
        match parts.as_slice() {
            ["api"] | ["apis"] => {
                let root = if parts[0] == "api" { "api" } else { "apis" };
                match Flavor::wanted(request.headers()) {
                    Some(flavor) => Some(conditional(
                        request.headers(),
                        &self.aggregated(flavor, root),
                        flavor.content_type(),
                    )),
                    None if root == "api" => Some(document(request.headers(), plain::api_versions(self.host(request)))),
                    None => Some(document(request.headers(), plain::group_list(&self.groups(&table)))),
                }
            }
            ["api", version] => Some(self.resources(request, &table, "", version)?),
            ["apis", group] => {
                let groups = self.groups(&table);
                let found = groups.iter().find(|g| g.name == *group)?;
                Some(document(request.headers(), plain::group(found)))
            }
            ["apis", group, version] => Some(self.resources(request, &table, group, version)?),
            _ => None,
        }
    }

    /// By which address clients reach the server.
    fn host(&self, request: &Request) -> String {
        self.address.clone().unwrap_or_else(|| host(request))
    }

    fn resources(&self, request: &Request, table: &Snapshot, group: &str, version: &str) -> Option<Response> {
        table
            .has_group_version(group, version)
            .then(|| document(request.headers(), plain::resource_list(table, group, version)))
    }

    /// The groups besides the core one, in upstream's order.
    pub fn groups(&self, table: &Snapshot) -> Vec<plain::Group> {
        plain::groups(table, &self.services)
    }

    fn aggregated(&self, flavor: Flavor, root: &'static str) -> Arc<Document> {
        let table = self.table.snapshot();
        let generation = (table.generation, self.services.generation());
        {
            let mut cache = self.cache.lock();
            if cache.generation != generation {
                *cache = Cache {
                    generation,
                    documents: HashMap::new(),
                };
            }
            if let Some(found) = cache.documents.get(&(flavor, root)) {
                return found.clone();
            }
        }
        let value = if root == "api" {
            aggregated::core(flavor, &table)
        } else {
            aggregated::named(flavor, &table, &self.services, &self.groups(&table))
        };
        let made = Document::new(serde_json::to_vec(&value).unwrap_or_default());
        let mut cache = self.cache.lock();
        if cache.generation == generation {
            cache.documents.insert((flavor, root), made.clone());
        }
        made
    }
}

fn host(request: &Request) -> String {
    let header = request.headers().get(header::HOST).and_then(|v| v.to_str().ok());
    header
        .or(request.uri().authority().map(|a| a.as_str()))
        .unwrap_or_default()
        .to_string()
}

/// A plain document, in protobuf if that is asked for before JSON.
fn document(headers: &HeaderMap, value: Value) -> Response {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let first = accept.split(',').next().unwrap_or_default().trim();
    if first.starts_with("application/vnd.kubernetes.protobuf")
        && let Some(bytes) = in_protobuf(&value)
    {
        return response::bytes_of(StatusCode::OK, "application/vnd.kubernetes.protobuf", bytes.into());
    }
    response::json(StatusCode::OK, &value)
}

fn in_protobuf(value: &Value) -> Option<Vec<u8>> {
    let map: &Map = value.as_object()?;
    let kind = map.str("kind")?;
    let schema = builtin::builtin_type(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))?;
    let message = proto::encode_message(map, &schema).ok()?;
    Some(proto::envelope(map.str("apiVersion").unwrap_or("v1"), kind, &message))
}

/// A document with its ETag; 304 where the client has it.
pub fn conditional(headers: &HeaderMap, document: &Document, content_type: &'static str) -> Response {
    let has = |v: &HeaderValue| {
        v.to_str()
            .is_ok_and(|v| v.split(',').any(|t| t.trim() == document.etag || t.trim() == "*"))
    };
    let mut answer = if headers.get_all(header::IF_NONE_MATCH).iter().any(has) {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer
    } else {
        response::bytes_of(StatusCode::OK, content_type, document.bytes.clone())
    };
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        answer.headers_mut().insert(header::ETAG, etag);
    }
    let vary = HeaderValue::from_static("Accept");
    answer.headers_mut().insert(header::VARY, vary);
    answer
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    answer
}

#[cfg(test)]
mod tests;
