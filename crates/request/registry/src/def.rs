//! What is served under one group, version and resource, and where it is stored.

use crate::columns::Columns;
use crate::convert::Converter;
use crate::strategy::Strategy;
use keelson_api::{GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource, SchemaRef, Str};
use std::sync::Arc;

/// How objects of a resource are written to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageCodec {
    /// `k8s\0` and `runtime.Unknown`, as upstream stores built-in kinds.
    Protobuf,
    /// Custom resources.
    Json,
}

/// Where and how the objects of a resource are stored; shared by all its versions (and by `events` of both groups).
#[derive(Clone, Debug)]
pub struct StorageDef {
    /// `/registry/pods`, without a trailing slash.
    pub prefix: Str,
    pub namespaced: bool,
    /// The version objects are written in.
    pub version: GroupVersionKind,
    pub codec: StorageCodec,
    /// The schema of the storage version.
    pub schema: SchemaRef,
    /// Selectable fields besides `metadata.name` and `metadata.namespace`, in the storage version's terms.
    pub selectable: Selectable,
    pub resource: GroupResource,
    /// Set if selectors don't look at what is stored, but at what it is in another version.
    pub view: Option<View>,
}

/// A version that stored objects are brought to before selectors look at them.
#[derive(Clone, Debug)]
pub struct View {
    pub api_version: Str,
    pub converter: Arc<dyn Converter>,
}

/// Fields that a field selector may name.
#[derive(Clone, Debug)]
pub enum Selectable {
    /// Paths of plain fields: `spec.nodeName` (read as text; absent is `default`).
    Fields(&'static [SelectableField]),
    /// Paths declared by a CRD.
    Paths(Vec<Str>),
}

/// A selectable field of a built-in kind.
#[derive(Clone, Copy, Debug)]
pub struct SelectableField {
    pub name: &'static str,
    pub path: &'static [&'static str],
    /// The text of an absent field (`status.phase` is empty, `spec.hostNetwork` is `false`).
    pub absent: &'static str,
    /// Where else to look when the field is absent or empty.
    pub or: &'static [&'static str],
}

impl SelectableField {
    pub const fn new(name: &'static str, path: &'static [&'static str]) -> Self {
        SelectableField {
            name,
            path,
            absent: "",
            or: &[],
        }
    }
    pub const fn absent(self, absent: &'static str) -> Self {
        SelectableField { absent, ..self }
    }
    pub const fn or(self, or: &'static [&'static str]) -> Self {
        SelectableField { or, ..self }
    }
}

impl StorageDef {
    /// The key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}/{namespace}/{name}", self.prefix)
        } else {
            format!("{}/{name}", self.prefix)
        }
    }
    /// The prefix that all objects of a namespace (empty: of all) share; with its trailing slash.
    pub fn key_prefix(&self, namespace: &str) -> String {
        if self.namespaced && !namespace.is_empty() {
            format!("{}/{namespace}/", self.prefix)
        } else {
            format!("{}/", self.prefix)
        }
    }
}

/// A subresource: `pods/status`.
#[derive(Clone, Debug, Default)]
pub struct SubresourceDef {
    pub name: Str,
    /// What it reads and writes, where it differs from its parent (`Scale`, `Eviction`, `TokenRequest`).
    pub kind: Option<GroupVersionKind>,
    pub schema: Option<SchemaRef>,
    pub verbs: Vec<Str>,
    /// Where replicas stand, for `scale`.
    pub scale: Option<ScalePaths>,
}

/// Where a resource keeps what its Scale shows: paths of fields.
#[derive(Clone, Debug, Default)]
pub struct ScalePaths {
    pub spec_replicas: Vec<Str>,
    pub status_replicas: Vec<Str>,
    /// Of a selector as text (custom resources); built-in kinds keep an object in `spec.selector`.
    pub selector: Option<Vec<Str>>,
}

/// A resource in one version, as served.
#[derive(Debug)]
pub struct ResourceDef {
    pub gvr: GroupVersionResource,
    pub kind: Str,
    pub list_kind: Str,
    pub singular: Str,
    pub short_names: Vec<Str>,
    pub categories: Vec<Str>,
    pub namespaced: bool,
    pub verbs: Vec<Str>,
    /// The schema of this version.
    pub schema: SchemaRef,
    /// `None` for virtual resources (reviews).
    pub storage: Option<Arc<StorageDef>>,
    /// What answers field selectors of a custom resource whose stored objects have to be converted first.
    pub view: Option<Arc<StorageDef>>,
    /// The fields that this version of a custom resource may be selected by.
    pub selectable: Vec<Str>,
    pub subresources: Vec<SubresourceDef>,
    pub strategy: Arc<dyn Strategy>,
    /// Between the versions of the resource; `None` where there is one.
    pub converter: Option<Arc<dyn Converter>>,
    /// Schemas of a custom resource's other versions.
    pub siblings: Vec<(GroupVersion, SchemaRef)>,
    pub columns: Columns,
    /// A custom resource: no protobuf, no strategic merge patch.
    pub custom: bool,
    /// Reason why writes are refused (a CRD that is being deleted refuses creation).
    pub frozen: bool,
    /// Text of the warning sent with every use of a deprecated version.
    pub deprecation: Option<Str>,
    /// Discovery's `storageVersionHash`; empty for virtual resources.
    pub storage_version_hash: Str,
}

impl ResourceDef {
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind {
            group: self.gvr.group.clone(),
            version: self.gvr.version.clone(),
            kind: self.kind.clone(),
        }
    }
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion {
            group: self.gvr.group.clone(),
            version: self.gvr.version.clone(),
        }
    }
    pub fn api_version(&self) -> String {
        self.group_version().to_string()
    }
    /// The schema of another version of the resource, for following who owns fields there.
    pub fn schema_of(&self, gv: &GroupVersion) -> Option<SchemaRef> {
        if *gv == self.group_version() {
            return Some(self.schema.clone());
        }
        if let Some(s) = self.siblings.iter().find(|(v, _)| v == gv) {
            return Some(s.1.clone());
        }
        (!self.custom)
            .then(|| keelson_api::builtin::builtin_kind_at(&gv.to_string(), &self.kind))
            .flatten()
    }
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
    pub fn subresource(&self, name: &str) -> Option<&SubresourceDef> {
        self.subresources.iter().find(|s| s.name == name)
    }
    /// The kind that requests of a subresource are about (empty: of the resource itself).
    pub fn kind_of(&self, subresource: &str) -> GroupVersionKind {
        self.subresource(subresource)
            .and_then(|s| s.kind.clone())
            .unwrap_or_else(|| self.gvk())
    }
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.gvr.group == group && self.gvr.resource == resource
    }
    /// Whether stored bytes are already in this version.
    pub fn is_storage_version(&self) -> bool {
        self.storage
            .as_ref()
            .is_some_and(|s| s.version.version == self.gvr.version && s.version.group == self.gvr.group)
    }
}
