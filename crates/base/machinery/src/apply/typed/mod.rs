//! Walking values by type for apply.
//!
//! Each node of a type resolves to an *atom*: what the value may be (scalar, list, map) and whether a list or map is
//! owned element by element or as a whole. The atoms are those that upstream derives from its OpenAPI document.

mod atomics;
mod compare;
mod fieldset;
mod first;
mod merge;
mod reconcile;
mod remove;
mod settled;
mod validate;

pub use atomics::atomics;
pub use compare::{Comparison, compare};
pub use fieldset::{ensure_named_fields, to_field_set};
pub use first::first;
pub use merge::merge;
pub use reconcile::reconcile;
pub use remove::{extract, remove};
pub use settled::is_settled;
pub use validate::validate;

use super::fieldpath::PathElement;
use keelson_api::schema::{FieldType, ListType, Omit, Schema, SchemaRef, TypeDef};
use keelson_api::{Map, Str, Value};
use std::cmp::Ordering;

/// A complaint about a value, with the path to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedError {
    path: String,
    message: String,
}

/// The most bytes of complaints that are told: each has the path to its place, and a step of it may be as long as the object.
const MOST: usize = 1 << 20;

/// Complaints, printed as upstream prints them; of those that would be too many it is told how many they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypedErrors {
    told: Vec<TypedError>,
    bytes: usize,
    more: usize,
}

impl TypedErrors {
    fn one(message: impl Into<String>) -> TypedErrors {
        let mut errs = TypedErrors::default();
        let (path, message) = (String::new(), message.into());
        errs.add("", TypedError { path, message });
        errs
    }
    fn add(&mut self, prefix: &str, mut e: TypedError) {
        let bytes = self.bytes + prefix.len() + e.path.len() + e.message.len();
        if self.more > 0 || (bytes > MOST && !self.told.is_empty()) {
            self.more += 1;
            return;
        }
        e.path.insert_str(0, prefix);
        self.bytes = bytes;
        self.told.push(e);
    }
    fn prefixed(self, prefix: &PathElement) -> TypedErrors {
        if self.is_empty() {
            return self;
        }
        let prefix = prefix.to_string();
        let mut errs = TypedErrors::default();
        self.told.into_iter().for_each(|e| errs.add(&prefix, e));
        errs.more += self.more;
        errs
    }
    fn is_empty(&self) -> bool {
        self.told.is_empty()
    }
    fn extend(&mut self, other: TypedErrors) {
        other.told.into_iter().for_each(|e| self.add("", e));
        self.more += other.more;
    }
    fn into_result(self) -> Result<(), TypedErrors> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl std::fmt::Display for TypedErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mut each: Vec<String> = self
            .told
            .iter()
            .map(|e| {
                if e.path.is_empty() {
                    e.message.clone()
                } else {
                    format!("{}: {}", e.path, e.message)
                }
            })
            .collect();
        if self.more > 0 {
            each.push(format!("{} more complaints aren't told", self.more));
        }
        match each.as_slice() {
            [one] => f.write_str(one),
            many => write!(f, "errors:\n  {}", many.join("\n  ")),
        }
    }
}

static ANY: FieldType = FieldType::Any;
static RAW: FieldType = FieldType::RawExtension;

/// A node of a type.
#[derive(Clone, Copy, Debug)]
pub struct Ty<'a> {
    schema: &'a Schema,
    ty: &'a FieldType,
    list: ListType,
    keys: &'a [Str],
    /// Whether a map is owned as a whole; `None`: as its type says.
    atomic: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Numeric,
    String,
    Boolean,
    Untyped,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ListAtom<'a> {
    pub associative: bool,
    pub keys: &'a [Str],
    pub element: Ty<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct MapAtom<'a> {
    schema: &'a Schema,
    pub def: Option<&'a TypeDef>,
    pub atomic: bool,
    /// The type of keys that no field names; `None`: there are none.
    pub element: Option<Ty<'a>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Atom<'a> {
    pub scalar: Option<Scalar>,
    pub list: Option<ListAtom<'a>>,
    pub map: Option<MapAtom<'a>>,
}

impl<'a> Ty<'a> {
    fn of(schema: &'a Schema, ty: &'a FieldType) -> Ty<'a> {
        Ty {
            schema,
            ty,
            list: ListType::Atomic,
            keys: &[],
            atomic: None,
        }
    }

    pub(super) fn resolve(self) -> Atom<'a> {
        let scalar = |s| Atom {
            scalar: Some(s),
            ..Atom::default()
        };
        match self.ty {
            FieldType::Bool => scalar(Scalar::Boolean),
            FieldType::Int32
            | FieldType::Int64
            | FieldType::UInt32
            | FieldType::UInt64
            | FieldType::Float32
            | FieldType::Float64 => scalar(Scalar::Numeric),
            FieldType::String | FieldType::Bytes | FieldType::Duration => scalar(Scalar::String),
            FieldType::Quantity | FieldType::IntOrString | FieldType::Time | FieldType::MicroTime => {
                scalar(Scalar::Untyped)
            }
            FieldType::RawExtension => self.untyped(&RAW, true),
            FieldType::Any | FieldType::FieldsV1 => self.untyped(&ANY, false),
            FieldType::Struct(id) => def_atom(self.schema, self.schema.get(*id), self.atomic),
            FieldType::Map(el) => Atom {
                map: Some(MapAtom {
                    schema: self.schema,
                    def: None,
                    atomic: self.atomic == Some(true),
                    element: Some(Ty::of(self.schema, el)),
                }),
                ..Atom::default()
            },
            FieldType::List(el) => self.list_atom(self.list, self.keys, el),
            FieldType::ListOf(def) => self.list_atom(def.list_type, &def.keys, &def.element),
        }
    }

    fn list_atom(self, kind: ListType, keys: &'a [Str], el: &'a FieldType) -> Atom<'a> {
        let list = ListAtom {
            associative: kind != ListType::Atomic,
            keys: if kind == ListType::Map { keys } else { &[] },
            element: Ty::of(self.schema, el),
        };
        Atom {
            list: Some(list),
            ..Atom::default()
        }
    }

    /// A value of any shape: maps are owned key by key (or whole, for raw extensions), lists always whole.
    fn untyped(self, below: &'static FieldType, atomic: bool) -> Atom<'a> {
        Atom {
            scalar: Some(Scalar::Untyped),
            list: Some(ListAtom {
                associative: false,
                keys: &[],
                element: Ty::of(self.schema, &RAW),
            }),
            map: Some(MapAtom {
                schema: self.schema,
                def: None,
                atomic,
                element: Some(Ty::of(self.schema, below)),
            }),
        }
    }
}

pub(super) fn def_atom<'a>(schema: &'a Schema, def: &'a TypeDef, atomic: Option<bool>) -> Atom<'a> {
    let element = match &def.additional {
        Some(ty) => Some(Ty::of(schema, ty)),
        None if def.preserve_unknown || def.fields.is_empty() => Some(Ty::of(schema, &ANY)),
        None => None,
    };
    let map = MapAtom {
        schema,
        def: Some(def),
        atomic: atomic.unwrap_or(def.atomic),
        element,
    };
    Atom {
        map: Some(map),
        ..Atom::default()
    }
}

pub(super) fn root_atom(schema: &SchemaRef) -> Atom<'_> {
    def_atom(&schema.schema, schema.def(), None)
}

impl<'a> Atom<'a> {
    /// Narrows to what the value is; a null or a value of no allowed kind leaves it as it is.
    pub(super) fn deduce(self, v: Option<&Value>) -> Atom<'a> {
        match v {
            Some(Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::String(_)) if self.scalar.is_some() => {
                Atom {
                    scalar: self.scalar,
                    ..Atom::default()
                }
            }
            Some(Value::Array(_)) if self.list.is_some() => Atom {
                list: self.list,
                ..Atom::default()
            },
            Some(Value::Object(_)) if self.map.is_some() => Atom {
                map: self.map,
                ..Atom::default()
            },
            _ => self,
        }
    }
    /// Which kinds are allowed, to compare two deductions.
    pub(super) fn kinds(&self) -> (bool, bool, bool) {
        (self.scalar.is_some(), self.list.is_some(), self.map.is_some())
    }
}

impl<'a> MapAtom<'a> {
    pub(super) fn field(&self, name: &str) -> Option<Ty<'a>> {
        let f = self.def?.field(name)?;
        Some(Ty {
            schema: self.schema,
            ty: &f.ty,
            list: f.list_type,
            keys: &f.list_map_keys,
            atomic: match (f.map_atomic, f.map_granular) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
        })
    }
    /// The type at a key: the field's, else that of unnamed keys.
    pub(super) fn at(&self, name: &str) -> Option<Ty<'a>> {
        self.field(name).or(self.element)
    }
    /// Whether it has no fields and takes anything.
    pub(super) fn is_untyped(&self) -> bool {
        self.def.is_none_or(|d| d.fields.is_empty())
            && self
                .element
                .is_some_and(|e| matches!(e.ty, FieldType::Any | FieldType::RawExtension))
    }
}

/// The members of two maps, key by key.
pub(super) fn paired<'a>(
    l: &'a Map,
    r: &'a Map,
) -> impl Iterator<Item = (&'a Str, Option<&'a Value>, Option<&'a Value>)> {
    let (mut l, mut r) = (l.iter().peekable(), r.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (l.peek(), r.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let left = if order.is_le() { l.next() } else { None };
        let right = if order.is_ge() { r.next() } else { None };
        let (key, _) = left.or(right)?;
        Some((key, left.map(|(_, v)| v), right.map(|(_, v)| v)))
    })
}

/// The step that leads to an element of an associative list.
pub(super) fn list_item(list: &ListAtom, item: &Value) -> Result<PathElement, String> {
    if !list.associative {
        return Err("invalid indexing of non-associative list".into());
    }
    if list.keys.is_empty() {
        return match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            v => Ok(PathElement::Value(v.clone())),
        };
    }
    let m = match item {
        Value::Null => return Err("associative list with keys may not have a null element".into()),
        Value::Object(m) => m,
        _ => return Err("associative list with keys may not have non-map elements".into()),
    };
    let mut keys = Vec::with_capacity(list.keys.len());
    for name in list.keys {
        if let Some(v) = m.get(name) {
            keys.push((name.clone(), v.clone()));
        } else if let Some(v) = key_default(&list.element, name)? {
            keys.push((name.clone(), v));
        }
    }
    if keys.is_empty() {
        let names: Vec<String> = list.keys.iter().map(|k| crate::go::go_quote(k)).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            names.join(" ")
        ));
    }
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(PathElement::Key(keys))
}

/// The value of an absent key field: its default, or the zero value of a field that is always there.
fn key_default(element: &Ty, name: &str) -> Result<Option<Value>, String> {
    let Some(map) = element.resolve().map else {
        return Err(format!(
            "couldn't find default value for {name}: associative list may not have non-map types"
        ));
    };
    let Some(field) = map.def.and_then(|d| d.field(name)) else {
        return Ok(None);
    };
    if let Some(v) = &field.default {
        return Ok(Some(v.clone()));
    }
    let always = field.omit == Omit::Never && !field.pointer && map.def.is_some_and(|d| !d.name.is_empty());
    Ok(match field.ty {
        FieldType::String if always => Some(Value::from("")),
        FieldType::Int32 | FieldType::Int64 if always => Some(Value::Int(0)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_complaints_under_a_long_step_are_not_each_as_long() {
        let mut errs = TypedErrors::default();
        (0..10_000).for_each(|i| errs.extend(TypedErrors::one(format!("wrong {i}"))));
        assert!(errs.to_string().ends_with("\n  wrong 9999"));
        let long = PathElement::Field("x".repeat(1 << 18).into());
        let told = errs.prefixed(&long).prefixed(&long).to_string();
        assert!(told.len() < 2 * MOST, "{}", told.len());
        assert!(told.contains("x: wrong 0\n"));
        assert!(told.ends_with("\n  9999 more complaints aren't told"));
    }
}
