//! Daemon sets: one pod on every node where it belongs.

mod place;
mod plan;

use crate::claim::{Owner, claim};
use crate::context::{Context, now};
use crate::history::{History, REVISION_LABEL, Wanted};
use crate::pod_control::{BURST, PodControl, message};
use crate::util::{scaled, until_due};
use crate::{pods, wire};
use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Rest,
    is_not_found, labels, selection,
};
use parking_lot::Mutex;
use place::place;
pub use place::selects as selects_node;
use plan::{Plan, Snapshot};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LAST_DELAY: Duration = Duration::from_secs(900);

pub fn start(context: &Context) {
    let sets = context.informer::<DaemonSet>();
    let pods = context.informer::<Pod>();
    let nodes = context.informer::<Node>();
    let revisions = context.informer::<ControllerRevision>();
    pods::index(pods.store());
    let controller = Controller::new("daemonset")
        .input(&sets)
        .input(&pods)
        .input(&nodes)
        .input(&revisions)
        .output(Pod::RESOURCE)
        .output(ControllerRevision::RESOURCE)
        .output(DaemonSet::RESOURCE);
    let queue = controller.queue();
    wire::own(&sets, &queue);
    wire::quota_release(&context.informer(), &queue);
    {
        let queue = queue.clone();
        revisions.on_change(move |change| {
            if change.is_deleted()
                && let Some(owner) =
                    wire::controller_of(change.object().meta()).filter(|o| wire::is_kind(o, "DaemonSet", "apps"))
            {
                queue.add(ObjectKey::new(change.object().namespace(), owner.name.clone()));
            }
        });
    }
    sets.store()
        .index_wanted(|set| selection::wanted_by(set.namespace(), Some(&set.spec.selector)));
    let known = sets.clone();
    wire::owned(&pods, &queue, "DaemonSet", "apps", move |pod: &Pod, queue| {
        for set in known.store().selecting(pod.namespace(), pod.metadata.labels.as_ref()) {
            if selects(&set, pod) {
                queue.add(set.key());
            }
        }
    });
    let known = sets.clone();
    nodes.on_change(move |change| {
        let node = change.object();
        if change.old().is_some_and(|old| place::is_same(old, node)) {
            return;
        }
        for set in known.store().list() {
            let spec = template(&set);
            let before = change.old().map(|old| place(&spec, old));
            if change.is_deleted() || before != Some(place(&spec, node)) {
                queue.add(set.key());
            }
        }
    });
    let rest = context.rest("daemon-set-controller");
    let control = PodControl::new(&rest, context.recorder(&rest, "daemonset-controller"));
    let history = History::new(revisions, &rest);
    let objects = Objects::new(&rest);
    context.run(
        controller,
        Sets {
            sets,
            pods,
            nodes,
            history,
            control,
            objects,
            rest,
            own: Expectations::default(),
            failures: Mutex::default(),
        },
    );
}

fn selects(set: &DaemonSet, pod: &Pod) -> bool {
    let selector = &set.spec.selector;
    !labels::is_empty(selector) && labels::matches(Some(selector), pod.metadata.labels.as_ref())
}

fn template(set: &DaemonSet) -> PodSpec {
    set.spec.template.spec.clone().unwrap_or_default()
}

/// When a node's daemon last failed, and how long to wait before the next.
struct Failure {
    at: Instant,
    delay: Duration,
}

struct Sets {
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    history: History,
    control: PodControl,
    objects: Objects<DaemonSet>,
    rest: Rest,
    own: Expectations,
    failures: Mutex<HashMap<(String, String), Failure>>,
}

#[async_trait]
impl Reconcile for Sets {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.control.written.settle(key, self.pods.store()).await?;
        self.own.settle(key, self.sets.store()).await?;
        let Some(set) = self.sets.store().get_key(key) else {
            for expectations in [&self.control.written, &self.own, &self.history.written] {
                expectations.forget(key);
            }
            return Ok(Outcome::Done);
        };
        if labels::is_empty(&set.spec.selector) {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.recorder.event(&*set, Warning, "SelectingAll", text);
            return Ok(Outcome::Done);
        }
        if set.is_deleting() {
            return Ok(Outcome::Done);
        }
        self.turn(key, &set).await
    }
}

impl Sets {
    async fn turn(&self, key: &ObjectKey, set: &DaemonSet) -> anyhow::Result<Outcome> {
        let owner = Owner::of(set);
        let wanted = Wanted {
            owner: &owner,
            selector: &set.spec.selector,
            template: &set.spec.template,
            annotations: set.metadata.annotations.as_ref(),
            collisions: set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0),
            hash_label: REVISION_LABEL,
        };
        let recorded = self.history.record(key, &wanted).await?;
        let hash = hash_of(&recorded.present);
        let candidates = pods::candidates(self.pods.store(), &owner, &set.spec.selector);
        let pods = claim(&self.rest, &owner, candidates, |pod| selects(set, pod)).await?;
        if !recorded.twins.is_empty() {
            self.merge(key, &pods, &recorded.twins, &hash).await?;
            return Ok(Outcome::Retry);
        }
        let collisions = (recorded.collisions != 0).then_some(recorded.collisions);
        let snapshot = self.snapshot(set, &pods, &hash);
        let (acted, wait, failure) = self.apply(set, &owner, &hash, snapshot.manage()).await;
        let failure = match failure {
            None if !acted && rolls(set) => self.apply(set, &owner, &hash, snapshot.roll()).await.2,
            failure => failure,
        };
        self.write_status(key, set, &snapshot, collisions).await?;
        if let Some(error) = failure {
            anyhow::bail!("{}", message(&error));
        }
        let limit = set.spec.revision_history_limit.unwrap_or(10);
        self.history
            .truncate(key, &recorded, &plan::hashes(&pods), hash_of, limit)
            .await?;
        let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
        let ready = pods
            .iter()
            .filter_map(|p| pods::available_in(p, min_ready, snapshot.now));
        let soon = ready.filter(|w| min_ready > 0 && w.is_positive()).min().map(until_due);
        Ok(match [wait, soon].into_iter().flatten().min() {
            Some(wait) => Outcome::After(wait),
            None => Outcome::Done,
        })
    }

    fn snapshot<'a>(&self, set: &'a DaemonSet, pods: &[Arc<Pod>], hash: &'a str) -> Snapshot<'a> {
        let spec = template(set);
        let places: std::collections::BTreeMap<_, _> = self
            .nodes
            .store()
            .list()
            .iter()
            .map(|node| (node.name().to_string(), place(&spec, node)))
            .collect();
        let desired = places.values().filter(|p| p.should_run).count() as i32;
        let rolling = set
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref());
        let max_surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), desired, true);
        let mut max_unavailable = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
            Some(value) => scaled(Some(value), desired, true),
            None => 1,
        };
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Snapshot {
            set,
            by_node: plan::by_node(pods),
            places,
            hash,
            max_surge,
            max_unavailable,
            now: now(),
        }
    }

    /// Does what a plan says; says whether that was anything, when to come again, and what failed.
    async fn apply(
        &self,
        set: &DaemonSet,
        owner: &Owner,
        hash: &str,
        plan: Plan,
    ) -> (bool, Option<Duration>, Option<keelson_client::Error>) {
        let mut delete = plan.delete;
        let mut wait = None;
        for (node, pod) in plan.ended {
            match self.replace(set, &node, &pod) {
                None => delete.push(pod),
                Some(delay) => wait = Some(wait.map_or(delay, |w: Duration| w.min(delay))),
            }
        }
        delete.truncate(BURST);
        let new: Vec<Pod> = plan
            .create
            .iter()
            .take(BURST)
            .map(|node| daemon(set, owner, hash, node))
            .collect();
        let acted = !new.is_empty() || !delete.is_empty();
        let (_, created) = self.control.create_many(owner, &new).await;
        let deleted = self.control.delete_many(owner, &delete).await;
        (acted, wait, created.err().or(deleted.err()))
    }

    /// Whether an ended pod may be replaced now, or else in how long: a node that refuses its daemon isn't pestered.
    fn replace(&self, set: &DaemonSet, node: &str, pod: &Pod) -> Option<Duration> {
        let name = format!("{}/{}", pod.namespace(), pod.name());
        if pods::phase(pod) == "Succeeded" {
            let text = format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
            self.control.recorder.event(set, Normal, "SucceededDaemonPod", text);
            return None;
        }
        let mut failures = self.failures.lock();
        failures.retain(|_, f| f.at.elapsed() < f.delay * 2 + LAST_DELAY);
        let now = Instant::now();
        let entry = failures.entry((set.uid().to_string(), node.to_string()));
        let failure = entry.or_insert_with(|| Failure {
            at: now - FIRST_DELAY,
            delay: Duration::ZERO,
        });
        let left = (failure.at + failure.delay).saturating_duration_since(now);
        if !left.is_zero() {
            return Some(left);
        }
        let calm = now.duration_since(failure.at) > 2 * LAST_DELAY;
        failure.delay = if calm || failure.delay.is_zero() {
            FIRST_DELAY
        } else {
            (failure.delay * 2).min(LAST_DELAY)
        };
        failure.at = now;
        let text = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
        self.control.recorder.event(set, Warning, "FailedDaemonPod", text);
        None
    }

    /// Several revisions with the same template become one: their pods get its hash.
    async fn merge(
        &self,
        key: &ObjectKey,
        pods: &[Arc<Pod>],
        twins: &[Arc<ControllerRevision>],
        hash: &str,
    ) -> anyhow::Result<()> {
        let old: Vec<String> = twins.iter().map(|t| hash_of(t)).collect();
        for pod in pods {
            let label = pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION_LABEL));
            if label.is_some_and(|l| l != hash && old.contains(l)) {
                let body = serde_json::json!({"metadata": {"labels": {REVISION_LABEL: hash}}});
                match self
                    .control
                    .pods
                    .patch(pod.namespace(), pod.name(), Patch::Merge(&body))
                    .await
                {
                    Ok(written) => self.control.written.wrote(key, written.meta()),
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for twin in twins {
            self.history.delete(key, twin).await?;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        snapshot: &Snapshot<'_>,
        collisions: Option<i32>,
    ) -> anyhow::Result<()> {
        let status = snapshot.status(collisions);
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        match self
            .objects
            .update_status(&DaemonSet {
                status: Some(status),
                ..set.clone()
            })
            .await
        {
            Ok(written) => self.own.wrote(key, written.meta()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn rolls(set: &DaemonSet) -> bool {
    set.spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.type_.as_deref())
        .is_none_or(|t| t == "RollingUpdate")
}

fn hash_of(revision: &ControllerRevision) -> String {
    let labels = revision.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(REVISION_LABEL))
        .cloned()
        .unwrap_or_else(|| revision.name().to_string())
}

/// The pod for a node.
fn daemon(set: &DaemonSet, owner: &Owner, hash: &str, node: &str) -> Pod {
    let mut pod = pods::from_template(&set.spec.template, owner);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.into(), hash.into());
    if let Some(generation) = set.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION)) {
        labels.insert(GENERATION_LABEL.into(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(place::tolerations(spec));
    place::bind(spec, node);
    pod
}
