//! Node selectors and tolerations.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};
use keelson_client::labels;
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
