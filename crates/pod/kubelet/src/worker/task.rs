//! The state machine of one pod: syncing → terminating → terminated → finished. It never goes back.

use super::{Handle, Stage};
use crate::kubelet::Kubelet;
use crate::observe::{ContainerView, Observed};
use crate::pods;
use crate::resources::allocation::Record;
use crate::status::containers::StartFailures;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use keelson_trace::{Kind, Origin, Span, within};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// What a step ends with.
pub(super) enum Next {
    /// Wait for a wake-up, at most until then.
    Wait(Option<Instant>),
    /// Go on at once, in the stage that is set now.
    Again,
    /// The task is over.
    Done,
}

pub(super) struct Worker {
    pub kl: Arc<Kubelet>,
    pub handle: Arc<Handle>,
    pub stage: Stage,
    pub admitted: bool,
    pub record: Record,
    /// The resources that the record was last written with.
    pub recorded: Option<String>,
    pub ended: HashMap<String, ContainerView>,
    pub observed: Observed,
    pub failures: StartFailures,
    /// Containers that are not to be tried again before then, whatever wakes the task; for one generation of the pod.
    pub hold: HashMap<String, (Option<i64>, Instant)>,
    pub status: PodStatus,
    /// Why the node failed the pod: reason and message.
    pub failure: Option<(String, String)>,
    pub disruption: Option<PodCondition>,
    pub resize_pending: Option<PodCondition>,
    pub resize_progress: Option<PodCondition>,
    pub cgroup_made: bool,
    /// Calls to the runtime that finish even when the step that made them is given up.
    pub inflight: TaskTracker,
    pub retry: Retry,
}

/// Growing delay between tries of a step that failed.
#[derive(Default)]
pub(super) struct Retry {
    delay: Option<Duration>,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(122);

    pub fn next(&mut self) -> Instant {
        let delay = self.delay.map_or(Self::FIRST, |d| (d * 2).min(Self::MAX));
        self.delay = Some(delay);
        Instant::now() + delay
    }

    pub fn reset(&mut self) {
        self.delay = None;
    }
}

pub(super) async fn run(kl: Arc<Kubelet>, handle: Arc<Handle>) {
    let stop = kl.stop.clone();
    let uid = handle.uid.clone();
    let pod = handle.pod();
    tracing::debug!(pod = %pods::describe(&pod), "pod is worked on");
    let mut w = Worker {
        status: pods::status(&pod).clone(),
        kl,
        handle: handle.clone(),
        stage: Stage::Syncing,
        admitted: false,
        record: Record::default(),
        recorded: None,
        ended: HashMap::new(),
        observed: Observed::default(),
        failures: StartFailures::new(),
        hold: HashMap::new(),
        failure: None,
        disruption: None,
        resize_pending: None,
        resize_progress: None,
        cgroup_made: false,
        inflight: TaskTracker::new(),
        retry: Retry::default(),
    };
    w.restore(&pod);
    if w.admitted && !pods::is_terminal(&pod) {
        w.kl.managers.take_up(&pod);
    }
    let metrics = w.kl.metrics.clone();
    metrics.pod_worker_start.observe(handle.seen.elapsed().as_secs_f64());
    let (mut revision, mut first) = (pod.metadata.resource_version.clone(), true);
    loop {
        let now = handle.pod().metadata.resource_version.clone();
        let operation = match w.stage {
            Stage::Syncing if first => "create",
            Stage::Syncing if now != revision => "update",
            Stage::Syncing => "sync",
            _ => "kill",
        };
        (revision, first) = (now, false);
        let span = w.traced(operation);
        let took = metrics.pod_worker.with_label_values(&[operation]).start_timer();
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // What a step takes isn't kept while the pod has nothing to do.
            next = AssertUnwindSafe(Box::pin(within(&span, w.step()))).catch_unwind() => next.unwrap_or_else(|_| {
                // Said by the panic itself. It must cost no more than this step.
                tracing::error!(pod = %pods::describe(&pod), "a step of the pod's task panicked and is tried again");
                Next::Wait(Some(w.retry.next()))
            }),
        };
        drop(span);
        took.observe_duration();
        let until = match next {
            Next::Again => continue,
            Next::Done => break,
            Next::Wait(until) => until,
        };
        let timer = async {
            match until {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = handle.wake.notified() => {}
            () = timer => {}
        }
    }
    w.kl.workers.forget(&uid);
    // Told last: who begins to watch before that finds it, and who begins after doesn't.
    w.kl.status.gone(handle.pod());
    w.kl.workers.wake_deferred();
    tracing::debug!(pod = %pods::describe(&pod), "pod is gone from this node");
}

impl Worker {
    /// A step in the trace of its pod.
    fn traced(&self, operation: &'static str) -> Span {
        let name = match self.stage {
            Stage::Syncing => "syncPod",
            Stage::Terminating => "syncTerminatingPod",
            Stage::Terminated | Stage::Finished => "syncTerminatedPod",
        };
        let uid = &self.handle.uid;
        let span = self.kl.cfg.tracer.begin(Kind::Internal, name, Origin::Pod(uid));
        span.tell("k8s.pod.uid", || uid.to_string());
        span.tell("k8s.pod.update_type", || operation);
        span.tell("k8s.pod.name", || {
            self.handle.pod().metadata.name.clone().unwrap_or_default()
        });
        span.tell("k8s.namespace.name", || {
            self.handle.pod().metadata.namespace.clone().unwrap_or_default()
        });
        span
    }

    pub fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
        self.handle.view.lock().stage = stage;
        self.kl.workers.moved();
        self.retry.reset();
        if stage != Stage::Syncing {
            self.kl.workers.wake_deferred();
        }
    }

    async fn step(&mut self) -> Next {
        match self.stage {
            Stage::Syncing => {
                let mut end = self.handle.end.subscribe();
                if end.borrow_and_update().is_some() {
                    self.set_stage(Stage::Terminating);
                    return Next::Again;
                }
                let wanted = tokio::select! {
                    biased;
                    // The sender lives in the handle, which this task holds.
                    _ = end.wait_for(Option::is_some) => None,
                    next = self.sync() => Some(next),
                };
                wanted.unwrap_or_else(|| {
                    self.set_stage(Stage::Terminating);
                    Next::Again
                })
            }
            Stage::Terminating => {
                let mut end = self.handle.end.subscribe();
                let grace = *end.borrow_and_update();
                tokio::select! {
                    biased;
                    // A shorter period than the one in use: begin again with it.
                    _ = end.wait_for(|new| new.is_some() && (grace.is_none() || *new < grace)) => Next::Again,
                    next = self.terminate(grace) => next,
                }
            }
            Stage::Terminated => self.clean_up().await,
            Stage::Finished => self.last_words().await,
        }
    }

    /// What a restart of the kubelet has to know again.
    fn restore(&mut self, pod: &Pod) {
        let path = self.record_path();
        if let Ok(data) = self.kl.host.read(&path, 1 << 20) {
            match serde_json::from_slice(&data) {
                Ok(record) => {
                    self.record = record;
                    self.admitted = true;
                }
                Err(e) => {
                    tracing::warn!(pod = %pods::describe(pod), "the record of allocated resources can't be read: {e}")
                }
            }
        }
        for (kind, slot) in [
            ("PodResizePending", &mut self.resize_pending),
            ("PodResizeInProgress", &mut self.resize_progress),
        ] {
            *slot = pods::condition(pods::status(pod), kind).cloned();
        }
    }

    pub fn record_path(&self) -> std::path::PathBuf {
        self.kl.layout.pod(&self.handle.uid).join("allocation.json")
    }

    /// Writes the record down if it has changed.
    pub fn save_record(&mut self) -> Result<(), String> {
        let text = serde_json::to_string(&self.record).map_err(|e| e.to_string())?;
        if self.recorded.as_ref() == Some(&text) {
            return Ok(());
        }
        self.kl
            .host
            .make_dir(&self.kl.layout.pod(&self.handle.uid), 0o750)
            .and_then(|()| self.kl.host.write(&self.record_path(), text.as_bytes(), 0o600))
            .map_err(|e| format!("remembering the pod's resources: {e}"))?;
        self.recorded = Some(text);
        Ok(())
    }
}
