//! An applied object as it is in the cluster, as far as it matters here: how it is, and whether it is as it was after it was applied.
//!
//! Of whole objects a few dozen bytes are kept.

use crate::health::{self, Health};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::ApiObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct Live {
    /// Name, uid, revision, labels.
    meta: ObjectMeta,
    /// Of all that somebody may want of it; not of its status.
    pub print: [u8; 16],
    pub health: Health,
}

impl Live {
    pub fn of(value: &Value) -> Live {
        let meta = &value["metadata"];
        let text = |name: &str| meta[name].as_str().map(String::from);
        let labels = meta["labels"].as_object().map(|labels| {
            let ours = labels.iter().filter(|(name, _)| *name == crate::LABEL);
            ours.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().into()))
                .collect::<BTreeMap<String, String>>()
        });
        Live {
            meta: ObjectMeta {
                name: text("name"),
                namespace: text("namespace"),
                uid: text("uid"),
                resource_version: text("resourceVersion"),
                labels,
                ..ObjectMeta::default()
            },
            print: print(value),
            health: health::of(value),
        }
    }

    pub fn addon(&self) -> Option<&String> {
        self.meta.labels.as_ref()?.get(crate::LABEL)
    }
}

/// Equal objects have equal ones: maps are sorted.
pub fn digest(value: &Value) -> [u8; 16] {
    let hash = Sha256::digest(value.to_string());
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

fn print(value: &Value) -> [u8; 16] {
    let mut wanted = serde_json::Map::new();
    for (name, part) in value.as_object().into_iter().flatten() {
        match name.as_str() {
            "status" => {}
            "metadata" => {
                let kept = json!({"labels": part["labels"], "annotations": part["annotations"],
                    "finalizers": part["finalizers"], "ownerReferences": part["ownerReferences"]});
                wanted.insert(name.clone(), kept);
            }
            _ => {
                wanted.insert(name.clone(), part.clone());
            }
        }
    }
    digest(&Value::Object(wanted))
}

impl ApiObject for Live {
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
    fn decode(json: &[u8]) -> serde_json::Result<Self> {
        Ok(Live::of(&serde_json::from_slice(json)?))
    }
    /// Only what is kept.
    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&json!({ "metadata": self.meta }))
    }
}
