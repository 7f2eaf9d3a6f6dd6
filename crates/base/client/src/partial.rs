//! Objects of any kind, by their metadata alone.

use crate::kind::ApiObject;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// What the Accept header asks for to get [`PartialObject`]s; the plain form is a server's way to say it can't.
pub const PARTIAL_ACCEPT: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=1,application/json";

/// Metadata of an object whose type isn't known here. Decodes from a whole object too.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PartialObject {
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
}

impl ApiObject for PartialObject {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
    fn decode(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }
    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}
