//! The static types of expressions, and how schemas yield them.

use crate::structural::Structural;
use keelson_api::Value;
use keelson_api::schema::{FieldType, SchemaRef};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type known at compile time.
#[derive(Clone, Debug)]
pub enum Ty {
    /// Anything; checked when evaluated.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Box<Ty>),
    Map(Box<Ty>, Box<Ty>),
    Optional(Box<Ty>),
    /// A value that is a type: `type(x)`, `int`.
    Type,
    Object(ObjectTy),
    /// A type of a library: `kubernetes.Quantity`, `net.IP`, …
    Opaque(&'static str),
    /// `Object{…}` and `JSONPatch{…}` of mutations, by their written name.
    Named(Arc<str>),
    /// A parameter of a function's declaration.
    Param(char),
    /// Nothing could be found out, because of an error already reported.
    Error,
}

/// The names that types go by in expressions.
pub(super) const TYPE_NAMES: [&str; 19] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional_type",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "net.IP",
    "net.CIDR",
    "kubernetes.URL",
    "kubernetes.Quantity",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
];

/// A struct type.
#[derive(Clone, Debug)]
pub enum ObjectTy {
    /// A type of the server's own schema; its name is the Go-like one upstream shows.
    Schema(SchemaRef),
    /// A node of a custom resource's schema.
    Declared(Arc<Declared>),
    /// A record with fields given by hand (`request`, `variables`).
    Record(Arc<Record>),
}

/// Fields by name, of a type with a name.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub name: String,
    pub fields: BTreeMap<String, Ty>,
}

/// A custom resource's node as expressions see it, with the bounds that cost estimates need.
#[derive(Clone, Debug)]
pub struct Declared {
    pub ty: Ty,
    /// The most elements, members, or bytes a value can have.
    pub max_elements: f64,
    /// The fewest bytes a value takes as JSON.
    pub min_size: f64,
    pub element: Option<Arc<Declared>>,
    pub fields: BTreeMap<String, Arc<Declared>>,
}

/// The most bytes of a request.
pub const MAX_REQUEST: f64 = (3 << 20) as f64;

const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as expressions write it; `None`: it can't be written.
pub fn escape(name: &str) -> Option<String> {
    let first = name.bytes().next()?;
    if first.is_ascii_digit() {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/'))
    {
        return None;
    }
    Some(
        name.replace("__", "\u{1}underscores\u{1}")
            .replace('.', "__dot__")
            .replace('-', "__dash__")
            .replace('/', "__slash__")
            .replace('\u{1}', "__"),
    )
}

/// Undoes [`escape`].
pub fn unescape(name: &str) -> String {
    if !name.contains("__") {
        return name.to_string();
    }
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && RESERVED.contains(&word)
    {
        return word.to_string();
    }
    name.replace("__underscores__", "\u{1}")
        .replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace('\u{1}', "__")
}

impl Ty {
    pub fn list(el: Ty) -> Ty {
        Ty::List(Box::new(el))
    }
    pub fn map(key: Ty, value: Ty) -> Ty {
        Ty::Map(Box::new(key), Box::new(value))
    }
    pub fn optional(of: Ty) -> Ty {
        Ty::Optional(Box::new(of))
    }
    pub fn is_dyn(&self) -> bool {
        matches!(self, Ty::Dyn | Ty::Error)
    }

    /// The type of a resource of the server's own schema.
    pub fn of_schema(schema: &SchemaRef) -> Ty {
        Ty::Object(ObjectTy::Schema(schema.clone()))
    }

    fn of_field(schema: &SchemaRef, ty: &FieldType) -> Ty {
        match ty {
            FieldType::Bool => Ty::Bool,
            FieldType::Int32 | FieldType::Int64 | FieldType::UInt32 | FieldType::UInt64 => Ty::Int,
            FieldType::Float32 | FieldType::Float64 => Ty::Double,
            FieldType::String | FieldType::Duration => Ty::String,
            FieldType::Bytes => Ty::Bytes,
            FieldType::Time | FieldType::MicroTime => Ty::Timestamp,
            FieldType::Quantity | FieldType::IntOrString => Ty::Dyn,
            FieldType::RawExtension | FieldType::Any | FieldType::FieldsV1 => Ty::Dyn,
            FieldType::Struct(id) => Ty::Object(ObjectTy::Schema(schema.at(*id))),
            FieldType::List(el) => Ty::list(Ty::of_field(schema, el)),
            FieldType::ListOf(def) => Ty::list(Ty::of_field(schema, &def.element)),
            FieldType::Map(el) => Ty::map(Ty::String, Ty::of_field(schema, el)),
        }
    }
}

impl ObjectTy {
    pub fn name(&self) -> String {
        match self {
            ObjectTy::Schema(s) if s.def().name.is_empty() => "object".into(),
            ObjectTy::Schema(s) => s.def().name.to_string(),
            ObjectTy::Declared(_) => "object".into(),
            ObjectTy::Record(r) => r.name.clone(),
        }
    }
    /// The type of a field; `None`: there is no such field.
    pub fn field(&self, name: &str) -> Option<Ty> {
        match self {
            ObjectTy::Schema(s) => {
                let raw = unescape(name);
                let def = s.def();
                match def.field(&raw) {
                    Some(f) => Some(Ty::of_field(s, &f.ty)),
                    None if def.preserve_unknown => Some(Ty::Dyn),
                    None => def.additional.as_ref().map(|t| Ty::of_field(s, t)),
                }
            }
            ObjectTy::Declared(d) => {
                // Where the grammar lets a reserved word stand, it needs no escape.
                let reserved = || escape(name).filter(|_| RESERVED.contains(&name));
                let field = d.fields.get(name).or_else(|| d.fields.get(&reserved()?));
                field.map(|f| f.ty.clone())
            }
            ObjectTy::Record(r) => r.fields.get(name).cloned(),
        }
    }
}

impl PartialEq for ObjectTy {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (ObjectTy::Schema(a), ObjectTy::Schema(b)) => Arc::ptr_eq(&a.schema, &b.schema) && a.ty == b.ty,
            (ObjectTy::Declared(a), ObjectTy::Declared(b)) => Arc::ptr_eq(a, b),
            (ObjectTy::Record(a), ObjectTy::Record(b)) => a.name == b.name,
            _ => false,
        }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Ty::Dyn => f.write_str("dyn"),
            Ty::Null => f.write_str("null"),
            Ty::Bool => f.write_str("bool"),
            Ty::Int => f.write_str("int"),
            Ty::Uint => f.write_str("uint"),
            Ty::Double => f.write_str("double"),
            Ty::String => f.write_str("string"),
            Ty::Bytes => f.write_str("bytes"),
            Ty::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Ty::Duration => f.write_str("google.protobuf.Duration"),
            Ty::List(el) => write!(f, "list({el})"),
            Ty::Map(k, v) => write!(f, "map({k}, {v})"),
            Ty::Optional(t) => write!(f, "optional_type({t})"),
            Ty::Type => f.write_str("type"),
            Ty::Object(o) => f.write_str(&o.name()),
            Ty::Opaque(name) => f.write_str(name),
            Ty::Named(name) => f.write_str(name),
            Ty::Param(c) => write!(f, "{c}"),
            Ty::Error => f.write_str("!error!"),
        }
    }
}

impl Declared {
    /// A node as expressions see it; `None` for nodes that are not exposed. `root`: a resource of its own.
    pub fn of(s: &Structural, root: bool) -> Option<Arc<Declared>> {
        let scalar = |ty: Ty, max: f64, min: f64| {
            Some(Arc::new(Declared {
                ty,
                max_elements: max,
                min_size: min,
                element: None,
                fields: BTreeMap::new(),
            }))
        };
        let max_length = s.checks.max_length.map(|n| n.max(0) as f64);
        if s.int_or_string {
            return scalar(Ty::Dyn, max_length.map_or(MAX_REQUEST - 2.0, |n| n * 4.0), 1.0);
        }
        match s.ty.as_str() {
            "array" => {
                let items = s.items.as_deref()?;
                let element = Declared::of(items, items.embedded_resource)?;
                let max = s.checks.max_items.map(|n| n.max(0) as f64);
                let max = max.unwrap_or_else(|| ((MAX_REQUEST - 2.0) / (element.min_size + 1.0)).floor());
                Some(Arc::new(Declared {
                    ty: Ty::list(element.ty.clone()),
                    max_elements: max,
                    min_size: 2.0,
                    element: Some(element),
                    fields: BTreeMap::new(),
                }))
            }
            "object" => Declared::object(s, root),
            "string" => match s.checks.format.as_str() {
                "byte" => scalar(Ty::Bytes, max_length.unwrap_or(MAX_REQUEST - 2.0), 2.0),
                "duration" => scalar(Ty::Duration, 10.0, 4.0),
                "date" => scalar(Ty::Timestamp, 12.0, 12.0),
                "date-time" => scalar(Ty::Timestamp, 37.0, 22.0),
                _ => {
                    let longest = |enums: &Vec<Value>| {
                        enums.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0) as f64
                    };
                    let max = match (max_length, &s.checks.enums) {
                        (Some(n), _) => n * 4.0,
                        (None, Some(enums)) => longest(enums),
                        (None, None) => MAX_REQUEST - 2.0,
                    };
                    scalar(Ty::String, max, 2.0)
                }
            },
            "boolean" => scalar(Ty::Bool, 1.0, 4.0),
            "number" => scalar(Ty::Double, 1.0, 1.0),
            "integer" => scalar(Ty::Int, 1.0, 1.0),
            _ => None,
        }
    }

    fn object(s: &Structural, root: bool) -> Option<Arc<Declared>> {
        if let Some(a) = s.additional_schema() {
            let element = Declared::of(a, a.embedded_resource)?;
            let max = s.checks.max_properties.map(|n| n.max(0) as f64);
            let max = max.unwrap_or_else(|| ((MAX_REQUEST - 2.0) / (element.min_size + 6.0)).floor());
            return Some(Arc::new(Declared {
                ty: Ty::map(Ty::String, element.ty.clone()),
                max_elements: max,
                min_size: 2.0,
                element: Some(element),
                fields: BTreeMap::new(),
            }));
        }
        let mut fields = BTreeMap::new();
        let mut min_size = 2.0;
        for (name, p) in &s.properties {
            let Some(field) = Declared::of(p, p.embedded_resource) else {
                continue;
            };
            if s.checks.required.contains(name) && p.default.is_none() {
                min_size += name.len() as f64 + field.min_size + 4.0;
            }
            if let Some(name) = escape(name) {
                fields.insert(name, field);
            }
        }
        if root && !has_type_and_meta(s) {
            let text = |max: f64| {
                Arc::new(Declared {
                    ty: Ty::String,
                    max_elements: max,
                    min_size: 2.0,
                    element: None,
                    fields: BTreeMap::new(),
                })
            };
            fields.insert("apiVersion".into(), text(MAX_REQUEST - 2.0));
            fields.insert("kind".into(), text(MAX_REQUEST - 2.0));
            let names = BTreeMap::from([
                ("name".to_string(), text(253.0)),
                ("generateName".to_string(), text(252.0)),
            ]);
            fields.insert("metadata".into(), Declared::record(names, 2.0));
        }
        Some(Declared::record(fields, min_size))
    }

    fn record(fields: BTreeMap<String, Arc<Declared>>, min_size: f64) -> Arc<Declared> {
        let shape = Declared {
            ty: Ty::Dyn,
            max_elements: 0.0,
            min_size,
            element: None,
            fields,
        };
        let inner = Arc::new(shape.clone());
        Arc::new(Declared {
            ty: Ty::Object(ObjectTy::Declared(inner)),
            ..shape
        })
    }
}

/// Whether a node declares what every resource has, so that it is taken as declared.
fn has_type_and_meta(s: &Structural) -> bool {
    let is = |s: &Structural, name: &str, ty: &str| s.properties.get(name).is_some_and(|p| p.ty == ty);
    let meta = s.properties.get("metadata").filter(|m| m.ty == "object");
    is(s, "kind", "string")
        && is(s, "apiVersion", "string")
        && meta.is_some_and(|m| is(m, "name", "string") && is(m, "generateName", "string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        for (raw, escaped) in [
            ("namespace", "__namespace__"),
            ("x-prop", "x__dash__prop"),
            ("redact__d", "redact__underscores__d"),
            ("a.b/c", "a__dot__b__slash__c"),
            ("plain_one", "plain_one"),
        ] {
            assert_eq!(escape(raw).as_deref(), Some(escaped));
            assert_eq!(unescape(escaped), raw);
        }
        assert_eq!(escape("1a"), None);
        assert_eq!(escape("a$b"), None);
    }
}
