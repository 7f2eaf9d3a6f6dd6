//! Where a pod goes: from a picture of the cluster to a plan, without I/O.
//!
//! Nodes are tried in turn, from where the last decision stopped, until enough of them fit ([`Profile::enough`]); of those the one
//! with the highest weighted score is taken, one of them at random if several have it. If none fits, preemption looks for a
//! node where removing less important pods would help.

use crate::batch::{self, Batch, Candidates};
use crate::framework::{Cycle, NodeFilter, Prepared, Reject};
use crate::node::NodeInfo;
use crate::plugins::dynamic_resources;
use crate::plugins::volume_binding::{self, Decision};
use crate::pod::PodInfo;
use crate::preempt::{self, Preemption};
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use k8s_openapi::api::resource::v1::ResourceClaim;
use rand::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Debug)]
pub enum Plan {
    Bind {
        node: String,
        volumes: Decision,
        devices: dynamic_resources::Decision,
    },
    Wait(Why),
}

/// What one decision leaves to the next.
pub struct Turn<R> {
    pub rng: R,
    /// The place in the order of nodes where the search goes on.
    pub start: usize,
    /// When this decision is made.
    pub now: Instant,
    /// For a pod like the last one.
    batch: Option<Batch>,
    /// How many pods got a node by what was found for the one before.
    pub batched: u64,
}

impl<R: Rng> Turn<R> {
    pub fn new(rng: R) -> Turn<R> {
        Turn {
            rng,
            start: 0,
            now: Instant::now(),
            batch: None,
            batched: 0,
        }
    }
}

/// Why a pod fits nowhere, node by node.
#[derive(Debug, Default)]
pub struct Why {
    pub total: usize,
    pub nodes: Vec<Refused>,
    /// A plug-in refused all nodes before they were looked at.
    pub outright: Option<Reject>,
    /// What nodes that weren't looked at lack.
    pub rest: Option<String>,
    /// Who refused.
    pub plugins: BTreeSet<&'static str>,
    /// A claim that is allocated where the pod can't be: it can be allocated anew.
    pub to_free: Option<Arc<ResourceClaim>>,
    /// What preemption can do about it.
    pub preemption: Option<Preemption>,
    /// What else is said after all that.
    pub after: Option<&'static str>,
    /// Something went wrong: the pod is tried again after a while, whatever happens.
    pub failure: Option<String>,
}

/// A node that won't do.
#[derive(Debug)]
pub struct Refused {
    /// Its index in the picture.
    pub node: u32,
    pub plugin: &'static str,
    pub reject: Reject,
}

pub fn plan(profile: &Profile, pod: &PodInfo, snapshot: &Snapshot, turn: &mut Turn<impl Rng>) -> Plan {
    let cycle = Cycle { pod, snapshot };
    // Only who comes next finds it.
    let last = turn.batch.take();
    let mut why = Why::of(snapshot);
    let (filters, only) = match prepare(profile, cycle, &mut why) {
        Ok(prepared) => prepared,
        Err(waits) => return waits,
    };
    let hint = last.and_then(|last| last.hint(profile, cycle, &filters, turn.now, &mut turn.rng));
    let hint = hint.filter(|(node, _)| filters.check_with_nominated(cycle, node).is_none());
    let chosen = match (nominated(cycle, &filters), hint) {
        (Some(node), _) => Some(node),
        (None, Some((node, rest))) => {
            turn.batch = Some(rest);
            turn.batched += 1;
            Some(node)
        }
        (None, None) => {
            let feasible = search(cycle, &filters, only, |nodes| profile.enough(nodes), turn, &mut why);
            choose(profile, cycle, &feasible, &[], turn)
        }
    };
    let Some(node) = chosen else {
        if why.failure.is_some() {
            return Plan::Wait(why);
        }
        frees(profile, cycle, &mut why);
        let preempting = profile.preemption;
        why.preemption = preempting.map(|limits| preempt::find(cycle, &filters, &why, limits, &mut turn.rng));
        return Plan::Wait(why);
    };
    let settled = settle(profile, cycle, node, why);
    if matches!(settled, Plan::Wait(_)) {
        // The node wasn't taken.
        turn.batch = None;
    }
    settled
}

fn prepare<'a>(profile: &'a Profile, cycle: Cycle<'a>, why: &mut Why) -> Result<Prepare<'a>, Plan> {
    if cycle.snapshot.is_empty() {
        return Err(Plan::Wait(std::mem::take(why)));
    }
    Filters::prepare(profile, cycle, why).map_err(|reject| {
        why.outright = Some(reject);
        if is_before_devices(profile, why) {
            // Upstream's plug-in for devices, asked first what could be done about it, misses what it would have noted.
            why.after = Some("not found");
        } else {
            why.preemption = profile.preemption.map(|_| preempt::outright(why));
            frees(profile, cycle, why);
        }
        Plan::Wait(std::mem::take(why))
    })
}

/// Whether a plug-in refused all nodes before that for devices was asked.
fn is_before_devices(profile: &Profile, why: &Why) -> bool {
    let place = |is_it: &dyn Fn(&str) -> bool| profile.filters().position(|plugin| is_it(plugin.name()));
    let refused = place(&|name| why.plugins.contains(name));
    let devices = place(&|name| name == dynamic_resources::NAME);
    refused.zip(devices).is_some_and(|(refused, devices)| refused < devices)
}

/// For whoever goes on with them elsewhere: nodes that would do, or the plan if none can. Only that where room was made, if `nominated`.
pub(crate) fn fitting(
    profile: &Profile,
    cycle: Cycle<'_>,
    is_nominated: bool,
    turn: &mut Turn<impl Rng>,
    why: &mut Why,
) -> Result<Vec<u32>, Plan> {
    turn.batch = None;
    let (filters, only) = prepare(profile, cycle, why)?;
    let nodes = match is_nominated {
        true => nominated(cycle, &filters).into_iter().collect(),
        false => search(cycle, &filters, only, |nodes| profile.share(nodes), turn, why),
    };
    if why.failure.is_some() {
        return Err(Plan::Wait(std::mem::take(why)));
    }
    Ok(nodes.into_iter().map(|node| node.index).collect())
}

/// The best of the nodes, if others weigh them too.
pub(crate) fn chosen<'a>(
    profile: &Profile,
    cycle: Cycle<'a>,
    nodes: &[u32],
    liked: &[i64],
    turn: &mut Turn<impl Rng>,
) -> Option<&'a Arc<NodeInfo>> {
    let nodes: Vec<_> = nodes.iter().filter_map(|index| cycle.snapshot.at(*index)).collect();
    let node = choose(profile, cycle, &nodes, liked, turn);
    // What others said of them isn't known of the next pod.
    turn.batch = None;
    node
}

/// What is said about claims if no node will do.
pub(crate) fn frees(profile: &Profile, cycle: Cycle<'_>, why: &mut Why) {
    if profile.allocates() {
        why.to_free = dynamic_resources::to_free(&profile.devices, cycle.pod, cycle.snapshot, &why.nodes);
    }
}

/// What the pod gets on its node. It was decided once to filter; what came of it is needed now.
pub(crate) fn settle(profile: &Profile, cycle: Cycle<'_>, node: &Arc<NodeInfo>, mut why: Why) -> Plan {
    let refused = |plugin, reject: Reject| {
        why.failure = failure(plugin, &reject);
        why.plugins.insert(plugin);
        why.nodes.push(Refused {
            node: node.index,
            plugin,
            reject,
        });
        Plan::Wait(why)
    };
    let volumes = match volume_binding::decide(cycle, node) {
        Ok(volumes) => volumes,
        Err(reject) => return refused("VolumeBinding", reject),
    };
    let devices = match profile.allocates() {
        true => dynamic_resources::decide(&profile.devices, cycle.pod, cycle.snapshot, node),
        false => Ok(dynamic_resources::Decision::default()),
    };
    match devices {
        Ok(devices) => Plan::Bind {
            node: node.name().to_owned(),
            volumes,
            devices,
        },
        Err(reject) => refused(dynamic_resources::NAME, reject),
    }
}

fn failure(plugin: &str, reject: &Reject) -> Option<String> {
    reject
        .is_error
        .then(|| format!("running {plugin:?} filter plugin: {}", reject.text()))
}

/// The node where room was made for the pod, if it fits there: hardly another will do.
fn nominated<'a>(cycle: Cycle<'a>, filters: &Filters<'a>) -> Option<&'a Arc<NodeInfo>> {
    let node = cycle.snapshot.node(cycle.pod.nominated_node()?)?;
    filters.check_with_nominated(cycle, node).is_none().then_some(node)
}

/// Enough nodes that fit; of the others that were looked at, why they don't.
fn search<'a>(
    cycle: Cycle<'a>,
    filters: &Filters<'a>,
    only: Option<BTreeSet<String>>,
    enough: impl Fn(usize) -> usize,
    turn: &mut Turn<impl Rng>,
    why: &mut Why,
) -> Vec<&'a Arc<NodeInfo>> {
    let named: Option<Vec<u32>> = only.map(|names| {
        let nodes = names.iter().filter_map(|name| cycle.snapshot.node(name));
        nodes.map(|node| node.index).collect()
    });
    let all = cycle.snapshot.order();
    let nodes = named.as_deref().unwrap_or(all);
    let enough = enough(nodes.len());
    let mut feasible = Vec::with_capacity(enough);
    let start = if nodes.is_empty() { 0 } else { turn.start % nodes.len() };
    for index in nodes[start..].iter().chain(&nodes[..start]) {
        let Some(node) = cycle.snapshot.at(*index) else {
            continue;
        };
        match filters.check_with_nominated(cycle, node) {
            None => feasible.push(node),
            Some((plugin, reject)) if reject.is_error => {
                why.failure = failure(plugin, &reject);
                return Vec::new();
            }
            Some((plugin, reject)) => why.nodes.push(Refused {
                node: *index,
                plugin,
                reject,
            }),
        }
        if feasible.len() >= enough {
            break;
        }
    }
    turn.start = (turn.start + feasible.len() + why.nodes.len()) % all.len();
    let mut last = "";
    for refused in &why.nodes {
        if refused.plugin != last {
            last = refused.plugin;
            why.plugins.insert(last);
        }
    }
    feasible
}

/// The filters made for one pod.
pub(crate) struct Filters<'a> {
    all: Vec<(&'static str, Arc<dyn NodeFilter + 'a>)>,
    /// Some count pods: to try what would be takes a copy.
    do_remember: bool,
}

pub(crate) type Prepare<'a> = (Filters<'a>, Option<BTreeSet<String>>);

impl<'a> Filters<'a> {
    pub(crate) fn prepare(profile: &'a Profile, cycle: Cycle<'a>, why: &mut Why) -> Result<Prepare<'a>, Reject> {
        let mut filters = Vec::new();
        let mut only: Option<BTreeSet<String>> = None;
        let mut naming = Vec::new();
        for plugin in profile.filters() {
            match plugin.prepare(cycle) {
                Prepared::Skip => {}
                Prepared::Filter(filter) => filters.push((plugin.name(), filter.into())),
                Prepared::Only(filter, names) => {
                    filters.push((plugin.name(), filter.into()));
                    naming.push(plugin.name());
                    only = Some(match only {
                        Some(others) => others.intersection(&names).cloned().collect(),
                        None => names,
                    });
                }
                Prepared::Reject(reject) => {
                    why.plugins.insert(plugin.name());
                    return Err(reject);
                }
            }
        }
        if !naming.is_empty() {
            naming.sort();
            why.rest = Some(format!("node(s) didn't satisfy plugin(s) [{}]", naming.join(" ")));
            why.plugins.extend(naming);
        }
        Ok((Filters::of(filters), only))
    }

    fn of(all: Vec<(&'static str, Arc<dyn NodeFilter + 'a>)>) -> Filters<'a> {
        let do_remember = all.iter().any(|(_, filter)| filter.copy().is_some());
        Filters { all, do_remember }
    }

    /// Who refuses the node, and why.
    pub(crate) fn check(&self, node: &NodeInfo) -> Option<(&'static str, Reject)> {
        self.all
            .iter()
            .find_map(|(name, filter)| filter.filter(node).err().map(|reject| (*name, reject)))
    }

    /// The pod must fit with the more important pods that are to come to the node, and also if they don't come.
    pub(crate) fn check_with_nominated(&self, cycle: Cycle<'a>, node: &NodeInfo) -> Option<(&'static str, Reject)> {
        let is_ahead = |p: &&Arc<PodInfo>| p.priority >= cycle.pod.priority && p.uid() != cycle.pod.uid();
        if node.nominated.iter().any(|p| is_ahead(&p)) {
            let (mut filters, mut crowded) = (self.copy(), node.clone());
            for pod in node.nominated.iter().filter(is_ahead) {
                if let Some(filters) = &mut filters {
                    filters.add(pod, &crowded);
                }
                crowded.add(pod.clone());
            }
            if let Some(refused) = filters.as_ref().unwrap_or(self).check(&crowded) {
                return Some(refused);
            }
        }
        self.check(node)
    }

    /// To add and remove pods; `None`: none of them would notice.
    pub(crate) fn copy(&self) -> Option<Filters<'a>> {
        let copy = |filter: &Arc<dyn NodeFilter + 'a>| filter.copy().map_or_else(|| filter.clone(), Arc::from);
        self.do_remember.then(|| Filters {
            all: self.all.iter().map(|(name, filter)| (*name, copy(filter))).collect(),
            do_remember: true,
        })
    }
    /// Only on a copy.
    pub(crate) fn add(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.each(|filter| filter.add(pod, node));
    }
    /// Only on a copy.
    pub(crate) fn remove(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.each(|filter| filter.remove(pod, node));
    }
    fn each(&mut self, f: impl FnMut(&mut (dyn NodeFilter + 'a))) {
        // What is shared remembers nothing.
        self.all
            .iter_mut()
            .filter_map(|(_, filter)| Arc::get_mut(filter))
            .for_each(f);
    }
}

fn choose<'a>(
    profile: &Profile,
    cycle: Cycle<'_>,
    feasible: &[&'a Arc<NodeInfo>],
    liked: &[i64],
    turn: &mut Turn<impl Rng>,
) -> Option<&'a Arc<NodeInfo>> {
    if feasible.len() < 2 {
        return feasible.first().copied();
    }
    let mut totals = liked.to_vec();
    totals.resize(feasible.len(), 0);
    let mut scores = Vec::with_capacity(feasible.len());
    let mut kept = batch::is_same(profile, cycle.pod, cycle.pod).then(|| Candidates::new(feasible));
    for (place, plugin, weight) in profile.scorers() {
        let Some(scorer) = plugin.scorer(cycle, feasible) else {
            continue;
        };
        scores.clear();
        scores.extend(feasible.iter().map(|node| scorer.score(node)));
        if let Some(kept) = &mut kept {
            kept.said(place, &scores);
        }
        scorer.normalize(feasible, &mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            *total = total.saturating_add(score * weight);
        }
    }
    let at = batch::best(&totals, &mut turn.rng)?;
    let kept = kept.map(|kept| kept.without(at, totals));
    turn.batch = kept.and_then(|kept| Batch::new(cycle, turn.now, feasible[at], kept));
    Some(feasible[at])
}

impl Why {
    pub(crate) fn of(snapshot: &Snapshot) -> Why {
        Why {
            total: snapshot.len(),
            ..Why::default()
        }
    }

    /// As upstream tells it.
    pub fn message(&self) -> String {
        if let Some(failure) = &self.failure {
            return failure.clone();
        }
        if self.total == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut text = format!("0/{} nodes are available:", self.total);
        match &self.outright {
            Some(reject) => text.push_str(&format!(" {}.", reject.text())),
            None => {
                let reasons = self.nodes.iter().flat_map(|refused| refused.reject.reasons());
                let rest = self
                    .rest
                    .as_deref()
                    .map(|reason| (reason, self.total.saturating_sub(self.nodes.len())));
                text.push_str(&histogram(reasons, rest));
            }
        }
        let freed = self
            .to_free
            .as_ref()
            .map(|_| "deallocation of ResourceClaim completed".to_owned());
        let preemption = self.preemption.as_ref().map(|p| format!("preemption: {}", p.message));
        let after = self.after.map(str::to_owned);
        let after: Vec<String> = freed.into_iter().chain(preemption).chain(after).collect();
        if !after.is_empty() {
            text.push_str(&format!(" {}", after.join(", ")));
        }
        text
    }
}

/// ` 1 this, 2 that.` There are few reasons, and thousands of nodes that have them.
pub(crate) fn histogram<'a>(reasons: impl Iterator<Item = &'a str>, rest: Option<(&'a str, usize)>) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    let rest = rest.filter(|(_, count)| *count > 0);
    for (reason, n) in reasons.map(|reason| (reason, 1)).chain(rest) {
        match counts.iter_mut().find(|(other, _)| *other == reason) {
            Some((_, count)) => *count += n,
            None => counts.push((reason, n)),
        }
    }
    let mut texts: Vec<String> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    texts.sort();
    if texts.is_empty() {
        String::new()
    } else {
        format!(" {}.", texts.join(", "))
    }
}
