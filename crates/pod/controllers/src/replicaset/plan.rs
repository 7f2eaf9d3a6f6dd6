//! How many pods to create or delete, which, and what the status says of them.

use super::census::Group;
use super::kinds::Replicated;
use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    None,
    Create(usize),
    Delete(usize),
}

pub fn step(active: usize, wanted: i32, burst: usize) -> Step {
    let wanted = wanted.max(0) as usize;
    match active.cmp(&wanted) {
        std::cmp::Ordering::Equal => Step::None,
        std::cmp::Ordering::Less => Step::Create((wanted - active).min(burst)),
        std::cmp::Ordering::Greater => Step::Delete((active - wanted).min(burst)),
    }
}

/// The pods to delete: the least useful, and those on nodes with many related ones.
pub fn victims(active: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        if let Some(node) = pods::node(pod) {
            *on_node.entry(node).or_default() += 1;
        }
    }
    let rank = |pod: &Pod| pods::node(pod).and_then(|n| on_node.get(n)).copied().unwrap_or(0);
    let mut sorted = active.to_vec();
    sorted.sort_by(|a, b| pods::deletion_order((a, rank(a)), (b, rank(b)), now));
    sorted.truncate(count);
    sorted
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub labelled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

pub fn count<K: Replicated>(set: &K, active: &[Arc<Pod>], terminating: usize, now: Timestamp) -> Counts {
    let template = set.template().metadata.and_then(|m| m.labels).unwrap_or_default();
    let number = |keep: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| keep(pod)).count() as i32;
    Counts {
        replicas: active.len() as i32,
        labelled: number(&|pod| keelson_client::labels::includes(pod.metadata.labels.as_ref(), &template)),
        ready: number(&pods::is_ready),
        available: number(&|pod| pods::is_available(pod, set.min_ready_seconds(), now)),
        terminating: terminating as i32,
    }
}

/// The same of pods that are counted already. None if each has to be looked at: how long it has been ready matters, or one has to
/// be let go of.
pub fn count_groups<K: Replicated>(set: &K, groups: &[Group]) -> Option<Counts> {
    let is_let_go = |(labels, number): &Group| number.active > 0 && !set.selects(labels.as_deref());
    if set.min_ready_seconds() > 0 || groups.iter().any(is_let_go) {
        return None;
    }
    let template = set.template().metadata.and_then(|m| m.labels).unwrap_or_default();
    let mut counts = Counts::default();
    for (labels, number) in groups {
        let labels = labels.as_deref();
        counts.replicas += number.active as i32;
        counts.ready += number.ready as i32;
        counts.available += number.ready as i32;
        if keelson_client::labels::includes(labels, &template) {
            counts.labelled += number.active as i32;
        }
        if set.selects(labels) {
            counts.terminating += number.terminating as i32;
        }
    }
    Some(counts)
}

/// When the next ready pod becomes available.
pub fn next_check(min_ready_seconds: i32, active: &[Arc<Pod>], now: Timestamp) -> Option<SignedDuration> {
    if min_ready_seconds <= 0 {
        return None;
    }
    let waits = active
        .iter()
        .filter_map(|pod| pods::available_in(pod, min_ready_seconds, now));
    waits.filter(|wait| *wait > SignedDuration::ZERO).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        assert_eq!(step(3, 3, 500), Step::None);
        assert_eq!(step(1, 3, 500), Step::Create(2));
        assert_eq!(step(0, 900, 500), Step::Create(500));
        assert_eq!(step(5, 3, 500), Step::Delete(2));
        assert_eq!(step(5, -1, 2), Step::Delete(2));
    }
}
