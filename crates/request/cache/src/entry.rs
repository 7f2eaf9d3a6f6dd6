//! An object as the cache holds it: bytes, and the strings that selectors look at.

use crate::forms::Written;
use bytes::Bytes;
use keelson_api::{ApiError, Str};
use keelson_store::Revision;

/// What selectors look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Sorted by name.
    pub labels: Box<[(Str, Str)]>,
    /// The selectable fields' values, in the order of [`crate::Codec::fields`].
    pub fields: Box<[Str]>,
}

impl Attributes {
    pub fn new(mut labels: Vec<(Str, Str)>, fields: Vec<Str>) -> Self {
        labels.sort();
        Attributes {
            labels: labels.into(),
            fields: fields.into(),
        }
    }
    pub fn label(&self, name: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok()?;
        Some(&self.labels[at].1)
    }
    /// By position in [`crate::Codec::fields`].
    pub fn field(&self, index: usize) -> Option<&str> {
        self.fields.get(index).map(Str::as_str)
    }
}

/// One version of one object.
#[derive(Debug)]
pub struct Entry {
    key: Bytes,
    value: Bytes,
    revision: Revision,
    attributes: Attributes,
    /// Where the name begins in the key, and the namespace (equal to it, if there is none).
    name_at: u16,
    namespace_at: u16,
    unreadable: Option<Box<ApiError>>,
    pub(crate) written: Written,
}

impl Entry {
    /// `prefix`: how many bytes of the key come before the namespace or name.
    pub(crate) fn new(
        key: Bytes,
        value: Bytes,
        revision: Revision,
        attributes: Result<Attributes, ApiError>,
        prefix: usize,
    ) -> Entry {
        let tail = key.get(prefix..).unwrap_or_default();
        let name_at = prefix + tail.iter().position(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let (attributes, unreadable) = match attributes {
            Ok(attributes) => (attributes, None),
            Err(e) => (Attributes::default(), Some(Box::new(e))),
        };
        let (name_at, namespace_at) = (name_at as u16, prefix as u16);
        Entry {
            key,
            value,
            revision,
            attributes,
            name_at,
            namespace_at,
            unreadable,
            written: Written::default(),
        }
    }

    /// The same object, said to be of another revision: what a watcher gets when it is gone.
    pub(crate) fn at_revision(&self, revision: Revision) -> Entry {
        Entry {
            key: self.key.clone(),
            value: self.value.clone(),
            revision,
            attributes: self.attributes.clone(),
            name_at: self.name_at,
            namespace_at: self.namespace_at,
            unreadable: self.unreadable.clone(),
            written: Written::default(),
        }
    }

    /// The store's key.
    pub fn key(&self) -> &Bytes {
        &self.key
    }
    /// The stored bytes.
    pub fn value(&self) -> &Bytes {
        &self.value
    }
    /// The object's `resourceVersion`.
    pub fn revision(&self) -> Revision {
        self.revision
    }
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }
    /// Empty for an object without one.
    pub fn namespace(&self) -> &str {
        let end = usize::from(self.name_at)
            .saturating_sub(1)
            .max(self.namespace_at.into());
        text(self.key.get(self.namespace_at.into()..end))
    }
    pub fn name(&self) -> &str {
        text(self.key.get(self.name_at.into()..))
    }
    /// The stored bytes couldn't be understood; this is why.
    pub fn unreadable(&self) -> Option<&ApiError> {
        self.unreadable.as_deref()
    }
    /// Roughly what it occupies.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Entry>() + self.key.len() + self.value.len()
    }
}

fn text(bytes: Option<&[u8]>) -> &str {
    bytes.and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &'static str) -> Entry {
        Entry::new(
            key.into(),
            Bytes::new(),
            1,
            Ok(Attributes::default()),
            "/registry/pods/".len(),
        )
    }

    #[test]
    fn names_come_from_the_key() {
        let pod = entry("/registry/pods/default/web-0");
        assert_eq!((pod.namespace(), pod.name()), ("default", "web-0"));
        let global = entry("/registry/pods/alone");
        assert_eq!((global.namespace(), global.name()), ("", "alone"));
    }
}
