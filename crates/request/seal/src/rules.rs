//! Which providers a key's value is sealed by.

use crate::provider::Providers;
use std::sync::Arc;

/// A resource as an `EncryptionConfiguration` names it: `secrets`, `deployments.apps`; `*` stands for all of a group, or of all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupResource {
    pub group: String,
    pub resource: String,
}

impl GroupResource {
    /// `resource.group`: up to the first dot. `*.` is all of the core group.
    pub fn parse(text: &str) -> GroupResource {
        let (resource, group) = text.split_once('.').unwrap_or((text, ""));
        GroupResource {
            group: group.into(),
            resource: resource.into(),
        }
    }

    pub fn any() -> GroupResource {
        GroupResource::parse("*.*")
    }

    /// As upstream's messages write it.
    pub fn shown(&self) -> String {
        match (self.group.as_str(), self.resource.as_str()) {
            ("", "*") => "*.".into(),
            ("", resource) => resource.into(),
            (group, resource) => format!("{resource}.{group}"),
        }
    }

    fn covers(&self, other: &GroupResource) -> bool {
        self.group == other.group && self.resource == "*"
    }
}

/// The resource that a key of the store belongs to.
pub type Resources = Arc<dyn Fn(&[u8]) -> Option<GroupResource> + Send + Sync>;

/// A configuration that is in force.
pub struct Rules {
    /// In the order of the configuration.
    pub(crate) by_resource: Vec<(GroupResource, Arc<Providers>)>,
    /// Of the file.
    pub(crate) hash: String,
}

impl Rules {
    /// The resource itself wins over its group, its group over everything.
    pub(crate) fn providers(&self, of: &GroupResource) -> Option<&Arc<Providers>> {
        let find = |f: &dyn Fn(&GroupResource) -> bool| self.by_resource.iter().find(|(r, _)| f(r)).map(|(_, p)| p);
        find(&|r| r == of)
            .or_else(|| find(&|r| r.covers(of)))
            .or_else(|| find(&|r| *r == GroupResource::any()))
    }

    /// `sha256:…` of the file that they are from.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}
