//! Where an object has values, or could have some, and how each is changed.

use super::values;
use crate::world::Seed;
use keelson_api::schema::builtin_kind_at;
use keelson_api::schema::{Field, FieldType, SchemaRef};
use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq)]
pub enum Key {
    Name(String),
    Index(usize),
}

/// A place in an object: a field, an element or a map's value, there or not.
#[derive(Clone, Debug)]
pub struct Place {
    pub path: Vec<Key>,
    pub ty: FieldType,
    /// The schema's fact, where it is a field.
    pub field: Option<Field>,
    pub value: Option<Value>,
    /// By which fields the elements on the way are known: at which part of the path, and their names.
    pub keys: Vec<(usize, Vec<String>)>,
}

impl Place {
    pub fn pointer(&self) -> String {
        let mut out = String::new();
        for key in &self.path {
            match key {
                Key::Name(name) => out += &format!("/{}", name.replace('~', "~0").replace('/', "~1")),
                Key::Index(i) => out += &format!("/{i}"),
            }
        }
        out
    }

    /// An object with nothing in it but what stands at this place, and what elements of lists on the way are known by.
    /// `None` if a list on the way is replaced as a whole, and so can't be named in part.
    pub fn alone(&self, object: &Value, value: Value) -> Option<Value> {
        let mut out = value;
        for (depth, key) in self.path.iter().enumerate().rev() {
            out = match key {
                Key::Name(name) => Value::Object(Map::from_iter([(name.clone(), out)])),
                Key::Index(_) => {
                    let (_, keys) = self.keys.iter().find(|(at, _)| *at == depth)?;
                    let element = self.path[..=depth].iter().try_fold(object, |v, key| match key {
                        Key::Name(name) => v.get(name),
                        Key::Index(i) => v.get(*i),
                    })?;
                    if let Value::Object(map) = &mut out {
                        for key in keys {
                            if let (Some(v), false) = (element.get(key), map.contains_key(key)) {
                                map.insert(key.clone(), v.clone());
                            }
                        }
                    }
                    Value::Array(vec![out])
                }
            };
        }
        Some(out)
    }
}

/// One change of a value.
#[derive(Clone, Debug)]
pub struct Change {
    pub label: String,
    pub to: To,
}

#[derive(Clone, Debug)]
pub enum To {
    Value(Value),
    Removed,
    /// The field is written twice, the second time with this.
    Twice(Value),
    /// The field's name is written so.
    Renamed(String),
    /// A field that isn't known stands beside it.
    Beside,
}

/// A key that stands for one that can't be twice in a map.
const TWICE: &str = "written-twice";

impl Change {
    /// The object's text with the change; as it was if the place isn't there any more.
    pub fn applied(&self, object: &Value, place: &Place) -> String {
        let mut object = object.clone();
        let Some((last, above)) = place.path.split_last() else {
            return object.to_string();
        };
        let mut at = Some(&mut object);
        for key in above {
            at = at.and_then(|v| match key {
                Key::Name(name) => v.get_mut(name),
                Key::Index(i) => v.get_mut(*i),
            });
        }
        let mut name = String::new();
        match (at, last) {
            (Some(Value::Object(map)), Key::Name(key)) => {
                name.clone_from(key);
                match &self.to {
                    To::Value(v) => drop(map.insert(key.clone(), v.clone())),
                    To::Removed => drop(map.remove(key)),
                    To::Twice(v) => drop(map.insert(TWICE.into(), v.clone())),
                    To::Renamed(to) => {
                        if let Some(v) = map.remove(key) {
                            map.insert(to.clone(), v);
                        }
                    }
                    To::Beside => drop(map.insert("notAField".into(), Value::from("x"))),
                }
            }
            (Some(Value::Array(items)), Key::Index(i)) if *i < items.len() => match &self.to {
                To::Value(v) => items[*i] = v.clone(),
                To::Removed => drop(items.remove(*i)),
                _ => {}
            },
            _ => {}
        }
        object
            .to_string()
            .replace(&format!("\"{TWICE}\""), &Value::from(name).to_string())
    }
}

/// All places of an object and their changes.
pub fn changes(object: &Value, seed: &Seed) -> Vec<(Place, Vec<Change>)> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let mut out = Vec::new();
    if let Some(schema) = builtin_kind_at(api_version, seed.facts.kind) {
        walk_struct(&schema, object, &Way::default(), &mut out);
    }
    out.into_iter()
        .map(|place| {
            let changes = values::of(&place);
            (place, changes)
        })
        .collect()
}

/// How a place was come to.
#[derive(Clone, Default)]
struct Way {
    path: Vec<Key>,
    keys: Vec<(usize, Vec<String>)>,
}

impl Way {
    fn to(&self, key: Key) -> Way {
        let mut way = self.clone();
        way.path.push(key);
        way
    }
}

fn walk_struct(schema: &SchemaRef, value: &Value, way: &Way, out: &mut Vec<Place>) {
    for field in &schema.def().fields {
        let way = way.to(Key::Name(field.name.to_string()));
        walk(schema, &field.ty, Some(field), value.get(field.name.as_str()), way, out);
    }
}

fn walk(
    schema: &SchemaRef,
    ty: &FieldType,
    field: Option<&Field>,
    value: Option<&Value>,
    way: Way,
    out: &mut Vec<Place>,
) {
    out.push(Place {
        path: way.path.clone(),
        ty: ty.clone(),
        field: field.cloned(),
        value: value.cloned(),
        keys: way.keys.clone(),
    });
    match (ty, value) {
        (FieldType::Struct(ty), Some(value @ Value::Object(_))) => walk_struct(&schema.at(*ty), value, &way, out),
        (FieldType::List(element), Some(Value::Array(items))) => {
            for (i, item) in items.iter().enumerate() {
                let mut inner = way.to(Key::Index(i));
                if let Some(field) = field.filter(|f| f.patch_strategy.merge || !f.list_map_keys.is_empty()) {
                    let mut keys: Vec<String> = field.list_map_keys.iter().map(ToString::to_string).collect();
                    keys.push(field.patch_merge_key.to_string());
                    inner.keys.push((way.path.len(), keys));
                }
                walk(schema, element, None, Some(item), inner, out);
            }
        }
        (FieldType::Map(element), Some(Value::Object(map))) => {
            for (key, item) in map {
                walk(schema, element, None, Some(item), way.to(Key::Name(key.clone())), out);
            }
        }
        _ => {}
    }
}

/// The least value of a type that says something.
pub fn least(ty: &FieldType) -> Value {
    match ty {
        FieldType::Bool => Value::from(true),
        FieldType::Int32 | FieldType::Int64 | FieldType::UInt32 | FieldType::UInt64 => Value::from(1),
        FieldType::Float32 | FieldType::Float64 => Value::from(1.5),
        FieldType::Quantity => Value::from("1"),
        FieldType::Bytes => Value::from("YQ=="),
        FieldType::Time => Value::from("2026-01-02T03:04:05Z"),
        FieldType::MicroTime => Value::from("2026-01-02T03:04:05.000000Z"),
        FieldType::Duration => Value::from("1m0s"),
        FieldType::IntOrString => Value::from(1),
        FieldType::List(element) => Value::Array(vec![least(element)]),
        FieldType::Map(element) => Value::Object(Map::from_iter([("a".to_string(), least(element))])),
        FieldType::Struct(_) | FieldType::FieldsV1 | FieldType::RawExtension => Value::Object(Map::new()),
        _ => Value::from("a"),
    }
}

/// Unknown fields at the top, in the metadata and in the spec.
pub fn with_unknown_fields(object: &Value) -> String {
    let mut object = object.clone();
    for at in ["", "/metadata", "/spec"] {
        if let Some(Value::Object(map)) = object.pointer_mut(at) {
            map.insert("notAField".into(), Value::from("x"));
        }
    }
    let text = object.to_string();
    // And a known one written twice.
    text.replacen("\"kind\":", "\"kind\":\"Other\",\"kind\":", 1)
}
