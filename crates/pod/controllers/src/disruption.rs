//! Tells each disruption budget how many of its pods may go.

mod stale;

use crate::context::{Context, now};
use crate::util::{scaled, until_due};
use crate::{pods, wire};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, PartialObject, Reconcile,
    Recorder, Rest, is_not_found, labels, selection,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

/// An eviction that was granted but not followed by a deletion is forgotten after this.
const GRANT: SignedDuration = SignedDuration::from_secs(120);

pub fn start(context: &Context) {
    let budgets = context.informer::<PodDisruptionBudget>();
    let pods = context.informer::<Pod>();
    let sets = context.informer::<ReplicaSet>();
    let deployments = context.informer::<Deployment>();
    let stateful = context.informer::<StatefulSet>();
    let controllers = context.informer::<ReplicationController>();
    let controller = Controller::new("disruption")
        .input(&budgets)
        .input(&pods)
        .input(&sets)
        .input(&deployments)
        .input(&stateful)
        .input(&controllers)
        .output(PodDisruptionBudget::RESOURCE);
    let queue = controller.queue();
    wire::own(&budgets, &queue);
    pods.store().index_labels();
    budgets
        .store()
        .index_wanted(|b| selection::wanted_by(b.namespace(), b.spec.as_ref().and_then(|s| s.selector.as_ref())));
    let known = budgets.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        let before = change.old().filter(|old| old.metadata.labels != pod.metadata.labels);
        for pod in [Some(pod), before].into_iter().flatten() {
            for budget in known.store().selecting(pod.namespace(), pod.metadata.labels.as_ref()) {
                if selects(&budget, pod) {
                    queue.add(budget.key());
                }
            }
        }
    });
    let rest = context.rest("disruption-controller");
    stale::start(context, &rest);
    let recorder = context.recorder(&rest, "controllermanager");
    let objects = Objects::new(&rest);
    context.run(
        controller,
        Budgets {
            budgets,
            pods,
            sets,
            deployments,
            stateful,
            controllers,
            objects,
            rest,
            recorder,
            own: Expectations::default(),
        },
    );
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    labels::matches(
        budget.spec.as_ref().and_then(|s| s.selector.as_ref()),
        pod.metadata.labels.as_ref(),
    )
}

struct Budgets {
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    objects: Objects<PodDisruptionBudget>,
    rest: Rest,
    recorder: Recorder,
    own: Expectations,
}

#[async_trait]
impl Reconcile for Budgets {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.own.settle(key, self.budgets.store()).await?;
        let Some(budget) = self.budgets.store().get_key(key) else {
            self.own.forget(key);
            return Ok(Outcome::Done);
        };
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let pods = selector.map_or_else(Vec::new, |s| self.pods.store().selected(&key.namespace, s));
        if pods.is_empty() {
            self.recorder
                .event(&*budget, Normal, "NoPods", "No matching pods found");
        }
        let expected = self.expected(&budget, &pods).await;
        if expected.is_ok() && unmanaged(&budget, &pods) {
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                shown(selector)
            );
            self.recorder.event(&*budget, Warning, "UnmanagedPods", text);
        }
        let now = now();
        let (status, next) = match &expected {
            Ok((expected, desired)) => plan(&budget, &pods, *expected, *desired, now),
            Err(error) => {
                let text = format!("Failed to calculate the number of expected pods: {error:#}");
                self.recorder
                    .event(&*budget, Warning, "CalculateExpectedPodCountFailed", text);
                (failed(&budget, &format!("{error:#}"), now), None)
            }
        };
        if budget.status.as_ref() != Some(&status) {
            match self
                .objects
                .update_status(&PodDisruptionBudget {
                    status: Some(status),
                    ..(*budget).clone()
                })
                .await
            {
                Ok(written) => self.own.wrote(key, written.meta()),
                Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
                Err(error) => return Err(error.into()),
            }
        }
        if expected.is_err() {
            return Ok(Outcome::Retry);
        }
        Ok(next.map_or(Outcome::Done, |wait| Outcome::After(until_due(wait))))
    }
}

impl Budgets {
    /// How many pods there should be, and how many of them must be healthy.
    async fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> anyhow::Result<(i32, i32)> {
        let spec = budget.spec.clone().unwrap_or_default();
        if let Some(most) = &spec.max_unavailable {
            let expected = self.scale_of(pods).await?;
            return Ok((expected, (expected - scaled(Some(most), expected, true)).max(0)));
        }
        match &spec.min_available {
            Some(IntOrString::Int(least)) => Ok((pods.len() as i32, *least)),
            Some(percent) => {
                let expected = self.scale_of(pods).await?;
                Ok((expected, scaled(Some(percent), expected, true)))
            }
            None => Ok((0, 0)),
        }
    }

    /// The scales of all controllers that the pods have.
    async fn scale_of(&self, pods: &[Arc<Pod>]) -> anyhow::Result<i32> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            // `unmanaged` tells of those without.
            let Some(owner) = wire::controller_of(pod.meta()) else {
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            let (uid, scale) = self.scale(pod.namespace(), owner).await?;
            scales.insert(uid, scale);
            // A set that belongs to a deployment is counted by it.
            scales.entry(owner.uid.clone()).or_insert(0);
        }
        Ok(scales.values().sum())
    }

    async fn scale(&self, ns: &str, owner: &OwnerReference) -> anyhow::Result<(String, i32)> {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let same = |uid: &str| uid == owner.uid;
        match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                if let Some(set) = self.sets.store().get(ns, &owner.name).filter(|s| same(s.uid())) {
                    let above = wire::controller_of(set.meta()).filter(|o| wire::is_kind(o, "Deployment", "apps"));
                    let deployment =
                        above.and_then(|o| self.deployments.store().get(ns, &o.name).filter(|d| d.uid() == o.uid));
                    return Ok(match deployment {
                        Some(d) => (d.uid().to_string(), d.spec.replicas.unwrap_or(1)),
                        None => (owner.uid.clone(), set.spec.replicas.unwrap_or(1)),
                    });
                }
            }
            ("apps", "StatefulSet") => {
                if let Some(set) = self.stateful.store().get(ns, &owner.name).filter(|s| same(s.uid())) {
                    return Ok((owner.uid.clone(), set.spec.replicas.unwrap_or(1)));
                }
            }
            ("", "ReplicationController") => {
                if let Some(found) = self.controllers.store().get(ns, &owner.name).filter(|s| same(s.uid())) {
                    return Ok((
                        owner.uid.clone(),
                        found.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
                    ));
                }
            }
            _ => {}
        }
        self.any_scale(ns, owner).await
    }

    /// The scale subresource of a kind that isn't known here.
    async fn any_scale(&self, ns: &str, owner: &OwnerReference) -> anyhow::Result<(String, i32)> {
        let all = keelson_client::discovery::preferred_resources(&self.rest).await?;
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let found = all
            .found
            .into_iter()
            .find(|r| r.id.group == group && r.id.kind == owner.kind);
        let resource = found
            .ok_or_else(|| anyhow::anyhow!("no kind {} in {}", owner.kind, owner.api_version))?
            .id;
        let body = self
            .rest
            .get_raw(&resource, ns, &owner.name, "scale", keelson_client::rest::JSON)
            .await;
        let body = match body {
            Err(error) if is_not_found(&error) => {
                let group = if group.is_empty() {
                    String::new()
                } else {
                    format!(".{group}")
                };
                anyhow::bail!("{}{group} does not implement the scale subresource", resource.plural)
            }
            body => body?,
        };
        let scale: Value = serde_json::from_slice(&body)?;
        let meta = PartialObject::decode(&body)?;
        let replicas = scale
            .get("spec")
            .and_then(|s| s.get("replicas"))
            .and_then(Value::as_i64)
            .unwrap_or(0);
        anyhow::ensure!(
            meta.uid().is_empty() || meta.uid() == owner.uid,
            "the controller was replaced by another of that name"
        );
        Ok((owner.uid.clone(), replicas as i32))
    }
}

/// Whether the budget is a share of what controllers want, and some of its pods have no controller.
fn unmanaged(budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> bool {
    let spec = budget.spec.as_ref();
    let is_count =
        spec.is_some_and(|s| s.max_unavailable.is_none() && !matches!(s.min_available, Some(IntOrString::String(_))));
    !is_count && pods.iter().any(|p| wire::controller_of(p.meta()).is_none())
}

fn failed(budget: &PodDisruptionBudget, message: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    // It is of what was counted last.
    let seen = status.observed_generation.filter(|seen| *seen != 0);
    tell(&mut status, "False", "SyncFailed", message, seen, now);
    status
}

/// A selector as Go prints it.
fn shown(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else {
        return "nil".into();
    };
    let mut out = "&LabelSelector{MatchLabels:map[string]string{".to_string();
    for (key, value) in selector.match_labels.iter().flatten() {
        let _ = write!(out, "{key}: {value},");
    }
    out += "},MatchExpressions:[]LabelSelectorRequirement{";
    for e in selector.match_expressions.iter().flatten() {
        let values = e.values.as_deref().unwrap_or_default().join(" ");
        let _ = write!(
            out,
            "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
            e.key, e.operator
        );
    }
    out + "},}"
}

fn tell(
    status: &mut PodDisruptionBudgetStatus,
    word: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = old
        .filter(|c| c.status == word)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".into(),
        status: word.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: since,
    };
    conditions.retain(|c| c.type_ != "DisruptionAllowed");
    conditions.push(new);
}

/// The status, and when to look again.
fn plan(
    budget: &PodDisruptionBudget,
    all: &[Arc<Pod>],
    expected: i32,
    desired: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<SignedDuration>) {
    let old = budget.status.clone().unwrap_or_default();
    let mut granted: BTreeMap<String, Time> = BTreeMap::new();
    let mut next = None;
    let mut names = BTreeSet::new();
    for pod in all {
        names.insert(pod.name().to_string());
        let grant = old.disrupted_pods.as_ref().and_then(|g| g.get(pod.name()));
        if let Some(at) = grant.filter(|_| !pod.is_deleting()) {
            let left = (at.0 + GRANT).duration_since(now);
            if left > SignedDuration::ZERO {
                granted.insert(pod.name().to_string(), at.clone());
                next = Some(next.map_or(left, |n: SignedDuration| n.min(left)));
            }
        }
    }
    let healthy = all
        .iter()
        .filter(|p| pods::is_ready(p) && !p.is_deleting() && !granted.contains_key(p.name()))
        .count() as i32;
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!granted.is_empty()).then_some(granted),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    let (word, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    tell(&mut status, word, reason, "", budget.metadata.generation, now);
    (status, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let word = if ready { "True" } else { "False" };
        let text = format!(
            r#"{{"metadata":{{"name":"{name}"}},"status":{{"conditions":[{{"type":"Ready","status":"{word}"}}]}}}}"#
        );
        Arc::new(Pod::decode(text.as_bytes()).expect("valid"))
    }

    #[test]
    fn only_shares_need_controllers() {
        let budget = |spec: &str| {
            PodDisruptionBudget::decode(format!(r#"{{"metadata":{{"name":"b"}},"spec":{{{spec}}}}}"#).as_bytes())
                .expect("valid")
        };
        let bare = [pod("a", true)];
        assert!(unmanaged(&budget(r#""maxUnavailable":1"#), &bare));
        assert!(unmanaged(&budget(r#""minAvailable":"50%""#), &bare));
        assert!(!unmanaged(&budget(r#""minAvailable":1"#), &bare));
        assert!(!unmanaged(&budget(r#""maxUnavailable":1"#), &[]));
    }

    #[test]
    fn what_may_go() {
        let now = Timestamp::from_second(1000).unwrap_or_default();
        let mut budget = PodDisruptionBudget::default();
        let pods = [pod("a", true), pod("b", true), pod("c", false)];
        let (status, next) = plan(&budget, &pods, 3, 1, now);
        assert_eq!(
            (status.current_healthy, status.disruptions_allowed, next),
            (Some(2), Some(1), None)
        );
        assert_eq!(
            status.conditions.iter().flatten().next().map(|c| c.reason.as_str()),
            Some("SufficientPods")
        );
        budget.status = Some(status);
        let grant = |second| Time(Timestamp::from_second(second).unwrap_or_default());
        budget.status.get_or_insert_default().disrupted_pods = Some(
            [
                ("a".to_string(), grant(990)),
                ("b".to_string(), grant(800)),
                ("x".to_string(), grant(990)),
            ]
            .into(),
        );
        let (status, next) = plan(&budget, &pods, 3, 1, now);
        assert_eq!(
            (status.current_healthy, status.disruptions_allowed),
            (Some(1), Some(0)),
            "a was promised away, b's grant ran out"
        );
        assert_eq!(next.map(|d| d.as_secs()), Some(110));
        assert_eq!(
            status.disrupted_pods.map(|g| g.into_keys().collect::<Vec<_>>()),
            Some(vec!["a".to_string()])
        );
        assert_eq!(
            plan(&PodDisruptionBudget::default(), &[], 0, 0, now)
                .0
                .disruptions_allowed,
            Some(0)
        );
    }
}
