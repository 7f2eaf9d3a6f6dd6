//! An API object: a map with `apiVersion`, `kind` and `metadata`, and accessors for what every layer reads.

use crate::value::{Map, Str, Value};
use crate::{GroupVersionKind, gvk};
use serde::{Deserialize, Serialize};

/// An API object. Derefs to its [`Map`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Map);

impl std::ops::Deref for Object {
    type Target = Map;
    fn deref(&self) -> &Map {
        &self.0
    }
}
impl std::ops::DerefMut for Object {
    fn deref_mut(&mut self) -> &mut Map {
        &mut self.0
    }
}
impl From<Object> for Value {
    fn from(o: Object) -> Value {
        Value::Object(o.0)
    }
}
impl TryFrom<Value> for Object {
    type Error = Value;
    fn try_from(v: Value) -> Result<Object, Value> {
        match v {
            Value::Object(m) => Ok(Object(m)),
            other => Err(other),
        }
    }
}

impl Object {
    pub fn new() -> Self {
        Object(Map::new())
    }
    pub fn api_version(&self) -> &str {
        self.str("apiVersion").unwrap_or_default()
    }
    pub fn kind(&self) -> &str {
        self.str("kind").unwrap_or_default()
    }
    pub fn gvk(&self) -> GroupVersionKind {
        let gv = gvk::GroupVersion::parse(self.api_version());
        GroupVersionKind {
            group: gv.group,
            version: gv.version,
            kind: self.kind().into(),
        }
    }
    pub fn set_gvk(&mut self, api_version: &str, kind: &str) {
        self.insert("apiVersion", api_version);
        self.insert("kind", kind);
    }
    /// Follows map keys from the root.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        self.get(first)?.at(rest)
    }
    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        let (first, rest) = path.split_first()?;
        self.get_mut(first)?.at_mut(rest)
    }
    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path).and_then(Value::as_str)
    }
    pub fn set_at(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else {
            return;
        };
        parents
            .iter()
            .fold(&mut self.0, |m, key| m.object_mut(key))
            .insert(*last, value);
    }
    pub fn remove_at(&mut self, path: &[&str]) -> Option<Value> {
        match path {
            [] => None,
            [one] => self.0.remove(one),
            [first, rest @ ..] => self.0.get_mut(first)?.remove_at(rest),
        }
    }
    pub fn meta(&self) -> Option<&Map> {
        self.obj("metadata")
    }
    pub fn meta_mut(&mut self) -> &mut Map {
        self.0.object_mut("metadata")
    }
    fn meta_str(&self, key: &str) -> &str {
        self.meta().and_then(|m| m.str(key)).unwrap_or_default()
    }
    /// Sets a string of the metadata; an empty one is removed.
    pub fn set_meta(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            self.meta_mut().remove(key);
        } else {
            self.meta_mut().insert(key, value);
        }
    }
    pub fn name(&self) -> &str {
        self.meta_str("name")
    }
    pub fn generate_name(&self) -> &str {
        self.meta_str("generateName")
    }
    pub fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }
    pub fn uid(&self) -> &str {
        self.meta_str("uid")
    }
    pub fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }
    pub fn creation_timestamp(&self) -> &str {
        self.meta_str("creationTimestamp")
    }
    pub fn deletion_timestamp(&self) -> Option<&str> {
        self.meta().and_then(|m| m.str("deletionTimestamp"))
    }
    pub fn deletion_grace_period_seconds(&self) -> Option<i64> {
        self.meta().and_then(|m| m.int("deletionGracePeriodSeconds"))
    }
    pub fn generation(&self) -> i64 {
        self.meta().and_then(|m| m.int("generation")).unwrap_or(0)
    }
    pub fn labels(&self) -> Option<&Map> {
        self.meta().and_then(|m| m.obj("labels"))
    }
    pub fn annotations(&self) -> Option<&Map> {
        self.meta().and_then(|m| m.obj("annotations"))
    }
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations().and_then(|m| m.str(key))
    }
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.meta()
            .and_then(|m| m.arr("finalizers"))
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }
    pub fn set_finalizers(&mut self, finalizers: Vec<Str>) {
        if finalizers.is_empty() {
            self.meta_mut().remove("finalizers");
        } else {
            let list: Vec<Value> = finalizers.into_iter().map(Value::String).collect();
            self.meta_mut().insert("finalizers", list);
        }
    }
    pub fn owner_references(&self) -> impl Iterator<Item = &Map> {
        self.meta()
            .and_then(|m| m.arr("ownerReferences"))
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
    }
}
