//! How many pods each owner has, kept by what changes of them: a set of thousands isn't gone through for one of its pods.
//!
//! Pods of one template have the same labels, so that what a selector says of one group of equal labels it says of all in it.

use crate::{pods, wire};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::labels::Labels;
use keelson_client::{ApiObject, Change, ObjectKey};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Pods of one owner with the same labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Number {
    /// Of any state.
    pub pods: usize,
    pub active: usize,
    /// Of the active ones.
    pub ready: usize,
    pub terminating: usize,
}

impl Number {
    fn of(pod: &Pod) -> Number {
        let active = pods::is_active(pod);
        Number {
            pods: 1,
            active: active.into(),
            ready: (active && pods::is_ready(pod)).into(),
            terminating: pods::is_terminating(pod).into(),
        }
    }
    fn add(&mut self, other: Number) {
        self.pods += other.pods;
        self.active += other.active;
        self.ready += other.ready;
        self.terminating += other.terminating;
    }
    fn sub(&mut self, other: Number) {
        self.pods -= other.pods;
        self.active -= other.active;
        self.ready -= other.ready;
        self.terminating -= other.terminating;
    }
}

pub type Group = (Option<Arc<Labels>>, Number);

/// Of the owners of one kind.
pub struct Census {
    kind: &'static str,
    group: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each pod counts for: the last that is told of it needn't be what was told before.
    pods: HashMap<ObjectKey, Counted>,
    owners: HashMap<Arc<str>, Vec<Group>>,
}

struct Counted {
    owner: Arc<str>,
    labels: Option<Arc<Labels>>,
    number: Number,
}

impl Census {
    pub fn new(kind: &'static str, group: &'static str) -> Census {
        Census {
            kind,
            group,
            state: Mutex::default(),
        }
    }

    pub fn changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let owner = wire::controller_of(pod.meta()).filter(|o| wire::is_kind(o, self.kind, self.group));
        let mut state = self.state.lock();
        state.leave(&pod.key());
        if let Some(owner) = owner.filter(|_| !change.is_deleted()) {
            state.enter(pod, &owner.uid);
        }
    }

    /// The owner's pods, a group for all with equal labels.
    pub fn of(&self, owner: &str) -> Vec<Group> {
        self.state.lock().owners.get(owner).cloned().unwrap_or_default()
    }
}

impl State {
    fn enter(&mut self, pod: &Pod, owner: &str) {
        let owner: Arc<str> = match self.owners.get_key_value(owner) {
            Some((known, _)) => known.clone(),
            None => owner.into(),
        };
        let groups = self.owners.entry(owner.clone()).or_default();
        let (own, number) = (pod.metadata.labels.as_ref(), Number::of(pod));
        let at = groups.iter().position(|(labels, _)| labels.as_deref() == own);
        let at = at.unwrap_or_else(|| {
            groups.push((own.cloned().map(Arc::new), Number::default()));
            groups.len() - 1
        });
        let (labels, sum) = &mut groups[at];
        sum.add(number);
        let counted = Counted {
            owner,
            labels: labels.clone(),
            number,
        };
        self.pods.insert(pod.key(), counted);
    }

    fn leave(&mut self, key: &ObjectKey) {
        let Some(counted) = self.pods.remove(key) else { return };
        let Some(groups) = self.owners.get_mut(&counted.owner) else {
            return;
        };
        if let Some((_, sum)) = groups.iter_mut().find(|(labels, _)| *labels == counted.labels) {
            sum.sub(counted.number);
        }
        groups.retain(|(_, sum)| sum.pods > 0);
        if groups.is_empty() {
            self.owners.remove(&counted.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, owner: &str, app: &str, phase: &str, ready: bool) -> Arc<Pod> {
        let owners = match owner {
            "" => json!([]),
            owner => {
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": owner, "controller": true}])
            }
        };
        let word = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": {"name": name, "namespace": "n", "labels": {"app": app}, "ownerReferences": owners},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": word}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn shown(census: &Census, owner: &str) -> Vec<(String, [usize; 3])> {
        let groups = census.of(owner).into_iter();
        let mut all: Vec<_> = groups
            .map(|(labels, n)| {
                let app = labels.and_then(|l| l.get("app").cloned()).unwrap_or_default();
                (app, [n.active, n.ready, n.terminating])
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn it_is_what_counting_anew_would_give() {
        let census = Census::new("ReplicaSet", "apps");
        let none: Vec<(String, [usize; 3])> = Vec::new();
        census.changed(&Change::Added(pod("a", "1", "web", "Running", true)));
        census.changed(&Change::Added(pod("b", "1", "web", "Pending", false)));
        census.changed(&Change::Added(pod("c", "1", "other", "Running", true)));
        census.changed(&Change::Added(pod("d", "", "web", "Running", true)));
        assert_eq!(
            shown(&census, "1"),
            [("other".to_string(), [1, 1, 0]), ("web".to_string(), [2, 1, 0])]
        );
        // One becomes ready, one ends, one changes hands.
        let update = |new: Arc<Pod>| Change::Updated { old: new.clone(), new };
        census.changed(&update(pod("b", "1", "web", "Running", true)));
        census.changed(&update(pod("c", "1", "other", "Failed", false)));
        census.changed(&update(pod("a", "2", "web", "Running", true)));
        let ended = ("other".to_string(), [0, 0, 0]);
        assert_eq!(shown(&census, "1"), [ended.clone(), ("web".to_string(), [1, 1, 0])]);
        assert_eq!(shown(&census, "2"), [("web".to_string(), [1, 1, 0])]);
        let mut leaving = (*pod("b", "1", "web", "Running", true)).clone();
        leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            jiff::Timestamp::UNIX_EPOCH,
        ));
        census.changed(&update(Arc::new(leaving)));
        assert_eq!(shown(&census, "1"), [ended, ("web".to_string(), [0, 0, 1])]);
        let known: usize = census.of("1").iter().map(|(_, n)| n.pods).sum();
        assert_eq!(known, 2, "also what has ended: the store has as many");
        // The last word of a pod isn't what was said before.
        census.changed(&Change::Deleted(pod("b", "9", "late", "Failed", false)));
        census.changed(&Change::Deleted(pod("c", "1", "other", "Failed", false)));
        census.changed(&Change::Deleted(pod("a", "2", "web", "Running", true)));
        assert_eq!((shown(&census, "1"), shown(&census, "2")), (none.clone(), none));
        assert!(census.state.lock().owners.is_empty());
    }
}
