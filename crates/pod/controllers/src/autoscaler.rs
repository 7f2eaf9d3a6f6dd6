//! The horizontal pod autoscaler: sizes whatever has a scale so that its metrics stay near their targets.
//!
//! Metrics send no events, so each autoscaler is looked at every [`Autoscaling::period`], a time of this API. What metrics ask for is
//! counted in [`replicas`], held within windows, rates and bounds in [`bounds`]; both are pure. A size outside the bounds
//! is corrected without asking for metrics. If some metrics fail, the rest may only raise the size.

mod bounds;
mod metrics;
mod propose;
mod replicas;
mod target;

use crate::config::Autoscaling;
use crate::context::{Context, now};
use async_trait::async_trait;
use bounds::{Bounds, Memory, Rules};
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder,
    is_not_found, labels,
};
use metrics::Metrics;
use parking_lot::Mutex;
use replicas::{Basis, Delays};
use std::collections::BTreeMap;
use std::sync::Arc;
use target::{Kinds, Target};
use tokio::time::Instant;

const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";
const TO_ZERO: &str = "ScaledToZero";

pub fn start(context: &Context) {
    let autoscalers = context.informer::<HorizontalPodAutoscaler>();
    let pods = context.informer::<Pod>();
    pods.store().index_labels();
    let controller = Controller::new("horizontalpodautoscaler")
        .input(&autoscalers)
        .input(&pods)
        .output(HorizontalPodAutoscaler::RESOURCE);
    let queue = controller.queue();
    let settings = context.config.autoscaling;
    // What changed in the specification is acted upon now; a new status is what was written here, mostly.
    autoscalers.on_change(move |change| {
        let new = change.object();
        match change.old() {
            Some(old) if old.metadata.generation == new.metadata.generation && !change.is_deleted() => {
                queue.add_after(new.key(), settings.period);
            }
            _ => queue.add(new.key()),
        }
    });
    let rest = context.rest("horizontal-pod-autoscaler");
    let recorder = context.recorder(&rest, "horizontal-pod-autoscaler");
    let objects = Objects::new(&rest);
    context.run(
        controller,
        Autoscalers {
            autoscalers,
            pods,
            objects,
            recorder,
            kinds: Kinds::default(),
            known: Mutex::default(),
            own: Expectations::default(),
            settings,
        },
    );
}

/// What is kept of an autoscaler between two looks.
#[derive(Default)]
struct Known {
    memory: Memory,
    /// Which pods it counts: no other may count them too.
    selector: Option<LabelSelector>,
}

struct Autoscalers {
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    objects: Objects<HorizontalPodAutoscaler>,
    recorder: Recorder,
    kinds: Kinds,
    known: Mutex<BTreeMap<ObjectKey, Known>>,
    own: Expectations,
    settings: Autoscaling,
}

#[async_trait]
impl Reconcile for Autoscalers {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.own.settle(key, self.autoscalers.store()).await?;
        let Some(found) = self.autoscalers.store().get_key(key) else {
            self.own.forget(key);
            self.known.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let mut hpa = (*found).clone();
        if let Err(error) = self.scale(key, &mut hpa).await {
            // Said in events and conditions already. The next look comes in its time, not later and later.
            tracing::debug!(autoscaler = %key, error, "did not scale");
        }
        if hpa.status != found.status {
            match self.objects.update_status(&hpa).await {
                Ok(written) => self.own.wrote(key, written.meta()),
                Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
                Err(error) => {
                    let text = crate::pod_control::message(&error);
                    self.recorder.event(&hpa, Warning, "FailedUpdateStatus", text);
                }
            }
        }
        Ok(Outcome::After(self.settings.period))
    }
}

/// What all metrics together ask for.
struct Wish {
    replicas: i32,
    metric: String,
}

impl Autoscalers {
    async fn scale(&self, key: &ObjectKey, hpa: &mut HorizontalPodAutoscaler) -> Result<(), String> {
        let spec = hpa.spec.clone();
        let rest = self.objects.rest();
        let mut target = match self.target(&spec, &key.namespace).await {
            Ok(target) => target,
            Err(error) => {
                self.recorder.event(hpa, Warning, "FailedGetScale", error.clone());
                let text = format!("the HPA controller was unable to get the target's current scale: {error}");
                condition(hpa, ABLE, false, "FailedGetScale", &text);
                return Err(error);
            }
        };
        let text = "the HPA controller was able to get the target's current scale";
        condition(hpa, ABLE, true, "SucceededGetScale", text);
        let current = target.replicas();
        let bounds = Bounds {
            min: spec.min_replicas.unwrap_or(1),
            max: spec.max_replicas,
            current,
        };
        self.known
            .lock()
            .entry(key.clone())
            .or_default()
            .memory
            .begin(current, Instant::now());
        let metrics = spec.metrics.as_deref().unwrap_or_default();
        let counts_without_pods = metrics
            .iter()
            .any(|m| matches!(m.type_.as_str(), "Object" | "External"));
        let was_zeroed = is_true(hpa, TO_ZERO);
        let mut statuses = Vec::new();
        let mut failure = Ok(());
        let (wanted, reason) = if current == 0 && !(was_zeroed && (bounds.min != 0 || counts_without_pods)) {
            let text = "scaling is disabled since the replica count of the target is zero";
            condition(hpa, ACTIVE, false, "ScalingDisabled", text);
            (0, String::new())
        } else if current != 0 && current > bounds.max {
            (bounds.max, "Current number of replicas above Spec.MaxReplicas".into())
        } else if current != 0 && current < bounds.min {
            (bounds.min, "Current number of replicas below Spec.MinReplicas".into())
        } else {
            let basis = Metrics {
                rest,
                kinds: &self.kinds,
                namespace: &key.namespace,
            };
            let wish = self.wish(key, hpa, &basis, &target, metrics, &mut statuses).await;
            let (wish, failed) = match wish {
                Ok(answer) => answer,
                Err(error) => {
                    report(hpa, current, None, statuses, false);
                    self.recorder
                        .event(hpa, Warning, "FailedComputeMetricsReplicas", error.clone());
                    return Err(error);
                }
            };
            failure = failed.map_or(Ok(()), Err);
            self.settle(key, hpa, &spec, wish, bounds, was_zeroed)
        };
        let rescale = wanted != current;
        if rescale {
            if let Err(error) = target.set_replicas(wanted).await {
                let text = format!("New size: {wanted}; reason: {reason}; error: {error}");
                self.recorder.event(hpa, Warning, "FailedRescale", text);
                let text = format!("the HPA controller was unable to update the target scale: {error}");
                condition(hpa, ABLE, false, "FailedUpdateScale", &text);
                report(hpa, current, None, statuses, false);
                return Err(error);
            }
            let text = format!("the HPA controller was able to update the target scale to {wanted}");
            condition(hpa, ABLE, true, "SucceededRescale", &text);
            let text = format!("New size: {wanted}; reason: {reason}");
            self.recorder.event(hpa, Normal, "SuccessfulRescale", text);
            if let Some(behavior) = &spec.behavior {
                let mut known = self.known.lock();
                let memory = &mut known.entry(key.clone()).or_default().memory;
                memory.changed(
                    current,
                    wanted,
                    &Rules::of(behavior, self.settings.downscale_window),
                    Instant::now(),
                );
            }
            if current > 0 && wanted == 0 && bounds.min == 0 && counts_without_pods {
                let text = "the HPA controller scaled the workload to zero";
                condition(hpa, TO_ZERO, true, "ScaledToZero", text);
            } else {
                let text = "the HPA controller did not scale the workload to zero";
                condition(hpa, TO_ZERO, false, "NotScaledToZero", text);
            }
        }
        report(hpa, current, Some(wanted), statuses, rescale);
        failure
    }

    async fn target<'a>(
        &'a self,
        spec: &'a HorizontalPodAutoscalerSpec,
        namespace: &'a str,
    ) -> Result<Target<'a>, String> {
        let reference = &spec.scale_target_ref;
        let version = reference.api_version.as_deref().unwrap_or_default();
        let group = match version.matches('/').count() {
            0 => "",
            1 => version.split_once('/').map_or("", |(group, _)| group),
            _ => return Err(format!("unexpected GroupVersion string: {version}")),
        };
        let rest = self.objects.rest();
        let id = self.kinds.find(rest, group, &reference.kind).await?;
        Target::read(rest, &self.kinds, id, namespace, &reference.name).await
    }

    /// What the metrics ask for, the highest of them, and why some could not be asked. An error: nothing can be said.
    async fn wish(
        &self,
        key: &ObjectKey,
        hpa: &mut HorizontalPodAutoscaler,
        metrics: &Metrics<'_>,
        target: &Target<'_>,
        specs: &[MetricSpec],
        statuses: &mut Vec<MetricStatus>,
    ) -> Result<(Wish, Option<String>), String> {
        let pods = self.pods_of(key, hpa, target.selector())?;
        let current = target.replicas();
        let asked = propose::Target {
            status_replicas: target.status_replicas(),
            selector: target.selector(),
            basis: Basis {
                replicas: current,
                tolerances: propose::tolerances(hpa, self.settings.tolerance),
                pods: &pods,
                now: now(),
                delays: Delays::of(&self.settings),
            },
        };
        let mut best = Wish {
            replicas: 0,
            metric: String::new(),
        };
        let (mut failed, mut first) = (0, None);
        for spec in specs {
            match propose::propose(metrics, spec, &asked).await {
                Ok(proposal) => {
                    if best.replicas == 0 || proposal.replicas > best.replicas {
                        best.replicas = proposal.replicas;
                        best.metric = proposal.name;
                    }
                    statuses.push(proposal.status);
                }
                Err(failure) => {
                    self.recorder.event(hpa, Warning, failure.reason, failure.text.clone());
                    failed += 1;
                    first.get_or_insert(failure);
                    statuses.push(MetricStatus::default());
                }
            }
        }
        let said = first.as_ref().map(|failure| {
            let colon = if failure.prefix.is_empty() { "" } else { ": " };
            let (total, prefix, text) = (specs.len(), &failure.prefix, &failure.text);
            format!("invalid metrics ({failed} invalid out of {total}), first error is: {prefix}{colon}{text}")
        });
        if let Some(failure) = first
            && (failed >= specs.len() || best.replicas < current)
        {
            let text = format!("the HPA was unable to compute the replica count: {}", failure.text);
            condition(hpa, ACTIVE, false, failure.reason, &text);
            return Err(said.unwrap_or_default());
        }
        let text = format!(
            "the HPA was able to successfully calculate a replica count from {}",
            best.metric
        );
        condition(hpa, ACTIVE, true, "ValidMetricFound", &text);
        Ok((best, said))
    }

    /// The pods that the target's selector finds. They must be nobody else's to scale.
    fn pods_of(&self, key: &ObjectKey, hpa: &mut HorizontalPodAutoscaler, text: &str) -> Result<Vec<Arc<Pod>>, String> {
        if text.is_empty() {
            let error = "selector is required";
            self.recorder.event(hpa, Warning, "SelectorRequired", error);
            let why = "the HPA target's scale is missing a selector";
            condition(hpa, ACTIVE, false, "InvalidSelector", why);
            return Err(error.into());
        }
        let Some(selector) = labels::parse(text) else {
            let error = format!(
                "couldn't convert selector into a corresponding internal selector object: unable to parse requirement: {text}"
            );
            self.recorder.event(hpa, Warning, "InvalidSelector", error.clone());
            condition(hpa, ACTIVE, false, "InvalidSelector", &error);
            return Err(error);
        };
        let pods = self.pods.store().selected(&key.namespace, &selector);
        let mut known = self.known.lock();
        known.entry(key.clone()).or_default().selector = Some(selector);
        let first = ObjectKey::new(key.namespace.as_str(), "");
        let others = known
            .range(first..)
            .take_while(|(other, _)| other.namespace == key.namespace);
        let rivals: Vec<String> = others
            .filter(|(_, known)| {
                let matches = |pod: &Arc<Pod>| labels::matches(known.selector.as_ref(), pod.metadata.labels.as_ref());
                pods.iter().any(matches)
            })
            .take(2)
            .map(|(other, _)| format!("{}/{}", other.namespace, other.name))
            .collect();
        if rivals.len() > 1 {
            let rivals = rivals.join(" ");
            let error = format!("pods by selector {text} are controlled by more than one HPA (e.g. [{rivals}])");
            self.recorder.event(hpa, Warning, "AmbiguousSelector", error.clone());
            condition(hpa, ACTIVE, false, "AmbiguousSelector", &error);
            return Err(error);
        }
        Ok(pods)
    }

    /// What becomes of the wish, and what is said to be the reason of a change.
    fn settle(
        &self,
        key: &ObjectKey,
        hpa: &mut HorizontalPodAutoscaler,
        spec: &HorizontalPodAutoscalerSpec,
        wish: Wish,
        bounds: Bounds,
        was_zeroed: bool,
    ) -> (i32, String) {
        let asked = wish.replicas.max(0);
        let mut reason = String::new();
        if asked > bounds.current {
            reason = format!("{} above target", wish.metric);
        } else if asked < bounds.current {
            reason = "All metrics below target".into();
        }
        let verdict = {
            let mut known = self.known.lock();
            let memory = &mut known.entry(key.clone()).or_default().memory;
            match &spec.behavior {
                None => memory.plain(asked, bounds, self.settings.downscale_window, Instant::now()),
                Some(behavior) => memory.ruled(
                    asked,
                    bounds,
                    &Rules::of(behavior, self.settings.downscale_window),
                    Instant::now(),
                ),
            }
        };
        let (why, text) = verdict.able;
        condition(hpa, ABLE, true, why, text);
        let (is_limited, (why, text)) = verdict.limited;
        condition(hpa, LIMITED, is_limited, why, text);
        // Back from zero it goes to the minimum at once, should the metrics ask for less.
        if bounds.current == 0 && bounds.min != 0 && was_zeroed && verdict.replicas < bounds.min {
            if reason.is_empty() {
                reason = "Current number of replicas below Spec.MinReplicas".into();
            }
            return (bounds.min, reason);
        }
        (verdict.replicas, reason)
    }
}

fn is_true(hpa: &HorizontalPodAutoscaler, kind: &str) -> bool {
    let conditions = hpa.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

fn condition(hpa: &mut HorizontalPodAutoscaler, kind: &str, is_so: bool, reason: &str, text: &str) {
    let conditions = hpa.status.get_or_insert_default().conditions.get_or_insert_default();
    let at = conditions.iter().position(|c| c.type_ == kind).unwrap_or_else(|| {
        conditions.push(HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            ..Default::default()
        });
        conditions.len() - 1
    });
    let (condition, status) = (&mut conditions[at], if is_so { "True" } else { "False" });
    if condition.status != status {
        // As the server keeps it, so that an unchanged status is seen to be unchanged.
        let second = now().as_second();
        condition.last_transition_time = jiff::Timestamp::from_second(second).ok().map(Time);
    }
    condition.status = status.into();
    condition.reason = Some(reason.into());
    condition.message = Some(text.into());
}

/// `desired`: none if that stays as it was.
fn report(
    hpa: &mut HorizontalPodAutoscaler,
    current: i32,
    desired: Option<i32>,
    metrics: Vec<MetricStatus>,
    rescaled: bool,
) {
    let generation = hpa.metadata.generation;
    let status = hpa.status.get_or_insert_default();
    status.observed_generation = generation;
    status.current_replicas = Some(current).filter(|n| *n != 0);
    status.desired_replicas = desired.unwrap_or(status.desired_replicas);
    status.current_metrics = (!metrics.is_empty()).then_some(metrics);
    if rescaled {
        status.last_scale_time = Some(Time(now()));
    }
}
