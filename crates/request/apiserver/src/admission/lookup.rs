//! What plug-ins look up: objects of other resources, from the cache.

use crate::webhook::Webhooks;
use bytes::Bytes;
use keelson_api::{ApiError, ApiResult, Object, Reason};
use keelson_cache::Entry;
use keelson_registry::options::ListOptions;
use keelson_registry::{Cx, Engine, ResourceDef, UserInfo};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// So many decoded objects are kept, and none that is longer in the store.
const MOST_KEPT: usize = 128;
const LONGEST_KEPT: usize = 2 << 10;

/// Reads with the server's own identity.
pub struct Lookup {
    engine: Arc<Engine>,
    user: Arc<UserInfo>,
    /// By their keys, with what they were decoded from: several plug-ins ask for the same namespace and account, for each pod.
    kept: Mutex<HashMap<Bytes, (Arc<Entry>, Object)>>,
    pub webhooks: Webhooks,
    /// Nobody else is asked.
    pub is_alone: bool,
}

impl Lookup {
    pub fn new(engine: Arc<Engine>) -> Self {
        Lookup {
            engine,
            user: Arc::new(UserInfo::api_server()),
            kept: Mutex::default(),
            webhooks: Webhooks::default(),
            is_alone: false,
        }
    }
    pub fn alone(mut self, is_alone: bool) -> Self {
        self.is_alone = is_alone;
        self
    }
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
    fn def(&self, group: &str, resource: &str) -> ApiResult<Arc<ResourceDef>> {
        self.engine
            .table
            .by_resource(group, resource)
            .ok_or_else(|| ApiError::internal(format!("{resource} are not served")))
    }
    /// A request of the server's own to an object.
    pub fn cx(&self, group: &str, resource: &str, namespace: &str, name: &str) -> ApiResult<Cx> {
        Ok(Cx::new(self.def(group, resource)?, self.user.clone(), namespace, name))
    }
    async fn at(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        rv: &str,
    ) -> ApiResult<Option<Object>> {
        let cx = self.cx(group, resource, namespace, name)?;
        match self.engine.get_entry(&cx, rv).await {
            Ok(entry) => Ok(Some(self.decoded(&cx.def, entry).await?)),
            Err(e) if e.is(Reason::NotFound) => Ok(None),
            Err(e) => Err(e),
        }
    }
    async fn decoded(&self, def: &ResourceDef, entry: Arc<Entry>) -> ApiResult<Object> {
        if let Some((of, object)) = self.kept.lock().get(entry.key())
            && Arc::ptr_eq(of, &entry)
        {
            return Ok(object.clone());
        }
        let object = self.engine.object(def, &entry).await?;
        // What others convert or complete may come out otherwise the next time.
        if !def.custom && def.converter.is_none() && entry.value().len() <= LONGEST_KEPT {
            let mut kept = self.kept.lock();
            if kept.len() >= MOST_KEPT {
                kept.clear();
            }
            kept.insert(entry.key().clone(), (entry, object.clone()));
        }
        Ok(object)
    }
    /// As new as the store.
    pub async fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> ApiResult<Option<Object>> {
        self.at(group, resource, namespace, name, "").await
    }
    /// As the cache has it; asks the store's state only for what the cache doesn't have.
    pub async fn cached(&self, group: &str, resource: &str, namespace: &str, name: &str) -> ApiResult<Option<Object>> {
        match self.at(group, resource, namespace, name, "0").await? {
            Some(o) => Ok(Some(o)),
            None => self.get(group, resource, namespace, name).await,
        }
    }
    /// All objects of a namespace (empty: of all), as new as the store.
    pub async fn list(&self, group: &str, resource: &str, namespace: &str) -> ApiResult<Vec<Object>> {
        let cx = self.cx(group, resource, namespace, "")?;
        if cx.def.custom || cx.def.converter.is_some() {
            return self.engine.list_objects(&cx, &ListOptions::default()).await;
        }
        let page = self.engine.list(&cx, &ListOptions::default()).await;
        let entries = page.map_err(|e| e.error)?.entries;
        let mut objects = Vec::with_capacity(entries.len());
        for entry in entries {
            objects.push(self.decoded(&cx.def, entry).await?);
        }
        Ok(objects)
    }
}
