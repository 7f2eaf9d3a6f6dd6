//! Runs a controller: keys from its queue, a few at a time, with the rules that hold for all of them.
//!
//! Work starts once every input is synced. A key whose work fails comes again, later each time, until it succeeds; a
//! panic counts as a failure of its key only.

use crate::informer::Informer;
use crate::key::ObjectKey;
use crate::kind::{ApiObject, ResourceId};
use crate::queue::WorkQueue;
use crate::rest::{Error, is_conflict};
use async_trait::async_trait;
use futures::FutureExt;
use jiff::Timestamp;
use keelson_measure::Measures;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What comes after a key's work went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, until something changes.
    Done,
    /// The same key again after this time, if nothing changes earlier.
    After(Duration),
    /// The same key again when the calendar shows this date.
    At(Timestamp),
    /// The same key again, later each time: what was waited for isn't there yet, and no event will tell.
    Retry,
}

#[async_trait]
pub trait Reconcile: Send + Sync + 'static {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome>;
}

/// A controller's declaration: its name, what it reads and what it writes.
pub struct Controller {
    name: &'static str,
    inputs: Vec<ResourceId>,
    outputs: Vec<ResourceId>,
    gates: Vec<watch::Receiver<bool>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    workers: usize,
}

impl Controller {
    pub fn new(name: &'static str) -> Self {
        Controller {
            name,
            inputs: Vec::new(),
            outputs: Vec::new(),
            gates: Vec::new(),
            queue: Arc::new(WorkQueue::new()),
            workers: 5,
        }
    }

    /// Reads these objects: work waits until they are all known.
    pub fn input<K: ApiObject>(mut self, informer: &Informer<K>) -> Self {
        self.inputs.push(informer.resource().clone());
        self.gates.push(informer.gate());
        self
    }

    /// Writes objects of this resource.
    pub fn output(mut self, resource: ResourceId) -> Self {
        self.outputs.push(resource);
        self
    }

    /// How many keys are worked on at the same time.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Failed keys come again at the latest after this time.
    pub fn longest_delay(self, longest: Duration) -> Self {
        self.queue.set_longest_delay(longest);
        self
    }

    /// Failed keys come again first after this time.
    pub fn first_delay(self, first: Duration) -> Self {
        self.queue.set_first_delay(first);
        self
    }

    /// Tells how its queue goes, under upstream's name of it.
    pub fn tell(&self, measures: &Measures, queue: &str) {
        self.queue.tell(measures, queue);
    }

    pub fn name(&self) -> &'static str {
        self.name
    }
    pub fn inputs(&self) -> &[ResourceId] {
        &self.inputs
    }
    pub fn outputs(&self) -> &[ResourceId] {
        &self.outputs
    }
    pub fn queue(&self) -> Arc<WorkQueue<ObjectKey>> {
        self.queue.clone()
    }

    /// Runs until `stop`; work begun is finished first.
    pub async fn run(mut self, reconcile: Arc<dyn Reconcile>, stop: CancellationToken) {
        for gate in &mut self.gates {
            tokio::select! {
                () = stop.cancelled() => return,
                // A closed gate means that the informer was stopped: then so are we, at the next turn.
                result = gate.wait_for(|synced| *synced) => if result.is_err() { return },
            }
        }
        tracing::debug!(controller = self.name, "inputs are synced");
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..self.workers {
            workers.spawn(work(self.name, self.queue.clone(), reconcile.clone()));
        }
        stop.cancelled().await;
        self.queue.close();
        while workers.join_next().await.is_some() {}
    }
}

async fn work(name: &'static str, queue: Arc<WorkQueue<ObjectKey>>, reconcile: Arc<dyn Reconcile>) {
    while let Some(key) = queue.next().await {
        let result = match AssertUnwindSafe(reconcile.reconcile(&key)).catch_unwind().await {
            Ok(result) => result,
            Err(panic) => Err(anyhow::anyhow!("panic: {}", panic_text(&*panic))),
        };
        match result {
            Ok(Outcome::Done) => queue.forget(&key),
            Ok(Outcome::After(delay)) => {
                queue.forget(&key);
                queue.add_after(key.clone(), delay);
            }
            Ok(Outcome::At(date)) => {
                queue.forget(&key);
                queue.add_at(key.clone(), date);
            }
            Ok(Outcome::Retry) => queue.add_rate_limited(key.clone()),
            Err(error) => {
                if error
                    .chain()
                    .any(|e| e.downcast_ref::<Error>().is_some_and(is_conflict))
                {
                    tracing::debug!(controller = name, %key, "changed by somebody else meanwhile; will retry");
                } else {
                    tracing::warn!(controller = name, %key, error = format!("{error:#}"), "failed; will retry");
                }
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}
