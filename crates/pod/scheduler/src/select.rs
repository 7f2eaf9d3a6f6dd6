//! Node selectors, tolerations, and selectors of pods across namespaces.

use crate::world::World;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels::{self, Labels};
use std::collections::BTreeSet;

/// `nodeSelector` and the required node affinity.
pub fn node_fits(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    if let Some(wanted) = &spec.node_selector
        && !labels::includes(node.metadata.labels.as_ref(), wanted)
    {
        return false;
    }
    required(pod).is_none_or(|selector| matches_any(selector, node))
}

pub fn required(pod: &Pod) -> Option<&NodeSelector> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// Any of the terms; none is no node.
pub fn matches_any(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_term(term, node))
}

/// All of the term's requirements; a term without any matches no node.
pub fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let (name, labels) = (node.metadata.name.as_deref(), node.metadata.labels.as_ref());
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|rule| requirement(rule, labels.and_then(|l| l.get(&rule.key)).map(String::as_str)))
        && fields
            .iter()
            .all(|rule| requirement(rule, name.filter(|_| rule.key == "metadata.name")))
}

fn requirement(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|other| other == v));
    let compare = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match rule.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare().is_some_and(|(have, bound)| have > bound),
        "Lt" => compare().is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

/// The only nodes a pod can be on, if its affinity names them (as a daemon set's pods do).
pub fn named_nodes(pod: &Pod) -> Option<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for term in &required(pod)?.node_selector_terms {
        let named = term
            .match_fields
            .iter()
            .flatten()
            .find(|r| r.key == "metadata.name" && r.operator == "In")?;
        names.extend(named.values.iter().flatten().cloned());
    }
    Some(names)
}

pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let is_any = |wanted: &Option<String>| wanted.as_deref().is_none_or(str::is_empty);
        let effect = is_any(&toleration.effect) || toleration.effect.as_deref() == Some(&taint.effect);
        let key = is_any(&toleration.key) || toleration.key.as_deref() == Some(&taint.key);
        let value = match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => {
                !is_any(&toleration.key)
                    && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
            _ => false,
        };
        effect && key && value
    })
}

/// The first taint that keeps the pod away.
pub fn untolerated<'a>(pod: &Pod, node: &'a Node) -> Option<&'a Taint> {
    let tolerations = tolerations(pod);
    taints(node)
        .iter()
        .find(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerates(tolerations, t))
}

pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default()
}

pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// A term of pod (anti-)affinity: which pods, and what "near" means.
#[derive(Clone, Debug)]
pub struct Term {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
    selector: Option<LabelSelector>,
    pub topology_key: String,
    pub weight: i64,
}

impl Term {
    pub fn of(owner: &Pod, term: &PodAffinityTerm, weight: i64) -> Term {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(owner.metadata.namespace.clone());
        }
        Term {
            namespaces,
            namespace_selector: term.namespace_selector.clone(),
            selector: term.label_selector.clone(),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    pub fn matches(&self, namespace: &str, pod_labels: &Labels, world: &dyn World) -> bool {
        self.covers(namespace, world) && labels::matches(self.selector.as_ref(), Some(pod_labels))
    }

    fn covers(&self, namespace: &str, world: &dyn World) -> bool {
        self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                labels::is_empty(selector)
                    || world
                        .namespace_labels(namespace)
                        .is_some_and(|l| labels::matches(Some(selector), Some(&l)))
            })
    }
}
