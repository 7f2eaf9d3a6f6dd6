//! What the scheduler tells, under kube-scheduler's names.

use crate::core::Core;
use crate::events::ClusterEvent;
use keelson_measure::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Measures, exponential};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    Scheduled,
    Unschedulable,
    Error,
}

impl Ended {
    fn label(self) -> &'static str {
        match self {
            Ended::Scheduled => "scheduled",
            Ended::Unschedulable => "unschedulable",
            Ended::Error => "error",
        }
    }
}

pub struct Told {
    attempts: IntCounterVec,
    attempt_times: HistogramVec,
    algorithm: Histogram,
    service_levels: HistogramVec,
    tries: Histogram,
    pending: IntGaugeVec,
    incoming: IntCounterVec,
    preemptions: IntCounter,
    victims: Histogram,
    cache: IntGaugeVec,
    refused: IntGaugeVec,
}

impl Told {
    pub fn new(m: &Measures) -> Arc<Told> {
        let name = |of: &str| format!("scheduler_{of}");
        let by = ["result", "profile"];
        let times = exponential(0.001, 2.0, 15);
        Arc::new(Told {
            attempts: m.counters(&name("schedule_attempts_total"), "Attempts to find a pod a node", &by),
            attempt_times: m.histograms(
                &name("scheduling_attempt_duration_seconds"),
                "Time of attempts, with binding",
                &times,
                &by,
            ),
            algorithm: m.histogram(
                &name("scheduling_algorithm_duration_seconds"),
                "Time of decisions",
                &times,
            ),
            service_levels: m.histograms(
                &name("pod_scheduling_sli_duration_seconds"),
                "Time from a pod's entry into the queue until it is bound",
                &exponential(0.01, 2.0, 20),
                &["attempts"],
            ),
            tries: m.histogram(
                &name("pod_scheduling_attempts"),
                "Attempts that pods took that were bound",
                &exponential(1.0, 2.0, 5),
            ),
            pending: m.gauges(&name("pending_pods"), "Pods that wait", &["queue"]),
            incoming: m.counters(
                &name("queue_incoming_pods_total"),
                "Pods that came into a queue",
                &["queue", "event"],
            ),
            preemptions: m.counter(&name("preemption_attempts_total"), "Searches for pods that can go"),
            victims: m.histogram(
                &name("preemption_victims"),
                "Pods that had to go for one",
                &exponential(1.0, 2.0, 7),
            ),
            cache: m.gauges(&name("cache_size"), "What is known of the cluster", &["type"]),
            refused: m.gauges(
                &name("unschedulable_pods"),
                "Pods that fit nowhere, by what refused them",
                &["plugin", "profile"],
            ),
        })
    }

    /// What is there to be read is read when somebody asks.
    pub fn follow(self: &Arc<Self>, measures: &Measures, core: &Arc<Core>) {
        let (told, core): (_, Weak<Core>) = (self.clone(), Arc::downgrade(core));
        measures.before(move || {
            let Some(core) = core.upgrade() else { return false };
            told.refused.reset();
            core.look(|state| {
                for (queue, length) in state.queue.lengths() {
                    told.pending.with_label_values(&[queue]).set(length as i64);
                }
                for (plugin, profile) in state.queue.refusals() {
                    told.refused.with_label_values(&[plugin, profile]).inc();
                }
                for (kind, count) in state.cluster.sizes() {
                    told.cache.with_label_values(&[kind]).set(count as i64);
                }
            });
            true
        });
    }

    pub fn decided(&self, took: Duration) {
        self.algorithm.observe(took.as_secs_f64());
    }

    pub fn ended(&self, how: Ended, profile: &str, took: Duration) {
        let of = [how.label(), profile];
        self.attempts.with_label_values(&of).inc();
        self.attempt_times.with_label_values(&of).observe(took.as_secs_f64());
    }

    /// A pod is bound.
    pub fn bound(&self, attempts: u32, took: Duration) {
        self.tries.observe(f64::from(attempts));
        let attempts = match attempts {
            ..15 => attempts.to_string(),
            15.. => "15+".into(),
        };
        self.service_levels
            .with_label_values(&[&*attempts])
            .observe(took.as_secs_f64());
    }

    /// Preemption was tried; if it has a place, these have to go.
    pub fn preempts(&self, victims: Option<usize>) {
        self.preemptions.inc();
        if let Some(victims) = victims {
            self.victims.observe(victims as f64);
        }
    }

    pub fn comes(&self, queue: &'static str, event: &'static str) {
        self.incoming.with_label_values(&[queue, event]).inc();
    }
}

/// What upstream calls an event. Where several of its are one here, the general one.
pub fn label(event: &ClusterEvent) -> &'static str {
    match event {
        ClusterEvent::Node(_) => "NodeUpdate",
        ClusterEvent::NodeGone => "NodeDelete",
        ClusterEvent::PodPlaced(_) => "AssignedPodAdd",
        ClusterEvent::PodLeft(_) => "AssignedPodDelete",
        ClusterEvent::Volumes => "PersistentVolumeClaimUpdate",
        ClusterEvent::Claim { .. } => "ResourceClaimUpdate",
        ClusterEvent::Devices => "ResourceSliceUpdate",
        ClusterEvent::Namespace => "NamespaceUpdate",
        ClusterEvent::Anything => "ForceActivate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_measure::golden;

    #[test]
    fn families_are_upstreams_and_each_is_told_once() {
        let measures = Measures::default();
        let told = Told::new(&measures);
        let profiles = Arc::new(vec![Arc::default()]);
        let core = Core::new(
            profiles,
            Arc::new(crate::world::Fixed::default()),
            Default::default(),
            told.clone(),
            keelson_trace::Tracer::none(),
        );
        told.follow(&measures, &core);
        told.decided(Duration::from_millis(3));
        for how in [Ended::Scheduled, Ended::Unschedulable, Ended::Error] {
            told.ended(how, "default-scheduler", Duration::from_millis(30));
        }
        told.bound(20, Duration::from_secs(70));
        told.preempts(None);
        told.preempts(Some(3));
        told.comes("active", "UnscheduledPodAdd");
        let page = measures.page();
        let mut wrong = golden::differences(&page, include_str!("told.txt"), &[]);
        // Nothing is refused in a cluster without pods.
        wrong.retain(|w| !w.starts_with("scheduler_unschedulable_pods "));
        assert!(wrong.is_empty(), "{}\n{page}", wrong.join("\n"));
        for line in [
            "scheduler_pending_pods{queue=\"gated\"} 0",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"15+\",le=\"81.92\"} 1",
            "scheduler_preemption_attempts_total 2",
            "scheduler_preemption_victims_bucket{le=\"4\"} 1",
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"unschedulable\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }
}
