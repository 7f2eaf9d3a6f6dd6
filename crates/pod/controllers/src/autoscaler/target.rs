//! What is scaled: any object whose kind has a `scale` subresource.
//!
//! Kinds are looked up in the server's discovery and remembered; one that isn't known, or answers no longer, is looked up
//! anew. The memory holds as many entries as kinds that autoscalers name.

use crate::pod_control::message;
use k8s_openapi::api::autoscaling::v1::Scale;
use keelson_client::discovery::preferred_resources;
use keelson_client::rest::JSON;
use keelson_client::{ResourceId, Rest, is_conflict, is_not_found};
use parking_lot::Mutex;
use std::collections::HashMap;

/// How often a write that somebody else overtook is tried.
const TRIES: usize = 5;

#[derive(Default)]
pub struct Kinds(Mutex<HashMap<(String, String), ResourceId>>);

impl Kinds {
    /// The resource of a kind, in the version that its group prefers.
    pub async fn find(&self, rest: &Rest, group: &str, kind: &str) -> Result<ResourceId, String> {
        let key = (group.to_string(), kind.to_string());
        if let Some(known) = self.0.lock().get(&key) {
            return Ok(known.clone());
        }
        let all = preferred_resources(rest).await.map_err(|e| message(&e))?;
        let found = all.found.into_iter().find(|r| r.id.group == group && r.id.kind == kind);
        let id = found
            .ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))?
            .id;
        self.0.lock().insert(key, id.clone());
        Ok(id)
    }

    fn forget(&self, id: &ResourceId) {
        self.0.lock().retain(|_, known| known != id);
    }
}

/// One target, with its scale as it was read last.
pub struct Target<'a> {
    rest: &'a Rest,
    id: ResourceId,
    namespace: &'a str,
    name: &'a str,
    scale: Scale,
}

async fn read(rest: &Rest, id: &ResourceId, namespace: &str, name: &str) -> keelson_client::Result<Scale> {
    let body = rest.get_raw(id, namespace, name, "scale", JSON).await?;
    serde_json::from_slice(&body).map_err(keelson_client::rest::Error::SerdeError)
}

impl<'a> Target<'a> {
    pub async fn read(
        rest: &'a Rest,
        kinds: &Kinds,
        id: ResourceId,
        namespace: &'a str,
        name: &'a str,
    ) -> Result<Self, String> {
        match read(rest, &id, namespace, name).await {
            Ok(scale) => Ok(Target {
                rest,
                id,
                namespace,
                name,
                scale,
            }),
            Err(error) => {
                if is_not_found(&error) {
                    kinds.forget(&id);
                }
                Err(message(&error))
            }
        }
    }

    pub fn replicas(&self) -> i32 {
        self.scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
    }

    pub fn status_replicas(&self) -> i32 {
        self.scale.status.as_ref().map_or(0, |s| s.replicas)
    }

    pub fn selector(&self) -> &str {
        let status = self.scale.status.as_ref();
        status.and_then(|s| s.selector.as_deref()).unwrap_or_default()
    }

    pub async fn set_replicas(&mut self, replicas: i32) -> Result<(), String> {
        let mut tries = 0;
        loop {
            self.scale.spec.get_or_insert_default().replicas = Some(replicas);
            let body = serde_json::to_vec(&self.scale).map_err(|e| e.to_string())?;
            let result = self
                .rest
                .update_raw(&self.id, self.namespace, self.name, "scale", body)
                .await;
            tries += 1;
            match result {
                Ok(_) => return Ok(()),
                Err(error) if is_conflict(&error) && tries < TRIES => {
                    let latest = read(self.rest, &self.id, self.namespace, self.name).await;
                    self.scale = latest.map_err(|e| message(&e))?;
                }
                Err(error) => return Err(message(&error)),
            }
        }
    }
}
