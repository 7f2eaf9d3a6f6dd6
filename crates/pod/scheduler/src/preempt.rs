//! Preemption: which less important pods would have to go, on which node, so that a pod fits.
//!
//! On each node where that can help, all less important pods are taken away in thought; then as many as possible are put back, the
//! most important first, and those first whose disruption budget would be violated. Of the nodes, the one is taken where the
//! fewest budgets are violated, then where the most important victim is the least important, and so on.

use crate::cluster::Snapshot;
use crate::framework::{Cycle, Reject};
use crate::node::NodeInfo;
use crate::plan::{Filters, Why, histogram};
use crate::pod::PodInfo;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keelson_client::{ApiObject, labels};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

#[derive(Debug, Default)]
pub struct Preemption {
    /// Where, and who has to go.
    pub target: Option<(String, Vec<Arc<PodInfo>>)>,
    /// For the pod's condition.
    pub message: String,
    /// An earlier nomination is void.
    pub clear_nomination: bool,
}

impl Preemption {
    fn none(message: impl Into<String>, clear_nomination: bool) -> Preemption {
        Preemption {
            target: None,
            message: message.into(),
            clear_nomination,
        }
    }
}

/// No node was even looked at: removing pods doesn't change that.
pub(crate) fn outright(why: &Why) -> Preemption {
    Preemption::none(not_available(why.total, BTreeMap::new()), true)
}

pub(crate) fn find(cycle: Cycle<'_>, filters: &Filters<'_>, why: &Why) -> Preemption {
    if let Some(reason) = ineligible(cycle, why) {
        return Preemption::none(reason, false);
    }
    let helpable = why
        .nodes
        .iter()
        .filter(|(_, (_, reject))| !reject.is_final)
        .map(|(name, _)| name);
    let mut refused = BTreeMap::new();
    let mut candidates = Vec::new();
    for name in helpable {
        let Some(node) = cycle.snapshot.nodes.get(name) else {
            continue;
        };
        match victims(cycle, filters, node) {
            Ok(candidate) => candidates.push(candidate),
            Err(reject) => drop(refused.insert(name.clone(), reject)),
        }
    }
    match candidates.into_iter().min_by_key(Candidate::cost) {
        Some(best) => Preemption {
            message: format!(
                "found a potential placement for pod on node {}, preempting {} victims",
                best.node,
                best.victims.len()
            ),
            target: Some((best.node, best.victims)),
            clear_nomination: false,
        },
        None => Preemption::none(not_available(why.total, refused), true),
    }
}

fn not_available(total: usize, refused: BTreeMap<String, Reject>) -> String {
    let reasons = refused
        .values()
        .flat_map(|reject| reject.reasons.iter().map(|r| r.as_ref()));
    format!(
        "0/{total} nodes are available:{}",
        histogram(reasons, Some((NOT_HELPFUL, total - refused.len())))
    )
}

fn ineligible(cycle: Cycle<'_>, why: &Why) -> Option<&'static str> {
    let pod = cycle.pod;
    if pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.nominated_node()?;
    if why.nodes.get(nominated).is_some_and(|(_, reject)| reject.is_final) {
        return None;
    }
    let node = cycle.snapshot.nodes.get(nominated)?;
    let is_leaving = |p: &&Arc<PodInfo>| p.priority < pod.priority && p.is_deleting() && was_preempted(p);
    node.pods()
        .iter()
        .find(is_leaving)
        .map(|_| "not eligible due to a terminating pod on the nominated node.")
}

fn was_preempted(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| {
        c.type_ == "DisruptionTarget" && c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler")
    })
}

struct Candidate {
    node: String,
    /// The most important first.
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

impl Candidate {
    /// Less is better.
    fn cost(&self) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>) {
        let highest = self.victims.iter().map(|p| p.priority).max().unwrap_or(i32::MIN);
        // Shifted, so that many pods of negative priority weigh more than one.
        let sum = self
            .victims
            .iter()
            .map(|p| i64::from(p.priority) + i64::from(i32::MAX) + 1)
            .sum();
        let most_important = self.victims.iter().filter(|p| p.priority == highest);
        let earliest = most_important.map(|p| started(p)).min().flatten();
        (self.violations, highest, sum, self.victims.len(), Reverse(earliest))
    }
}

fn started(pod: &PodInfo) -> Option<Timestamp> {
    let start = pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    start.or(pod.pod.metadata.creation_timestamp.as_ref()).map(|t| t.0)
}

/// The most important first: by priority, then the longest running.
fn by_importance(pods: &mut [Arc<PodInfo>]) {
    pods.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| started(a).cmp(&started(b))));
}

fn victims(cycle: Cycle<'_>, filters: &Filters<'_>, node: &NodeInfo) -> Result<Candidate, Reject> {
    let mut less: Vec<_> = node
        .pods()
        .iter()
        .filter(|p| p.priority < cycle.pod.priority)
        .cloned()
        .collect();
    if less.is_empty() {
        return Err(Reject::for_good(NO_VICTIMS));
    }
    let mut trial = Trial {
        cycle,
        filters: filters.copy(),
        node: node.clone(),
    };
    for pod in &less {
        trial.remove(pod);
    }
    if let Some((_, reject)) = trial.refused() {
        return Err(reject);
    }
    by_importance(&mut less);
    let (violating, others) = split_by_budgets(cycle.snapshot, less);
    let mut candidate = Candidate {
        node: node.name().to_owned(),
        victims: Vec::new(),
        violations: 0,
    };
    for pod in violating {
        if !trial.put_back(&pod) {
            candidate.violations += 1;
            candidate.victims.push(pod);
        }
    }
    for pod in others {
        if !trial.put_back(&pod) {
            candidate.victims.push(pod);
        }
    }
    by_importance(&mut candidate.victims);
    match candidate.victims.is_empty() {
        true => Err(Reject::for_good(NO_VICTIMS)),
        false => Ok(candidate),
    }
}

/// A node on which something is tried.
struct Trial<'a> {
    cycle: Cycle<'a>,
    filters: Filters<'a>,
    node: NodeInfo,
}

impl Trial<'_> {
    fn remove(&mut self, pod: &Arc<PodInfo>) {
        self.node.remove(pod.uid());
        self.filters.remove(pod, &self.node);
    }
    fn put_back(&mut self, pod: &Arc<PodInfo>) -> bool {
        self.node.add(pod.clone());
        self.filters.add(pod, &self.node);
        let fits = self.refused().is_none();
        if !fits {
            self.remove(pod);
        }
        fits
    }
    fn refused(&self) -> Option<(&'static str, Reject)> {
        self.filters.check_with_nominated(self.cycle, &self.node)
    }
}

/// Which of the pods could go only against a budget, if they went in this order.
fn split_by_budgets(snapshot: &Snapshot, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut allowed: BTreeMap<String, (Arc<PodDisruptionBudget>, i32)> = BTreeMap::new();
    for pod in &pods {
        for budget in snapshot.world.budgets(&pod.key.namespace) {
            let left = budget.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0);
            allowed.entry(budget.uid().to_owned()).or_insert((budget, left));
        }
    }
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (budget, left) in allowed.values_mut().filter(|(budget, _)| covers(budget, pod)) {
            let disrupted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
            if disrupted.is_some_and(|pods| pods.contains_key(&pod.key.name)) {
                continue;
            }
            *left -= 1;
            violates |= *left < 0;
        }
        violates
    })
}

fn covers(budget: &PodDisruptionBudget, pod: &PodInfo) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    budget.namespace() == pod.key.namespace
        && !pod.labels.is_empty()
        && selector.is_some_and(|s| !labels::is_empty(s) && labels::matches(Some(s), Some(&pod.labels)))
}
