//! A custom resource's schema as the OpenAPI documents publish it.

use keelson_api::{Map, Str, Value};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Which document a schema is for: 2 leaves out what its clients can't read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    V2,
    V3,
}

/// What names a custom resource in a document.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub list_kind: &'a str,
    pub plural: &'a str,
    /// JSON paths of selectable fields.
    pub selectable: &'a [Str],
}

impl Names<'_> {
    /// `com.example.v1.Widget`
    pub fn model(&self) -> String {
        self.model_of(self.kind)
    }
    pub fn list_model(&self) -> String {
        self.model_of(self.list_kind)
    }
    fn model_of(&self, kind: &str) -> String {
        let mut parts: Vec<&str> = self.group.split('.').collect();
        parts.reverse();
        format!("{}.{}.{kind}", parts.join("."), self.version)
    }
    fn gvk(&self, kind: &str) -> Value {
        let gvk: Map = [("group", self.group), ("kind", kind), ("version", self.version)]
            .into_iter()
            .collect();
        Value::Array(vec![Value::Object(gvk)])
    }
    fn selectable(&self) -> Option<Value> {
        let list: Vec<Value> = self
            .selectable
            .iter()
            .map(|p| Value::Object([("fieldPath", p.strip_prefix('.').unwrap_or(p))].into_iter().collect()))
            .collect();
        (!list.is_empty()).then_some(Value::Array(list))
    }
}

fn reference(name: &str, doc: Document) -> Map {
    let at = match doc {
        Document::V2 => format!("#/definitions/{name}"),
        Document::V3 => format!("#/components/schemas/{name}"),
    };
    [("$ref", at)].into_iter().collect()
}

/// A reference with a description: version 3 wraps the reference, since nothing may stand beside one there.
fn described_reference(name: &str, description: &str, doc: Document) -> Value {
    let mut m = Map::new();
    match doc {
        Document::V2 => m = reference(name, doc),
        Document::V3 => {
            m.insert("allOf", vec![Value::Object(reference(name, doc))]);
            m.insert("default", Map::new());
        }
    }
    m.insert("description", description);
    Value::Object(m)
}

fn text(description: &str) -> Value {
    Value::Object([("description", description), ("type", "string")].into_iter().collect())
}

fn add_type_meta(properties: &mut Map) {
    properties.insert(
        "apiVersion",
        text("APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"),
    );
    properties.insert(
        "kind",
        text("Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
    );
}

const META_TEXT: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_META_TEXT: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The definition of the kind; `schema` is the version's `openAPIV3Schema` (none: anything goes).
pub fn kind_schema(schema: Option<&Value>, names: &Names, doc: Document) -> Value {
    let preserve = |s: &Value| {
        s.get("x-kubernetes-preserve-unknown-fields")
            .and_then(Value::as_bool)
            .unwrap_or(false)
    };
    let mut out = match schema {
        Some(s) if !(doc == Document::V2 && preserve(s)) => {
            let mut m = s.as_object().cloned().unwrap_or_default();
            if doc == Document::V2 {
                for_v2(&mut m);
            }
            embedded(&mut m, doc);
            let properties = m.object_mut("properties");
            properties.insert("metadata", described_reference(META, META_TEXT, doc));
            add_type_meta(properties);
            m
        }
        _ => [("type", "object")].into_iter().collect(),
    };
    out.insert("x-kubernetes-group-version-kind", names.gvk(names.kind));
    if let Some(fields) = names.selectable() {
        out.insert("x-kubernetes-selectable-fields", fields);
    }
    Value::Object(out)
}

/// The definition of the list kind.
pub fn list_schema(names: &Names, doc: Document) -> Value {
    let mut properties = Map::new();
    add_type_meta(&mut properties);
    let mut items = Map::new();
    items.insert(
        "description",
        format!(
            "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
            names.plural
        ),
    );
    items.insert("items", reference(&names.model(), doc));
    items.insert("type", "array");
    properties.insert("items", items);
    properties.insert("metadata", described_reference(LIST_META, LIST_META_TEXT, doc));
    let mut m = Map::new();
    m.insert(
        "description",
        format!("{} is a list of {}", names.list_kind, names.kind),
    );
    m.insert("properties", properties);
    m.insert("required", vec![Value::from("items")]);
    m.insert("type", "object");
    m.insert("x-kubernetes-group-version-kind", names.gvk(names.list_kind));
    if let Some(fields) = names.selectable() {
        m.insert("x-kubernetes-selectable-fields", fields);
    }
    Value::Object(m)
}

fn children(m: &mut Map, f: &mut impl FnMut(&mut Map)) {
    if let Some(Value::Object(p)) = m.get_mut("properties") {
        p.values_mut().filter_map(Value::as_object_mut).for_each(&mut *f);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(Value::Object(p)) = m.get_mut(key) {
            f(p);
        }
    }
}

/// Leaves out what readers of version 2 stumble over.
fn for_v2(m: &mut Map) {
    for key in ["allOf", "oneOf", "anyOf", "not"] {
        m.remove(key);
    }
    let nullable = |v: &Value| v.get("nullable").and_then(Value::as_bool).unwrap_or(false);
    let flag = |m: &Map, key: &str| m.bool(key).unwrap_or(false);
    if flag(m, "nullable") {
        for key in ["type", "nullable", "items", "properties"] {
            m.remove(key);
        }
    }
    let preserve = flag(m, "x-kubernetes-preserve-unknown-fields");
    if preserve {
        m.remove("items");
        m.remove("properties");
    }
    if m.str("type") == Some("array") && !m.contains_key("items") || preserve && m.str("type") == Some("object") {
        m.remove("type");
    }
    let optional: Vec<Str> = m
        .obj("properties")
        .into_iter()
        .flatten()
        .filter(|(_, v)| nullable(v))
        .map(|(k, _)| k.clone())
        .collect();
    let all = m.get("additionalProperties").is_some_and(nullable);
    if let Some(Value::Array(required)) = m.get_mut("required") {
        required.retain(|r| !all && !optional.iter().any(|o| r.as_str() == Some(o)));
        if required.is_empty() {
            m.remove("required");
        }
    }
    children(m, &mut for_v2);
}

/// Gives embedded resources their apiVersion, kind and metadata.
fn embedded(m: &mut Map, doc: Document) {
    children(m, &mut |c| embedded(c, doc));
    let flag = |key: &str| m.bool(key).unwrap_or(false);
    if doc == Document::V2 && flag("x-kubernetes-preserve-unknown-fields") {
        return;
    }
    if !flag("x-kubernetes-embedded-resource") {
        return;
    }
    let properties = m.object_mut("properties");
    properties.insert(
        "apiVersion",
        text("apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"),
    );
    properties.insert(
        "kind",
        text("kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
    );
    properties.insert("metadata", described_reference(META, META_TEXT, doc));
    let mut required = m.arr("required").cloned().unwrap_or_default();
    for key in ["kind", "apiVersion"] {
        if !required.iter().any(|r| r.as_str() == Some(key)) {
            required.push(key.into());
        }
    }
    m.insert("required", required);
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    const NAMES: Names = Names {
        group: "stable.example.com",
        version: "v1",
        kind: "Tab",
        list_kind: "TabList",
        plural: "tabs",
        selectable: &[],
    };

    #[test]
    fn version_2_leaves_out_what_it_cannot_say() {
        let schema = value!({"type": "object", "properties": {
            "a": {"type": "array", "nullable": true, "items": {"type": "string"}},
            "b": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
            "c": {"type": "string", "anyOf": [{"pattern": "a"}]}}, "required": ["a", "c"]});
        let v2 = kind_schema(Some(&schema), &NAMES, Document::V2);
        assert_eq!(v2.at(&["properties", "a"]), Some(&value!({})));
        assert_eq!(
            v2.at(&["properties", "b"]),
            Some(&value!({"x-kubernetes-preserve-unknown-fields": true}))
        );
        assert_eq!(v2.at(&["properties", "c"]), Some(&value!({"type": "string"})));
        assert_eq!(v2.get("required"), Some(&value!(["c"])));
        assert_eq!(
            v2.get("x-kubernetes-group-version-kind"),
            Some(&value!([{"group": "stable.example.com", "kind": "Tab", "version": "v1"}]))
        );
        let v3 = kind_schema(Some(&schema), &NAMES, Document::V3);
        assert_eq!(v3.at(&["properties", "a"]), schema.at(&["properties", "a"]));
        assert_eq!(NAMES.model(), "com.example.stable.v1.Tab");
        assert_eq!(
            list_schema(&NAMES, Document::V3).at(&["properties", "items", "items", "$ref"]),
            Some(&"#/components/schemas/com.example.stable.v1.Tab".into())
        );
    }

    #[test]
    fn embedded_resources_get_their_type_and_metadata() {
        let schema = value!({"type": "object", "properties": {"e": {"type": "object", "x-kubernetes-embedded-resource": true,
            "properties": {"spec": {"type": "object"}}}}});
        let v3 = kind_schema(Some(&schema), &NAMES, Document::V3);
        assert_eq!(
            v3.at(&["properties", "e", "required"]),
            Some(&value!(["kind", "apiVersion"]))
        );
        assert!(v3.at(&["properties", "e", "properties", "metadata"]).is_some());
    }
}
