//! The scheduler: gives pods their nodes.
//!
//! ```text
//! informers ─→ queue ─→ snapshot ─→ plan (plug-ins: filter, score; preemption) ─→ assume ─→ bind
//!                ↑                                                     │
//!                └───────────── waits, with the reasons ←──────────────┘
//! ```
//!
//! One pod is decided at a time, on a picture of the cluster, by pure functions ([`plan`]); binding goes on beside the next
//! decision, which already counts the pod as being on its node. A pod that fits nowhere waits for an event that may help it,
//! as the plug-ins that refused it tell ([`framework::Plugin::helps`]), and says in its condition what each node lacks.
//!
//! Knows the API only by its client: pods and nodes it watches, bindings and conditions it writes.

mod bind;
pub mod cluster;
mod core;
pub mod events;
pub mod framework;
mod inputs;
pub mod node;
pub mod plan;
pub mod plugins;
pub mod pod;
mod preempt;
pub mod queue;
pub mod resources;
pub mod select;
pub mod world;

use crate::core::Core;
use bind::Binder;
use cluster::Snapshot;
use framework::Plugin;
use inputs::Inputs;
use keelson_client::leader::{Election, acquire};
use keelson_client::{Recorder, Rest};
use plan::{Plan, plan};
use plugins::volume_binding::Decision;
use pod::PodInfo;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a stop waits for bindings under way.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

pub const DEFAULT_NAME: &str = "default-scheduler";

#[derive(Clone, Debug)]
pub struct Config {
    /// Pods that name it in `schedulerName` are its business.
    pub scheduler_name: String,
    /// Who this is among several schedulers, of which one works; `None`: it is the only one.
    pub leader_election: Option<String>,
    /// For the choice between equally good nodes; `None`: a new one each time.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            scheduler_name: DEFAULT_NAME.into(),
            leader_election: None,
            seed: None,
        }
    }
}

/// Runs until `stop`; bindings under way are finished.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "kube-scheduler");
    let leading = match &config.leader_election {
        None => stop.child_token(),
        Some(identity) => match acquire(&rest, Election::new("kube-scheduler", identity), &stop).await {
            Some(leading) => leading,
            None => return Ok(()),
        },
    };
    let scheduler = Scheduler::start(rest, &config, &leading);
    scheduler.run(&leading).await;
    anyhow::ensure!(stop.is_cancelled(), "the scheduler's leadership was lost");
    Ok(())
}

struct Scheduler {
    core: Arc<Core>,
    inputs: Inputs,
    plugins: Arc<Vec<Box<dyn Plugin>>>,
    binder: Binder,
    rng: StdRng,
    /// Writes under way.
    tasks: JoinSet<()>,
}

impl Scheduler {
    fn start(rest: Rest, config: &Config, stop: &CancellationToken) -> Scheduler {
        let inputs = Inputs::start(&rest, stop);
        let plugins = Arc::new(plugins::all());
        let core = Core::new(&config.scheduler_name, inputs.world.clone(), plugins.clone());
        let volumes_changed = Arc::new(Notify::new());
        inputs.feed(&core);
        inputs.world.on_volume_change(&volumes_changed);
        let events = Recorder::start(&rest, &config.scheduler_name, "", stop);
        let binder = Binder {
            rest,
            events,
            scheduler_name: config.scheduler_name.clone(),
            volumes_changed,
        };
        let rng = StdRng::seed_from_u64(config.seed.unwrap_or_else(rand::random));
        Scheduler {
            core,
            inputs,
            plugins,
            binder,
            rng,
            tasks: JoinSet::new(),
        }
    }

    async fn run(mut self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.inputs.synced() => {}
        }
        tracing::debug!("the scheduler's inputs are synced");
        while !stop.is_cancelled() {
            let changed = self.core.changed.notified();
            match self.core.next() {
                Ok((pod, snapshot)) => {
                    drop(changed);
                    self.decide(pod, snapshot);
                    // Let what was decided go out, and events in.
                    tokio::task::yield_now().await;
                }
                Err(at) => {
                    let timer = async {
                        match at {
                            Some(at) => tokio::time::sleep_until(at).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = changed => {}
                        () = timer => {}
                    }
                }
            }
            while self.tasks.try_join_next().is_some() {}
        }
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH_WITHIN, finished).await.is_err() {
            // Such a pod isn't bound; whoever schedules next begins with it again.
            tracing::info!("bindings that wait for volumes are given up");
        }
    }

    fn decide(&mut self, pod: Arc<PodInfo>, snapshot: Snapshot) {
        let plan = || plan(&self.plugins, &pod, &snapshot, &mut self.rng);
        let Ok(plan) = std::panic::catch_unwind(AssertUnwindSafe(plan)) else {
            // Said by the panic itself. It must cost no more than this pod's turn.
            tracing::error!(pod = %pod.key, "planning panicked; the pod is tried again later");
            return self.core.with(|state, now| {
                let attempts = state.queue.attempts(pod.uid());
                state.queue.failed(pod.clone(), attempts, now);
            });
        };
        match plan {
            Plan::Bind { node, volumes } => self.bind(pod, node, volumes),
            Plan::Wait(why) => {
                let why = Arc::new(why);
                for (node, (plugin, reject)) in &why.nodes {
                    tracing::debug!(pod = %pod.key, node, plugin, reasons = reject.reasons.join(", "), "doesn't fit");
                }
                let target = why.preemption.as_ref().and_then(|p| p.target.clone());
                self.core.with(|state, now| {
                    if let Some((node, _)) = &target {
                        state.cluster.nominate(pod.clone(), node);
                    }
                    state.queue.refused(pod.uid(), why.clone(), now);
                });
                let (binder, core) = (self.binder.clone(), self.core.clone());
                self.tasks.spawn(async move {
                    binder.waits(&pod, &why).await;
                    if let Some((node, victims)) = target
                        && let Err(error) = binder.evict(&pod, &node, &victims).await
                    {
                        tracing::warn!(pod = %pod.key, error = format!("{error:#}"), "preemption failed");
                        core.happened(events::ClusterEvent::Anything);
                    }
                });
            }
        }
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: String, volumes: Decision) {
        let attempts = self.core.with(|state, _| {
            let attempts = state.queue.attempts(pod.uid());
            state.queue.done(pod.uid());
            state.cluster.assume(Arc::new(pod.on_node(&node)));
            attempts
        });
        bind::promise(&self.core, &volumes);
        let (binder, core) = (self.binder.clone(), self.core.clone());
        self.tasks.spawn(async move {
            let bound = binder.bind(&pod, &node, &volumes).await;
            bind::release(&core, &volumes);
            let Err(error) = bound else { return };
            let chain = || error.chain().filter_map(|e| e.downcast_ref::<keelson_client::Error>());
            let is_gone = chain().any(keelson_client::is_not_found);
            core.with(|state, now| {
                state.cluster.forget(pod.uid());
                // What would have been there is free for others.
                state.queue.happened(events::ClusterEvent::PodLeft(pod.clone()), now);
                if !is_gone && !state.cluster.is_placed(pod.uid()) {
                    state.queue.failed(pod.clone(), attempts, now);
                }
            });
            if !is_gone {
                tracing::warn!(pod = %pod.key, node, error = format!("{error:#}"), "binding failed; will retry");
                binder.failed(&pod, &error).await;
            }
        });
    }
}
