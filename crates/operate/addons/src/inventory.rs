//! What was applied for an add-on, kept in its status: by it another server can go on, and what no file says any more is found.

use crate::health::State;
use serde::{Deserialize, Serialize};

/// An object, whatever version it was written in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    pub group: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    pub version: String,
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    /// Of the object that was applied; before that it isn't known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    pub state: State,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Entry {
    pub fn id(&self) -> ObjectId {
        ObjectId {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
    /// Whether it is of this object.
    pub fn is(&self, id: &ObjectId) -> bool {
        self.name == id.name && self.namespace == id.namespace && self.kind == id.kind && self.group == id.group
    }
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }
    /// As people write it.
    pub fn shown(&self) -> String {
        let space = match self.namespace.as_str() {
            "" => String::new(),
            namespace => format!(" in {namespace}"),
        };
        format!("{}/{}{space}", self.kind, self.name)
    }
}

/// What was applied and isn't said any more, in the order in which it is to go.
pub fn stale(applied: &[Entry], said: impl Fn(&ObjectId) -> bool) -> Vec<&Entry> {
    let mut stale: Vec<&Entry> = applied.iter().filter(|entry| !said(&entry.id())).collect();
    // Stable: what was applied last goes first.
    stale.reverse();
    stale.sort_by_key(|entry| std::cmp::Reverse(crate::order::rank(&entry.group, &entry.kind)));
    stale
}
