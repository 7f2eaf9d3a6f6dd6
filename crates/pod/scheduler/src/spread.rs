//! Topology spread constraints, read: which pods are like this one, and which nodes count.

use crate::selector::Selector;
use crate::tally::{Needs, Nodes, Question, Who};
use crate::topology::Key;
use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use keelson_client::ApiObject;
use keelson_client::labels::Labels;
use std::sync::Arc;

pub const HOSTNAME: &str = "kubernetes.io/hostname";

/// What a pod says of its own spreading.
#[derive(Debug, Default)]
pub struct Spread {
    /// It says something.
    pub is_own: bool,
    /// Conditions (`DoNotSchedule`).
    pub hard: Vec<Rule>,
    /// Preferences (`ScheduleAnyway`).
    pub soft: Vec<Rule>,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    pub selector: Selector,
    /// How many like pods each domain has.
    pub question: Arc<Question>,
}

impl Rule {
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.matches(labels)
    }
}

impl Spread {
    pub const NONE: Spread = Spread {
        is_own: false,
        hard: Vec::new(),
        soft: Vec::new(),
    };

    pub fn of(pod: &Arc<Pod>) -> Spread {
        let constraints = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref());
        let constraints = constraints.unwrap_or_default();
        if constraints.is_empty() {
            return Spread::default();
        }
        Spread {
            is_own: true,
            hard: hard(pod, constraints, None),
            soft: soft(pod, constraints, None, true),
        }
    }
}

/// The conditions among the constraints. `selector` stands in place of theirs.
pub fn hard(pod: &Arc<Pod>, constraints: &[TopologySpreadConstraint], selector: Option<&Selector>) -> Vec<Rule> {
    let chosen: Vec<_> = constraints
        .iter()
        .filter(|c| c.when_unsatisfiable == "DoNotSchedule")
        .collect();
    let with: Vec<String> = chosen.iter().map(|c| c.topology_key.clone()).collect();
    let rule = |c: &&TopologySpreadConstraint| rule(pod, c, selector, nodes(pod, c, with.clone()), true);
    chosen.iter().map(rule).collect()
}

/// The preferences. Unless `with_all`, nodes count that lack the label of one of them.
pub fn soft(
    pod: &Arc<Pod>,
    constraints: &[TopologySpreadConstraint],
    selector: Option<&Selector>,
    with_all: bool,
) -> Vec<Rule> {
    let chosen: Vec<_> = constraints
        .iter()
        .filter(|c| c.when_unsatisfiable == "ScheduleAnyway")
        .collect();
    let mut with: Vec<String> = chosen.iter().map(|c| c.topology_key.clone()).collect();
    if !with_all {
        with.clear();
    }
    let rule = |c: &&TopologySpreadConstraint| {
        // A node's own pods count on it, whoever else counts.
        let nodes = match c.topology_key == HOSTNAME {
            true => Nodes::default(),
            false => nodes(pod, c, with.clone()),
        };
        rule(pod, c, selector, nodes, false)
    };
    chosen.iter().map(rule).collect()
}

fn nodes(pod: &Arc<Pod>, c: &TopologySpreadConstraint, with: Vec<String>) -> Nodes {
    let honors_affinity = c.node_affinity_policy.as_deref() != Some("Ignore");
    let honors_taints = c.node_taints_policy.as_deref() == Some("Honor");
    Nodes {
        with,
        allowed: honors_affinity.then(|| Needs::of_nodes(pod)).flatten(),
        tolerated: honors_taints.then(|| Needs::of_taints(pod)),
    }
}

fn rule(
    pod: &Arc<Pod>,
    c: &TopologySpreadConstraint,
    selector: Option<&Selector>,
    nodes: Nodes,
    is_hard: bool,
) -> Rule {
    let selector = selector.cloned().unwrap_or_else(|| own_selector(pod, c));
    let key = match c.topology_key == HOSTNAME && !is_hard {
        true => Key::Node,
        false => Key::Label(c.topology_key.clone()),
    };
    let question = Question {
        who: Who::Like {
            namespace: pod.namespace().to_owned(),
            // Upstream counts no pods by a selector that selects them all.
            selector: if selector.is_empty() {
                Selector::nothing()
            } else {
                selector.clone()
            },
        },
        nodes,
        keys: vec![key],
        is_ranked: is_hard,
    };
    Rule {
        key: c.topology_key.clone(),
        max_skew: c.max_skew.into(),
        min_domains: c.min_domains.unwrap_or(1).into(),
        selector,
        question: Arc::new(question),
    }
}

/// The constraint's selector, and what the pod's own labels say for its `matchLabelKeys`.
fn own_selector(pod: &Pod, c: &TopologySpreadConstraint) -> Selector {
    let Some(selector) = &c.label_selector else {
        return Selector::nothing();
    };
    let labels = pod.metadata.labels.as_ref();
    let keys = c.match_label_keys.iter().flatten();
    let also = keys.filter_map(|key| Some((key.clone(), labels?.get(key)?.clone())));
    Selector::of(selector).and(Selector::equal(&also.collect()))
}
