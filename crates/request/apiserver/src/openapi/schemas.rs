//! Types of the schema table as OpenAPI schemas, for version 2 and version 3 documents.

use super::describe::Descriptions;
use keelson_api::schema::{Field, FieldType, ListDef, ListType, Omit, PatchStrategy};
use keelson_api::{Map, Schema, TypeDef, TypeId, Value, value};
use keelson_machinery::structural::publish::Document;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The kinds that each type is: what `x-kubernetes-group-version-kind` says.
pub type Kinds = HashMap<TypeId, Vec<(String, String, String)>>;

pub struct Builder<'a> {
    pub schema: &'a Schema,
    pub descriptions: &'a Descriptions,
    pub kinds: &'a Kinds,
    pub document: Document,
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";
pub const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

impl Builder<'_> {
    pub fn reference(&self, name: &str) -> String {
        match self.document {
            Document::V2 => format!("#/definitions/{name}"),
            Document::V3 => format!("#/components/schemas/{name}"),
        }
    }

    /// The schemas of the given types and of all they refer to, by name.
    pub fn closure(&self, roots: impl IntoIterator<Item = TypeId>) -> BTreeMap<String, Value> {
        let mut out = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<TypeId> = roots.into_iter().collect();
        let mut scalars = BTreeSet::from([PATCH.to_string()]);
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let def = self.schema.get(id);
            let mut mentioned = Mentioned {
                types: &mut open,
                scalars: &mut scalars,
            };
            out.insert(def.name.to_string(), self.type_schema(id, def, &mut mentioned));
        }
        for name in scalars {
            out.entry(name.clone()).or_insert_with(|| self.scalar(&name));
        }
        out
    }

    fn type_schema(&self, id: TypeId, def: &TypeDef, mentioned: &mut Mentioned) -> Value {
        let mut m = Map::new();
        if let Some(text) = self.descriptions.of_type(&def.name) {
            m.insert("description", text);
        }
        m.insert("type", "object");
        let mut properties = Map::new();
        for field in &def.fields {
            properties.insert(field.name.clone(), self.field_schema(&def.name, field, mentioned));
        }
        if !properties.is_empty() {
            m.insert("properties", properties);
        }
        let required: Vec<Value> = def
            .fields
            .iter()
            .filter(|f| f.required)
            .map(|f| f.name.clone().into())
            .collect();
        if !required.is_empty() {
            m.insert("required", required);
        }
        if def.atomic {
            m.insert("x-kubernetes-map-type", "atomic");
        }
        if let Some(kinds) = self.kinds.get(&id) {
            let kinds = kinds.iter().map(|(group, version, kind)| {
                value!({"group": group.as_str(), "kind": kind.as_str(), "version": version.as_str()})
            });
            m.insert("x-kubernetes-group-version-kind", kinds.collect::<Vec<_>>());
        }
        m.into()
    }

    fn field_schema(&self, owner: &str, field: &Field, mentioned: &mut Mentioned) -> Value {
        let mut m = self.of_type(&field.ty, mentioned);
        if let Some(reference) = m.get("$ref").cloned()
            && self.document == Document::V3
        {
            // Nothing may stand beside a reference there.
            m = Map::from_iter([("allOf", vec![Value::Object(Map::from_iter([("$ref", reference)]))])]);
            if !field.pointer && field.omit != Omit::Zero && matches!(field.ty, FieldType::Struct(_)) {
                m.insert("default", Map::new());
            }
        }
        if let Some(text) = self.descriptions.of_field(owner, &field.name) {
            m.insert("description", text);
        }
        if let Some(default) = field.default.clone().or_else(|| zero(field)) {
            m.insert("default", default);
        }
        if !field.enums.is_empty() {
            m.insert(
                "enum",
                field.enums.iter().cloned().map(Value::String).collect::<Vec<_>>(),
            );
        }
        extensions(field, &mut m);
        m.into()
    }

    fn of_type(&self, ty: &FieldType, mentioned: &mut Mentioned) -> Map {
        let scalar = |ty: &str, format: &str| {
            let mut m = Map::from_iter([("type", ty)]);
            if !format.is_empty() {
                m.insert("format", format);
            }
            m
        };
        let mut named = |name: &str| {
            mentioned.scalars.insert(name.to_string());
            Map::from_iter([("$ref", self.reference(name))])
        };
        match ty {
            FieldType::Bool => scalar("boolean", ""),
            FieldType::Int32 | FieldType::UInt32 => scalar("integer", "int32"),
            FieldType::Int64 | FieldType::UInt64 => scalar("integer", "int64"),
            FieldType::Float32 => scalar("number", "float"),
            FieldType::Float64 => scalar("number", "double"),
            FieldType::String => scalar("string", ""),
            FieldType::Bytes => scalar("string", "byte"),
            FieldType::Quantity => named(QUANTITY),
            FieldType::IntOrString => named(INT_OR_STRING),
            FieldType::Time => named(&format!("{META}.Time")),
            FieldType::MicroTime => named(&format!("{META}.MicroTime")),
            FieldType::Duration => named(&format!("{META}.Duration")),
            FieldType::FieldsV1 => named(&format!("{META}.FieldsV1")),
            FieldType::RawExtension => named(RAW),
            FieldType::Any => named(JSON),
            FieldType::Struct(id) => {
                mentioned.types.push(*id);
                Map::from_iter([("$ref", self.reference(&self.schema.get(*id).name))])
            }
            FieldType::List(element) => self.list(element, mentioned),
            FieldType::ListOf(def) => {
                let ListDef {
                    element,
                    list_type,
                    keys,
                } = def.as_ref();
                let mut m = self.list(element, mentioned);
                list_extensions(*list_type, keys, &mut m);
                m
            }
            FieldType::Map(element) => {
                let mut m = scalar("object", "");
                m.insert("additionalProperties", self.element(element, mentioned));
                m
            }
        }
    }

    fn list(&self, element: &FieldType, mentioned: &mut Mentioned) -> Map {
        let mut m = Map::from_iter([("type", "array")]);
        m.insert("items", self.element(element, mentioned));
        m
    }

    fn element(&self, ty: &FieldType, mentioned: &mut Mentioned) -> Value {
        self.of_type(ty, mentioned).into()
    }

    /// The schema of a type that is no struct of the table.
    fn scalar(&self, name: &str) -> Value {
        let v3 = self.document == Document::V3;
        let mut v = match name.rsplit('.').next().unwrap_or_default() {
            "Quantity" if v3 => value!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            "IntOrString" if v3 => {
                value!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            "IntOrString" => value!({"type": "string", "format": "int-or-string"}),
            "Quantity" | "Duration" => value!({"type": "string"}),
            "Time" | "MicroTime" => value!({"type": "string", "format": "date-time"}),
            "JSON" => value!({}),
            _ => value!({"type": "object"}),
        };
        if let Some(text) = self.descriptions.of_type(name) {
            v.set_at(&["description"], text);
        }
        v
    }
}

/// What a field that is always written has when nobody sets it.
fn zero(field: &Field) -> Option<Value> {
    if field.pointer || field.omit != Omit::Never {
        return None;
    }
    match field.ty {
        FieldType::String => Some("".into()),
        FieldType::Bool => Some(false.into()),
        FieldType::Int32 | FieldType::Int64 | FieldType::UInt32 | FieldType::UInt64 => Some(0.into()),
        _ => None,
    }
}

struct Mentioned<'a> {
    types: &'a mut Vec<TypeId>,
    scalars: &'a mut BTreeSet<String>,
}

fn extensions(field: &Field, m: &mut Map) {
    if matches!(field.ty, FieldType::List(_)) {
        list_extensions(field.list_type, &field.list_map_keys, m);
    }
    if field.map_atomic {
        m.insert("x-kubernetes-map-type", "atomic");
    }
    let PatchStrategy {
        merge,
        replace,
        retain_keys,
    } = field.patch_strategy;
    let names = [("merge", merge), ("replace", replace), ("retainKeys", retain_keys)];
    let names: Vec<&str> = names.iter().filter(|(_, on)| *on).map(|(n, _)| *n).collect();
    if !names.is_empty() {
        m.insert("x-kubernetes-patch-strategy", names.join(","));
    }
    if !field.patch_merge_key.is_empty() {
        m.insert("x-kubernetes-patch-merge-key", field.patch_merge_key.clone());
    }
}

fn list_extensions(list_type: ListType, keys: &[keelson_api::Str], m: &mut Map) {
    match list_type {
        ListType::Atomic => m.insert("x-kubernetes-list-type", "atomic"),
        ListType::Set => m.insert("x-kubernetes-list-type", "set"),
        ListType::Map => {
            m.insert(
                "x-kubernetes-list-map-keys",
                keys.iter().cloned().map(Value::String).collect::<Vec<_>>(),
            );
            m.insert("x-kubernetes-list-type", "map")
        }
    };
}
