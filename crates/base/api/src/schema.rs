//! What is known of a type: field names, protobuf numbers and wire types, list types, patch strategies, defaults.
//!
//! One representation serves built-in kinds (packed table, generated from the published API modules) and CRDs (built
//! from their structural schema), so that decoding, defaulting, pruning, patching and apply are written once.
//! A schema knows facts; it decides nothing.

use crate::codec::FieldSets;
use crate::value::{Str, Value};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

pub use crate::builtin::{builtin, builtin_kind, builtin_kind_at, builtin_type};

/// The number of a type within its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// A closed set of types that refer to each other by [`TypeId`].
#[derive(Debug, Default)]
pub struct Schema {
    pub types: Vec<TypeDef>,
    pub by_name: HashMap<Str, TypeId>,
    /// A custom resource's structural schema, in the machinery's own form; pruning, defaulting and validation follow it.
    pub custom: Option<Arc<dyn std::any::Any + Send + Sync>>,
    pub(crate) field_sets: FieldSets,
    /// By type, the places of fields that defaults follow; computed when it is first asked for.
    pub(crate) defaulted: OnceLock<Vec<Vec<usize>>>,
}

/// A type of a schema, with what keeps the schema alive.
#[derive(Clone, Debug)]
pub struct SchemaRef {
    pub schema: Arc<Schema>,
    pub ty: TypeId,
}

/// A struct type.
#[derive(Clone, Debug, Default)]
pub struct TypeDef {
    /// `io.k8s.api.core.v1.PodSpec`, as OpenAPI names it; empty for anonymous types of a CRD.
    pub name: Str,
    /// Sorted by JSON name. Inlined structs are flattened for JSON; see [`Field::inline_of`] for protobuf.
    pub fields: Vec<Field>,
    /// Protobuf message name where it differs (`k8s.io.api.core.v1.PodSpec`).
    pub proto_name: Str,
    /// `atomic` structs are owned as a whole by server-side apply.
    pub atomic: bool,
    /// CRD: unknown fields are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// CRD: `x-kubernetes-embedded-resource`.
    pub embedded_resource: bool,
    /// Fields besides the named ones (CRD `additionalProperties` together with properties).
    pub additional: Option<FieldType>,
    /// Name of the field that says which union member is set, and similar facts that only validation reads.
    pub required: Vec<Str>,
    /// The message's fields by rising protobuf number; empty for types without a protobuf form.
    pub wire: Vec<(u32, Wire)>,
    /// The first eight bytes of each field's name, for finding it quickly; empty where not computed.
    pub prefixes: Vec<u64>,
}

/// The first eight bytes of a name as a number that sorts as the name does.
#[inline]
pub(crate) fn prefix(name: &[u8]) -> u64 {
    match name.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..name.len()].copy_from_slice(name);
            u64::from_be_bytes(head)
        }
    }
}

/// What stands at a protobuf number of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// The field at this index of [`TypeDef::fields`].
    Field(usize),
    /// A message whose fields stand inline in JSON.
    Inline(TypeId),
}

/// A field of a struct.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: Str,
    pub ty: FieldType,
    /// Protobuf field number; 0 when the type has no protobuf form.
    pub number: u32,
    /// For a field that stands inside an embedded message in protobuf but inline in JSON: the number of that message's
    /// field (0: not inlined), and its type.
    pub inline_number: u32,
    pub inline_of: Option<TypeId>,
    /// A Go pointer (or slice/map): absent differs from zero.
    pub pointer: bool,
    pub omit: Omit,
    /// Value filled in when absent (constant defaults only; conditional ones are code of the strategy).
    pub default: Option<Value>,
    pub patch_strategy: PatchStrategy,
    pub patch_merge_key: Str,
    pub list_type: ListType,
    pub list_map_keys: Vec<Str>,
    /// `granular` maps are merged key by key, `atomic` ones owned as a whole.
    pub map_atomic: bool,
    /// The field's value is merged key by key though values of its type are owned as a whole elsewhere.
    pub map_granular: bool,
    pub required: bool,
    /// CRD `nullable: true`: an explicit null is kept.
    pub nullable: bool,
    /// Allowed values of a string field; empty: any.
    pub enums: Vec<Str>,
    pub format: Str,
    /// Where Go's encoder writes it among the type's fields.
    pub place: u16,
    /// What Go calls the type, where that doesn't follow from it: `types.UID`, `[]v1.FinalizerName`.
    pub go_type: Str,
    /// The Go structs between the type and the field, which stand inline: `VolumeSource`, dotted.
    pub embedded: Str,
    /// Version and kind that upstream sets on the objects of a list, which has no place for them in protobuf.
    pub element_kind: Option<(Str, Str)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Omit {
    /// Always written, even when empty.
    #[default]
    Never,
    /// `omitempty`
    Empty,
    /// `omitzero`
    Zero,
}

/// Which patch directives a field carries (`patchStrategy:"merge,retainKeys"`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

/// The type of a field, element or map value.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldType {
    Bool,
    Int32,
    Int64,
    UInt32,
    UInt64,
    Float32,
    Float64,
    String,
    /// Base64 in JSON, bytes in protobuf.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339 with six digits.
    MicroTime,
    /// Go duration string (`1m30s`).
    Duration,
    /// Any object or value, kept as it came.
    RawExtension,
    /// The managed-fields set: JSON inside, raw bytes in protobuf.
    FieldsV1,
    /// Any JSON value (`apiextensions JSON`, a CRD's untyped field).
    Any,
    /// A JSON schema node that is either a schema or a bool, or a schema or a list (OpenAPI v3 types of CRDs).
    Struct(TypeId),
    List(Box<FieldType>),
    Map(Box<FieldType>),
    /// A list inside a list or map whose merge behaviour differs from atomic (CRDs nest freely).
    ListOf(Box<ListDef>),
}

/// A list with its merge behaviour, where no [`Field`] carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct ListDef {
    pub element: FieldType,
    pub list_type: ListType,
    pub keys: Vec<Str>,
}

impl Default for Field {
    fn default() -> Self {
        Field {
            name: Str::default(),
            ty: FieldType::Any,
            number: 0,
            inline_number: 0,
            inline_of: None,
            pointer: false,
            omit: Omit::Never,
            default: None,
            patch_strategy: PatchStrategy::default(),
            patch_merge_key: Str::default(),
            list_type: ListType::Atomic,
            list_map_keys: Vec::new(),
            map_atomic: false,
            map_granular: false,
            required: false,
            nullable: false,
            enums: Vec::new(),
            format: Str::default(),
            place: 0,
            go_type: Str::default(),
            embedded: Str::default(),
            element_kind: None,
        }
    }
}

impl Schema {
    pub fn get(&self, id: TypeId) -> &TypeDef {
        &self.types[id.0 as usize]
    }
    pub fn lookup(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }
    /// The fields of a type that have a default or lead to one; most lead to none.
    pub fn defaulted(&self, id: TypeId) -> impl Iterator<Item = &Field> {
        let places = &self.defaulted.get_or_init(|| self.find_defaulted())[id.0 as usize];
        places.iter().map(move |place| &self.get(id).fields[*place])
    }
    /// Round by round, since types may hold themselves.
    fn find_defaulted(&self) -> Vec<Vec<usize>> {
        let mut found = vec![Vec::new(); self.types.len()];
        loop {
            let leads =
                |f: &Field| f.default.is_some() || f.ty.holds().is_some_and(|id| !found[id.0 as usize].is_empty());
            let places = |t: &TypeDef| (0..t.fields.len()).filter(|i| leads(&t.fields[*i])).collect();
            let next: Vec<Vec<usize>> = self.types.iter().map(places).collect();
            if next == found {
                return found;
            }
            found = next;
        }
    }
}

impl FieldType {
    /// Whether Go's type has a decoder of its own, whose refusal ends all reading.
    pub fn reads_itself(&self) -> bool {
        matches!(
            self,
            FieldType::IntOrString | FieldType::Time | FieldType::MicroTime | FieldType::Duration | FieldType::Quantity
        )
    }
    /// The struct that a value is, or that its elements are.
    fn holds(&self) -> Option<TypeId> {
        match self {
            FieldType::Struct(id) => Some(*id),
            FieldType::List(element) | FieldType::Map(element) => element.holds(),
            FieldType::ListOf(def) => def.element.holds(),
            _ => None,
        }
    }
}

impl TypeDef {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.field_index(name).map(|i| &self.fields[i])
    }
    /// The index of a field in `fields`.
    #[inline]
    pub fn field_index(&self, name: &str) -> Option<usize> {
        if self.prefixes.len() != self.fields.len() {
            return self.fields.binary_search_by(|f| f.name.as_str().cmp(name)).ok();
        }
        let wanted = prefix(name.as_bytes());
        let first = self.prefixes.partition_point(|p| *p < wanted);
        let candidates = self.prefixes[first..].iter().take_while(|p| **p == wanted).count();
        (first..first + candidates).find(|i| self.fields[*i].name == name)
    }
    /// Computes what makes `field` quick.
    pub fn index(&mut self) {
        self.prefixes = self.fields.iter().map(|f| prefix(f.name.as_bytes())).collect();
    }
}

impl SchemaRef {
    pub fn def(&self) -> &TypeDef {
        self.schema.get(self.ty)
    }
    pub fn at(&self, ty: TypeId) -> SchemaRef {
        SchemaRef {
            schema: self.schema.clone(),
            ty,
        }
    }
}
