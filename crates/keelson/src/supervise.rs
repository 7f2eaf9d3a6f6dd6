//! Components as tasks: started in order, started again when they end in error, stopped in reverse order.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// First wait before a failed component is started again; it doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// How long a component has to run after a failure until it counts as well again.
const SETTLED: Duration = Duration::from_secs(5);
/// How long a component may take to stop.
const STOPPING: Duration = Duration::from_secs(20);

/// The running components, in the order of their start.
#[derive(Default)]
pub struct Supervisor {
    running: Vec<Component>,
    health: Health,
}

/// Which components have failed and don't run again yet.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeSet<&'static str>>>);

impl Health {
    pub fn failing(&self) -> Vec<&'static str> {
        self.0.lock().iter().copied().collect()
    }
}

struct Component {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Runs `start` until it ends well or the supervisor stops; an error or a panic starts it again, after a wait.
    pub fn spawn<F, Fut>(&mut self, name: &'static str, start: F)
    where
        F: Fn(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let life = Life {
            name,
            start: Box::new(move |stop| Box::pin(start(stop))),
            stop: stop.clone(),
            health: self.health.clone(),
        };
        let task = tokio::spawn(life.lead());
        tracing::debug!(component = name, "started");
        self.running.push(Component { name, stop, task });
    }

    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Stops all components, the last started first, each within a bounded time.
    pub async fn stop(self) {
        for component in self.running.into_iter().rev() {
            component.stop.cancel();
            let mut task = component.task;
            if tokio::time::timeout(STOPPING, &mut task).await.is_err() {
                tracing::warn!(component = component.name, "did not stop in time");
                task.abort();
            }
        }
    }
}

type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// What leads a component through its starts.
struct Life {
    name: &'static str,
    start: Box<dyn Fn(CancellationToken) -> Running + Send>,
    stop: CancellationToken,
    health: Health,
}

impl Life {
    async fn lead(self) {
        let mut wait = FIRST;
        loop {
            let attempt = self.stop.child_token();
            let began = tokio::time::Instant::now();
            let mut running = tokio::spawn((self.start)(attempt.clone()));
            let ended = match tokio::time::timeout(SETTLED, &mut running).await {
                Ok(ended) => ended,
                Err(_) => {
                    self.health.0.lock().remove(self.name);
                    running.await
                }
            };
            attempt.cancel();
            if self.stop.is_cancelled() {
                return;
            }
            match ended {
                Ok(Ok(())) => {
                    self.health.0.lock().remove(self.name);
                    return;
                }
                Ok(Err(error)) => {
                    tracing::error!(component = self.name, error = format!("{error:#}"), "component failed")
                }
                Err(panic) => tracing::error!(component = self.name, %panic, "component panicked"),
            }
            self.health.0.lock().insert(self.name);
            if began.elapsed() > LONGEST {
                wait = FIRST;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_failed_component_is_started_again_and_all_are_stopped() {
        let starts = Arc::new(AtomicUsize::new(0));
        let mut supervisor = Supervisor::default();
        let count = starts.clone();
        supervisor.spawn("flaky", move |stop| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            async move {
                match n {
                    0 => anyhow::bail!("first start fails"),
                    1 => panic!("second start panics"),
                    _ => stop.cancelled().await,
                }
                Ok(())
            }
        });
        let tries = AtomicUsize::new(0);
        supervisor.spawn("done", move |_| {
            let n = tries.fetch_add(1, Ordering::SeqCst);
            async move {
                anyhow::ensure!(n > 0, "the first try fails");
                Ok(())
            }
        });
        let health = supervisor.health();
        assert!(health.failing().is_empty());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert_eq!(
            health.failing(),
            ["flaky"],
            "one has only just begun again, the other is done"
        );
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(health.failing().is_empty());
        supervisor.stop().await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
    }
}
