//! Stored bytes, and the bytes that clients get: JSON and protobuf, whole objects or their metadata alone.

use crate::def::{ResourceDef, StorageCodec, StorageDef};
use crate::strategy::Strategy;
use async_trait::async_trait;
use bytes::Bytes;
use keelson_api::codec::{Strictness, json, proto};
use keelson_api::{ApiError, ApiResult, Map, Object, Reason, SchemaRef, Str, Value, builtin};
use keelson_cache::{Attributes, Codec, Form, IndexKey};
use keelson_machinery::canonical;
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
        StorageCodec::Json => Ok(json::encode_map(object).into()),
        StorageCodec::Protobuf => Ok(proto::encode(object, &storage.schema)
            .map_err(ApiError::internal)?
            .into()),
    }
}

/// Reads either form: what a store holds may have been written by another server.
pub fn decode_stored(storage: &StorageDef, bytes: &[u8]) -> ApiResult<Object> {
    let unreadable = |e: &dyn std::fmt::Display| {
        let mut error = ApiError::internal(format!("stored object of {} is unreadable: {e}", storage.resource));
        error.reason = Reason::StoreReadError;
        error
    };
    if bytes.starts_with(proto::MAGIC) {
        let envelope = proto::open(bytes).map_err(|e| unreadable(&e))?;
        return envelope.decode(&storage.schema).map_err(|e| unreadable(&e));
    }
    let schema = (storage.codec == StorageCodec::Protobuf).then_some(&storage.schema);
    let decoded = json::decode(bytes, schema, Strictness::Lenient).map_err(|e| unreadable(&e))?;
    Object::try_from(decoded.value).map_err(|_| unreadable(&"not an object"))
}

/// Fills in what a custom resource's schema has gained since the object was written.
pub fn complete_stored(def: &ResourceDef, object: &mut Object) {
    object.0 = with_value(std::mem::take(&mut object.0), |v| {
        canonical::apply_defaults(v, &def.schema)
    });
}

/// Lets `f` change a map that it wants as a value.
pub fn with_value(map: Map, f: impl FnOnce(&mut Value)) -> Map {
    let mut value = Value::Object(map);
    f(&mut value);
    match value {
        Value::Object(m) => m,
        _ => Map::new(),
    }
}

/// A decoded body in the form the server works with: canonical, with its defaults. Says which fields were unknown.
pub fn complete(
    schema: &SchemaRef,
    strategy: Option<&dyn Strategy>,
    mut value: Value,
) -> Result<(Object, Vec<String>), String> {
    let report = canonical::canonicalize(&mut value, schema).map_err(|e| e.0)?;
    canonical::apply_defaults(&mut value, schema);
    let mut object =
        Object::try_from(value).map_err(|v| format!("json: cannot unmarshal {} into an object", v.type_name()))?;
    if let Some(s) = strategy {
        s.default(&mut object);
    }
    Ok((object, report.strict_errors()))
}

/// The JSON of an object, `apiVersion` and `kind` first, so that a list can leave them out by cutting.
pub fn to_json(object: &Object) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    let mut field = |key: &str, value: &Value| {
        if out.len() > 1 {
            out.push(b',');
        }
        json::encode_into(&Value::from(key), &mut out);
        out.push(b':');
        json::encode_into(value, &mut out);
    };
    for key in ["kind", "apiVersion"] {
        if let Some(v) = object.get(key) {
            field(key, v);
        }
    }
    for (key, value) in object.iter() {
        if key != "apiVersion" && key != "kind" {
            field(key, value);
        }
    }
    out.push(b'}');
    out.into()
}

/// An object's JSON as an item of a typed list: without `kind` and `apiVersion`.
pub fn without_kind(object: &Bytes) -> ApiResult<Vec<u8>> {
    // `to_json` wrote the two first; their values hold no quotes.
    let text = &object[..];
    let mut at = 0;
    for _ in 0..8 {
        at += text[at..]
            .iter()
            .position(|b| *b == b'"')
            .ok_or_else(|| ApiError::internal("an encoded object lacks its kind"))?
            + 1;
    }
    let rest = text[at..].strip_prefix(b",").unwrap_or(&text[at..]);
    Ok([b"{", rest].concat())
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

/// The type of `PartialObjectMetadata`.
pub fn partial_schema() -> ApiResult<SchemaRef> {
    builtin::builtin_kind_at("meta.k8s.io/v1", "PartialObjectMetadata")
        .ok_or_else(|| ApiError::internal("no schema of PartialObjectMetadata"))
}

/// An object of `schema` in one of the forms.
pub fn encode_form(schema: &SchemaRef, object: &Object, form: Form) -> ApiResult<Bytes> {
    let message = |map: &Map, schema: &SchemaRef| {
        proto::encode_message(map, schema)
            .map(Bytes::from)
            .map_err(ApiError::internal)
    };
    match form {
        PROTO => message(object, schema),
        META_JSON => Ok(to_json(&partial_metadata(object, "meta.k8s.io/v1"))),
        META_PROTO => message(&partial_metadata(object, "meta.k8s.io/v1"), &partial_schema()?),
        _ => Ok(to_json(object)),
    }
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

impl ObjectCodec {
    fn attributes_in(&self, object: &Object) -> Attributes {
        let labels: Vec<(Str, Str)> = object
            .labels()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), Str::from(v.as_str().unwrap_or_default())))
            .collect();
        Attributes::new(labels, self.storage.field_values(object))
    }
}

#[async_trait]
impl Codec for ObjectCodec {
    fn attributes(&self, _key: &[u8], value: &[u8]) -> Result<Attributes, ApiError> {
        Ok(self.attributes_in(&decode_stored(&self.storage, value)?))
    }

    async fn attributes_of(&self, values: &[(&[u8], &[u8])]) -> Result<Vec<Result<Attributes, ApiError>>, ApiError> {
        let Some(view) = &self.storage.view else {
            return Ok(values.iter().map(|(key, value)| self.attributes(key, value)).collect());
        };
        let decoded: Vec<_> = values.iter().map(|(_, v)| decode_stored(&self.storage, v)).collect();
        let readable = decoded.iter().flatten().cloned().collect();
        let mut converted = view.converter.convert(readable, &view.api_version).await?.into_iter();
        let few = || ApiError::internal("conversion yielded too few objects");
        decoded
            .into_iter()
            .map(|object| match object {
                Ok(_) => converted.next().map(|o| Ok(self.attributes_in(&o))).ok_or_else(few),
                Err(unreadable) => Ok(Err(unreadable)),
            })
            .collect()
    }

    fn encode(&self, value: &[u8], revision: u64, form: Form) -> Result<Bytes, ApiError> {
        let mut object = decode_stored(&self.storage, value)?;
        object.set_meta("resourceVersion", &revision.to_string());
        encode_form(&self.storage.schema, &object, form)
    }

    fn indexes(&self) -> Vec<IndexKey> {
        self.storage.indexes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn items_of_lists_lose_their_kind_only() {
        let o = Object::try_from(
            value!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"kind": "x"}, "metadata": {"name": "a"}}),
        )
        .unwrap();
        let json = to_json(&o);
        assert!(json.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","data""#));
        assert_eq!(
            without_kind(&json).unwrap(),
            br#"{"data":{"kind":"x"},"metadata":{"name":"a"}}"#
        );
    }
}
