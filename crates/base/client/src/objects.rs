//! Typed requests: the usual verbs on the objects of one kind.

use crate::key::ObjectKey;
use crate::kind::{ApiObject, Kind, ResourceId};
use crate::rest::{Error, JSON, Rest, Result, is_conflict, with_query};
use bytes::Bytes;
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::marker::PhantomData;

/// A page is no larger than this.
const PAGE: &str = "500";

/// How a patch's body is to be read.
#[derive(Clone, Debug)]
pub enum Patch<'a> {
    Json(&'a Value),
    Merge(&'a Value),
    Strategic(&'a Value),
    /// Server-side apply under a field manager.
    Apply {
        body: &'a Value,
        manager: &'a str,
        force: bool,
    },
}

impl Patch<'_> {
    fn content_type(&self) -> &'static str {
        match self {
            Patch::Json(_) => "application/json-patch+json",
            Patch::Merge(_) => "application/merge-patch+json",
            Patch::Strategic(_) => "application/strategic-merge-patch+json",
            Patch::Apply { .. } => "application/apply-patch+yaml",
        }
    }
    fn body(&self) -> &Value {
        match self {
            Patch::Json(body) | Patch::Merge(body) | Patch::Strategic(body) | Patch::Apply { body, .. } => body,
        }
    }
    fn query(&self) -> Vec<(&str, &str)> {
        match self {
            Patch::Apply { manager, force, .. } => {
                vec![("fieldManager", manager), ("force", if *force { "true" } else { "" })]
            }
            _ => Vec::new(),
        }
    }
}

/// The options most deletions need: a propagation policy, and the uid and revision that must still be there.
pub fn delete_options(propagation: Option<&str>, uid: Option<&str>, resource_version: Option<&str>) -> DeleteOptions {
    let preconditions = (uid.is_some() || resource_version.is_some()).then(|| Preconditions {
        uid: uid.map(Into::into),
        resource_version: resource_version.map(Into::into),
    });
    DeleteOptions {
        propagation_policy: propagation.map(Into::into),
        preconditions,
        ..Default::default()
    }
}

/// Requests on objects of any resource, as JSON bytes.
impl Rest {
    fn item(resource: &ResourceId, ns: &str, name: &str, sub: &str) -> String {
        let mut path = resource.path(ns);
        path.push('/');
        path.push_str(name);
        if !sub.is_empty() {
            path.push('/');
            path.push_str(sub);
        }
        path
    }

    pub async fn get_raw(&self, resource: &ResourceId, ns: &str, name: &str, sub: &str, accept: &str) -> Result<Bytes> {
        self.get(&Self::item(resource, ns, name, sub), accept).await
    }
    pub async fn create_raw(&self, resource: &ResourceId, ns: &str, body: Vec<u8>) -> Result<Bytes> {
        self.call(Method::POST, &resource.path(ns), JSON, body).await
    }
    pub async fn update_raw(
        &self,
        resource: &ResourceId,
        ns: &str,
        name: &str,
        sub: &str,
        body: Vec<u8>,
    ) -> Result<Bytes> {
        self.call(Method::PUT, &Self::item(resource, ns, name, sub), JSON, body)
            .await
    }
    /// POST to a subresource: `eviction`, `binding`, `token`.
    pub async fn post_raw(
        &self,
        resource: &ResourceId,
        ns: &str,
        name: &str,
        sub: &str,
        body: &Value,
    ) -> Result<Bytes> {
        self.call(
            Method::POST,
            &Self::item(resource, ns, name, sub),
            JSON,
            body.to_string().into_bytes(),
        )
        .await
    }
    pub async fn patch_raw(
        &self,
        resource: &ResourceId,
        ns: &str,
        name: &str,
        sub: &str,
        patch: &Patch<'_>,
    ) -> Result<Bytes> {
        let uri = with_query(&Self::item(resource, ns, name, sub), &patch.query());
        self.call(
            Method::PATCH,
            &uri,
            patch.content_type(),
            patch.body().to_string().into_bytes(),
        )
        .await
    }
    pub async fn delete_raw(
        &self,
        resource: &ResourceId,
        ns: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Bytes> {
        let body = serde_json::to_vec(options).map_err(Error::SerdeError)?;
        self.call(Method::DELETE, &Self::item(resource, ns, name, ""), JSON, body)
            .await
    }
    pub async fn delete_collection_raw(
        &self,
        resource: &ResourceId,
        ns: &str,
        options: &DeleteOptions,
        labels: &str,
        fields: &str,
    ) -> Result<Bytes> {
        let uri = with_query(
            &resource.path(ns),
            &[("labelSelector", labels), ("fieldSelector", fields)],
        );
        let body = serde_json::to_vec(options).map_err(Error::SerdeError)?;
        self.call(Method::DELETE, &uri, JSON, body).await
    }

    /// Every item of a collection, page by page, each given to `each` as JSON. Returns the list's revision.
    pub async fn list_raw(
        &self,
        resource: &ResourceId,
        ns: &str,
        labels: &str,
        fields: &str,
        accept: &str,
        each: &mut (dyn FnMut(&[u8]) -> Result<()> + Send),
    ) -> Result<String> {
        let path = resource.path(ns);
        let mut token = String::new();
        loop {
            let uri = with_query(
                &path,
                &[
                    ("labelSelector", labels),
                    ("fieldSelector", fields),
                    ("limit", PAGE),
                    ("continue", &token),
                ],
            );
            let body = self.get(&uri, accept).await?;
            let page: RawList = serde_json::from_slice(&body).map_err(Error::SerdeError)?;
            for item in page.items.unwrap_or_default() {
                each(item.get().as_bytes())?;
            }
            token = page.metadata.next.unwrap_or_default();
            if token.is_empty() {
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(default)]
    metadata: RawListMeta,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
struct RawListMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// The objects of one kind, as one client sees them. Cheap to make and to clone.
#[derive(Clone)]
pub struct Objects<K> {
    rest: Rest,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Objects<K> {
    pub fn new(rest: &Rest) -> Self {
        Objects {
            rest: rest.clone(),
            kind: PhantomData,
        }
    }

    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    pub async fn get(&self, ns: &str, name: &str) -> Result<K> {
        decode(&self.rest.get_raw(&K::RESOURCE, ns, name, "", JSON).await?)
    }

    /// `None` only if the server says that there is no such object.
    pub async fn find(&self, ns: &str, name: &str) -> Result<Option<K>> {
        found(self.get(ns, name).await)
    }

    pub async fn list(&self, ns: &str, labels: &str, fields: &str) -> Result<Vec<K>> {
        let mut items = Vec::new();
        let mut push = |json: &[u8]| -> Result<()> {
            items.push(decode(json)?);
            Ok(())
        };
        self.rest
            .list_raw(&K::RESOURCE, ns, labels, fields, JSON, &mut push)
            .await?;
        Ok(items)
    }

    pub async fn create(&self, object: &K) -> Result<K> {
        decode(
            &self
                .rest
                .create_raw(&K::RESOURCE, object.namespace(), encode(object)?)
                .await?,
        )
    }

    pub async fn update(&self, object: &K) -> Result<K> {
        self.update_sub(object, "").await
    }

    pub async fn update_status(&self, object: &K) -> Result<K> {
        self.update_sub(object, "status").await
    }

    pub async fn update_sub(&self, object: &K, sub: &str) -> Result<K> {
        decode(
            &self
                .rest
                .update_raw(&K::RESOURCE, object.namespace(), object.name(), sub, encode(object)?)
                .await?,
        )
    }

    pub async fn patch(&self, ns: &str, name: &str, patch: Patch<'_>) -> Result<K> {
        decode(&self.rest.patch_raw(&K::RESOURCE, ns, name, "", &patch).await?)
    }

    pub async fn patch_status(&self, ns: &str, name: &str, patch: Patch<'_>) -> Result<K> {
        decode(&self.rest.patch_raw(&K::RESOURCE, ns, name, "status", &patch).await?)
    }

    pub async fn delete(&self, ns: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        self.rest.delete_raw(&K::RESOURCE, ns, name, options).await.map(drop)
    }

    pub async fn delete_collection(&self, ns: &str, options: &DeleteOptions, labels: &str) -> Result<()> {
        self.rest
            .delete_collection_raw(&K::RESOURCE, ns, options, labels, "")
            .await
            .map(drop)
    }

    /// Reads, changes and writes, again as long as somebody else was faster (at most ten times). `change` returns false
    /// if there is nothing to do.
    pub async fn modify(
        &self,
        ns: &str,
        name: &str,
        sub: &str,
        mut change: impl FnMut(&mut K) -> bool + Send,
    ) -> Result<K> {
        let mut tries = 0;
        loop {
            let mut object = self.get(ns, name).await?;
            if !change(&mut object) {
                return Ok(object);
            }
            tries += 1;
            match self.update_sub(&object, sub).await {
                Err(error) if is_conflict(&error) && tries < 10 => backoff(tries).await,
                result => return result,
            }
        }
    }

    /// Writes `wanted` whether or not it exists already. `merge` brings an existing object to the wanted state and says
    /// whether that changed anything.
    pub async fn create_or_update(&self, wanted: &K, merge: impl Fn(&mut K) -> bool + Send + Sync) -> Result<K> {
        let key: ObjectKey = wanted.key();
        match self.modify(&key.namespace, &key.name, "", &merge).await {
            Err(error) if crate::is_not_found(&error) => match self.create(wanted).await {
                Err(error) if crate::is_already_exists(&error) => {
                    self.modify(&key.namespace, &key.name, "", &merge).await
                }
                result => result,
            },
            result => result,
        }
    }
}

async fn backoff(tries: u32) {
    tokio::time::sleep(std::time::Duration::from_millis(5 << tries.min(8))).await;
}

fn decode<K: ApiObject>(json: &[u8]) -> Result<K> {
    K::decode(json).map_err(Error::SerdeError)
}

fn encode<K: ApiObject>(object: &K) -> Result<Vec<u8>> {
    object.encode().map_err(Error::SerdeError)
}

/// Turns the server's "not found" into `None`; every other error stays one.
pub fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(error) if crate::is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
