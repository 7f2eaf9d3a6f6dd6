//! A decision in which extenders have a say: plug-ins look for nodes, extenders leave some of them, both weigh, and if none is left
//! both say who could go. Between two questions nothing is held but plain data.

use super::wire::Victims;
use super::{Extender, NAME};
use crate::framework::{Cycle, Reject};
use crate::plan::{self, Filters, Plan, Refused, Turn, Why};
use crate::pod::PodInfo;
use crate::preempt::{self, Candidate, Found, Preemption};
use crate::profile::{Preempting, Profile};
use crate::snapshot::Snapshot;
use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Node;
use rand::Rng;
use std::collections::BTreeMap;

/// Of what an extender says of a node.
const LONGEST: usize = 1024;

pub async fn plan<R: Rng + Send>(
    extenders: &[Extender],
    profile: &Profile,
    pod: &PodInfo,
    snapshot: &Snapshot,
    turn: &mut Turn<R>,
) -> anyhow::Result<Plan> {
    let asked: Vec<&Extender> = extenders.iter().filter(|extender| extender.cares_for(pod)).collect();
    let cycle = Cycle { pod, snapshot };
    let mut why = Why::of(snapshot);
    let mut left = Vec::new();
    // First the node where room was made for the pod.
    for nominated in [true, false] {
        if nominated && pod.nominated_node().is_none() {
            continue;
        }
        why = Why::of(snapshot);
        let fitting = match plan::fitting(profile, cycle, nominated, turn, &mut why) {
            Ok(fitting) => fitting,
            Err(waits) => return Ok(waits),
        };
        left = match filter(&asked, cycle, fitting, &mut why).await {
            // There are others.
            Err(error) if nominated => {
                tracing::info!(
                    error = format!("{error:#}"),
                    "the node where room was made isn't judged"
                );
                continue;
            }
            left => left?,
        };
        if !left.is_empty() {
            break;
        }
    }
    let liked = match left.len() {
        0 | 1 => vec![0; left.len()],
        _ => preferences(&asked, cycle, &left).await,
    };
    if let Some(chosen) = plan::chosen(profile, cycle, &left, &liked, turn) {
        return Ok(plan::settle(profile, cycle, chosen, why));
    }
    plan::frees(profile, cycle, &mut why);
    if let Some(limits) = profile.preemption {
        why.preemption = Some(preempt(&asked, profile, cycle, &why, limits, turn).await);
    }
    Ok(Plan::Wait(why))
}

fn nodes<'a>(cycle: Cycle<'a>, indexes: &[u32]) -> Vec<&'a Node> {
    let known = indexes.iter().filter_map(|index| cycle.snapshot.at(*index));
    known.map(|node| node.node()).collect()
}

async fn filter(asked: &[&Extender], cycle: Cycle<'_>, mut left: Vec<u32>, why: &mut Why) -> anyhow::Result<Vec<u32>> {
    for extender in asked.iter().filter(|extender| extender.filters()) {
        if left.is_empty() {
            break;
        }
        let (kept, said) = match extender.filter(cycle.pod, &nodes(cycle, &left)).await {
            Ok(answer) => answer,
            Err(error) if extender.may_fail() => {
                tracing::info!(extender = extender.name(), error = format!("{error:#}"), "passed over");
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut refused = |name: &str, reject: Reject| {
            let node = cycle.snapshot.node(name).map(|node| node.index);
            if let Some(node) = node.filter(|node| left.contains(node)) {
                why.nodes.push(Refused {
                    node,
                    plugin: NAME,
                    reject,
                });
            }
        };
        for (name, text) in &said.failed_for_good {
            refused(name, Reject::for_good(short(text)));
        }
        for (name, text) in said
            .failed
            .iter()
            .filter(|(name, _)| !said.failed_for_good.contains_key(*name))
        {
            refused(name, Reject::for_now(short(text)));
        }
        let kept: Vec<u32> = kept.into_iter().filter_map(|at| left.get(at).copied()).collect();
        if kept.len() != left.len() {
            why.plugins.insert(NAME);
        }
        left = kept;
    }
    Ok(left)
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

/// What the extenders that answer give to each of the nodes, together.
async fn preferences(asked: &[&Extender], cycle: Cycle<'_>, left: &[u32]) -> Vec<i64> {
    let nodes = nodes(cycle, left);
    let prefering = asked.iter().filter(|extender| extender.prefers());
    let answers = prefering.map(|extender| {
        let nodes = &nodes;
        async move {
            let answer = extender.preferences(cycle.pod, nodes).await;
            answer.inspect_err(|error| {
                tracing::debug!(
                    extender = extender.name(),
                    error = format!("{error:#}"),
                    "prefers nothing"
                );
            })
        }
    });
    let answers = futures::future::join_all(answers).await;
    let given = |node: &&Node| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let of = answers.iter().flatten().filter_map(|scores| scores.get(name));
        of.fold(0i64, |sum, score| sum.saturating_add(*score))
    };
    nodes.iter().map(given).collect()
}

async fn preempt(
    asked: &[&Extender],
    profile: &Profile,
    cycle: Cycle<'_>,
    why: &Why,
    limits: Preempting,
    turn: &mut Turn<impl Rng>,
) -> Preemption {
    // The filters are as they were; they say nothing new.
    let found = match Filters::prepare(profile, cycle, &mut Why::default()) {
        Ok((filters, _)) => preempt::candidates(cycle, &filters, why, limits, &mut turn.rng),
        Err(_) => return preempt::outright(why),
    };
    let Found { candidates, refused } = match found {
        Ok(found) => found,
        Err(preemption) => return preemption,
    };
    match victims(asked, cycle, candidates).await {
        Ok(candidates) => preempt::best(why.total, Found { candidates, refused }),
        Err(error) => Preemption::none(format!("{error:#}"), false),
    }
}

/// The candidates that the extenders leave, and their victims by their say.
async fn victims(asked: &[&Extender], cycle: Cycle<'_>, candidates: Vec<Candidate>) -> anyhow::Result<Vec<Candidate>> {
    let mut all: BTreeMap<String, Victims> = BTreeMap::new();
    for candidate in candidates {
        let Candidate {
            node,
            victims: pods,
            violations,
        } = candidate;
        all.insert(node, Victims { pods, violations });
    }
    for extender in asked.iter().filter(|extender| extender.preempts()) {
        if all.is_empty() {
            break;
        }
        let answer = match extender.preempt(cycle.pod, &all).await {
            Ok(answer) => known(extender, cycle, answer.0),
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => all = answer,
            Err(error) if extender.may_fail() => {
                tracing::info!(extender = extender.name(), error = format!("{error:#}"), "passed over");
            }
            Err(error) => return Err(error),
        }
    }
    let candidate = |(
        node,
        Victims {
            pods: victims,
            violations,
        },
    )| Candidate {
        node,
        victims,
        violations,
    };
    Ok(all.into_iter().map(candidate).collect())
}

/// The pods that an extender names by their uids.
fn known(
    extender: &Extender,
    cycle: Cycle<'_>,
    answer: BTreeMap<String, (Vec<String>, usize)>,
) -> anyhow::Result<BTreeMap<String, Victims>> {
    let mut all = BTreeMap::new();
    for (name, (uids, violations)) in answer {
        if uids.is_empty() && extender.may_fail() {
            continue;
        }
        ensure!(!uids.is_empty(), "expected at least one victim pod on node {name:?}");
        let node = cycle
            .snapshot
            .node(&name)
            .with_context(|| format!("nodeinfo not found for node name {name:?}"))?;
        let pod = |uid: &String| {
            let pod = node.pods().iter().find(|pod| pod.uid() == uid).cloned();
            let (url, name) = (extender.name(), node.name());
            pod.with_context(|| {
                format!("extender: {url} claims to preempt pod (UID: {uid}) on node: {name}, but the pod is not found on that node")
            })
        };
        let pods = uids.iter().map(pod).collect::<anyhow::Result<_>>()?;
        all.insert(name, Victims { pods, violations });
    }
    Ok(all)
}
