//! The dynamic value that objects in the server are made of.
//!
//! Maps are vectors sorted by key: binary search, a defined iteration order, and a canonical form for free. Clones share them,
//! copied on write. Strings up to 24 bytes (nearly every field name and most values) live inline.
//! Numbers are `i64` where they fit and `f64` otherwise, as in upstream's unstructured objects.

use compact_str::CompactString;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use std::fmt;
use std::sync::Arc;

/// A string of the server: inline up to 24 bytes.
pub type Str = CompactString;

/// A JSON-like value in canonical form (maps sorted by key).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(Str),
    Array(Vec<Value>),
    Object(Map),
}

/// A map from strings to values, sorted by key.
///
/// A clone shares its members with the original until one of the two is changed, and then only the maps on the way to the change
/// become two. So keeping the old version of an object costs what differs, and what is the same by address needs no comparing.
#[derive(Clone, Default)]
pub struct Map(Option<Arc<Members>>);

type Members = Vec<(Str, Value)>;

impl Map {
    pub const fn new() -> Self {
        Map(None)
    }
    pub fn with_capacity(n: usize) -> Self {
        Map(Some(Arc::new(Vec::with_capacity(n))))
    }
    fn of(members: Members) -> Self {
        Map((!members.is_empty()).then(|| Arc::new(members)))
    }
    fn members(&self) -> &[(Str, Value)] {
        self.0.as_ref().map_or(&[], |members| members)
    }
    /// The members, this map's own from now on.
    fn own(&mut self) -> &mut Members {
        Arc::make_mut(self.0.get_or_insert_default())
    }
    fn into_members(self) -> Members {
        self.0.map_or_else(Vec::new, Arc::unwrap_or_clone)
    }
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.members().binary_search_by(|(k, _)| k.as_str().cmp(key))
    }
    /// Whether both are the same members at the same place in memory: then they are equal, and so is all below.
    pub fn is_shared_with(&self, other: &Map) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => self.is_empty() && other.is_empty(),
        }
    }
    /// Where the members stand in memory: no other map's are there while this one or a clone of it lives.
    pub(crate) fn place(&self) -> Option<usize> {
        self.0.as_ref().map(|members| Arc::as_ptr(members).addr())
    }
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.find(key).ok().map(|i| &self.members()[i].1)
    }
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        match self.find(key) {
            Ok(i) => Some(&mut self.own()[i].1),
            Err(_) => None,
        }
    }
    pub fn contains_key(&self, key: &str) -> bool {
        self.find(key).is_ok()
    }
    /// Sets `key`, returning what stood there.
    pub fn insert(&mut self, key: impl Into<Str>, value: impl Into<Value>) -> Option<Value> {
        let key = key.into();
        match self.find(&key) {
            Ok(i) => Some(std::mem::replace(&mut self.own()[i].1, value.into())),
            Err(i) => {
                self.own().insert(i, (key, value.into()));
                None
            }
        }
    }
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.find(key).ok().map(|i| self.own().remove(i).1)
    }
    /// The value at `key`, made by `default` when absent.
    pub fn entry_or_insert_with(&mut self, key: &str, default: impl FnOnce() -> Value) -> &mut Value {
        let i = match self.find(key) {
            Ok(i) => i,
            Err(i) => {
                self.own().insert(i, (Str::from(key), default()));
                i
            }
        };
        &mut self.own()[i].1
    }
    /// The map at `key`, made empty when absent or not a map.
    pub fn object_mut(&mut self, key: &str) -> &mut Map {
        let v = self.entry_or_insert_with(key, || Value::Object(Map::new()));
        if !matches!(v, Value::Object(_)) {
            *v = Value::Object(Map::new());
        }
        match v {
            Value::Object(m) => m,
            _ => unreachable!("set to an object above"),
        }
    }
    pub fn len(&self) -> usize {
        self.members().len()
    }
    pub fn is_empty(&self) -> bool {
        self.members().is_empty()
    }
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Str, &Value)> + ExactSizeIterator {
        self.members().iter().map(|(k, v)| (k, v))
    }
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Str, &mut Value)> {
        let members = match self.is_empty() {
            true => None,
            false => Some(self.own()),
        };
        members.into_iter().flatten().map(|(k, v)| (&*k, v))
    }
    pub fn keys(&self) -> impl Iterator<Item = &Str> {
        self.members().iter().map(|(k, _)| k)
    }
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.members().iter().map(|(_, v)| v)
    }
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.iter_mut().map(|(_, v)| v)
    }
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value) -> bool) {
        if !self.is_empty() {
            self.own().retain_mut(|(k, v)| keep(k, v));
        }
    }
    pub fn clear(&mut self) {
        self.0 = None;
    }
    /// Takes pairs in any order; of equal keys the last wins.
    pub fn from_pairs(mut pairs: Vec<(Str, Value)>) -> Self {
        if !pairs.is_sorted_by(|a, b| a.0 < b.0) {
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            pairs.reverse();
            pairs.dedup_by(|a, b| a.0 == b.0);
            pairs.reverse();
        }
        Map::of(pairs)
    }
    /// The value at a place in the order of keys.
    pub(crate) fn nth(&self, place: usize) -> Option<&Value> {
        self.members().get(place).map(|(_, v)| v)
    }
    /// Takes pairs that are known to be sorted, without duplicates.
    pub(crate) fn from_sorted(pairs: Vec<(Str, Value)>) -> Self {
        debug_assert!(pairs.is_sorted_by(|a, b| a.0 < b.0));
        Map::of(pairs)
    }
    /// Appends a pair whose key is known to sort after all present ones; falls back to `insert`.
    pub fn push(&mut self, key: impl Into<Str>, value: impl Into<Value>) {
        let key = key.into();
        match self.members().last() {
            Some((last, _)) if *last >= key => {
                self.insert(key, value);
            }
            _ => self.own().push((key, value.into())),
        }
    }
    /// Appends a pair wherever its key belongs; the map is none until it is [put in order](Self::in_order).
    pub(crate) fn append(&mut self, key: Str, value: Value) {
        self.own().push((key, value));
    }
    /// Of equal keys the last wins.
    pub(crate) fn in_order(self) -> Self {
        Map::from_pairs(self.into_members())
    }
    pub fn shrink_to_fit(&mut self) {
        if let Some(members) = self.0.as_mut().and_then(Arc::get_mut) {
            members.shrink_to_fit();
        }
    }

    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
    pub fn obj(&self, key: &str) -> Option<&Map> {
        self.get(key).and_then(Value::as_object)
    }
    pub fn arr(&self, key: &str) -> Option<&Vec<Value>> {
        self.get(key).and_then(Value::as_array)
    }
    pub fn int(&self, key: &str) -> Option<i64> {
        self.get(key).and_then(Value::as_i64)
    }
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        self.is_shared_with(other) || self.members() == other.members()
    }
}
impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl IntoIterator for Map {
    type Item = (Str, Value);
    type IntoIter = std::vec::IntoIter<(Str, Value)>;
    fn into_iter(self) -> Self::IntoIter {
        self.into_members().into_iter()
    }
}
impl<'a> IntoIterator for &'a Map {
    type Item = (&'a Str, &'a Value);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, (Str, Value)>, fn(&'a (Str, Value)) -> (&'a Str, &'a Value)>;
    fn into_iter(self) -> Self::IntoIter {
        self.members().iter().map(|(k, v)| (k, v))
    }
}
impl<K: Into<Str>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        Map::from_pairs(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl Value {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }
    /// An integer, or a float that is one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(i) => Some(*i),
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 9.0e15 => Some(*f as i64),
            _ => None,
        }
    }
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Int(i) => Some(*i as f64),
            Value::Float(f) => Some(*f),
            _ => None,
        }
    }
    pub fn as_array(&self) -> Option<&Vec<Value>> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }
    pub fn as_array_mut(&mut self) -> Option<&mut Vec<Value>> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Value::Object(m) => Some(m),
            _ => None,
        }
    }
    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        match self {
            Value::Object(m) => Some(m),
            _ => None,
        }
    }
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }
    /// The member `key` of a map.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_object().and_then(|m| m.get(key))
    }
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.as_object_mut().and_then(|m| m.get_mut(key))
    }
    /// Follows map keys; `None` when any is absent.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |v, key| v.get(key))
    }
    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        path.iter().try_fold(self, |v, key| v.get_mut(key))
    }
    /// Sets the value at a path of map keys, making maps on the way.
    pub fn set_at(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else {
            *self = value.into();
            return;
        };
        if !matches!(self, Value::Object(_)) {
            *self = Value::Object(Map::new());
        }
        if let Value::Object(map) = self {
            let parent = parents.iter().fold(map, |m, key| m.object_mut(key));
            parent.insert(*last, value);
        }
    }
    /// Removes the value at a path of map keys.
    pub fn remove_at(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        self.at_mut(parents)?.as_object_mut()?.remove(last)
    }
    /// What the value is, in JSON's words.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::Float(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }
    /// Converts anything serde can serialise.
    pub fn from_serialize(value: &impl Serialize) -> Result<Value, serde_json::Error> {
        // Through JSON text: the conversion stands off the hot path and needs no serializer of our own.
        serde_json::from_slice(&serde_json::to_vec(value)?)
    }
    /// Converts to anything serde can deserialise.
    pub fn to_deserialize<T: de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&serde_json::to_vec(self)?)
    }
}

macro_rules! from {
    ($($t:ty => $f:expr),* $(,)?) => {$(
        impl From<$t> for Value { fn from(v: $t) -> Value { let f: fn($t) -> Value = $f; f(v) } }
    )*};
}
from! {
    bool => Value::Bool,
    i32 => |v| Value::Int(v.into()),
    i64 => Value::Int,
    u32 => |v| Value::Int(v.into()),
    f64 => Value::Float,
    Str => Value::String,
    Map => Value::Object,
    String => |v| Value::String(v.into()),
    Vec<Value> => Value::Array,
}
impl From<usize> for Value {
    fn from(v: usize) -> Value {
        i64::try_from(v).map_or(Value::Float(v as f64), Value::Int)
    }
}
impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::String(v.into())
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(v: Option<T>) -> Value {
        v.map_or(Value::Null, Into::into)
    }
}
impl From<serde_json::Value> for Value {
    fn from(v: serde_json::Value) -> Value {
        match v {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(b),
            serde_json::Value::Number(n) => n
                .as_i64()
                .map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::NAN)), Value::Int),
            serde_json::Value::String(s) => Value::String(s.into()),
            serde_json::Value::Array(a) => Value::Array(a.into_iter().map(Into::into).collect()),
            serde_json::Value::Object(m) => Value::Object(m.into_iter().collect()),
        }
    }
}
impl From<Value> for serde_json::Value {
    fn from(v: Value) -> serde_json::Value {
        match v {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => b.into(),
            Value::Int(i) => i.into(),
            Value::Float(f) => f.into(),
            Value::String(s) => serde_json::Value::String(s.into()),
            Value::Array(a) => serde_json::Value::Array(a.into_iter().map(Into::into).collect()),
            Value::Object(m) => serde_json::Value::Object(m.into_iter().map(|(k, v)| (k.into(), v.into())).collect()),
        }
    }
}

/// Builds a [`Value`] from a JSON-like literal: `value!({"kind": kind, "items": []})`.
#[macro_export]
macro_rules! value {
    ($($json:tt)+) => { $crate::Value::from($crate::value::json!($($json)+)) };
}
pub use serde_json::json;

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => s.serialize_unit(),
            Value::Bool(b) => s.serialize_bool(*b),
            Value::Int(i) => s.serialize_i64(*i),
            Value::Float(f) => s.serialize_f64(*f),
            Value::String(v) => s.serialize_str(v),
            Value::Array(a) => {
                let mut seq = s.serialize_seq(Some(a.len()))?;
                a.iter().try_for_each(|v| seq.serialize_element(v))?;
                seq.end()
            }
            Value::Object(m) => m.serialize(s),
        }
    }
}
impl Serialize for Map {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.len()))?;
        self.iter().try_for_each(|(k, v)| map.serialize_entry(k.as_str(), v))?;
        map.end()
    }
}

struct ValueVisitor;
impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Value::deserialize(d)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(i64::try_from(v).map_or(Value::Float(v as f64), Value::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.into()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(64));
        while let Some(v) = seq.next_element()? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut pairs: Vec<(Str, Value)> = Vec::with_capacity(map.size_hint().unwrap_or(4).min(64));
        while let Some(pair) = map.next_entry::<Str, Value>()? {
            pairs.push(pair);
        }
        Ok(Value::Object(Map::from_pairs(pairs)))
    }
}
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Value, D::Error> {
        d.deserialize_any(ValueVisitor)
    }
}
impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Map, D::Error> {
        match Value::deserialize(d)? {
            Value::Object(m) => Ok(m),
            other => Err(de::Error::custom(format_args!(
                "expected an object, found {}",
                other.type_name()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_stay_sorted_and_the_last_duplicate_wins() {
        let v: Value = serde_json::from_str(r#"{"b":1,"a":{"z":null,"y":[1.5,true]},"b":2}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&v).unwrap(),
            r#"{"a":{"y":[1.5,true],"z":null},"b":2}"#
        );
    }

    #[test]
    fn paths_are_set_read_and_removed() {
        let mut v = Value::Null;
        v.set_at(&["spec", "nodeName"], "n1");
        assert_eq!(v.at(&["spec", "nodeName"]).and_then(Value::as_str), Some("n1"));
        assert_eq!(v.remove_at(&["spec", "nodeName"]), Some("n1".into()));
        assert_eq!(v.at(&["spec", "nodeName"]), None);
    }

    #[test]
    fn clones_share_what_neither_has_changed() {
        let first: Value = serde_json::from_str(r#"{"a":{"b":{"c":1}},"d":{"e":2},"f":{}}"#).unwrap();
        let mut second = first.clone();
        second.set_at(&["a", "b", "c"], 3i64);
        assert_eq!(first.at(&["a", "b", "c"]), Some(&Value::Int(1)));
        assert_eq!(second.at(&["a", "b", "c"]), Some(&Value::Int(3)));
        assert_ne!(first, second);
        let shared = |key: &str| match (first.get(key), second.get(key)) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => a.is_shared_with(b),
            _ => false,
        };
        assert!(!shared("a") && shared("d") && shared("f"));
        // Reading what isn't there, and going through an empty map, makes none its own.
        let mut third = first.clone();
        assert_eq!(third.get_mut("nothing"), None);
        assert_eq!(third.remove_at(&["d", "nothing"]), None);
        let (Value::Object(a), Value::Object(b)) = (&first, &third) else {
            unreachable!("both are objects")
        };
        assert!(a.iter().zip(b.iter()).filter(|(a, b)| a == b).count() == 3);
    }

    #[test]
    fn large_numbers_become_floats() {
        let v: Value = serde_json::from_str("[9223372036854775807,18446744073709551615]").unwrap();
        assert_eq!(
            v,
            Value::Array(vec![Value::Int(i64::MAX), Value::Float(18446744073709551615.0)])
        );
    }
}
