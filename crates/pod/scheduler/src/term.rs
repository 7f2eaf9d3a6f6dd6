//! A term of pod (anti-)affinity: which pods, and what "near" means.

use crate::pod::PodInfo;
use crate::selector::Selector;
use crate::world::World;
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
    /// `None`: no pod.
    selector: Option<Selector>,
    pub topology_key: String,
}

impl Term {
    pub fn of(owner: &Pod, term: &PodAffinityTerm) -> Term {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(owner.metadata.namespace.clone());
        }
        Term {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(Selector::of),
            selector: term.label_selector.as_ref().map(Selector::of),
            topology_key: term.topology_key.clone(),
        }
    }

    pub fn matches(&self, pod: &PodInfo, world: &dyn World) -> bool {
        self.selector.as_ref().is_some_and(|s| s.matches(pod.labels())) && self.covers(&pod.key.namespace, world)
    }

    fn covers(&self, namespace: &str, world: &dyn World) -> bool {
        self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_empty() || world.namespace_labels(namespace).is_some_and(|l| selector.matches(&l))
            })
    }

    /// What it matches depends on namespaces' labels.
    pub fn asks_for_namespaces(&self) -> bool {
        self.namespace_selector.as_ref().is_some_and(|s| !s.is_empty())
    }

    /// A label that whatever it matches has.
    pub fn anchor(&self) -> Option<(&str, &str)> {
        self.selector.as_ref()?.anchor()
    }
}
