//! The one create, update, patch, delete, list and watch of every kind.
//!
//! The engine works in the version of the request and converts at the store's edge only. It knows no kind (that is
//! [`Strategy`](crate::strategy::Strategy)'s part), no HTTP and no user's rights. Every write is one compare-and-set.

mod create;
mod delete;
mod observed;
mod read;
mod update;

pub use create::warn_owners;
pub use delete::Deleted;
pub use observed::Observer;
pub use read::{ListError, Page, Usage, cache_error};
pub use update::{Replace, UpdateSource};

use crate::codec;
use crate::context::Cx;
use crate::convert::convert_one;
use crate::def::{ResourceDef, StorageCodec, StorageDef};
use crate::recent::{Recent, Written};
use crate::resources::{NodePorts, ServiceRanges};
use crate::table::ResourceTable;
use bytes::Bytes;
use keelson_api::codec::proto;
use keelson_api::{ApiError, ApiResult, Object, Reason, Str};
use keelson_cache::{Cache, Forms};
use keelson_store::{KeyValue, Revision, Store};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long events are kept unless somebody says otherwise.
pub const EVENT_TTL: Duration = Duration::from_secs(3600);

/// Tells the time; tests and simulations bring their own.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

pub struct Engine {
    pub table: Arc<ResourceTable>,
    store: Arc<dyn Store>,
    clock: Clock,
    /// By key prefix and, for views, version.
    caches: Mutex<HashMap<(Str, Str), (Arc<StorageDef>, Cache)>>,
    forms: Arc<Forms>,
    recent: Arc<Recent>,
    service_ranges: ServiceRanges,
    node_ports: NodePorts,
    observer: Arc<dyn Observer>,
    /// How long what expires is kept.
    event_ttl: Option<Duration>,
}

/// An object as it stands in the store, and its revision.
#[derive(Clone, Debug)]
pub struct Current {
    pub object: Object,
    pub revision: Revision,
    /// A write changes what is stored even if the object stays as it is: its version, or how it is sealed.
    pub is_stale: bool,
    /// What the server has written of it, if that was lately: what doesn't change is not written anew.
    written: Option<Written>,
}

impl Engine {
    pub fn new(table: Arc<ResourceTable>, store: Arc<dyn Store>) -> Self {
        Engine {
            table,
            store,
            clock: Arc::new(keelson_clock::now),
            caches: Mutex::default(),
            forms: Forms::new(Forms::DEFAULT_LIMIT),
            recent: Arc::default(),
            service_ranges: ServiceRanges::default(),
            node_ports: NodePorts::default(),
            observer: Arc::new(observed::Nobody),
            event_ttl: Some(EVENT_TTL),
        }
    }
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }
    /// Where services get their addresses and node ports.
    pub fn with_service_ranges(mut self, ranges: ServiceRanges) -> Self {
        self.service_ranges = ranges;
        self
    }
    /// How long events are kept; `None`: until somebody deletes them.
    pub fn with_event_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.event_ttl = ttl;
        self
    }
    /// How long the request's object is kept, if it is of a kind that expires.
    fn lifetime(&self, cx: &Cx) -> Option<Duration> {
        self.event_ttl.filter(|_| cx.def.strategy.expires())
    }
    pub fn service_ranges(&self) -> &ServiceRanges {
        &self.service_ranges
    }
    pub fn node_ports(&self) -> &NodePorts {
        &self.node_ports
    }
    pub fn now(&self) -> jiff::Timestamp {
        (self.clock)()
    }
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The object of the request as it stands now; `None` if there is none.
    pub async fn current(&self, cx: &Cx) -> ApiResult<Option<Current>> {
        let storage = storage(cx)?;
        let key = storage.key(&cx.namespace, &cx.name);
        let asked = self.store.get(key.as_bytes(), None);
        let got = self.asked(&storage.resource, "get", asked).await;
        let got = got.map_err(|e| store_error(cx, "get", &e))?;
        match got.kv {
            Some(kv) => {
                let mut current = self.decode(&cx.def, &kv).await?;
                current.is_stale |= got.is_stale;
                Ok(Some(current))
            }
            None => Ok(None),
        }
    }

    /// The object of the request as the cache has it: perhaps not the newest. `None` if it isn't there, or not readable.
    async fn cached(&self, cx: &Cx) -> ApiResult<Option<Current>> {
        let storage = storage(cx)?;
        let key = storage.key(&cx.namespace, &cx.name);
        let entry = self.peek(storage, key.as_bytes());
        match entry.filter(|entry| entry.unreadable().is_none()) {
            Some(entry) => Ok(self
                .decode_bytes(&cx.def, entry.key(), entry.value(), entry.revision())
                .await
                .ok()),
            None => Ok(None),
        }
    }

    /// A stored value as the definition's version has it.
    pub async fn decode(&self, def: &ResourceDef, kv: &KeyValue) -> ApiResult<Current> {
        self.decode_bytes(def, &kv.key, &kv.value, kv.mod_revision).await
    }

    pub async fn decode_bytes(
        &self,
        def: &ResourceDef,
        key: &[u8],
        bytes: &[u8],
        revision: Revision,
    ) -> ApiResult<Current> {
        let storage = def
            .storage
            .as_ref()
            .ok_or_else(|| ApiError::internal("a virtual resource has no stored form"))?;
        let written = self.recent.written(bytes);
        let mut object = match &written {
            Some(written) => written.object.clone(),
            None => codec::decode_stored(storage, key, bytes, revision)?,
        };
        let is_stale = !storage.version.is_of(object.api_version());
        if let Some(c) = &def.converter {
            object = convert_one(c.as_ref(), object, &def.api_version()).await?;
        }
        if def.custom {
            codec::complete_stored(def, &mut object);
        }
        object.set_meta("resourceVersion", &revision.to_string());
        Ok(Current {
            object,
            revision,
            is_stale,
            written,
        })
    }

    /// An object as the store keeps it: in the storage version, without its revision. It is about to be written in place of `current`.
    async fn encode(
        &self,
        cx: &Cx,
        storage: &StorageDef,
        object: &Object,
        current: Option<&Current>,
    ) -> ApiResult<Bytes> {
        let mut stored = object.clone();
        stored.set_meta("resourceVersion", "");
        stored.set_meta("selfLink", "");
        if let Some(c) = &cx.def.converter {
            stored = convert_one(c.as_ref(), stored, &storage.version.api_version()).await?;
        }
        let before = current.and_then(|current| current.written.as_ref());
        let value = codec::encode_stored(storage, &stored, before)?;
        // Definitions of custom resources change, and with them what is known of their objects.
        if !cx.dry_run && storage.codec == StorageCodec::Protobuf {
            let attributes = codec::attributes_in(storage, &stored);
            let known = before.map(|before| &before.object.0);
            let reads_back = proto::reads_back(&stored, &storage.schema, known);
            let replaced = before.map(|before| &before.value);
            self.recent
                .note(&value, attributes, reads_back.then_some(stored), replaced);
        }
        Ok(value)
    }
}

fn storage(cx: &Cx) -> ApiResult<&Arc<StorageDef>> {
    let def = &cx.def;
    def.storage
        .as_ref()
        .ok_or_else(|| ApiError::method_not_allowed(&def.gvr.group, &def.gvr.resource, "this"))
}

/// What a failure of the store means to a client.
pub fn store_error(cx: &Cx, operation: &str, e: &keelson_store::Error) -> ApiError {
    use keelson_store::Error;
    let gr = cx.def.gvr.group_resource();
    match e {
        Error::Compacted { .. } | Error::SlowWatcher { .. } => {
            ApiError::expired(format!("The resourceVersion for the provided {operation} is too old."))
        }
        Error::FutureRevision { asked, current } => too_large(*asked, *current),
        Error::Unavailable { .. } | Error::Stalled { .. } | Error::NoSpace { .. } | Error::Closed => {
            tracing::warn!(%gr, operation, error = %e, "the store failed");
            let mut error = ApiError::new(
                Reason::ServerTimeout,
                format!(
                    "The {operation} operation against {gr} could not be completed at this time, please try again."
                ),
            );
            error.details = Some(Box::new(keelson_api::status::Details {
                name: operation.into(),
                group: gr.group.clone(),
                kind: gr.resource.clone(),
                retry_after_seconds: 2,
                ..Default::default()
            }));
            error
        }
        // As kube-apiserver, which hands on what etcd says: no reason, no hint to try again, for it may have been written.
        Error::Answered { what } => {
            tracing::warn!(%gr, operation, error = %e, "the store failed");
            ApiError::new(Reason::Unknown, what)
        }
        Error::Locked { .. } | Error::Corrupt { .. } | Error::Denied { .. } | Error::Invalid { .. } => {
            tracing::error!(%gr, operation, error = %e, "the store failed");
            ApiError::internal(e)
        }
    }
}

/// A revision the server has not seen yet: clients retry after a second.
pub fn too_large(asked: Revision, current: Revision) -> ApiError {
    let mut e = ApiError::new(
        Reason::Timeout,
        format!("Timeout: Too large resource version: {asked}, current: {current}"),
    )
    .with_causes(vec![keelson_api::Cause::new(
        "ResourceVersionTooLarge",
        "",
        "Too large resource version",
    )])
    .with_retry_after(1);
    e.code = 504;
    e
}
