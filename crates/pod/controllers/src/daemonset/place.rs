//! On which nodes a daemon runs. Pure.

use crate::taint_eviction::tolerates;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint,
    Toleration,
};
use keelson_client::ApiObject;
use keelson_client::labels::{self, Labels};

const NAME_FIELD: &str = "metadata.name";

/// Whether a daemon should run on a node, and whether one that runs may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub should_run: bool,
    pub may_stay: bool,
}

/// What daemons tolerate whatever their template says: they are there to serve the node in all its states.
pub fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let exists = |key: &str, effect: &str| Toleration {
        key: Some(format!("node.kubernetes.io/{key}")),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Default::default()
    };
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let mut added = vec![
        exists("not-ready", "NoExecute"),
        exists("unreachable", "NoExecute"),
        exists("disk-pressure", "NoSchedule"),
        exists("memory-pressure", "NoSchedule"),
        exists("pid-pressure", "NoSchedule"),
        exists("unschedulable", "NoSchedule"),
    ];
    if spec.host_network.unwrap_or(false) {
        added.push(exists("network-unavailable", "NoSchedule"));
    }
    for toleration in added {
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Whether no daemon's place can differ between two states of a node: most changes are heartbeats.
pub fn is_same(old: &Node, new: &Node) -> bool {
    let taints = |node: &Node| node.spec.as_ref().and_then(|s| s.taints.clone());
    old.metadata.labels == new.metadata.labels && taints(old) == taints(new)
}

pub fn place(spec: &PodSpec, node: &Node) -> Place {
    let nowhere = Place {
        should_run: false,
        may_stay: false,
    };
    let named = spec.node_name.as_deref().unwrap_or_default();
    if !(named.is_empty() || named == node.name()) || !fits(spec, node) {
        return nowhere;
    }
    let tolerations = tolerations(spec);
    let taints: Vec<&Taint> = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).collect();
    let bars = |effects: &[&str]| {
        let relevant = taints.iter().filter(|t| effects.contains(&t.effect.as_str()));
        relevant
            .into_iter()
            .any(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
    };
    Place {
        should_run: !bars(&["NoSchedule", "NoExecute"]),
        may_stay: !bars(&["NoExecute"]),
    }
}

/// The node selector and the required node affinity.
fn fits(spec: &PodSpec, node: &Node) -> bool {
    let none = Labels::new();
    let have = node.metadata.labels.as_ref().unwrap_or(&none);
    if !spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| labels::includes(Some(have), wanted))
    {
        return false;
    }
    let required = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let Some(required) = required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) else {
        return true;
    };
    selects(required, node)
}

/// Whether a node is one of those that are meant.
pub fn selects(required: &NodeSelector, node: &Node) -> bool {
    let none = Labels::new();
    let have = node.metadata.labels.as_ref().unwrap_or(&none);
    required.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let is_empty = expressions.is_empty() && fields.is_empty();
        !is_empty
            && expressions
                .iter()
                .all(|rule| satisfied(rule, have.get(&rule.key).map(String::as_str)))
            && fields
                .iter()
                .all(|rule| rule.key == NAME_FIELD && satisfied(rule, Some(node.name())))
    })
}

fn satisfied(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let listed = |v: &str| values.iter().any(|x| x == v);
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |test: fn(i64, i64) -> bool| {
        let limit = values.first().and_then(|v| number(v));
        value.and_then(number).zip(limit).is_some_and(|(v, l)| test(v, l))
    };
    match rule.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => value.is_none_or(|v| !listed(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|v, l| v > l),
        "Lt" => compare(|v, l| v < l),
        _ => false,
    }
}

/// Binds a daemon to its node, in a way that leaves the decision to the scheduler.
pub fn bind(spec: &mut PodSpec, node: &str) {
    let rule = NodeSelectorRequirement {
        key: NAME_FIELD.into(),
        operator: "In".into(),
        values: Some(vec![node.into()]),
    };
    let term = NodeSelectorTerm {
        match_fields: Some(vec![rule]),
        match_expressions: None,
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    nodes.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
}

/// The node a daemon is on, or bound to.
pub fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_ref().filter(|n| !n.is_empty()) {
        return Some(node.clone());
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .iter()
        .flat_map(|t| t.match_fields.iter().flatten());
    let mut names = fields
        .filter(|f| f.key == NAME_FIELD && f.operator == "In")
        .filter_map(|f| match f.values.as_deref() {
            Some([name]) => Some(name.clone()),
            _ => None,
        });
    names.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: &str, taints: &str) -> Node {
        Node::decode(
            format!(r#"{{"metadata":{{"name":"n","labels":{{{labels}}}}},"spec":{{"taints":[{taints}]}}}}"#).as_bytes(),
        )
        .expect("valid")
    }

    fn show(spec: &PodSpec, node: &Node) -> (bool, bool) {
        let place = place(spec, node);
        (place.should_run, place.may_stay)
    }

    #[test]
    fn daemons_run_where_they_fit() {
        let any = PodSpec::default();
        assert_eq!(show(&any, &node("", "")), (true, true));
        assert_eq!(
            show(
                &any,
                &node(
                    "",
                    r#"{"key":"node.kubernetes.io/unschedulable","effect":"NoSchedule"}"#
                )
            ),
            (true, true)
        );
        assert_eq!(
            show(&any, &node("", r#"{"key":"own","effect":"NoSchedule"}"#)),
            (false, true)
        );
        assert_eq!(
            show(&any, &node("", r#"{"key":"own","effect":"NoExecute"}"#)),
            (false, false)
        );
        let chosen = PodSpec {
            node_selector: Some([("color".to_string(), "blue".to_string())].into()),
            ..Default::default()
        };
        assert_eq!(show(&chosen, &node("", "")), (false, false));
        assert_eq!(show(&chosen, &node(r#""color":"blue""#, "")), (true, true));
        let named = PodSpec {
            node_name: Some("other".into()),
            ..Default::default()
        };
        assert_eq!(show(&named, &node("", "")), (false, false));
        let mut bound = PodSpec::default();
        bind(&mut bound, "n");
        assert_eq!(show(&bound, &node("", "")), (true, true));
        bind(&mut bound, "m");
        assert_eq!(show(&bound, &node("", "")), (false, false));
        assert_eq!(
            node_of(&Pod {
                spec: Some(bound),
                ..Default::default()
            })
            .as_deref(),
            Some("m")
        );
    }
}
