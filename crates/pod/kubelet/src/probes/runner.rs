//! The task of one container instance: its startup probe first, then liveness and readiness side by side.

use super::{Kind, check};
use crate::kubelet::Kubelet;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A check that could not be made is made again so often before the attempt is given up.
const TRIES: usize = 3;

pub(super) struct Task {
    pub kl: Arc<Kubelet>,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub id: String,
    pub ip: Option<String>,
    /// When the container started: delays count from it.
    pub begin: Instant,
    pub started: watch::Sender<bool>,
    pub stop: CancellationToken,
    pub stop_restarts: CancellationToken,
}

pub(super) async fn run(task: Task) {
    let all = async {
        tokio::join!(
            until(
                &task.stop_restarts,
                probe(&task, Kind::Startup, task.container.startup_probe.as_ref())
            ),
            until(
                &task.stop_restarts,
                probe(&task, Kind::Liveness, task.container.liveness_probe.as_ref())
            ),
            probe(&task, Kind::Readiness, task.container.readiness_probe.as_ref()),
        )
    };
    tokio::select! {
        () = task.stop.cancelled() => {}
        () = task.kl.stop.cancelled() => {}
        _ = all => {}
    }
}

async fn until(stop: &CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn probe(task: &Task, kind: Kind, probe: Option<&Probe>) {
    let Some(probe) = probe else { return };
    if kind != Kind::Startup {
        // The sender is in the task, which outlives this.
        let _ = task.started.subscribe().wait_for(|s| *s).await;
    } else if *task.started.borrow() {
        return;
    }
    let seconds = |v: Option<i32>, default: i32| Duration::from_secs(v.filter(|v| *v > 0).unwrap_or(default) as u64);
    let period = seconds(probe.period_seconds, 10);
    tokio::time::sleep_until(task.begin + Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0).max(0) as u64))
        .await;
    let mut run = Run::new(probe);
    let mut next = Instant::now();
    loop {
        if let Some(good) = attempt(task, kind, probe).await
            && let Some(result) = run.count(good)
        {
            tell(task, kind, result);
            match (kind, result) {
                (Kind::Startup, true) => {
                    task.started.send_replace(true);
                    return;
                }
                // It will be restarted; another instance has its own task.
                (Kind::Startup | Kind::Liveness, false) => return,
                _ => {}
            }
        }
        next = (next + period).max(Instant::now());
        tokio::time::sleep_until(next).await;
    }
}

fn tell(task: &Task, kind: Kind, good: bool) {
    let uid = crate::pods::uid(&task.pod);
    if task.kl.probes.set(uid, &task.id, kind, good) {
        task.kl.workers.wake(uid);
    }
}

/// Counts results in a row; says so when a threshold is reached.
struct Run {
    failure: u32,
    success: u32,
    last: Option<bool>,
    length: u32,
}

impl Run {
    fn new(p: &Probe) -> Self {
        let number = |v: Option<i32>, default: u32| v.filter(|v| *v > 0).map_or(default, |v| v as u32);
        Run {
            failure: number(p.failure_threshold, 3),
            success: number(p.success_threshold, 1),
            last: None,
            length: 0,
        }
    }

    fn count(&mut self, good: bool) -> Option<bool> {
        self.length = if self.last == Some(good) { self.length + 1 } else { 1 };
        self.last = Some(good);
        (self.length >= if good { self.success } else { self.failure }).then_some(good)
    }
}

/// One check; `None` when it could not be made.
async fn attempt(task: &Task, kind: Kind, probe: &Probe) -> Option<bool> {
    let mut error = String::new();
    let metrics = &task.kl.metrics;
    let begin = Instant::now();
    let count = |result| metrics.probe(kind, &task.pod, &task.container.name, result, begin.elapsed());
    for _ in 0..TRIES {
        match check::run(task, kind, probe).await {
            Ok(check::Outcome::Success) => {
                count(Some(true));
                return Some(true);
            }
            Ok(check::Outcome::Warning(text)) => {
                count(Some(true));
                warn(task, "ProbeWarning", format!("{} probe warning: {text}", kind.as_str()));
                return Some(true);
            }
            Ok(check::Outcome::Failure(text)) => {
                count(Some(false));
                warn(task, "Unhealthy", format!("{} probe failed: {text}", kind.as_str()));
                return Some(false);
            }
            Err(e) => error = e,
        }
    }
    count(None);
    warn(
        task,
        "Unhealthy",
        format!("{} probe errored and resulted in unknown state: {error}", kind.as_str()),
    );
    None
}

fn warn(task: &Task, reason: &str, message: String) {
    task.kl.warn(&task.pod, Some(&task.container.name), reason, message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let p = Probe {
            failure_threshold: Some(2),
            success_threshold: Some(2),
            ..Default::default()
        };
        let mut run = Run::new(&p);
        let got: Vec<Option<bool>> = [true, false, false, false, true, true]
            .into_iter()
            .map(|g| run.count(g))
            .collect();
        assert_eq!(got, [None, None, Some(false), Some(false), None, Some(true)]);
    }
}
