//! Stored bytes, and the bytes that clients get: JSON and protobuf, whole objects or their metadata alone.

use crate::columns::Cells;
use crate::def::{ResourceDef, StorageCodec, StorageDef};
use crate::recent::{Recent, Written};
use crate::resources::crd_v1beta1;
use crate::strategy::Strategy;
use async_trait::async_trait;
use bytes::Bytes;
use keelson_api::codec::{Strictness, json, proto};
use keelson_api::status::Details;
use keelson_api::{ApiError, ApiResult, Cause, Map, Object, Reason, SchemaRef, Str, Value, builtin, go_quote};
use keelson_cache::{Attributes, Codec, Entry, Form, IndexKey};
use keelson_machinery::canonical::{self, Wording};
use keelson_store::{Revision, unopened};
use std::sync::Arc;

/// The members of the object in JSON, each with a comma before it, but for `kind` and `apiVersion`.
pub const JSON: Form = Form(0);
/// The protobuf message of the object, without an envelope.
pub const PROTO: Form = Form(1);
/// The members of `PartialObjectMetadata`, in the same way.
pub const META_JSON: Form = Form(2);
/// The message of `PartialObjectMetadata`.
pub const META_PROTO: Form = Form(3);

/// `before`: what the object was, and was written to.
pub fn encode_stored(storage: &StorageDef, object: &Object, before: Option<&Written>) -> ApiResult<Bytes> {
    match storage.codec {
        StorageCodec::Json => Ok(json::encode_map(object).into()),
        StorageCodec::Protobuf => {
            let before = before.map(|before| (&before.object.0, &before.value[..]));
            let bytes = proto::encode_after(object, &storage.schema, before);
            Ok(bytes.map_err(ApiError::internal)?.into())
        }
    }
}

/// Why a stored value is no object for anybody here.
#[derive(Clone, Debug)]
pub struct Unreadable(String);

impl Unreadable {
    /// As upstream tells it of a key.
    fn told(&self, key: &[u8]) -> String {
        format!(
            "StorageError: corrupt object, Code: 7, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: {}",
            String::from_utf8_lossy(key),
            self.0
        )
    }
}

/// Reads either form: what a store holds may have been written by another server.
pub fn read_stored(storage: &StorageDef, bytes: &[u8], revision: Revision) -> Result<Object, Unreadable> {
    if let Some(why) = unopened::reason(bytes) {
        return Err(Unreadable(format!(
            "data from the storage is not transformable revision=0: {why}"
        )));
    }
    let unreadable = |e: &dyn std::fmt::Display| Unreadable(format!("object not decodable revision={revision}: {e}"));
    if bytes.starts_with(proto::MAGIC) {
        let envelope = proto::open(bytes).map_err(|e| unreadable(&e))?;
        return envelope.decode(&storage.schema).map_err(|e| unreadable(&e));
    }
    let schema = (storage.codec == StorageCodec::Protobuf).then_some(&storage.schema);
    let read = |bytes: &[u8], schema| {
        let decoded = json::decode(bytes, schema, Strictness::Lenient).map_err(|e| unreadable(&e))?;
        Object::try_from(decoded.value).map_err(|_| unreadable(&"not an object"))
    };
    // kube-apiserver's definitions of custom resources have fields that the schema doesn't know.
    if storage.version.kind == "CustomResourceDefinition" && &*storage.resource.group == "apiextensions.k8s.io" {
        let found = read(bytes, None)?;
        if found.api_version() == crd_v1beta1::API_VERSION {
            return read(&json::encode_map(&crd_v1beta1::to_v1(found)), schema);
        }
    }
    read(bytes, schema)
}

/// The same for whoever asked for the one object.
pub fn decode_stored(storage: &StorageDef, key: &[u8], bytes: &[u8], revision: Revision) -> ApiResult<Object> {
    // Below the root that the store has for all.
    let shown = key.strip_prefix(b"/registry").unwrap_or(key);
    read_stored(storage, bytes, revision).map_err(|e| ApiError::internal(e.told(shown)))
}

/// So many objects that can't be read are told of in one answer.
const MOST_TOLD: usize = 100;

/// Upstream's answer to a list with objects among it that can't be read.
pub fn unreadable_list(storage: &StorageDef, entries: &[Arc<Entry>]) -> Option<ApiError> {
    let mut causes: Vec<Cause> = entries
        .iter()
        .filter(|e| e.unreadable().is_some())
        .filter_map(|e| Some((e, read_stored(storage, e.value(), e.revision()).err()?)))
        .take(MOST_TOLD)
        .map(|(e, why)| {
            let field = String::from_utf8_lossy(e.key()).into_owned();
            Cause::new("UnexpectedServerResponse", field, why.told(e.key()))
        })
        .collect();
    let (first, others) = (causes.first()?.message.clone(), causes.len() - 1);
    if causes.len() == MOST_TOLD {
        causes.push(Cause::new(
            "FieldValueTooMany",
            "",
            "too many errors, the list is truncated",
        ));
    }
    let resource = &storage.resource;
    let mut message = format!("failed to read one or more {resource} from the storage: {first}");
    if others > 0 {
        message += &format!(" (and {others} more)");
    }
    Some(ApiError::new(Reason::StorageReadError, message).with_details(Details {
        name: "list".into(),
        group: resource.group.clone(),
        kind: resource.resource.clone(),
        causes,
        ..Details::default()
    }))
}

/// Fills in what a custom resource's schema has gained since the object was written.
pub fn complete_stored(def: &ResourceDef, object: &mut Object) {
    complete_by(&def.schema, object);
}

fn complete_by(schema: &SchemaRef, object: &mut Object) {
    object.0 = with_value(std::mem::take(&mut object.0), |v| canonical::apply_defaults(v, schema));
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
    value: Value,
) -> Result<(Object, Vec<String>), String> {
    complete_from(schema, strategy, value, None, Wording::Json)
}

/// The same of what was made of an object that the server holds.
pub fn complete_from(
    schema: &SchemaRef,
    strategy: Option<&dyn Strategy>,
    mut value: Value,
    known: Option<&Object>,
    wording: Wording,
) -> Result<(Object, Vec<String>), String> {
    let known = known.map(|object| &object.0);
    let report = canonical::canonicalize_from(&mut value, schema, known, wording).map_err(|e| e.0)?;
    canonical::apply_defaults(&mut value, schema);
    let mut object =
        Object::try_from(value).map_err(|v| format!("json: cannot unmarshal {} into an object", v.type_name()))?;
    if let Some(s) = strategy {
        s.default(&mut object);
    }
    Ok((object, report.strict_errors()))
}

/// Why version and kind of a JSON value can't be read, which is done before anything else.
pub fn kind_error(value: &Value) -> Option<String> {
    let wrong = |found: &str, rest: &str| {
        Some(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go {rest}"
        ))
    };
    if !matches!(value, Value::Object(_) | Value::Null) {
        let ty =
            r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
        return wrong(value.type_name(), &format!("value of type {ty}"));
    }
    ["apiVersion", "kind"]
        .into_iter()
        .find_map(|key| match value.get(key)? {
            Value::String(_) | Value::Null => None,
            other => wrong(other.type_name(), &format!("struct field .{key} of type string")),
        })
}

/// What upstream's scheme says of a kind that it doesn't have.
pub fn no_kind(version: &str, kind: &str) -> String {
    format!(
        "no kind {} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
        go_quote(kind),
        go_quote(version)
    )
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

/// The members of an object in JSON, as [`JSON`] has them.
fn members(object: &Map, out: &mut Vec<u8>) {
    for (key, value) in object.iter().filter(|(key, _)| *key != "kind" && *key != "apiVersion") {
        out.push(b',');
        json::encode_into(&Value::String(key.clone()), out);
        out.push(b':');
        json::encode_into(value, out);
    }
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
fn write_form(schema: &SchemaRef, object: &Object, form: Form, out: &mut Vec<u8>) -> ApiResult<()> {
    let mut message = |map: &Map, schema: &SchemaRef| {
        let bytes = proto::encode_message(map, schema).map_err(ApiError::internal)?;
        out.extend_from_slice(&bytes);
        Ok(())
    };
    match form {
        PROTO => message(object, schema),
        META_PROTO => message(&partial_metadata(object, "meta.k8s.io/v1"), &partial_schema()?),
        META_JSON => {
            members(&partial_metadata(object, "meta.k8s.io/v1"), out);
            Ok(())
        }
        _ => {
            members(object, out);
            Ok(())
        }
    }
}

/// A stored object as far as a row's cells look at it, or all of it but its managed fields.
pub fn decode_for_cells(storage: &StorageDef, cells: &dyn Cells, entry: &Entry) -> ApiResult<Object> {
    let schema = &storage.schema;
    let read = |envelope: proto::Envelope| match cells.looks_at(schema) {
        Some(only) => envelope.decode_only(only),
        None => envelope.decode_without_managed_fields(schema),
    };
    if let Ok(object) = proto::open(entry.value()).and_then(read) {
        return Ok(object);
    }
    let mut object = decode_stored(storage, entry.key(), entry.value(), entry.revision())?;
    object.meta_mut().remove("managedFields");
    Ok(object)
}

/// What the cache asks about a resource's bytes.
///
/// Forms are of the version that is stored. Built-in kinds are protobuf there, written by upstream's rules, so that both wire
/// forms are made of the stored bytes without values between; what isn't in that form is decoded.
pub struct ObjectCodec {
    storage: Arc<StorageDef>,
    api_version: String,
    recent: Arc<Recent>,
}

impl ObjectCodec {
    pub fn new(storage: Arc<StorageDef>, recent: Arc<Recent>) -> Self {
        ObjectCodec {
            api_version: storage.version.api_version(),
            storage,
            recent,
        }
    }

    /// The stored message, if it is one of the version and kind that forms are of.
    fn message<'a>(&self, value: &'a [u8]) -> Option<&'a [u8]> {
        let envelope = proto::open(value).ok()?;
        let version = &self.storage.version;
        let ours = envelope.api_version == self.api_version && envelope.kind == version.kind;
        (ours && self.storage.codec == StorageCodec::Protobuf).then_some(envelope.raw)
    }

    /// Attributes read from a message that all forms can be made of.
    fn attributes_of_message(&self, message: &[u8]) -> Option<Attributes> {
        let schema = &self.storage.schema;
        let mut whole = Vec::with_capacity(message.len() * 2);
        proto::json_members(message, schema, 0, &mut whole).ok()?;
        let labels = proto::field_at(message, schema, &["metadata", "labels"]).ok()?;
        let fields = self
            .storage
            .field_values_by(&mut |path| proto::field_at(message, schema, path).ok().flatten());
        let labels = labels.as_ref().and_then(Value::as_object);
        Some(Attributes::new(labels_in(labels), fields))
    }

    /// A form made of the stored message; false: it can't be, and nothing was written.
    fn write_message(&self, message: &[u8], revision: u64, form: Form, out: &mut Vec<u8>) -> bool {
        const METADATA: &[u8] = b",\"metadata\":";
        let schema = &self.storage.schema;
        let revised = match form {
            JSON => return proto::json_members(message, schema, revision, out).is_ok(),
            META_JSON => {
                let start = out.len();
                out.extend_from_slice(METADATA);
                let written = proto::json_metadata(message, schema, revision, out).is_ok();
                if !written {
                    out.truncate(start);
                }
                return written;
            }
            PROTO => proto::revised(message, revision),
            _ => proto::revised_metadata(message, revision),
        };
        let Some(revised) = revised else { return false };
        out.extend_from_slice(&revised.head);
        out.extend_from_slice(revised.rest);
        true
    }

    /// The stored object in the version that forms are of.
    fn decoded(&self, value: &[u8], revision: u64) -> ApiResult<Object> {
        let mut object = decode_stored(&self.storage, b"", value, revision)?;
        if object.api_version() != self.api_version {
            let why = format!("{} is stored, not {}", object.api_version(), self.api_version);
            return Err(ApiError::internal(why));
        }
        if self.storage.codec == StorageCodec::Json {
            complete_by(&self.storage.schema, &mut object);
        }
        object.set_meta("resourceVersion", &revision.to_string());
        Ok(object)
    }
}

/// What selectors see of an object in the version that is stored.
pub(crate) fn attributes_in(storage: &StorageDef, object: &Object) -> Attributes {
    Attributes::new(labels_in(object.labels()), storage.field_values(object))
}

fn labels_in(labels: Option<&Map>) -> Vec<(Str, Str)> {
    let text = |v: &Value| Str::from(v.as_str().unwrap_or_default());
    labels
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), text(v)))
        .collect()
}

#[async_trait]
impl Codec for ObjectCodec {
    fn attributes(&self, key: &[u8], value: &[u8]) -> Result<Attributes, ApiError> {
        if let Some(attributes) = self.recent.attributes(value) {
            return Ok(attributes);
        }
        if let Some(attributes) = self.message(value).and_then(|m| self.attributes_of_message(m)) {
            return Ok(attributes);
        }
        Ok(attributes_in(
            &self.storage,
            &decode_stored(&self.storage, key, value, 0)?,
        ))
    }

    async fn attributes_of(&self, values: &[(&[u8], &[u8])]) -> Result<Vec<Result<Attributes, ApiError>>, ApiError> {
        let Some(view) = &self.storage.view else {
            return Ok(values.iter().map(|(key, value)| self.attributes(key, value)).collect());
        };
        let decode = |(key, value): &(&[u8], &[u8])| decode_stored(&self.storage, key, value, 0);
        let decoded: Vec<_> = values.iter().map(decode).collect();
        let readable = decoded.iter().flatten().cloned().collect();
        let mut converted = view.converter.convert(readable, &view.api_version).await?.into_iter();
        let few = || ApiError::internal("conversion yielded too few objects");
        decoded
            .into_iter()
            .map(|object| match object {
                Ok(_) => converted
                    .next()
                    .map(|o| Ok(attributes_in(&self.storage, &o)))
                    .ok_or_else(few),
                Err(unreadable) => Ok(Err(unreadable)),
            })
            .collect()
    }

    fn encode(&self, value: &[u8], revision: u64, form: Form) -> Result<Bytes, ApiError> {
        let mut out = Vec::with_capacity(value.len() + value.len() / 2);
        self.write(value, revision, form, &mut out)?;
        out.shrink_to_fit();
        Ok(out.into())
    }

    fn write(&self, value: &[u8], revision: u64, form: Form, out: &mut Vec<u8>) -> Result<(), ApiError> {
        match self.message(value) {
            Some(message) if self.write_message(message, revision, form, out) => Ok(()),
            _ => write_form(&self.storage.schema, &self.decoded(value, revision)?, form, out),
        }
    }

    fn length(&self, value: &[u8], revision: u64, form: Form) -> Result<usize, ApiError> {
        let revised = self.message(value).and_then(|message| match form {
            PROTO => proto::revised(message, revision),
            META_PROTO => proto::revised_metadata(message, revision),
            _ => None,
        });
        match revised {
            Some(revised) => Ok(revised.len()),
            None => Ok(self.encode(value, revision, form)?.len()),
        }
    }

    /// Protobuf is what is stored, but for a few bytes.
    fn keeps(&self, form: Form) -> bool {
        self.storage.codec == StorageCodec::Json || matches!(form, JSON | META_JSON)
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
    fn members_lack_kind_and_version_only() {
        let o = Object::try_from(
            value!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"kind": "x"}, "metadata": {"name": "a"}}),
        )
        .unwrap();
        let mut out = Vec::new();
        members(&o, &mut out);
        assert_eq!(out, br#","data":{"kind":"x"},"metadata":{"name":"a"}"#);
        assert!(to_json(&o).starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","data""#));
    }
}
