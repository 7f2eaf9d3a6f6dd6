//! Decisions alone: queue, picture, plan, and taking the pod to be on its node, over a world in memory. Time is the CPU time that
//! decisions take, which others on the machine add little to; what happens every so often happens in that time.

use crate::measure::{Outcome, Times};
use crate::objects::{self, Made};
use crate::play::{Churning, Field};
use crate::world::Memory;
use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::storage::v1::CSINode;
use keelson_client::ApiObject;
use keelson_scheduler::Config;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::events::ClusterEvent;
use keelson_scheduler::plan::{Plan, Turn, Why, plan};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::Profile;
use keelson_scheduler::queue::Queue;
use keelson_scheduler::snapshot::Snapshot;
use keelson_scheduler::world::World;
use nix::time::{ClockId, clock_gettime};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub struct Decisions {
    profile: Arc<Profile>,
    world: Arc<Memory>,
    cluster: Cluster,
    snapshot: Snapshot,
    queue: Queue,
    turn: Turn<StdRng>,
    start: Instant,
    /// How long decisions have taken, and waits between them that nothing filled.
    clock: Duration,
    /// Decisions give up after so long.
    within: Duration,
    began: std::time::Instant,
    /// Of each namespace: pods that were made, those that had a node once, and those that were tried.
    made: HashMap<String, Vec<String>>,
    placed: HashMap<String, Vec<String>>,
    tried: HashMap<String, BTreeSet<String>>,
    churning: Vec<(Churning, Ticks, Vec<Vec<String>>)>,
    deleting: Vec<(Vec<String>, Ticks)>,
    measuring: Option<Measuring>,
    outcome: Option<Outcome>,
}

/// When something happens next.
struct Ticks {
    every: Duration,
    next: Duration,
    count: usize,
}

impl Ticks {
    fn new(every: Duration, now: Duration) -> Ticks {
        Ticks {
            every,
            next: now + every,
            count: 0,
        }
    }
    fn is_due(&mut self, now: Duration) -> bool {
        let is_due = self.next <= now;
        if is_due {
            self.next += self.every;
            self.count += 1;
        }
        is_due
    }
}

struct Measuring {
    namespace: String,
    spent: Duration,
    took: Vec<Duration>,
}

impl Decisions {
    pub fn new(config: Config, within: Duration) -> Result<Decisions> {
        let profile = Arc::new(config.profiles.into_iter().next().context("there is no profile")?);
        let world = Arc::new(Memory::default());
        let (asked, told): (_, Arc<dyn World>) = (profile.clone(), world.clone());
        let helps = move |event: &ClusterEvent, pod: &PodInfo, by: &BTreeSet<&'static str>| {
            let mut refused = asked.plugins.iter().filter(|e| by.contains(e.plugin.name()));
            refused.any(|e| e.plugin.hears(event) && e.plugin.helps(event, pod, &*told))
        };
        let hearing = profile.clone();
        let hears = move |event: &ClusterEvent, name: &str| {
            let mut named = hearing.plugins.iter().filter(|e| e.plugin.name() == name);
            named.any(|e| e.plugin.hears(event))
        };
        Ok(Decisions {
            profile,
            cluster: Cluster::default(),
            snapshot: Snapshot::new(world.clone()),
            world,
            queue: Queue::new(Box::new(helps), config.backoffs).heard_by(Box::new(hears)),
            turn: Turn::new(StdRng::seed_from_u64(1)),
            start: Instant::now(),
            clock: Duration::ZERO,
            within,
            began: std::time::Instant::now(),
            made: HashMap::new(),
            placed: HashMap::new(),
            tried: HashMap::new(),
            churning: Vec::new(),
            deleting: Vec::new(),
            measuring: None,
            outcome: None,
        })
    }

    fn now(&self) -> Instant {
        self.start + self.clock
    }

    fn comes(&mut self, namespace: &str, mut pod: Pod) {
        let uid = format!("{namespace}/{}", pod.name());
        self.made.entry(namespace.to_owned()).or_default().push(uid.clone());
        pod.metadata.uid = Some(uid);
        self.queue.set(Arc::new(PodInfo::of(Arc::new(pod))), self.now());
    }

    fn goes(&mut self, uid: &str) {
        self.queue.remove(uid);
        if let Some(pod) = self.cluster.remove_pod(uid) {
            self.queue.happened(ClusterEvent::PodLeft(pod), self.now());
        }
    }

    /// One pod is tried. `false`: there is none to try now.
    fn attempt(&mut self) -> bool {
        let (now, begun) = (self.now(), cpu_time());
        let Some(pod) = self.queue.pop(now) else { return false };
        self.cluster.update(&mut self.snapshot);
        self.turn.now = now;
        let decided = plan(&self.profile, &pod, &self.snapshot, &mut self.turn);
        let took = match decided {
            Plan::Bind { node, .. } => {
                self.queue.binds(pod.uid());
                let there = Arc::new(pod.on_node(&node));
                self.cluster.assume(there.clone());
                self.queue.remove(pod.uid());
                let took = cpu_time() - begun;
                self.queue.happened(ClusterEvent::PodPlaced(there), now);
                self.placed
                    .entry(pod.key.namespace.clone())
                    .or_default()
                    .push(pod.uid().to_owned());
                took
            }
            Plan::Wait(why) => {
                let took = cpu_time() - begun;
                self.waits(&pod, why, now);
                took
            }
        };
        let spent = cpu_time() - begun;
        self.clock += spent;
        if let Some(measuring) = &mut self.measuring {
            measuring.spent += spent;
            measuring.took.push(took);
        }
        self.tried
            .entry(pod.key.namespace.clone())
            .or_default()
            .insert(pod.uid().to_owned());
        true
    }

    fn waits(&mut self, pod: &Arc<PodInfo>, why: Why, now: Instant) {
        let target = why.preemption.as_ref().and_then(|p| p.target.clone());
        let Some((node, victims)) = target else {
            return self.queue.refused(pod.uid(), Arc::new(why), now);
        };
        self.cluster.nominate(pod.clone(), &node);
        self.queue.refused(pod.uid(), Arc::new(why), now);
        for victim in victims {
            if let Some(gone) = self.cluster.remove_pod(victim.uid()) {
                self.queue.happened(ClusterEvent::PodLeft(gone), now);
            }
        }
        // As the API would show it.
        let mut noted = (*pod.pod).clone();
        noted.status.get_or_insert_default().nominated_node_name = Some(node);
        self.queue.set(Arc::new(PodInfo::of(Arc::new(noted))), now);
    }

    /// What has to happen by now.
    fn tick(&mut self) -> Result<()> {
        let clock = self.clock;
        let mut churning = std::mem::take(&mut self.churning);
        for (churning, ticks, made) in &mut churning {
            while ticks.is_due(clock) {
                self.turn_over(churning, ticks.count - 1, made)?;
            }
        }
        self.churning = churning;
        let mut deleting = std::mem::take(&mut self.deleting);
        for (uids, ticks) in &mut deleting {
            while ticks.is_due(clock) {
                if let Some(uid) = uids.pop() {
                    self.goes(&uid);
                }
            }
        }
        deleting.retain(|(uids, _)| !uids.is_empty());
        self.deleting = deleting;
        Ok(())
    }

    fn turn_over(&mut self, churning: &Churning, count: usize, made: &mut [Vec<String>]) -> Result<()> {
        let (op, number) = (&churning.op, churning.op.number);
        if !op.recreates && number > 0 && count >= number {
            return Ok(());
        }
        // Recreated: so many in a row, and then each of them goes.
        let goes = op.recreates && count / number.max(1) % 2 == 1;
        for (template, names) in churning.templates.iter().zip(made) {
            let mut object = template.clone();
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let name = match goes {
                true => names[count % number].clone(),
                false => objects::name(&mut object, count),
            };
            match (kind.as_str(), goes) {
                ("Node", true) => {
                    self.cluster.remove_node(&name);
                    self.queue.happened(ClusterEvent::NodeGone, self.now());
                }
                ("Pod", true) => self.goes(&format!("{}/{name}", churning.namespace)),
                ("Service", true) => self.world.service_gone(&name),
                (_, false) => self.make(&churning.namespace, object)?,
                (other, true) => bail!("churn: {other} isn't played"),
            }
            if op.recreates && !goes {
                names.resize(number, String::new());
                names[count % number] = name;
            }
        }
        Ok(())
    }

    fn make(&mut self, namespace: &str, mut object: Value) -> Result<()> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        object["metadata"]["namespace"] = json!(namespace);
        match kind.as_str() {
            "Node" => {
                if object["status"]["allocatable"].is_null() {
                    object["status"]["allocatable"] = object["status"]["capacity"].clone();
                }
                let node: Arc<Node> = Arc::new(serde_json::from_value(object)?);
                self.cluster.set_node(node.clone());
                self.queue.happened(ClusterEvent::Node(node), self.now());
            }
            "Pod" => {
                let pod: Pod = serde_json::from_value(object)?;
                self.comes(namespace, pod);
            }
            "Service" => {
                let service: Service = serde_json::from_value(object)?;
                self.world.service(service);
            }
            other => bail!("objects of kind {other:?} aren't made"),
        }
        Ok(())
    }
}

/// Of this thread. Decisions don't wait for anything.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(Duration::ZERO, Duration::from)
}

impl Field for Decisions {
    async fn nodes(&mut self, nodes: Vec<(Node, Option<CSINode>)>) -> Result<()> {
        for (node, csi) in nodes {
            self.cluster.set_node(Arc::new(node));
            csi.into_iter().for_each(|csi| self.world.csi(csi));
        }
        self.cluster.update(&mut self.snapshot);
        Ok(())
    }

    async fn namespace(&mut self, namespace: Namespace) -> Result<()> {
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        self.world.namespace(namespace.name(), labels);
        self.cluster.namespaces_changed();
        Ok(())
    }

    async fn pods(&mut self, namespace: &str, made: Vec<Made>, measured: bool) -> Result<()> {
        let mut pods = Vec::with_capacity(made.len());
        for Made { pod, volume } in made {
            if let Some((volume, claim)) = volume {
                self.world.bound(volume, claim);
            }
            pods.push(pod);
        }
        if measured {
            // What it took to get here is no figure of theirs.
            while self.attempt() {}
            self.measuring = Some(Measuring {
                namespace: namespace.to_owned(),
                spent: Duration::ZERO,
                took: Vec::with_capacity(pods.len() * 2),
            });
        }
        pods.into_iter().for_each(|pod| self.comes(namespace, pod));
        Ok(())
    }

    async fn settled(&mut self, namespace: &str, count: usize, scheduled: bool) -> Result<()> {
        let mut idle = 0;
        loop {
            let placed = self.placed.get(namespace).map_or(0, Vec::len);
            let tried = self.tried.get(namespace).map_or(0, BTreeSet::len);
            let gated = self.queue.lengths()[3].1;
            if placed >= count || (!scheduled && tried + gated >= count) {
                break;
            }
            ensure!(
                self.began.elapsed() < self.within,
                "{placed} of {count} pods had nodes after {:?}",
                self.within
            );
            self.tick()?;
            if self.attempt() {
                idle = 0;
                continue;
            }
            idle += 1;
            let next = self.queue.next_time().filter(|_| idle < 100);
            let next = next.with_context(|| format!("{placed} of {count} pods got nodes, the others fit nowhere"))?;
            self.clock = self.clock.max(next.duration_since(self.start));
        }
        if let Some(measured) = self.measuring.take_if(|m| m.namespace == namespace) {
            let pods = self.placed.get(namespace).map_or(0, Vec::len).min(count);
            let times = Times::of(measured.took);
            self.outcome = Some(Outcome {
                pods,
                took: measured.spent,
                samples: Vec::new(),
                attempt: times,
                decision: times,
            });
        }
        Ok(())
    }

    async fn delete(&mut self, namespace: &str, a_second: Option<u64>, _: bool) -> Result<()> {
        // Also those that wait or are gated.
        let uids = self.made.remove(namespace).unwrap_or_default();
        self.placed.remove(namespace);
        self.tried.remove(namespace);
        match a_second {
            Some(n) => {
                let ticks = Ticks::new(Duration::from_secs(1) / u32::try_from(n)?, self.clock);
                self.deleting.push((uids, ticks));
            }
            None => uids.iter().for_each(|uid| self.goes(uid)),
        }
        Ok(())
    }

    async fn create(&mut self, namespace: &str, object: Value) -> Result<()> {
        self.make(namespace, object)
    }

    fn churn(&mut self, churning: Churning) {
        let ticks = Ticks::new(churning.op.every, self.clock);
        let made = vec![Vec::new(); churning.templates.len()];
        self.churning.push((churning, ticks, made));
    }

    async fn sleep(&mut self, time: Duration) {
        self.clock += time;
    }

    async fn finish(self) -> Result<Option<Outcome>> {
        Ok(self.outcome)
    }
}
