//! Which resource an object's version and kind are. What the server answered is kept until a definition changes.

use crate::JSON;
use keelson_client::{Error, ResourceId, Rest, Result, is_not_found};
use parking_lot::Mutex;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

pub struct Kinds {
    rest: Rest,
    /// By group and version. Only what there is.
    known: Mutex<HashMap<String, Arc<Vec<ResourceId>>>>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    group_version: String,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    kind: String,
    namespaced: bool,
}

impl Kinds {
    pub fn new(rest: Rest) -> Kinds {
        Kinds {
            rest,
            known: Mutex::default(),
        }
    }

    pub fn forget(&self) {
        self.known.lock().clear();
    }

    /// In whichever version it is served: objects outlive the version in which they were written.
    pub async fn any(&self, group: &str, kind: &str) -> Result<Option<ResourceId>> {
        if group.is_empty() {
            return Ok(None);
        }
        let body = match self.rest.get(&format!("/apis/{group}"), JSON).await {
            Err(error) if is_not_found(&error) => return Ok(None),
            body => body?,
        };
        let found: Group = serde_json::from_slice(&body).map_err(Error::SerdeError)?;
        for version in found.versions {
            if let Some(resource) = self.find(&version.group_version, kind).await? {
                return Ok(Some(resource));
            }
        }
        Ok(None)
    }

    /// `None`: the server has no such kind now.
    pub async fn find(&self, api_version: &str, kind: &str) -> Result<Option<ResourceId>> {
        let of = |all: &[ResourceId]| all.iter().find(|id| id.kind == kind).cloned();
        let known = self.known.lock().get(api_version).cloned();
        if let Some(found) = known.and_then(|all| of(&all)) {
            return Ok(Some(found));
        }
        let root = match api_version.contains('/') {
            true => format!("/apis/{api_version}"),
            false => format!("/api/{api_version}"),
        };
        let body = match self.rest.get(&root, JSON).await {
            Err(error) if is_not_found(&error) => return Ok(None),
            body => body?,
        };
        let document: Document = serde_json::from_slice(&body).map_err(Error::SerdeError)?;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let owned = |text: &str| Cow::Owned(text.to_string());
        let whole = document.resources.iter().filter(|r| !r.name.contains('/'));
        let all: Vec<ResourceId> = whole
            .map(|r| ResourceId {
                group: owned(group),
                version: owned(version),
                kind: owned(&r.kind),
                plural: owned(&r.name),
                namespaced: r.namespaced,
            })
            .collect();
        let found = of(&all);
        self.known.lock().insert(api_version.to_string(), Arc::new(all));
        Ok(found)
    }
}
