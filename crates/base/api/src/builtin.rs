//! The schema of every built-in type, read from the committed facts.

use crate::schema::{Field, FieldType, ListType, Omit, PatchStrategy, Schema, SchemaRef, TypeDef, TypeId, Wire};
use crate::{GroupVersionKind, Str};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

struct Builtin {
    schema: Arc<Schema>,
    kinds: HashMap<(Str, Str), TypeId>,
}

fn table() -> &'static Builtin {
    static TABLE: OnceLock<Builtin> = OnceLock::new();
    TABLE.get_or_init(|| parse(include_str!("../schema/types.txt")))
}

/// The schema of the built-in types; read on first use.
pub fn builtin() -> &'static Arc<Schema> {
    &table().schema
}

/// The type of a built-in kind (also of lists, options and other bodies).
pub fn builtin_kind(gvk: &GroupVersionKind) -> Option<SchemaRef> {
    builtin_kind_at(&gvk.api_version(), &gvk.kind)
}

/// As [`builtin_kind`], with `apiVersion` as objects have it.
pub fn builtin_kind_at(api_version: &str, kind: &str) -> Option<SchemaRef> {
    let table = table();
    let id = match table.kinds.get(&(Str::from(api_version), Str::from(kind))) {
        Some(id) => *id,
        // Options and watch events are registered in every group and version.
        None => match kind {
            "DeleteOptions" | "CreateOptions" | "UpdateOptions" | "PatchOptions" | "GetOptions" | "ListOptions"
            | "WatchEvent" => *table.kinds.get(&(Str::const_new("v1"), Str::from(kind)))?,
            _ => return None,
        },
    };
    Some(SchemaRef {
        schema: table.schema.clone(),
        ty: id,
    })
}

/// The type of an OpenAPI name (`io.k8s.api.core.v1.PodSpec`).
pub fn builtin_type(name: &str) -> Option<SchemaRef> {
    builtin().lookup(name).map(|ty| SchemaRef {
        schema: builtin().clone(),
        ty,
    })
}

/// Reads the committed text: written by `tools/schema`, and tested to be understood whole.
fn parse(text: &'static str) -> Builtin {
    let mut ids: HashMap<&str, TypeId> = HashMap::with_capacity(1024);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("type ").and_then(|l| l.split(' ').next()) {
            let next = TypeId(ids.len() as u32);
            ids.insert(name, next);
        }
    }
    let mut types: Vec<TypeDef> = Vec::with_capacity(ids.len());
    let mut kinds = HashMap::with_capacity(512);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("type ") {
            let id = TypeId(types.len() as u32);
            types.push(parse_type(rest, id, &mut kinds));
        } else if let (Some(rest), Some(def)) = (line.strip_prefix(' '), types.last_mut()) {
            let field = parse_field(rest, &ids);
            if field.required {
                def.required.push(field.name.clone());
            }
            def.fields.push(field);
        }
    }
    for t in &mut types {
        t.wire = wire(&t.fields);
        t.index();
    }
    let by_name = ids.into_iter().map(|(name, id)| (Str::from(name), id)).collect();
    Builtin {
        schema: Arc::new(Schema {
            types,
            by_name,
            ..Schema::default()
        }),
        kinds,
    }
}

fn wire(fields: &[Field]) -> Vec<(u32, Wire)> {
    let mut out: Vec<(u32, Wire)> = Vec::new();
    for (i, f) in fields.iter().enumerate() {
        match f.inline_of {
            Some(of) if !out.contains(&(f.inline_number, Wire::Inline(of))) => {
                out.push((f.inline_number, Wire::Inline(of)))
            }
            None if f.number != 0 => out.push((f.number, Wire::Field(i))),
            _ => {}
        }
    }
    out.sort_by_key(|(number, _)| *number);
    out
}

fn parse_type(line: &str, id: TypeId, kinds: &mut HashMap<(Str, Str), TypeId>) -> TypeDef {
    let mut words = line.split(' ');
    let mut def = TypeDef {
        name: words.next().unwrap_or_default().into(),
        proto_name: words.next().unwrap_or_default().into(),
        ..TypeDef::default()
    };
    for (key, value) in words.filter_map(|w| w.split_once('=')) {
        match key {
            "map" => def.atomic = value == "atomic",
            "kind" => {
                if let Some((api_version, kind)) = value.split_once(',') {
                    kinds.insert((api_version.into(), kind.into()), id);
                }
            }
            _ => {}
        }
    }
    def
}

fn parse_field(line: &str, ids: &HashMap<&str, TypeId>) -> Field {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    let ty = field_type(words.next().unwrap_or_default(), ids);
    let mut field = Field {
        name: name.into(),
        ty,
        ..Field::default()
    };
    let number = words.next().unwrap_or_default();
    let (own, inline) = number
        .split_once('/')
        .map_or((number, None), |(own, inline)| (own, inline.split_once(':')));
    field.number = own.parse().unwrap_or(0);
    if let Some((n, of)) = inline {
        field.inline_number = n.parse().unwrap_or(0);
        field.inline_of = ids.get(of).copied();
    }
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let list = || value.split(',').map(Str::from).collect::<Vec<_>>();
        match key {
            "ptr" => field.pointer = true,
            "omitempty" if field.omit == Omit::Never => field.omit = Omit::Empty,
            "omitzero" => field.omit = Omit::Zero,
            "required" => field.required = true,
            "list" => {
                field.list_type = match value {
                    "map" => ListType::Map,
                    "set" => ListType::Set,
                    _ => ListType::Atomic,
                }
            }
            "keys" => field.list_map_keys = list(),
            "map" => {
                field.map_atomic = value == "atomic";
                field.map_granular = value == "granular";
            }
            "patch" => {
                field.patch_strategy = value.split(',').fold(PatchStrategy::default(), |s, word| match word {
                    "merge" => PatchStrategy { merge: true, ..s },
                    "replace" => PatchStrategy { replace: true, ..s },
                    "retainKeys" => PatchStrategy { retain_keys: true, ..s },
                    _ => s,
                })
            }
            "mergekey" => field.patch_merge_key = value.into(),
            "format" => field.format = value.into(),
            "default" => field.default = serde_json::from_str(value).ok(),
            "enum" => field.enums = list(),
            "at" => field.place = value.parse().unwrap_or(0),
            "go" => field.go_type = value.into(),
            "embedded" => field.embedded = value.into(),
            "elements" => field.element_kind = value.split_once(',').map(|(v, k)| (v.into(), k.into())),
            _ => {}
        }
    }
    field
}

fn field_type(text: &str, ids: &HashMap<&str, TypeId>) -> FieldType {
    if let Some(element) = text.strip_prefix("[]") {
        return FieldType::List(Box::new(field_type(element, ids)));
    }
    if let Some(value) = text.strip_prefix("{}") {
        return FieldType::Map(Box::new(field_type(value, ids)));
    }
    match text {
        "bool" => FieldType::Bool,
        "int32" => FieldType::Int32,
        "int64" => FieldType::Int64,
        "uint32" => FieldType::UInt32,
        "uint64" => FieldType::UInt64,
        "float32" => FieldType::Float32,
        "float64" => FieldType::Float64,
        "string" => FieldType::String,
        "bytes" => FieldType::Bytes,
        "quantity" => FieldType::Quantity,
        "intOrString" => FieldType::IntOrString,
        "time" => FieldType::Time,
        "microTime" => FieldType::MicroTime,
        "duration" => FieldType::Duration,
        "raw" => FieldType::RawExtension,
        "fieldsV1" => FieldType::FieldsV1,
        other => ids.get(other).map_or(FieldType::Any, |id| FieldType::Struct(*id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        let text = include_str!("../schema/types.txt");
        let schema = builtin();
        assert_eq!(
            schema.types.len(),
            text.lines().filter(|l| l.starts_with("type ")).count()
        );
        let fields: usize = schema.types.iter().map(|t| t.fields.len()).sum();
        assert_eq!(fields, text.lines().filter(|l| l.starts_with(' ')).count());
        for t in &schema.types {
            assert!(t.fields.is_sorted_by(|a, b| a.name < b.name), "{}", t.name);
            assert!(
                t.fields.iter().all(|f| (f.inline_number == 0) == f.inline_of.is_none()),
                "{}",
                t.name
            );
        }
        let any = text
            .lines()
            .filter(|l| l.starts_with(' ') && l.split(' ').nth(2).unwrap().ends_with("any"))
            .count();
        let parsed_any = schema
            .types
            .iter()
            .flat_map(|t| &t.fields)
            .filter(|f| leaf(&f.ty) == &FieldType::Any)
            .count();
        assert_eq!(parsed_any, any, "a type name that nobody declares");
    }

    fn leaf(t: &FieldType) -> &FieldType {
        match t {
            FieldType::List(e) | FieldType::Map(e) => leaf(e),
            other => other,
        }
    }

    #[test]
    fn a_container_port_is_as_upstream_has_it() {
        let t = builtin_type("io.k8s.api.core.v1.Container").unwrap();
        let ports = t.def().field("ports").unwrap();
        assert_eq!(
            (ports.list_type, ports.patch_merge_key.as_str()),
            (ListType::Map, "containerPort")
        );
        assert_eq!(ports.list_map_keys, ["containerPort", "protocol"]);
        let FieldType::List(element) = &ports.ty else {
            panic!("{:?}", ports.ty)
        };
        let FieldType::Struct(id) = **element else {
            panic!("{element:?}")
        };
        let protocol = t.at(id).def().field("protocol").unwrap().clone();
        assert_eq!(protocol.default, Some("TCP".into()));
        assert_eq!(protocol.enums, ["SCTP", "TCP", "UDP"]);
    }

    #[test]
    fn fields_that_defaults_follow_are_known() {
        let schema = builtin();
        let names = |ty: &str| {
            let fields = schema.defaulted(schema.lookup(ty).unwrap());
            fields.map(|f| f.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("io.k8s.api.core.v1.EnvVar"), ["valueFrom"]);
        assert_eq!(names("io.k8s.api.core.v1.Pod"), ["spec"]);
        assert!(names("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").is_empty());
    }

    #[test]
    fn kinds_are_found() {
        for (api_version, kind) in [
            ("v1", "Pod"),
            ("apps/v1", "DeploymentList"),
            ("apps/v1", "DeleteOptions"),
            ("meta.k8s.io/v1", "Table"),
        ] {
            assert!(builtin_kind_at(api_version, kind).is_some(), "{api_version} {kind}");
        }
        assert!(builtin_kind_at("v1", "Deployment").is_none());
        for r in crate::resources::all() {
            assert!(builtin_kind(&r.gvk()).is_some(), "{:?}", r.gvk());
            for s in &r.subresources {
                assert!(builtin_kind(&s.kind).is_some(), "{:?}", s.kind);
            }
        }
    }

    #[test]
    fn reading_is_quick() {
        let start = std::time::Instant::now();
        let table = parse(include_str!("../schema/types.txt"));
        eprintln!("{} types in {:?}", table.schema.types.len(), start.elapsed());
    }
}
