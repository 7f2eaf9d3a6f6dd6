//! Stored bytes, and the bytes that clients get: JSON and protobuf, whole objects or their metadata alone.

use crate::def::{ResourceDef, StorageCodec, StorageDef};
use bytes::Bytes;
use keelson_api::{ApiError, ApiResult, Object, Str, Value};
use keelson_cache::{Attributes, Codec, Form, IndexKey};
use std::sync::Arc;

/// The whole object in JSON: `apiVersion` and `kind` first.
pub const JSON: Form = Form(0);
/// The protobuf message of the object, without an envelope.
pub const PROTO: Form = Form(1);
/// `PartialObjectMetadata` in JSON.
pub const META_JSON: Form = Form(2);
/// The message of `PartialObjectMetadata`.
pub const META_PROTO: Form = Form(3);

pub fn encode_stored(storage: &StorageDef, object: &Object) -> ApiResult<Bytes> {
    match storage.codec {
        StorageCodec::Json | StorageCodec::Protobuf => serde_json::to_vec(object).map(Bytes::from).map_err(ApiError::internal),
    }
}

pub fn decode_stored(storage: &StorageDef, bytes: &[u8]) -> ApiResult<Object> {
    serde_json::from_slice(bytes).map_err(|e| ApiError::internal(format!("stored object of {} is unreadable: {e}", storage.resource)))
}

/// Fills in what a custom resource's schema has gained since the object was written.
pub fn complete_stored(def: &ResourceDef, object: &mut Object) {
    let mut value = Value::Object(std::mem::take(&mut object.0));
    keelson_machinery::canonical::apply_defaults(&mut value, &def.schema);
    if let Value::Object(m) = value {
        object.0 = m;
    }
}

/// The JSON of an object, `apiVersion` and `kind` first, so that a list can leave them out by cutting.
pub fn to_json(object: &Object) -> ApiResult<Bytes> {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    let mut first = true;
    let mut field = |key: &str, value: &Value, out: &mut Vec<u8>| -> ApiResult<()> {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key).map_err(ApiError::internal)?;
        out.push(b':');
        serde_json::to_writer(&mut *out, value).map_err(ApiError::internal)
    };
    for key in ["kind", "apiVersion"] {
        if let Some(v) = object.get(key) {
            field(key, v, &mut out)?;
        }
    }
    for (key, value) in object.iter() {
        if key != "apiVersion" && key != "kind" {
            field(key, value, &mut out)?;
        }
    }
    out.push(b'}');
    Ok(out.into())
}

/// The metadata of an object as a `PartialObjectMetadata`.
pub fn partial_metadata(object: &Object, api_version: &str) -> Object {
    let mut out = Object::new();
    out.set_gvk(api_version, "PartialObjectMetadata");
    if let Some(meta) = object.meta() {
        out.insert("metadata", meta.clone());
    }
    out
}

/// What the cache asks about a resource's bytes.
pub struct ObjectCodec {
    storage: Arc<StorageDef>,
}

impl ObjectCodec {
    pub fn new(storage: Arc<StorageDef>) -> Self {
        ObjectCodec { storage }
    }
}

impl Codec for ObjectCodec {
    fn attributes(&self, _key: &[u8], value: &[u8]) -> Result<Attributes, ApiError> {
        let object = decode_stored(&self.storage, value)?;
        let labels: Vec<(Str, Str)> = object
            .labels()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), Str::from(v.as_str().unwrap_or_default())))
            .collect();
        Ok(Attributes::new(labels, self.storage.field_values(&object)))
    }

    fn encode(&self, value: &[u8], revision: u64, form: Form) -> Result<Bytes, ApiError> {
        let mut object = decode_stored(&self.storage, value)?;
        object.set_meta("resourceVersion", &revision.to_string());
        match form {
            META_JSON => to_json(&partial_metadata(&object, "meta.k8s.io/v1")),
            PROTO | META_PROTO => Err(ApiError::internal("no protobuf yet")),
            _ => to_json(&object),
        }
    }

    fn indexes(&self) -> Vec<IndexKey> {
        self.storage.indexes()
    }
}
