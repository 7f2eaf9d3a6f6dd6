//! What every controller is given: clients, shared informers, the clock's reading, and a place to run.

use crate::{Config, queues};
use jiff::Timestamp;
use keelson_client::{ClientFactory, Controller, Informer, Informers, Kind, Reconcile, Recorder, Rest, WorkQueue};
use parking_lot::Mutex;
use std::hash::Hash;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The name under which the server records what controllers write.
const AGENT: &str = "kube-controller-manager";
/// Reads everything, for all controllers together.
const READER: &str = "system:kube-controller-manager";

pub struct Context {
    factory: Arc<dyn ClientFactory>,
    informers: Informers,
    pub config: Arc<Config>,
    pub stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

impl Context {
    pub fn new(factory: Arc<dyn ClientFactory>, config: Arc<Config>, stop: CancellationToken) -> Self {
        let reader = Rest::new(factory.client(READER), AGENT).telling(&config.telling);
        Context {
            factory,
            informers: Informers::new(reader, stop.clone()),
            config,
            stop,
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// A client with the rights of one controller.
    pub fn rest(&self, controller: &str) -> Rest {
        let identity = format!("system:serviceaccount:kube-system:{controller}");
        Rest::new(self.factory.client(&identity), AGENT).telling(&self.config.telling)
    }

    /// A client that may read everything, as the informers do.
    pub fn reader(&self) -> Rest {
        Rest::new(self.factory.client(READER), AGENT).telling(&self.config.telling)
    }

    /// A queue tells how it goes, under upstream's name of it.
    pub fn tell<T: Clone + Eq + Hash + Send + 'static>(&self, queue: &Arc<WorkQueue<T>>, name: &str) {
        queue.tell(&self.config.telling.measures, name);
    }

    pub fn informer<K: Kind>(&self) -> Informer<K> {
        self.informers.get()
    }

    pub fn recorder(&self, rest: &Rest, component: &str) -> Recorder {
        Recorder::start(rest, component, "", &self.stop)
    }

    pub fn run(&self, controller: Controller, reconcile: impl Reconcile) {
        controller.tell(&self.config.telling.measures, queues::of(controller.name()));
        self.spawn(controller.run(Arc::new(reconcile), self.stop.clone()));
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().spawn(task);
    }

    /// Waits until all that was spawned has ended.
    pub async fn finish(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while let Some(result) = tasks.join_next().await {
            if let Err(error) = result {
                tracing::error!(%error, "a controller ended badly");
            }
        }
    }
}

/// The present, for a plan.
pub fn now() -> Timestamp {
    keelson_clock::now()
}
