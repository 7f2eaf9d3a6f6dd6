//! Reads: one object, lists in pages, and watches; all from the watch cache.

use super::{Engine, storage, too_large};
use crate::codec::ObjectCodec;
use crate::context::Cx;
use crate::def::{ResourceDef, StorageCodec, StorageDef};
use crate::meta;
use crate::options::ListOptions;
use crate::selection::Selector;
use base64::DecodeError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use keelson_api::codec::Strictness;
use keelson_api::codec::json;
use keelson_api::{ApiError, ApiResult, Object, Reason, Str};
use keelson_cache::{At, Cache, Config, Entry, ListQuery, Start, Watch, WatchOptions};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

const LIST_EXPIRED: &str = "The resourceVersion for the provided list is too old.";
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    pub entries: Vec<Arc<Entry>>,
    pub revision: u64,
    /// Empty on the last page.
    pub continue_token: String,
    pub remaining: Option<u64>,
}

/// What a resource's cache holds, for those who estimate what a request costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub objects: usize,
    pub bytes: usize,
    /// Watchers that would be told of a change.
    pub interested: usize,
}

/// A list that could not be served; an expired token comes with one that goes on at the present.
#[derive(Debug)]
pub struct ListError {
    pub error: ApiError,
    pub continue_token: Option<String>,
}

impl From<ApiError> for ListError {
    fn from(error: ApiError) -> Self {
        ListError {
            error,
            continue_token: None,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

fn encode_token(rv: i64, key: &[u8], prefix: &str) -> String {
    let start = String::from_utf8_lossy(key.strip_prefix(prefix.as_bytes()).unwrap_or(key)).into_owned();
    let token = Token {
        v: "meta.k8s.io/v1".into(),
        rv,
        start,
    };
    serde_json::to_vec(&token)
        .map(|t| URL_SAFE_NO_PAD.encode(t))
        .unwrap_or_default()
}

/// Where Go's decoder sees that a text is no base64: at the wrong byte, or where its last and broken group of four begins.
fn wrong_byte(e: &DecodeError, text: &str) -> usize {
    match e {
        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => *at,
        _ => text.len() / 4 * 4,
    }
}

/// The key to go on after, and the revision (-1: the present).
fn decode_token(text: &str, prefix: &str) -> Result<(Bytes, i64), String> {
    let bad = "continue key is not valid";
    let data = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|e| format!("{bad}: illegal base64 data at input byte {}", wrong_byte(&e, text)))?;
    // Go's words for what is no JSON at all.
    let why = |e: &serde_json::Error| match json::decode(&data, None, Strictness::Lenient) {
        Err(why) => why.to_string(),
        Ok(_) => e.to_string(),
    };
    let token: Token = serde_json::from_slice(&data).map_err(|e| format!("{bad}: {}", why(&e)))?;
    if token.v != "meta.k8s.io/v1" {
        return Err(format!(
            "{bad}: server does not recognize this encoded version {}",
            token.v
        ));
    }
    if token.rv == 0 {
        return Err(format!(
            "{bad}: incorrect encoded start resourceVersion (version meta.k8s.io/v1)"
        ));
    }
    if token.start.is_empty() {
        return Err(format!("{bad}: encoded start key empty (version meta.k8s.io/v1)"));
    }
    let start = token.start.strip_prefix('/').unwrap_or(&token.start);
    // A start key must not leave the prefix.
    if start.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{bad}: {}", token.start));
    }
    // Tokens name the first possible key of the next page: the last one seen and a zero byte.
    let last = start.strip_suffix('\0').unwrap_or(start);
    Ok((format!("{prefix}{last}").into(), token.rv))
}

fn parse_revision(text: &str) -> ApiResult<u64> {
    meta::parse_revision(text).map_err(|why| no_revision(text, &why))
}

/// Of a single object or a watch: what upstream doesn't take for the client's fault.
fn no_revision(text: &str, why: &str) -> ApiError {
    ApiError::new(Reason::Unknown, no_revision_text(text, why))
}

fn no_revision_text(text: &str, why: &str) -> String {
    format!("resourceVersion: Invalid value: {text:?}: {why}")
}

/// What a failure of the cache means to a client.
pub fn cache_error(cx: &Cx, operation: &str, e: keelson_cache::Error) -> ApiError {
    use keelson_cache::Error;
    match e {
        Error::TooOld { asked, oldest } => ApiError::expired(format!("too old resource version: {asked} ({oldest})")),
        Error::Compacted { .. } => ApiError::expired(LIST_EXPIRED),
        Error::Slow { .. } | Error::Restarted { .. } => ApiError::expired(e.to_string()),
        Error::TooLarge { asked, current } => too_large(asked, current),
        Error::NotReady | Error::Ended => {
            ApiError::new(Reason::TooManyRequests, "storage is (re)initializing").with_retry_after(1)
        }
        Error::Store(e) => super::store_error(cx, operation, &e),
        Error::Codec(e) => e,
    }
}

/// By what a cache is found: where its objects are stored, and the version that they are read in if that isn't the stored one.
fn cache_key(storage: &StorageDef) -> (Str, Str) {
    let version = storage.view.as_ref().map(|v| v.api_version.clone());
    (storage.prefix.clone(), version.unwrap_or_default())
}

impl Engine {
    /// The cache of a resource; started by its first use.
    pub fn cache(&self, storage: &Arc<StorageDef>) -> Cache {
        let start = || {
            let config = Config {
                resource: storage.resource.to_string(),
                prefix: storage.key_prefix("").into(),
                codec: Arc::new(ObjectCodec::new(storage.clone(), self.recent.clone())),
                forms: self.forms.clone(),
            };
            (
                storage.clone(),
                Cache::new(self.observed(storage.resource.clone()), config),
            )
        };
        let mut caches = self.caches.lock();
        let (of, cache) = caches.entry(cache_key(storage)).or_insert_with(start);
        // Built-in kinds are stored in one way for ever, whichever of their versions asks.
        if Arc::ptr_eq(of, storage) || !matches!(storage.codec, StorageCodec::Json) {
            return cache.clone();
        }
        // One of the two is of a definition that has changed since, and reads objects as nobody does any more.
        let current = self
            .table
            .by_resource(&storage.resource.group, &storage.resource.resource);
        let ours = |d: &ResourceDef| {
            [&d.storage, &d.view]
                .into_iter()
                .flatten()
                .any(|s| Arc::ptr_eq(s, storage))
        };
        if current.is_some() && !self.table.snapshot().iter().any(|d| ours(d)) {
            // The request's: it gets a cache of its own, which ends with it.
            return start().1;
        }
        cache.close();
        (*of, *cache) = start();
        cache.clone()
    }
    pub fn cache_of(&self, def: &ResourceDef) -> ApiResult<Cache> {
        let storage = def
            .storage
            .as_ref()
            .ok_or_else(|| ApiError::internal("a virtual resource has no cache"))?;
        Ok(self.cache(storage))
    }
    /// Caches of built-in kinds that are being filled, by their resources. Whether custom ones can be may be up to somebody
    /// outside, who converts objects; to wait for that could be to wait for oneself.
    pub fn unready(&self) -> Vec<String> {
        let caches = self.caches.lock();
        let filling = |of: &StorageDef, cache: &Cache| of.view.is_none() && cache.is_begun() && !cache.is_ready();
        let unready = caches.values().filter(|(of, cache)| filling(of, cache));
        unready.map(|(of, _)| of.resource.to_string()).collect()
    }
    /// What the cache of a resource has at this moment, if it is in use: looking begins none.
    pub(super) fn peek(&self, storage: &StorageDef, key: &[u8]) -> Option<Arc<Entry>> {
        let caches = self.caches.lock();
        let (_, cache) = caches.get(&cache_key(storage))?;
        cache.peek(key)
    }
    /// The caches in use, each resource once.
    pub fn caches(&self) -> Vec<(Arc<StorageDef>, Cache)> {
        let caches = self.caches.lock();
        let whole = caches
            .iter()
            .filter(|((_, view), (_, cache))| view.is_empty() && cache.is_ready());
        whole.map(|(_, found)| found.clone()).collect()
    }
    /// How many objects each cache in use holds, by group and resource. A resource seen in several versions counts once.
    pub fn counts(&self) -> Vec<(Str, Str, usize)> {
        let of = |storage: &StorageDef| (storage.resource.group.clone(), storage.resource.resource.clone());
        let counted = self.caches().into_iter().map(|(storage, cache)| {
            let (group, resource) = of(&storage);
            (group, resource, cache.len())
        });
        counted.collect()
    }
    /// What the cache of a resource holds; `None` if it hasn't been used.
    pub fn usage(&self, storage: &StorageDef, namespace: &str, name: &str) -> Option<Usage> {
        let cache = {
            let caches = self.caches.lock();
            let (_, cache) = caches.get(&(storage.prefix.clone(), Str::default()))?;
            cache.clone()
        };
        let key = storage.key(namespace, name);
        Some(Usage {
            objects: cache.len(),
            bytes: cache.bytes(),
            interested: cache.interested(namespace, &Bytes::from(key)),
        })
    }
    /// A resource is gone, or its stored form changed: its watches end, and its cache starts anew with the next use.
    pub fn drop_cache(&self, prefix: &str) {
        self.caches.lock().retain(|(of, _), (_, cache)| {
            let stays = of != prefix;
            if !stays {
                cache.close();
            }
            stays
        });
    }

    /// The object of the request. `rv`: empty for the newest, `0` for any, otherwise not older than that.
    pub async fn get_entry(&self, cx: &Cx, rv: &str) -> ApiResult<Arc<Entry>> {
        let storage = storage(cx)?;
        let at = match rv {
            "" => At::Consistent,
            "0" => At::Any,
            n => At::NotOlderThan(parse_revision(n)?),
        };
        let key = storage.key(&cx.namespace, &cx.name);
        let (entry, _) = self
            .cache(storage)
            .get(key.as_bytes(), at)
            .await
            .map_err(|e| cache_error(cx, "get", e))?;
        entry.ok_or_else(|| cx.not_found(&cx.name))
    }

    /// The object of the request, decoded.
    pub async fn get(&self, cx: &Cx, rv: &str) -> ApiResult<Object> {
        let entry = self.get_entry(cx, rv).await?;
        self.object(&cx.def, &entry).await
    }

    /// An entry of the cache as an object of the definition's version.
    pub async fn object(&self, def: &ResourceDef, entry: &Entry) -> ApiResult<Object> {
        let decoded = self.decode_bytes(def, entry.key(), entry.value(), entry.revision());
        Ok(decoded.await?.object)
    }

    /// Entries as objects of the definition's version; those of other versions are converted together.
    pub async fn objects(&self, def: &ResourceDef, entries: &[Arc<Entry>]) -> ApiResult<Vec<Object>> {
        let storage = def
            .storage
            .as_ref()
            .ok_or_else(|| ApiError::internal("a virtual resource has no stored form"))?;
        let mut objects = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut object = crate::codec::decode_stored(storage, entry.key(), entry.value(), entry.revision())?;
            object.set_meta("resourceVersion", &entry.revision().to_string());
            objects.push(object);
        }
        if let Some(c) = &def.converter {
            objects = c.convert(objects, &def.api_version()).await?;
        }
        if def.custom {
            objects.iter_mut().for_each(|o| crate::codec::complete_stored(def, o));
        }
        Ok(objects)
    }

    pub async fn list(&self, cx: &Cx, o: &ListOptions) -> Result<Page, ListError> {
        storage(cx)?;
        let selector = Selector::parse(&cx.def, &o.label_selector, &o.field_selector, &cx.name)?;
        let storage = selector.storage(&cx.def)?;
        let selection = selector.into_selection(&cx.def, &cx.namespace)?;
        let prefix = storage.key_prefix(&cx.namespace);
        let limit = usize::try_from(o.limit).unwrap_or(0);
        let mut after = None;
        let at = if !o.continue_token.is_empty() {
            let (key, rv) = decode_token(&o.continue_token, &prefix)
                .map_err(|e| ApiError::bad_request(format!("invalid continue token: {e}")))?;
            if !matches!(o.resource_version.as_str(), "" | "0") {
                return Err(
                    ApiError::bad_request("specifying resource version is not allowed when using continue").into(),
                );
            }
            after = Some(key);
            u64::try_from(rv).map_or(At::Consistent, At::Exact)
        } else {
            match o.resource_version.as_str() {
                "" => At::Consistent,
                "0" => At::Any,
                n => {
                    let n = meta::parse_revision(n).map_err(|why| {
                        ApiError::bad_request(format!("invalid resource version: {}", no_revision_text(n, &why)))
                    })?;
                    let exact = o.exact() || (limit > 0 && o.resource_version_match.is_empty());
                    if exact { At::Exact(n) } else { At::NotOlderThan(n) }
                }
            }
        };
        let query = ListQuery {
            selection,
            at,
            limit,
            after: after.clone(),
        };
        let page = match self.cache(storage).list(query).await {
            Ok(page) => page,
            Err(e) if e.is_expired() && after.is_some() => {
                let key = [after.as_deref().unwrap_or_default(), b"\0"].concat();
                return Err(ListError {
                    error: ApiError::expired(CONTINUE_EXPIRED),
                    continue_token: Some(encode_token(-1, &key, &prefix)),
                });
            }
            Err(e) if e.is_expired() => return Err(ApiError::expired(LIST_EXPIRED).into()),
            Err(e) => return Err(cache_error(cx, "list", e).into()),
        };
        let continue_token = match &page.next {
            Some(last) => encode_token(page.revision as i64, &[last, &b"\0"[..]].concat(), &prefix),
            None => String::new(),
        };
        Ok(Page {
            entries: page.entries,
            revision: page.revision,
            continue_token,
            remaining: page.remaining,
        })
    }

    /// All objects of the request's scope that match, decoded: for admission and controllers within the server.
    pub async fn list_objects(&self, cx: &Cx, o: &ListOptions) -> ApiResult<Vec<Object>> {
        let page = self.list(cx, o).await.map_err(|e| e.error)?;
        self.objects(&cx.def, &page.entries).await
    }

    /// A watch. An error of the cache (410) is the first event's, as upstream sends it.
    pub async fn watch(&self, cx: &Cx, o: &ListOptions, timeout: Duration) -> ApiResult<Result<Watch, ApiError>> {
        storage(cx)?;
        let selector = Selector::parse(&cx.def, &o.label_selector, &o.field_selector, &cx.name)?;
        let storage = selector.storage(&cx.def)?;
        let selection = selector.into_selection(&cx.def, &cx.namespace)?;
        let rv = match o.resource_version.as_str() {
            "" => None,
            text => Some(parse_revision(text)?),
        };
        let at = match rv {
            None => At::Consistent,
            Some(0) => At::Any,
            Some(n) => At::NotOlderThan(n),
        };
        let start = match (o.send_initial_events, rv) {
            (Some(true), _) | (None, None | Some(0)) => Start::State(at),
            (Some(false), None | Some(0)) => Start::Now(at),
            (_, Some(n)) => Start::After(n),
        };
        let mut options = WatchOptions::new(selection, start);
        options.bookmarks = o.allow_watch_bookmarks;
        options.end_bookmark = o.allow_watch_bookmarks && o.send_initial_events == Some(true);
        options.timeout = Some(timeout);
        Ok(self
            .cache(storage)
            .watch(options)
            .await
            .map_err(|e| cache_error(cx, "watch", e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_upstreams_and_stay_under_their_prefix() {
        let token = encode_token(7, b"/registry/pods/ns/a\0", "/registry/pods/");
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(&token).unwrap()).unwrap();
        assert_eq!(text, r#"{"v":"meta.k8s.io/v1","rv":7,"start":"ns/a\u0000"}"#);
        assert_eq!(
            decode_token(&token, "/registry/pods/").unwrap(),
            (Bytes::from("/registry/pods/ns/a"), 7)
        );
        let evil = URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":7,"start":"../secrets/a"}"#);
        assert!(decode_token(&evil, "/registry/pods/").is_err());
        assert!(decode_token("!", "/registry/pods/").is_err());
    }
}
