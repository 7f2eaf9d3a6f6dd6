//! A structural schema as the server's own [`Schema`], so that apply and patches work on custom resources as on any
//! other kind.

use super::Structural;
use keelson_api::schema::{self, Field, FieldType, ListDef, ListType, Omit, Schema, SchemaRef, TypeDef, TypeId};
use keelson_api::{Str, Value};
use std::collections::HashMap;
use std::sync::Arc;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of a custom resource in one version. The structural schema stays attached for pruning, defaults and
/// validation.
pub fn to_schema(s: Structural) -> SchemaRef {
    let mut b = Builder {
        out: Schema::default(),
        imported: HashMap::new(),
    };
    let meta = b.object_meta();
    let root = b.root(&s, meta);
    b.out.custom = Some(Arc::new(s));
    SchemaRef {
        schema: Arc::new(b.out),
        ty: root,
    }
}

struct Builder {
    out: Schema,
    imported: HashMap<TypeId, TypeId>,
}

impl Builder {
    fn object_meta(&mut self) -> FieldType {
        match schema::builtin().lookup(OBJECT_META) {
            Some(id) => FieldType::Struct(self.import(id)),
            None => FieldType::Any,
        }
    }

    /// Copies a built-in type, with all it refers to.
    fn import(&mut self, id: TypeId) -> TypeId {
        if let Some(here) = self.imported.get(&id) {
            return *here;
        }
        let here = self.add(TypeDef::default());
        self.imported.insert(id, here);
        let mut def = schema::builtin().get(id).clone();
        for f in &mut def.fields {
            f.ty = self.import_type(&f.ty);
            f.inline_of = f.inline_of.map(|id| self.import(id));
        }
        self.out.by_name.insert(def.name.clone(), here);
        self.out.types[here.0 as usize] = def;
        here
    }

    fn import_type(&mut self, ty: &FieldType) -> FieldType {
        match ty {
            FieldType::Struct(id) => FieldType::Struct(self.import(*id)),
            FieldType::List(el) => FieldType::List(Box::new(self.import_type(el))),
            FieldType::Map(el) => FieldType::Map(Box::new(self.import_type(el))),
            FieldType::ListOf(d) => FieldType::ListOf(Box::new(ListDef {
                element: self.import_type(&d.element),
                ..(**d).clone()
            })),
            other => other.clone(),
        }
    }

    fn add(&mut self, def: TypeDef) -> TypeId {
        let id = TypeId(self.out.types.len() as u32);
        self.out.types.push(def);
        id
    }

    fn root(&mut self, s: &Structural, meta: FieldType) -> TypeId {
        self.object(s, Some(meta))
    }

    /// An object with named fields; `meta` makes it a resource of its own.
    fn object(&mut self, s: &Structural, meta: Option<FieldType>) -> TypeId {
        let mut fields: Vec<Field> = s.properties.iter().map(|(name, p)| self.field(name, p, s)).collect();
        if let Some(meta) = meta {
            fields.retain(|f| !matches!(f.name.as_str(), "apiVersion" | "kind" | "metadata"));
            fields.push(plain("apiVersion", FieldType::String));
            fields.push(plain("kind", FieldType::String));
            fields.push(plain("metadata", meta));
            fields.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let additional = s.additional_schema().map(|a| self.value(a));
        self.add(TypeDef {
            fields,
            atomic: s.map_type == "atomic",
            preserve_unknown: s.preserve_unknown || matches!(s.additional, Some(super::Additional::Allowed(true))),
            embedded_resource: s.embedded_resource,
            additional,
            required: s.checks.required.clone(),
            ..TypeDef::default()
        })
    }

    fn field(&mut self, name: &Str, s: &Structural, parent: &Structural) -> Field {
        let mut f = plain(name, self.value(s));
        if let FieldType::ListOf(def) = f.ty {
            // A field carries what is known of its list itself.
            f.list_type = def.list_type;
            f.list_map_keys = def.keys;
            f.ty = FieldType::List(Box::new(def.element));
        }
        f.default = s.default.clone();
        f.nullable = s.nullable;
        f.required = parent.checks.required.contains(name);
        f.format = s.checks.format.clone();
        f.enums = s
            .checks
            .enums
            .iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Str::from)
            .collect();
        f.map_atomic = s.map_type == "atomic";
        f
    }

    fn value(&mut self, s: &Structural) -> FieldType {
        if s.int_or_string {
            return FieldType::IntOrString;
        }
        match s.ty.as_str() {
            "object" => {
                let plain_map =
                    s.properties.is_empty() && !s.preserve_unknown && !s.embedded_resource && s.map_type != "atomic";
                if let (Some(a), true) = (s.additional_schema(), plain_map) {
                    return FieldType::Map(Box::new(self.value(a)));
                }
                let meta = s.embedded_resource.then(|| self.object_meta());
                FieldType::Struct(self.object(s, meta))
            }
            "array" => {
                let element = s.items.as_ref().map_or(FieldType::Any, |i| self.value(i));
                let list_type = match s.list_type.as_str() {
                    "set" => ListType::Set,
                    "map" => ListType::Map,
                    _ => ListType::Atomic,
                };
                FieldType::ListOf(Box::new(ListDef {
                    element,
                    list_type,
                    keys: s.list_map_keys.clone(),
                }))
            }
            "string" => FieldType::String,
            "integer" => FieldType::Int64,
            "number" => FieldType::Float64,
            "boolean" => FieldType::Bool,
            _ => FieldType::Any,
        }
    }
}

fn plain(name: &str, ty: FieldType) -> Field {
    Field {
        name: name.into(),
        ty,
        pointer: true,
        omit: Omit::Empty,
        ..Field::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{FieldManager, Set};
    use crate::canonical;
    use keelson_api::value;

    fn schema() -> SchemaRef {
        to_schema(Structural::parse(&value!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                    "items": {"type": "object", "properties": {"port": {"type": "integer"}, "name": {"type": "string", "default": "x"}}}},
                "tags": {"type": "array", "items": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "replicas": {"x-kubernetes-int-or-string": true}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})))
    }

    #[test]
    fn custom_resources_are_pruned_and_defaulted() {
        let schema = schema();
        let mut v = value!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "labels": {}, "zap": 1},
            "spec": {"ports": [{"port": 1}], "zip": 1, "tags": [], "free": {"a": {"b": null}}}});
        let report = canonical::canonicalize(&mut v, &schema).unwrap();
        canonical::apply_defaults(&mut v, &schema);
        assert_eq!(report.unknown, ["metadata.zap", "spec.zip"]);
        assert_eq!(
            v,
            value!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"},
                "spec": {"ports": [{"port": 1, "name": "x"}], "tags": [], "free": {"a": {"b": null}}}})
        );
    }

    #[test]
    fn the_metadata_of_resources_in_a_custom_resource_is_typed() {
        let schema = to_schema(Structural::parse(
            &value!({"type": "object", "properties": {"parts": {"type": "array",
            "items": {"type": "object", "x-kubernetes-embedded-resource": true}}}}),
        ));
        let with = |meta: Value| {
            value!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"},
                "parts": [{"apiVersion": "v1", "kind": "P", "metadata": meta}]})
        };
        let mut v = with(value!({"name": "p", "namespace": "x", "zap": 1}));
        let report = canonical::canonicalize(&mut v, &schema).unwrap();
        assert_eq!(report.unknown, ["parts[0].metadata.zap"]);
        assert_eq!(v, with(value!({"name": "p", "namespace": "x"})));
        let error = canonical::canonicalize(&mut with(value!({"labels": 1})), &schema).unwrap_err();
        assert!(error.0.starts_with("parts[0].metadata: Invalid value: "), "{}", error.0);
    }

    #[test]
    fn custom_resources_are_applied() {
        let schema = schema();
        let none = Set::new();
        let m = FieldManager {
            schema: &schema,
            api_version: "g/v1",
            kind: "K",
            subresource: "",
            reset_fields: &none,
            converter: None,
            now: "2030-01-01T00:00:00Z",
        };
        let config = |spec: Value| value!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "spec": spec});
        let one = m
            .apply(
                &Value::Null,
                &config(value!({"ports": [{"port": 1, "name": "a"}], "free": {"x": {"y": 1}}})),
                "one",
                false,
            )
            .unwrap();
        let two = m
            .apply(
                &one,
                &config(value!({"ports": [{"port": 2, "name": "b"}], "tags": ["t"]})),
                "two",
                false,
            )
            .unwrap();
        assert_eq!(
            two.get("spec").unwrap(),
            &value!({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "b"}], "free": {"x": {"y": 1}}, "tags": ["t"]})
        );
        let fields = two.at(&["metadata", "managedFields"]).unwrap().as_array().unwrap()[0]
            .get("fieldsV1")
            .unwrap();
        assert_eq!(
            serde_json::to_string(fields).unwrap(),
            r#"{"f:spec":{"f:free":{"f:x":{".":{},"f:y":{}}},"f:ports":{"k:{\"port\":1}":{".":{},"f:name":{},"f:port":{}}}}}"#
        );
        let e = m.apply(&one, &config(value!({"zip": 1})), "one", false).unwrap_err();
        assert_eq!(
            e.message,
            "failed to create typed patch object (/n; g/v1, Kind=K): .spec.zip: field not declared in schema"
        );
    }
}
