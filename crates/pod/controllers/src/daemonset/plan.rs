//! Which daemons to create and delete, node by node. Pure.

use super::place::{Place, node_of};
use crate::history::REVISION_LABEL;
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::ApiObject;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A set, its pods by node, and where it should run.
pub struct Snapshot<'a> {
    pub set: &'a DaemonSet,
    pub by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    pub places: BTreeMap<String, Place>,
    /// The hash that pods of the present template carry.
    pub hash: &'a str,
    pub max_surge: i32,
    pub max_unavailable: i32,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that get a daemon.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods that ended and are replaced, with their node; failures are slowed down.
    pub ended: Vec<(String, Arc<Pod>)>,
}

/// By node; ended pods that are being deleted don't count. A pod that has no node yet counts for the one it is bound to.
pub fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<String, Vec<Arc<Pod>>> {
    let mut map: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| !(pods::is_finished(p) && p.is_deleting())) {
        if let Some(node) = node_of(pod) {
            map.entry(node).or_default().push(pod.clone());
        }
    }
    map
}

/// The oldest first; those with a node before others.
fn sort(pods: &mut [Arc<Pod>]) {
    pods.sort_by_key(|p| {
        (
            pods::node(p).is_none(),
            p.metadata.creation_timestamp.as_ref().map(|t| t.0),
            p.name().to_string(),
        )
    });
}

impl Snapshot<'_> {
    fn is_new(&self, pod: &Pod) -> bool {
        pod.metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(REVISION_LABEL))
            .is_some_and(|h| h == self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.set.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    /// One daemon on each node where one should be, and none elsewhere.
    pub fn manage(&self) -> Plan {
        let mut plan = Plan::default();
        for (node, place) in &self.places {
            let Some(found) = self.by_node.get(node) else {
                if place.should_run {
                    plan.create.push(node.clone());
                }
                continue;
            };
            let live = found.iter().filter(|p| !p.is_deleting());
            if !place.may_stay {
                plan.delete.extend(live.cloned());
                continue;
            }
            let (ended, mut running): (Vec<_>, Vec<_>) = live.cloned().partition(|p| pods::is_finished(p));
            plan.ended.extend(ended.into_iter().map(|p| (node.clone(), p)));
            sort(&mut running);
            if self.max_surge == 0 {
                plan.delete.extend(running.into_iter().skip(1));
            } else if running.is_empty() && place.should_run && plan.ended.iter().all(|(n, _)| n != node) {
                plan.create.push(node.clone());
            } else if running.len() > 1 {
                self.surging(running, &mut plan);
            }
        }
        // Pods bound to a node that is gone will never start.
        let lost = self
            .by_node
            .iter()
            .filter(|(node, _)| !self.places.contains_key(*node))
            .flat_map(|(_, pods)| pods);
        plan.delete
            .extend(lost.filter(|p| pods::node(p).is_none() && !p.is_deleting()).cloned());
        plan
    }

    /// A new daemon may run beside the old one until it is available, or the old one fails.
    fn surging(&self, running: Vec<Arc<Pod>>, plan: &mut Plan) {
        let (mut new, mut old) = (None, None);
        for pod in running {
            let slot = if self.is_new(&pod) { &mut new } else { &mut old };
            match slot {
                None => *slot = Some(pod),
                Some(_) => plan.delete.push(pod),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!pods::is_ready(&old) || self.is_available(&new))
        {
            plan.delete.push(old);
        }
    }

    fn desired(&self) -> i32 {
        self.places.values().filter(|p| p.should_run).count() as i32
    }

    /// The one new and the one old pod of a node; none if there are more.
    fn pair(&self, pods: &[Arc<Pod>]) -> Option<(Option<Arc<Pod>>, Option<Arc<Pod>>)> {
        let (mut new, mut old) = (None, None);
        for pod in pods.iter().filter(|p| !p.is_deleting()) {
            let slot = if self.is_new(pod) { &mut new } else { &mut old };
            if slot.replace(pod.clone()).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// The next step of a rolling update.
    pub fn roll(&self) -> Plan {
        if self.max_surge == 0 {
            self.roll_by_deletion()
        } else {
            self.roll_by_surge()
        }
    }

    fn roll_by_deletion(&self) -> Plan {
        let mut unavailable = 0;
        let (mut free, mut candidates) = (Vec::new(), Vec::new());
        for pods in self.by_node.values() {
            match self.pair(pods) {
                Some((Some(new), None)) => unavailable += i32::from(!self.is_available(&new)),
                Some((None, Some(old))) if self.is_available(&old) => candidates.push(old),
                Some((None, Some(old))) => {
                    free.push(old);
                    unavailable += 1;
                }
                _ => unavailable += 1,
            }
        }
        let room = (self.max_unavailable - unavailable).max(0) as usize;
        free.extend(candidates.into_iter().take(room));
        Plan {
            delete: free,
            ..Default::default()
        }
    }

    fn roll_by_surge(&self) -> Plan {
        let mut plan = Plan::default();
        let (mut surge, mut working) = (0, 0);
        let (mut candidates, mut leaving) = (Vec::new(), Vec::new());
        for (node, pods) in &self.by_node {
            let Some((new, old)) = self.pair(pods) else {
                surge += 1;
                continue;
            };
            working += i32::from(old.as_ref().or(new.as_ref()).is_some_and(|p| self.is_available(p)));
            let should_run = self.places.get(node).is_some_and(|p| p.should_run);
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) if !self.is_available(&old) && should_run => plan.create.push(node.clone()),
                (None, Some(old)) if !self.is_available(&old) => plan.delete.push(old),
                (None, Some(_)) if should_run => candidates.push(node.clone()),
                (None, Some(old)) => leaving.push(old),
                (Some(new), Some(_)) if !self.is_available(&new) => surge += 1,
                (Some(_), Some(old)) => plan.delete.push(old),
            }
        }
        let spare = (working - self.desired()).max(0) as usize;
        plan.delete.extend(leaving.into_iter().take(spare));
        let room = (self.max_surge - surge).max(0) as usize;
        plan.create.extend(candidates.into_iter().take(room));
        plan
    }

    pub fn status(&self, collisions: Option<i32>) -> DaemonSetStatus {
        let (mut current, mut misplaced, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0);
        for (node, place) in &self.places {
            let mut pods = self.by_node.get(node).cloned().unwrap_or_default();
            sort(&mut pods);
            let Some(pod) = pods.first() else { continue };
            if !place.should_run {
                misplaced += 1;
                continue;
            }
            current += 1;
            ready += i32::from(pods::is_ready(pod));
            available += i32::from(self.is_available(pod));
            updated += i32::from(self.is_new(pod));
        }
        let some = |n: i32| (n != 0).then_some(n);
        let desired = self.desired();
        DaemonSetStatus {
            desired_number_scheduled: desired,
            current_number_scheduled: current,
            number_misscheduled: misplaced,
            number_ready: ready,
            number_available: some(available),
            number_unavailable: some(desired - available),
            updated_number_scheduled: some(updated),
            observed_generation: self.set.metadata.generation,
            collision_count: collisions,
            conditions: self.set.status.as_ref().and_then(|s| s.conditions.clone()),
        }
    }
}

/// The names of all pods' template hashes, which keep their revisions in the history.
pub fn hashes(pods: &[Arc<Pod>]) -> BTreeSet<String> {
    pods.iter()
        .filter_map(|p| p.metadata.labels.as_ref()?.get(REVISION_LABEL).cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, hash: &str, ready: bool, phase: &str) -> Arc<Pod> {
        let text = format!(
            r#"{{"metadata":{{"name":"{name}","uid":"{name}","labels":{{"controller-revision-hash":"{hash}"}}}},"spec":{{"containers":[],"nodeName":"{node}"}},
            "status":{{"phase":"{phase}","conditions":[{{"type":"Ready","status":"{}"}}]}}}}"#,
            if ready { "True" } else { "False" }
        );
        Arc::new(Pod::decode(text.as_bytes()).expect("valid"))
    }

    fn snapshot<'a>(set: &'a DaemonSet, pods: &[Arc<Pod>], surge: i32, unavailable: i32) -> Snapshot<'a> {
        let place = |run, stay| Place {
            should_run: run,
            may_stay: stay,
        };
        Snapshot {
            set,
            by_node: by_node(pods),
            places: [
                ("a", place(true, true)),
                ("b", place(true, true)),
                ("c", place(false, true)),
                ("d", place(false, false)),
            ]
            .map(|(n, p)| (n.to_string(), p))
            .into(),
            hash: "new",
            max_surge: surge,
            max_unavailable: unavailable,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn show(plan: Plan) -> String {
        let create = plan.create.iter().map(|n| format!("+{n}"));
        let delete = plan.delete.iter().map(|p| format!("-{}", p.name()));
        let ended = plan.ended.iter().map(|(_, p)| format!("!{}", p.name()));
        create.chain(delete).chain(ended).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_on_each_node() {
        let set = DaemonSet::default();
        let run = |pods: &[Arc<Pod>]| show(snapshot(&set, pods, 0, 1).manage());
        assert_eq!(run(&[]), "+a +b");
        assert_eq!(
            run(&[
                pod("1", "a", "new", true, "Running"),
                pod("2", "a", "new", true, "Running")
            ]),
            "+b -2"
        );
        assert_eq!(
            run(&[
                pod("1", "a", "new", true, "Running"),
                pod("2", "b", "new", false, "Failed")
            ]),
            "!2"
        );
        assert_eq!(
            run(&[
                pod("1", "c", "new", true, "Running"),
                pod("2", "d", "new", true, "Running")
            ]),
            "+a +b -2"
        );
    }

    #[test]
    fn updates_by_deletion() {
        let set = DaemonSet::default();
        let run = |pods: &[Arc<Pod>], n| show(snapshot(&set, pods, 0, n).roll());
        let good = |name: &str, node: &str| pod(name, node, "old", true, "Running");
        assert_eq!(run(&[good("1", "a"), good("2", "b")], 1), "-1");
        assert_eq!(run(&[good("1", "a"), good("2", "b")], 2), "-1 -2");
        assert_eq!(
            run(&[good("1", "a"), pod("2", "b", "new", false, "Running")], 1),
            "",
            "the new one must work first"
        );
        assert_eq!(
            run(&[good("1", "a"), pod("2", "b", "old", false, "Running")], 1),
            "-2",
            "a broken one costs nothing"
        );
    }

    #[test]
    fn updates_by_surge() {
        let set = DaemonSet::default();
        let run = |pods: &[Arc<Pod>]| show(snapshot(&set, pods, 1, 0).roll());
        let good = |name: &str, node: &str| pod(name, node, "old", true, "Running");
        assert_eq!(run(&[good("1", "a"), good("2", "b")]), "+a");
        assert_eq!(
            run(&[good("1", "a"), pod("3", "a", "new", false, "Running"), good("2", "b")]),
            ""
        );
        assert_eq!(
            run(&[good("1", "a"), pod("3", "a", "new", true, "Running"), good("2", "b")]),
            "+b -1"
        );
    }

    #[test]
    fn the_status_counts_nodes() {
        let set = DaemonSet::default();
        let pods = [
            pod("1", "a", "new", true, "Running"),
            pod("2", "b", "old", false, "Running"),
            pod("3", "c", "new", true, "Running"),
        ];
        let s = snapshot(&set, &pods, 0, 1).status(None);
        assert_eq!(
            (
                s.desired_number_scheduled,
                s.current_number_scheduled,
                s.number_misscheduled,
                s.number_ready
            ),
            (2, 2, 1, 1)
        );
        assert_eq!(
            (s.number_available, s.number_unavailable, s.updated_number_scheduled),
            (Some(1), Some(1), Some(1))
        );
    }
}
