//! Which providers a key's value is sealed by.

use crate::kms::Kms;
use crate::provider::Providers;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// A resource as an `EncryptionConfiguration` names it: `secrets`, `deployments.apps`; `*` stands for all of a group, or of all.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// The resource that a key of the store belongs to; of a range's beginning, that of the whole range.
pub type Resources = Arc<dyn Fn(&[u8]) -> Option<Arc<GroupResource>> + Send + Sync>;

/// A configuration that is in force. The default has no providers: what is sealed can't be opened by it.
#[derive(Default)]
pub struct Rules {
    /// In the order of the configuration.
    pub(crate) by_resource: Vec<(GroupResource, Arc<Providers>)>,
    /// Of the file.
    pub(crate) hash: String,
    /// Plug-ins of key management, each once.
    pub(crate) plugins: Vec<Arc<Kms>>,
    /// Writes under way that were sealed by these rules.
    pub(crate) writers: TaskTracker,
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

    /// Whether the plug-ins of key management are well. Without any they are.
    pub async fn check(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        for (at, plugin) in self.plugins.iter().enumerate() {
            errors.extend(plugin.check().await.err().map(|e| format!("kms-provider-{at}: {e}")));
        }
        match errors.as_slice() {
            [] => Ok(()),
            [one] => Err(one.clone()),
            all => Err(format!("[{}]", all.join(", "))),
        }
    }

    pub fn has_plugins(&self) -> bool {
        !self.plugins.is_empty()
    }

    /// What each resource of the configuration is written by.
    pub fn writes_by(&self) -> Vec<(String, String)> {
        let shown = |(resource, providers): &(GroupResource, Arc<Providers>)| (resource.shown(), providers.writes_by());
        self.by_resource.iter().map(shown).collect()
    }
}
