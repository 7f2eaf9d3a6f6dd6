//! The scheduler: gives pods their nodes.
//!
//! ```text
//! informers ─→ queue ─→ snapshot ─→ plan (plug-ins: filter, score; preemption) ─→ assume ─→ bind
//!                ↑                                                     │
//!                └───────────── waits, with the reasons ←──────────────┘
//! ```
//!
//! One pod is decided at a time, on a picture of the cluster, by pure functions ([`plan`]). The picture is kept, and brought up to
//! date by what has changed ([`snapshot`]); what plug-ins count in it is kept with it ([`tally`], [`residents`]). Binding goes on
//! beside the next decision, which already counts the pod as being on its node. A pod that fits nowhere waits for an event that may help it,
//! as the plug-ins that refused it tell ([`framework::Plugin::helps`]), and says in its condition what each node lacks.
//!
//! Knows the API only by its client: pods and nodes it watches, bindings and conditions it writes.

pub mod batch;
mod bind;
pub mod cluster;
pub mod configuration;
mod core;
mod counts;
pub mod devices;
pub mod events;
pub mod extender;
pub mod framework;
mod inputs;
pub mod ledger;
pub mod node;
pub mod plan;
pub mod plugins;
pub mod pod;
mod preempt;
pub mod profile;
pub mod queue;
pub mod residents;
pub mod resources;
pub mod select;
pub mod selector;
pub mod snapshot;
pub mod spread;
pub mod tally;
pub mod term;
pub mod told;
pub mod topology;
pub mod world;

use crate::core::{Core, Profiles};
use bind::{Binder, Writes};
use extender::Extender;
use futures::FutureExt;
use inputs::Inputs;
use keelson_client::leader::{Election, acquire};
use keelson_client::{Recorder, Rest, Telling};
use keelson_trace::{Tracer, within};
use plan::{Plan, Turn, Why, plan};
use plugins::dynamic_resources::Decision as Devices;
use plugins::volume_binding::Decision;
use pod::PodInfo;
use profile::Profile;
use queue::Backoffs;
use rand::SeedableRng;
use rand::rngs::StdRng;
use snapshot::Snapshot;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use told::{Ended, Told};
use world::World;

/// How long a stop waits for bindings under way.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// So many bindings, conditions and evictions are under way at once. The next decision waits for a place; who waits for volumes
/// holds none.
const MOST_WRITES: usize = 256;

/// After so many decisions others have a turn. A turn given away comes back only when a busy runtime has gone through dozens of other
/// tasks: one for each decision bounds decisions by what a request costs, not by what they cost themselves.
const DECISIONS_A_TURN: usize = 16;

pub const DEFAULT_NAME: &str = "default-scheduler";

#[derive(Clone, Debug)]
pub struct Config {
    /// How pods are decided, by the name they have in `schedulerName`; others are somebody else's business.
    pub profiles: Vec<Profile>,
    pub backoffs: Backoffs,
    /// Who is asked beside the plug-ins.
    pub extenders: Vec<extender::Settings>,
    /// Who this is among several schedulers, of which one works; `None`: it is the only one.
    pub leader_election: Option<Election>,
    /// For the choice between equally good nodes; `None`: a new one each time.
    pub seed: Option<u64>,
    /// Where decisions, requests and queues are counted.
    pub telling: Telling,
    /// Who tells of the pods' time here, in their traces.
    pub tracer: Tracer,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            profiles: vec![Profile::default()],
            backoffs: Backoffs::default(),
            extenders: Vec::new(),
            leader_election: None,
            seed: None,
            telling: Telling::default(),
            tracer: Tracer::none(),
        }
    }
}

/// Runs until `stop`; bindings under way are finished.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "kube-scheduler").telling(&config.telling);
    let extenders = Extender::all(&config.extenders).await?;
    let election = match &config.leader_election {
        None => None,
        Some(election) => match acquire(&rest, election.clone(), &stop).await {
            Some(leading) => Some(leading),
            None => return Ok(()),
        },
    };
    let leading = election
        .as_ref()
        .map_or_else(|| stop.child_token(), |l| l.token().clone());
    let scheduler = Scheduler::start(rest, &config, extenders, &leading);
    scheduler.run(&leading).await;
    if let Some(election) = election {
        election.finish().await;
    }
    anyhow::ensure!(stop.is_cancelled(), "the scheduler's leadership was lost");
    Ok(())
}

struct Scheduler {
    core: Arc<Core>,
    inputs: Inputs,
    profiles: Profiles,
    /// One for each profile.
    binders: Vec<Binder>,
    extenders: Arc<[Extender]>,
    snapshot: Snapshot,
    turn: Turn<StdRng>,
    writes: Arc<Writes>,
    /// Writes under way.
    tasks: JoinSet<()>,
    told: Arc<Told>,
}

impl Scheduler {
    fn start(rest: Rest, config: &Config, extenders: Arc<[Extender]>, stop: &CancellationToken) -> Scheduler {
        let inputs = Inputs::start(&rest, stop);
        let profiles: Profiles = Arc::new(config.profiles.iter().cloned().map(Arc::new).collect());
        let measures = &config.telling.measures;
        let told = Told::new(measures);
        let world: Arc<dyn World> = inputs.world.clone();
        let tracer = config.tracer.clone();
        let core = Core::new(profiles.clone(), world.clone(), config.backoffs, told.clone(), tracer);
        told.follow(measures, &core);
        let volumes_changed = Arc::new(Notify::new());
        inputs.feed(&core);
        inputs.world.on_volume_change(&volumes_changed);
        let writes = Arc::new(Writes::new(MOST_WRITES));
        let ledger = inputs.world.devices();
        let binder = |profile: &Arc<Profile>| Binder {
            rest: rest.clone(),
            events: Recorder::start(&rest, &profile.scheduler_name, "", stop),
            profile: profile.clone(),
            volumes_changed: volumes_changed.clone(),
            world: world.clone(),
            ledger: ledger.clone(),
            extenders: extenders.clone(),
        };
        Scheduler {
            core,
            snapshot: Snapshot::new(inputs.world.clone()),
            inputs,
            binders: profiles.iter().map(binder).collect(),
            profiles,
            extenders,
            turn: Turn::new(StdRng::seed_from_u64(config.seed.unwrap_or_else(rand::random))),
            writes,
            tasks: JoinSet::new(),
            told,
        }
    }

    async fn run(mut self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.inputs.synced() => {}
        }
        tracing::debug!("the scheduler's inputs are synced");
        let mut decided = 0;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.writes.has_place() => {}
            }
            let changed = self.core.changed.notified();
            match self.core.next(&mut self.snapshot) {
                Ok(pod) => {
                    drop(changed);
                    tokio::select! {
                        // Extenders may be a while.
                        biased;
                        () = self.decide(pod) => {}
                        () = stop.cancelled() => break,
                    }
                    decided += 1;
                    if decided % DECISIONS_A_TURN == 0 {
                        // Let what was decided go out, and events in.
                        tokio::task::yield_now().await;
                    }
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

    async fn decide(&mut self, pod: Arc<PodInfo>) {
        let of = |profile: &Arc<Profile>| profile.scheduler_name == pod.scheduler_name();
        let Some(at) = self.profiles.iter().position(of) else {
            return self.core.with(|state, _| state.queue.remove(pod.uid()));
        };
        let began = Instant::now();
        self.turn.now = began;
        let (profile, snapshot, turn) = (&self.profiles[at], &self.snapshot, &mut self.turn);
        let planned = match self.extenders.is_empty() {
            true => std::panic::catch_unwind(AssertUnwindSafe(|| Ok(plan(profile, &pod, snapshot, turn)))),
            false => {
                let planned = extender::plan::plan(&self.extenders, profile, &pod, snapshot, turn);
                AssertUnwindSafe(planned).catch_unwind().await
            }
        };
        let Ok(planned) = planned else {
            // Said by the panic itself. It must cost no more than this pod's turn.
            tracing::error!(pod = %pod.key, "planning panicked; the pod is tried again later");
            self.told.ended(Ended::Error, pod.scheduler_name(), began.elapsed());
            return self.core.with(|state, now| drop(state.queue.failed(pod.uid(), now)));
        };
        let binder = self.binders[at].clone();
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return self.failed(binder, pod, error, began),
        };
        match plan {
            Plan::Bind { node, volumes, devices } => {
                self.told.decided(began.elapsed());
                self.bind(binder, pod, node, (volumes, devices), began);
            }
            Plan::Wait(Why {
                failure: Some(failure), ..
            }) => self.failed(binder, pod, anyhow::anyhow!(failure), began),
            Plan::Wait(why) => {
                self.told
                    .ended(Ended::Unschedulable, pod.scheduler_name(), began.elapsed());
                if let Some(preemption) = &why.preemption {
                    self.told
                        .preempts(preemption.target.as_ref().map(|(_, victims)| victims.len()));
                }
                self.wait(binder, pod, why);
            }
        }
    }

    /// An extender that may not fail did, or a plug-in.
    fn failed(&mut self, binder: Binder, pod: Arc<PodInfo>, error: anyhow::Error, began: Instant) {
        self.told.ended(Ended::Error, pod.scheduler_name(), began.elapsed());
        let Some(pod) = self.core.with(|state, now| state.queue.failed(pod.uid(), now)) else {
            return;
        };
        tracing::warn!(pod = %pod.key, error = format!("{error:#}"), "no decision; will retry");
        let writes = self.writes.clone();
        self.tasks.spawn(async move {
            let _place = writes.place().await;
            binder.failed(&pod, &error).await;
        });
    }

    fn wait(&mut self, binder: Binder, pod: Arc<PodInfo>, why: Why) {
        let why = Arc::new(why);
        if tracing::enabled!(tracing::Level::DEBUG) {
            for refused in &why.nodes {
                let node = self.snapshot.at(refused.node).map(|n| n.name()).unwrap_or_default();
                let (plugin, reasons) = (refused.plugin, refused.reject.text());
                tracing::debug!(pod = %pod.key, node, plugin, reasons, "doesn't fit");
            }
        }
        let target = why.preemption.as_ref().and_then(|p| p.target.clone());
        let (is_there, displaced) = self.core.with(|state, now| {
            let mut displaced = Vec::new();
            // Whoever has gone meanwhile makes no room, and takes none.
            if state.queue.pod(pod.uid()).is_none() {
                return (false, displaced);
            }
            if let Some((node, victims)) = &target {
                // Room that was made for somebody less important is taken: he has to be decided anew. If nobody else has to go, it is
                // the same room, and he waits for the same pods.
                let is_other = victims.iter().any(|victim| !victim.is_deleting());
                let waiting = state.cluster.nominated_on(node).iter().filter(|_| is_other);
                displaced.extend(waiting.filter(|p| p.priority < pod.priority).cloned());
                state.cluster.nominate(pod.clone(), node);
            } else if why.preemption.as_ref().is_some_and(|p| p.clear_nomination) {
                state.cluster.clear_nomination(pod.uid());
            }
            for pod in &displaced {
                state.cluster.clear_nomination(pod.uid());
                state.queue.wake(pod.uid(), now);
            }
            if target.is_some() {
                state.queue.evicts(pod.uid());
            }
            state.queue.refused(pod.uid(), why.clone(), now);
            (true, displaced)
        });
        if !is_there {
            return;
        }
        let (core, writes) = (self.core.clone(), self.writes.clone());
        self.tasks.spawn(async move {
            let _place = writes.place().await;
            for pod in displaced {
                binder.isnt_nominated(&pod).await;
            }
            if let Some(claim) = &why.to_free {
                binder.free(&pod, claim).await;
            }
            binder.waits(&pod, &why).await;
            if let Some((node, victims)) = target
                && let Err(error) = evict(&core, &binder, &pod, &node, &victims).await
            {
                tracing::warn!(pod = %pod.key, error = format!("{error:#}"), "preemption failed");
                core.with(|state, now| {
                    state.cluster.clear_nomination(pod.uid());
                    state.queue.happened(events::ClusterEvent::Anything, now);
                });
                binder.isnt_nominated(&pod).await;
            }
        });
    }

    fn bind(
        &mut self,
        binder: Binder,
        pod: Arc<PodInfo>,
        node: String,
        (volumes, devices): (Decision, Devices),
        began: Instant,
    ) {
        let tries = self.core.with(|state, _| {
            if !state.queue.binds(pod.uid()) {
                return None;
            }
            state.cluster.assume(Arc::new(pod.on_node(&node)));
            Some((state.queue.tries(pod.uid())?, state.queue.take_span(pod.uid())))
        });
        let Some(((attempts, first), span)) = tries else { return };
        let told = self.told.clone();
        bind::promise(&self.core, &volumes);
        binder.promise_devices(&devices);
        let (core, writes) = (self.core.clone(), self.writes.clone());
        self.tasks.spawn(async move {
            let bound = binder.bind(&pod, &node, (&volumes, &devices), &writes, &core);
            let bound = within(&span, bound).await;
            bind::release(&core, &volumes);
            binder.release_devices(&pod, &devices, bound.is_ok(), &writes).await;
            let Err(error) = bound else {
                span.tell("k8s.node.name", || node.clone());
                span.tell("attempts", || i64::from(attempts));
                drop(span);
                told.ended(Ended::Scheduled, pod.scheduler_name(), began.elapsed());
                return told.bound(attempts, first.elapsed());
            };
            told.ended(Ended::Error, pod.scheduler_name(), began.elapsed());
            // Whether the pod is still there is what was seen of it, not what this or that request was answered.
            let waits = core.with(|state, now| {
                state.cluster.forget(pod.uid());
                state.queue.give_back(pod.uid(), span);
                // What would have been there is free for others.
                state.queue.happened(events::ClusterEvent::PodLeft(pod.clone()), now);
                if !devices.is_empty() {
                    state.queue.happened(events::ClusterEvent::Devices, now);
                }
                if !volumes.bind.is_empty() {
                    state.queue.happened(events::ClusterEvent::Volumes, now);
                }
                state.queue.failed(pod.uid(), now)
            });
            if let Some(pod) = waits {
                tracing::warn!(pod = %pod.key, node, error = format!("{error:#}"), "binding failed; will retry");
                binder.failed(&pod, &error).await;
            }
        });
    }
}

/// Makes all of them go, and lets the pod be tried again when the last of them goes.
async fn evict(
    core: &Core,
    binder: &Binder,
    pod: &PodInfo,
    node: &str,
    victims: &[Arc<PodInfo>],
) -> anyhow::Result<()> {
    let staying: Vec<_> = victims.iter().filter(|v| !v.is_deleting()).cloned().collect();
    let evicted = async {
        let Some((last, others)) = staying.split_last() else {
            return Ok(());
        };
        binder.evict(pod, node, others).await?;
        core.with(|state, _| state.queue.evicts_last(pod.uid(), last.uid()));
        binder.evict(pod, node, std::slice::from_ref(last)).await
    };
    let evicted = evicted.await;
    core.with(|state, _| state.queue.has_evicted(pod.uid()));
    evicted
}
