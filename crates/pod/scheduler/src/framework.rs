//! What a plug-in is: it may keep pods off nodes, prefer nodes, and tell which changes may help a pod it kept off.
//!
//! A plug-in is a pure function of a pod and a picture of the cluster. What it works out for one pod lives in the filter or
//! scorer it makes for that pod's cycle; preemption tries what would be by adding pods to, and removing them from, copies.

use crate::events::ClusterEvent;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::world::World;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Scores are normalised to 0..=100, then weighted.
pub const MAX_SCORE: i64 = 100;

/// One pod's scheduling cycle.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub snapshot: &'a Snapshot,
}

pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// Before nodes are looked at.
    fn prepare<'a>(&'a self, _cycle: Cycle<'a>) -> Prepared<'a> {
        Prepared::Skip
    }
    /// `None`: no preference.
    fn scorer<'a>(&'a self, _cycle: Cycle<'a>, _feasible: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        None
    }
    /// Whether it says the same of both pods, of any node and at any time: what was found for one is used for the other then. What
    /// isn't known isn't used, and no pod is like another.
    fn is_same(&self, _a: &PodInfo, _b: &PodInfo) -> bool {
        false
    }
    /// Whether any pod that this plug-in kept off may fit after such an event: if not, they aren't gone through.
    fn hears(&self, _event: &ClusterEvent) -> bool {
        true
    }
    /// Whether a pod that this plug-in kept off may fit after the event.
    fn helps(&self, _event: &ClusterEvent, _pod: &PodInfo, _world: &dyn World) -> bool {
        false
    }
}

/// What a plug-in has to say before nodes are looked at.
pub enum Prepared<'a> {
    /// Nothing: the pod is none of its business.
    Skip,
    Filter(Box<dyn NodeFilter + 'a>),
    /// A filter, and the only nodes worth a look.
    Only(Box<dyn NodeFilter + 'a>, BTreeSet<String>),
    /// No node will do.
    Reject(Reject),
}

/// Looks at one node at a time.
pub trait NodeFilter: Send + Sync {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject>;
    /// As if the pod were on the node.
    fn add(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}
    /// As if it weren't.
    fn remove(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}
    /// For whoever wants to add and remove; `None`: it remembers nothing, and is shared.
    fn copy<'a>(&self) -> Option<Box<dyn NodeFilter + 'a>>
    where
        Self: 'a,
    {
        None
    }
}

pub trait Scorer {
    fn score(&self, node: &NodeInfo) -> i64;
    /// To 0..=[`MAX_SCORE`], over all nodes.
    fn normalize(&self, _nodes: &[&Arc<NodeInfo>], _scores: &mut [i64]) {}
}

/// Why a node, or all of them, won't do. There are thousands of them if a pod fits nowhere: one reason, which is the rule,
/// allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Removing pods can't help.
    pub is_final: bool,
    /// Not the node is to blame: the pod's decision ends with this, wherever it would fit.
    pub is_error: bool,
    reason: Cow<'static, str>,
    more: Vec<Cow<'static, str>>,
}

impl Reject {
    /// Might change if pods were removed.
    pub fn for_now(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject {
            is_final: false,
            is_error: false,
            reason: reason.into(),
            more: Vec::new(),
        }
    }
    pub fn for_good(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject {
            is_final: true,
            ..Reject::for_now(reason)
        }
    }
    /// Something went wrong.
    pub fn error(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject {
            is_error: true,
            ..Reject::for_good(reason)
        }
    }
    pub fn push(&mut self, reason: impl Into<Cow<'static, str>>) {
        self.more.push(reason.into());
    }
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.reason).chain(&self.more).map(|r| r.as_ref())
    }
    /// All reasons as one text.
    pub fn text(&self) -> String {
        self.reasons().collect::<Vec<_>>().join(", ")
    }
}

/// The highest score becomes 100; with `reverse` the lowest does.
pub fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        let share = if max == 0 { 0 } else { *score * MAX_SCORE / max };
        *score = if reverse { MAX_SCORE - share } else { share };
    }
}
