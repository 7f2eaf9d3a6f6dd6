//! Preemption: which less important pods would have to go, on which node, so that a pod fits.
//!
//! On each node where that can help, all less important pods are taken away in thought; then as many as possible are put back, the
//! most important first, and those first whose disruption budget would be violated. Of the nodes, the one is taken where the
//! fewest budgets are violated, then where the most important victim is the least important, and so on.
//!
//! Not all nodes are tried: from a random one on, until there are enough where it would work ([`Preempting`]).

use crate::framework::{Cycle, Reject};
use crate::node::NodeInfo;
use crate::plan::{Filters, Why, histogram};
use crate::pod::PodInfo;
use crate::profile::Preempting;
use crate::snapshot::Snapshot;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keelson_client::{ApiObject, labels};
use rand::Rng;
use std::cmp::Reverse;
use std::collections::HashMap;
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
    pub(crate) fn none(message: impl Into<String>, clear_nomination: bool) -> Preemption {
        Preemption {
            target: None,
            message: message.into(),
            clear_nomination,
        }
    }
}

/// No node was even looked at: removing pods doesn't change that.
pub(crate) fn outright(why: &Why) -> Preemption {
    Preemption::none(not_available(why.total, &[]), true)
}

pub(crate) fn find<'a>(
    cycle: Cycle<'a>,
    filters: &Filters<'a>,
    why: &Why,
    limits: Preempting,
    rng: &mut impl Rng,
) -> Preemption {
    match candidates(cycle, filters, why, limits, rng) {
        Ok(found) => best(why.total, found),
        Err(preemption) => preemption,
    }
}

/// Where it would work, and why not elsewhere.
pub(crate) struct Found {
    pub candidates: Vec<Candidate>,
    pub refused: Vec<Reject>,
}

pub(crate) fn candidates<'a>(
    cycle: Cycle<'a>,
    filters: &Filters<'a>,
    why: &Why,
    limits: Preempting,
    rng: &mut impl Rng,
) -> Result<Found, Preemption> {
    if let Some(reason) = ineligible(cycle, why) {
        return Err(Preemption::none(reason, false));
    }
    let helpable = why.nodes.iter().filter(|refused| !refused.reject.is_final);
    let helpable: Vec<_> = helpable.filter_map(|refused| cycle.snapshot.at(refused.node)).collect();
    let mut refused = Vec::new();
    let mut candidates: Vec<Candidate> = Vec::new();
    let enough = limits.enough(helpable.len());
    let mut budgets = Budgets::default();
    let start = if helpable.is_empty() {
        0
    } else {
        rng.random_range(0..helpable.len())
    };
    for node in helpable[start..].iter().chain(&helpable[..start]) {
        match victims(cycle, filters, node, &mut budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(reject) => refused.push(reject),
        }
        // One that violates no budget has to be among them.
        if candidates.len() >= enough && candidates.iter().any(|c| c.violations == 0) {
            break;
        }
    }
    Ok(Found { candidates, refused })
}

pub(crate) fn best(total: usize, found: Found) -> Preemption {
    match found.candidates.into_iter().min_by_key(Candidate::cost) {
        Some(best) => Preemption {
            message: format!(
                "found a potential placement for pod on node {}, preempting {} victims",
                best.node,
                best.victims.len()
            ),
            target: Some((best.node, best.victims)),
            clear_nomination: false,
        },
        None => Preemption::none(not_available(total, &found.refused), true),
    }
}

impl Preempting {
    /// How many candidates are enough, of so many nodes.
    fn enough(&self, nodes: usize) -> usize {
        let share = nodes * self.percentage as usize / 100;
        share.max(self.absolute as usize).min(nodes)
    }
}

fn not_available(total: usize, refused: &[Reject]) -> String {
    let reasons = refused.iter().flat_map(|reject| reject.reasons());
    format!(
        "0/{total} nodes are available:{}",
        histogram(reasons, Some((NOT_HELPFUL, total.saturating_sub(refused.len()))))
    )
}

fn ineligible(cycle: Cycle<'_>, why: &Why) -> Option<&'static str> {
    let pod = cycle.pod;
    if pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.nominated_node()?;
    let node = cycle.snapshot.node(nominated)?;
    if why
        .nodes
        .iter()
        .any(|refused| refused.node == node.index && refused.reject.is_final)
    {
        return None;
    }
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

pub(crate) struct Candidate {
    pub node: String,
    /// The most important first.
    pub victims: Vec<Arc<PodInfo>>,
    pub violations: usize,
}

impl Candidate {
    /// Less is better.
    fn cost(&self) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
        let highest = self.victims.iter().map(|p| p.priority).max().unwrap_or(i32::MIN);
        // Shifted, so that many pods of negative priority weigh more than one.
        let sum = self
            .victims
            .iter()
            .map(|p| i64::from(p.priority) + i64::from(i32::MAX) + 1)
            .sum();
        let most_important = self.victims.iter().filter(|p| p.priority == highest);
        let earliest = most_important.map(|p| started(p)).min().unwrap_or(Timestamp::MAX);
        (self.violations, highest, sum, self.victims.len(), Reverse(earliest))
    }
}

/// A pod that hasn't started would start now: later than all others.
fn started(pod: &PodInfo) -> Timestamp {
    let start = pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    start.map_or(Timestamp::MAX, |t| t.0)
}

/// The most important first: by priority, then the longest running.
fn by_importance(pods: &mut [Arc<PodInfo>]) {
    pods.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| started(a).cmp(&started(b))));
}

fn victims<'a>(
    cycle: Cycle<'a>,
    filters: &Filters<'a>,
    node: &NodeInfo,
    budgets: &mut Budgets,
) -> Result<Candidate, Reject> {
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
        filters,
        own: filters.copy(),
        node: node.clone(),
    };
    for pod in &less {
        trial.remove(pod);
    }
    if let Some((_, reject)) = trial.refused() {
        return Err(reject);
    }
    by_importance(&mut less);
    let (violating, others) = budgets.split(cycle.snapshot, less);
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
    if candidate.violations > 0 {
        by_importance(&mut candidate.victims);
    }
    match candidate.victims.is_empty() {
        true => Err(Reject::for_good(NO_VICTIMS)),
        false => Ok(candidate),
    }
}

/// A node on which something is tried.
struct Trial<'a, 'b> {
    cycle: Cycle<'a>,
    filters: &'b Filters<'a>,
    /// Those that are told of it, if any of them would notice.
    own: Option<Filters<'a>>,
    node: NodeInfo,
}

impl Trial<'_, '_> {
    fn remove(&mut self, pod: &Arc<PodInfo>) {
        self.node.remove(pod.uid());
        if let Some(filters) = &mut self.own {
            filters.remove(pod, &self.node);
        }
    }
    fn put_back(&mut self, pod: &Arc<PodInfo>) -> bool {
        self.node.add(pod.clone());
        if let Some(filters) = &mut self.own {
            filters.add(pod, &self.node);
        }
        let fits = self.refused().is_none();
        if !fits {
            self.remove(pod);
        }
        fits
    }
    fn refused(&self) -> Option<(&'static str, Reject)> {
        let filters = self.own.as_ref().unwrap_or(self.filters);
        filters.check_with_nominated(self.cycle, &self.node)
    }
}

/// The disruption budgets of the namespaces that were asked for, which are the same for all nodes of a decision.
#[derive(Default)]
struct Budgets(HashMap<String, Vec<Arc<PodDisruptionBudget>>>);

impl Budgets {
    /// Which of the pods could go only against a budget, if they went in this order.
    fn split(&mut self, snapshot: &Snapshot, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let mut last = None;
        for pod in &pods {
            // Mostly they are all of one.
            if last.replace(&pod.key.namespace) == Some(&pod.key.namespace) {
                continue;
            }
            if !self.0.contains_key(&pod.key.namespace) {
                let budgets = snapshot.world.budgets(&pod.key.namespace);
                self.0.insert(pod.key.namespace.clone(), budgets);
            }
        }
        if self.0.values().all(Vec::is_empty) {
            return (Vec::new(), pods);
        }
        let mut used: HashMap<&str, i32> = HashMap::new();
        pods.into_iter().partition(|pod| {
            let mut violates = false;
            let budgets = self.0.get(&pod.key.namespace).into_iter().flatten();
            for budget in budgets.filter(|budget| covers(budget, pod)) {
                let status = budget.status.as_ref();
                let disrupted = status.and_then(|s| s.disrupted_pods.as_ref());
                if disrupted.is_some_and(|pods| pods.contains_key(&pod.key.name)) {
                    continue;
                }
                let used = used.entry(budget.uid()).or_default();
                *used += 1;
                violates |= *used > status.and_then(|s| s.disruptions_allowed).unwrap_or(0);
            }
            violates
        })
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &PodInfo) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    budget.namespace() == pod.key.namespace
        && !pod.labels().is_empty()
        && selector.is_some_and(|s| !labels::is_empty(s) && labels::matches(Some(s), Some(pod.labels())))
}
