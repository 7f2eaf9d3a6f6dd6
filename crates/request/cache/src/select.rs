//! Which entries a read or a watch is about.

use crate::{Codec, Entry};
use bytes::Bytes;
use keelson_api::Str;
use std::sync::Arc;

/// A selector, compiled. It must give the same answer for the same entry each time.
pub type Predicate = Arc<dyn Fn(&Entry) -> bool + Send + Sync>;

/// The part of the resource's keys in question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    All,
    Namespace(Str),
    /// One object, by the store's key.
    Key(Bytes),
}

/// Something entries are indexed by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IndexKey {
    /// A selectable field, by position in [`crate::Codec::fields`].
    Field(usize),
    /// A label, by name.
    Label(Str),
}

/// One value of one index: all selected entries have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IndexValue {
    /// By position in [`crate::Codec::indexes`].
    pub index: usize,
    pub value: Str,
}

/// Scope, selector, and how to find what it selects.
#[derive(Clone)]
pub struct Selection {
    pub scope: Scope,
    /// `None`: everything in scope.
    pub predicate: Option<Predicate>,
    /// Only a hint to be fast: the predicate must include it.
    pub index: Option<IndexValue>,
    /// The same of a label, by name and value: there may be an index of it, or may be one soon.
    pub label: Option<(Str, Str)>,
}

impl Selection {
    pub fn all() -> Self {
        Selection {
            scope: Scope::All,
            predicate: None,
            index: None,
            label: None,
        }
    }
    pub fn scope(scope: Scope) -> Self {
        Selection {
            scope,
            predicate: None,
            index: None,
            label: None,
        }
    }
    pub fn with_predicate(mut self, predicate: Predicate) -> Self {
        self.predicate = Some(predicate);
        self
    }
    /// For `spec.nodeName=n1` and the like, if the codec has an index for it.
    pub fn with_index(mut self, index: usize, value: impl Into<Str>) -> Self {
        self.index = Some(IndexValue {
            index,
            value: value.into(),
        });
        self
    }
    /// For `app=web` and the like.
    pub fn with_label(mut self, name: impl Into<Str>, value: impl Into<Str>) -> Self {
        self.label = Some((name.into(), value.into()));
        self
    }
    pub fn matches(&self, entry: &Entry) -> bool {
        let in_scope = match &self.scope {
            Scope::All => true,
            Scope::Namespace(namespace) => entry.namespace() == namespace,
            Scope::Key(key) => entry.key() == key,
        };
        in_scope && self.admits(entry)
    }
    /// The same of an entry in scope.
    pub(crate) fn admits(&self, entry: &Entry) -> bool {
        self.predicate.as_ref().is_none_or(|p| p(entry))
    }
}

/// A resource's indexes.
pub(crate) struct Indexes(Vec<IndexKey>);

impl Indexes {
    pub(crate) fn of(codec: &dyn Codec) -> Self {
        Indexes(codec.indexes())
    }
    /// The entry's place in each index it is in.
    pub(crate) fn values<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = IndexValue> + 'a {
        self.0.iter().enumerate().filter_map(|(index, key)| {
            let value = match key {
                IndexKey::Field(field) => entry.attributes().field(*field)?,
                IndexKey::Label(name) => entry.attributes().label(name)?,
            };
            Some(IndexValue {
                index,
                value: value.into(),
            })
        })
    }
    pub(crate) fn has(&self, index: usize) -> bool {
        index < self.0.len()
    }
}
