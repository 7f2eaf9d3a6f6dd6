//! Pods that wait for a node.
//!
//! * *active*: to be tried now, the most important first, then the longest waiting.
//! * *backing off*: something may have changed for them, but they were tried a moment ago. When nothing else is active they
//!   are tried early, unless it was an error that they back off from.
//! * *unschedulable*: tried in vain; they wait for an event that may help, as the plug-ins that refused them tell, or five minutes.
//! * *gated*: not to be tried yet.
//! * *binding*: a node was found. Until the API shows the pod there, it may yet come back; whoever was deleted meanwhile doesn't.
//!
//! Events that come while a pod is being tried are kept until it is back, so that none is missed.
//!
//! In a pod's trace its time here is one span, from its entry until it is bound, with its tries and what moved it as events.

mod refused;
#[cfg(test)]
mod tests;

use crate::events::ClusterEvent;
use crate::plan::Why;
use crate::pod::PodInfo;
use crate::told::{Told, label};
use keelson_trace::{Kind, Origin, Span, Tracer};
use refused::Refused;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a pod that was tried isn't tried again: at first, and at most. Each try doubles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoffs {
    pub first: Duration,
    pub most: Duration,
}

impl Default for Backoffs {
    fn default() -> Self {
        Backoffs {
            first: Duration::from_secs(1),
            most: Duration::from_secs(10),
        }
    }
}

impl Backoffs {
    fn after(&self, attempts: u32) -> Duration {
        let doubled = |n: u32| self.first.checked_mul(2u32.checked_pow(n - 1)?);
        match attempts {
            0 => Duration::ZERO,
            n => doubled(n).map_or(self.most, |backoff| backoff.min(self.most)),
        }
    }
}

/// What upstream calls it when a try was in vain.
const FAILED: &str = "ScheduleAttemptFailure";

/// So long a pod waits for an event at most.
const PATIENCE: Duration = Duration::from_secs(300);

/// Whether a pod can't be tried yet: something that it names isn't there.
pub type Held = dyn Fn(&PodInfo) -> bool + Send + Sync;

/// Whether such an event may help any pod that this plug-in refused.
pub type Hears = dyn Fn(&ClusterEvent, &str) -> bool + Send + Sync;

/// Whether an event may help a pod that these plug-ins refused.
pub type Helps = dyn Fn(&ClusterEvent, &PodInfo, &BTreeSet<&'static str>) -> bool + Send + Sync;

pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeMap<Rank, String>,
    backing_off: BTreeSet<(Instant, String)>,
    unschedulable: Refused,
    gated: BTreeSet<String>,
    /// The pod being tried, and what has happened since.
    in_flight: Option<(String, Vec<ClusterEvent>)>,
    /// Pods for which others are being made to go, by uid, and the last of those once it is its turn.
    evicting: HashMap<String, Option<String>>,
    next: u64,
    helps: Box<Helps>,
    hears: Box<Hears>,
    is_held: Box<Held>,
    backoffs: Backoffs,
    told: Option<Arc<Told>>,
    tracer: Tracer,
}

type Rank = (Reverse<i32>, Instant, u64);

struct Waiting {
    pod: Arc<PodInfo>,
    since: Instant,
    /// When it could be tried first.
    first: Option<Instant>,
    attempts: u32,
    tried: Instant,
    /// Who refused it in the last try. What each node lacks is told and not kept: there are thousands of nodes, and of such pods.
    by: BTreeSet<&'static str>,
    state: State,
    span: Span,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Active(Rank),
    BackingOff { until: Instant, after_error: bool },
    Unschedulable { until: Instant },
    Gated,
    InFlight,
    Binding,
}

impl State {
    fn queue(&self) -> &'static str {
        match self {
            State::BackingOff { .. } => "backoff",
            State::Unschedulable { .. } => "unschedulable",
            State::Gated => "gated",
            State::Active(_) | State::InFlight | State::Binding => "active",
        }
    }
}

impl Queue {
    pub fn new(helps: Box<Helps>, backoffs: Backoffs) -> Queue {
        Queue {
            pods: HashMap::new(),
            active: BTreeMap::new(),
            backing_off: BTreeSet::new(),
            unschedulable: Refused::default(),
            gated: BTreeSet::new(),
            in_flight: None,
            evicting: HashMap::new(),
            next: 0,
            helps,
            hears: Box::new(|_, _| true),
            is_held: Box::new(|_| false),
            backoffs,
            told: None,
            tracer: Tracer::none(),
        }
    }

    /// Pods are gated, too, for as long as this says so.
    pub fn held_by(self, is_held: Box<Held>) -> Queue {
        Queue { is_held, ..self }
    }

    /// Only pods that a plug-in refused that hears of an event are asked about it.
    pub fn heard_by(self, hears: Box<Hears>) -> Queue {
        Queue { hears, ..self }
    }

    /// What comes into its queues is counted.
    pub fn telling(self, told: Arc<Told>) -> Queue {
        Queue {
            told: Some(told),
            ..self
        }
    }

    /// The time of pods in it is told.
    pub fn traced_by(self, tracer: Tracer) -> Queue {
        Queue { tracer, ..self }
    }

    /// What isn't taken costs a pod that waits nothing.
    fn begun(&self, pod: &PodInfo) -> Span {
        let span = self.tracer.begin(Kind::Internal, "schedule", Origin::Pod(pod.uid()));
        if span.trace().is_none() {
            return Span::none();
        }
        span.tell("k8s.pod.uid", || pod.uid().to_owned());
        span.tell("k8s.pod.name", || pod.key.name.clone());
        span.tell("k8s.namespace.name", || pod.key.namespace.clone());
        span
    }

    /// What tells of the pod's time here, for whoever binds it; to be given back if that fails.
    pub fn take_span(&mut self, uid: &str) -> Span {
        self.pods
            .get_mut(uid)
            .map(|waiting| std::mem::take(&mut waiting.span))
            .unwrap_or_default()
    }
    pub fn give_back(&mut self, uid: &str, span: Span) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.span = span;
        }
    }

    fn comes(&self, uid: &str, event: &'static str) {
        let Some(waiting) = self.pods.get(uid) else { return };
        waiting.span.event(event);
        if let Some(told) = &self.told {
            told.comes(waiting.state.queue(), event);
        }
    }

    /// How many pods wait in each queue, under upstream's names.
    pub fn lengths(&self) -> [(&'static str, usize); 4] {
        [
            ("active", self.active.len()),
            ("backoff", self.backing_off.len()),
            ("unschedulable", self.unschedulable.all().len()),
            ("gated", self.gated.len()),
        ]
    }

    /// What refused pods that are still not placed, and whose they are.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let waiting = self.pods.values().filter(|w| w.state != State::Binding);
        waiting.flat_map(|w| w.by.iter().map(|plugin| (*plugin, w.pod.scheduler_name())))
    }

    /// How often a pod was tried, and since when it could be.
    pub fn tries(&self, uid: &str) -> Option<(u32, Instant)> {
        let waiting = self.pods.get(uid)?;
        Some((waiting.attempts, waiting.first.unwrap_or(waiting.since)))
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// A pod that has no node yet is new, or has changed.
    pub fn set(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid().to_owned();
        let is_gated = pod.gates().next().is_some() || (self.is_held)(&pod);
        let Some(waiting) = self.pods.get_mut(&uid) else {
            let waiting = Waiting {
                span: self.begun(&pod),
                pod,
                since: now,
                first: None,
                attempts: 0,
                tried: now,
                by: BTreeSet::new(),
                state: State::Gated,
            };
            self.pods.insert(uid.clone(), waiting);
            match is_gated {
                true => drop(self.gated.insert(uid.clone())),
                false => self.activate(&uid),
            }
            return self.comes(&uid, "UnscheduledPodAdd");
        };
        let matters = matters(&waiting.pod, &pod);
        waiting.pod = pod;
        match waiting.state {
            State::Gated if !is_gated => {
                self.activate(&uid);
                self.comes(&uid, "TargetPodUpdate");
            }
            State::Unschedulable { .. } if matters => self.move_on(&uid, now, "TargetPodUpdate"),
            State::Active(_) => self.activate(&uid),
            State::InFlight if matters => {
                if let Some((_, missed)) = &mut self.in_flight {
                    missed.push(ClusterEvent::Anything);
                }
            }
            _ => {}
        }
    }

    pub fn remove(&mut self, uid: &str) {
        self.leave(uid);
        self.pods.remove(uid);
        self.evicting.remove(uid);
        if self.in_flight.as_ref().is_some_and(|(pod, _)| pod == uid) {
            self.in_flight = None;
        }
    }

    /// The next pod to be tried, if there is one now.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.ripen(now);
        let uid = match self.active.pop_first() {
            Some((_, uid)) => uid,
            None => {
                let uid = self.early()?;
                self.told.iter().for_each(|t| t.comes("active", "PopFromBackoffQ"));
                uid
            }
        };
        self.leave(&uid);
        let waiting = self.pods.get_mut(&uid)?;
        waiting.attempts += 1;
        waiting.tried = now;
        waiting.state = State::InFlight;
        waiting.span.event("Attempt");
        let pod = waiting.pod.clone();
        self.in_flight = Some((uid, Vec::new()));
        Some(pod)
    }

    fn early(&self) -> Option<String> {
        let is_early = |(_, uid): &&(Instant, String)| {
            let state = self.pods.get(uid).map(|w| w.state);
            matches!(state, Some(State::BackingOff { after_error: false, .. }))
        };
        self.backing_off.iter().find(is_early).map(|(_, uid)| uid.clone())
    }

    /// When `pop` may have something that it hasn't now.
    pub fn next_time(&self) -> Option<Instant> {
        [self.backing_off.first(), self.unschedulable.all().first()]
            .into_iter()
            .flatten()
            .map(|(at, _)| *at)
            .min()
    }

    /// The pod that was popped has a node, and is being bound to it. `false`: it has gone while it was decided.
    pub fn binds(&mut self, uid: &str) -> bool {
        self.landed(uid);
        self.leave(uid);
        let Some(waiting) = self.pods.get_mut(uid) else {
            return false;
        };
        waiting.state = State::Binding;
        true
    }

    pub fn is_binding(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|w| w.state == State::Binding)
    }

    /// The pod as it was seen last, unless it has gone or has its node.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|waiting| &waiting.pod)
    }

    /// The pod that was popped fits nowhere.
    pub fn refused(&mut self, uid: &str, why: Arc<Why>, now: Instant) {
        let Some(missed) = self.landed(uid) else { return };
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        waiting.by.clone_from(&why.plugins);
        waiting.span.event_of("Unschedulable", "plugins", || {
            why.plugins.iter().copied().collect::<Vec<_>>().join(",")
        });
        let missed = missed.iter().filter(|event| !is_early(&self.evicting, uid, event));
        if missed.into_iter().any(|event| helps(&self.helps, waiting, event)) {
            return self.move_on(uid, now, FAILED);
        }
        let until = now + PATIENCE;
        waiting.state = State::Unschedulable { until };
        self.unschedulable.put((until, uid.to_owned()), &waiting.by);
        self.comes(uid, FAILED);
    }

    /// Something went wrong with the pod that was popped, or with its binding: again, after a while. `None`: it isn't waiting any
    /// more, for it has gone or has its node.
    pub fn failed(&mut self, uid: &str, now: Instant) -> Option<Arc<PodInfo>> {
        self.landed(uid);
        self.leave(uid);
        let waiting = self.pods.get_mut(uid)?;
        let until = now + self.backoffs.after(waiting.attempts.max(1));
        waiting.tried = now;
        waiting.by.clear();
        waiting.span.event("Error");
        waiting.state = State::BackingOff {
            until,
            after_error: true,
        };
        self.backing_off.insert((until, uid.to_owned()));
        let pod = waiting.pod.clone();
        self.comes(uid, FAILED);
        Some(pod)
    }

    fn landed(&mut self, uid: &str) -> Option<Vec<ClusterEvent>> {
        let is_it = self.in_flight.as_ref().is_some_and(|(pod, _)| pod == uid);
        if is_it {
            self.in_flight.take().map(|(_, missed)| missed)
        } else {
            None
        }
    }

    /// What pods of the namespace were held for may be there now.
    pub fn look_at_held(&mut self, namespace: &str) {
        let is_free = |uid: &&String| {
            let pod = self.pods.get(*uid).map(|w| &w.pod);
            let is_free = |pod: &PodInfo| pod.gates().next().is_none() && !(self.is_held)(pod);
            pod.is_some_and(|pod| pod.key.namespace == namespace && is_free(pod))
        };
        let free: Vec<String> = self.gated.iter().filter(is_free).cloned().collect();
        for uid in free {
            self.activate(&uid);
            self.comes(&uid, "ResourceClaimAdd");
        }
    }

    /// Others are being made to go for the pod. It isn't tried before the last of them goes: it would find the room of those that have
    /// gone, and ask for the rest once more.
    pub fn evicts(&mut self, uid: &str) {
        if self.pods.contains_key(uid) {
            self.evicting.insert(uid.to_owned(), None);
        }
    }
    pub fn evicts_last(&mut self, uid: &str, victim: &str) {
        if let Some(last) = self.evicting.get_mut(uid) {
            *last = Some(victim.to_owned());
        }
    }
    /// All have been told.
    pub fn has_evicted(&mut self, uid: &str) {
        self.evicting.remove(uid);
    }

    /// Something has changed for this one pod.
    pub fn wake(&mut self, uid: &str, now: Instant) {
        if self
            .pods
            .get(uid)
            .is_some_and(|w| matches!(w.state, State::Unschedulable { .. }))
        {
            self.move_on(uid, now, "ForceActivate");
        }
    }

    /// Pods that the event may help are tried again.
    pub fn happened(&mut self, event: ClusterEvent, now: Instant) {
        let hears = |plugin: &str| matches!(event, ClusterEvent::Anything) || (self.hears)(&event, plugin);
        let concerned = self.unschedulable.heard(hears).into_iter();
        let helped: Vec<String> = concerned
            .filter(|(_, uid)| self.pods.get(uid).is_some_and(|w| helps(&self.helps, w, &event)))
            .filter(|(_, uid)| !is_early(&self.evicting, uid, &event))
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in helped {
            self.move_on(&uid, now, label(&event));
        }
        if let Some((_, missed)) = &mut self.in_flight {
            missed.push(event);
        }
    }

    fn move_on(&mut self, uid: &str, now: Instant, event: &'static str) {
        self.move_by_time(uid, now);
        self.comes(uid, event);
    }

    fn move_by_time(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get(uid) else { return };
        let until = waiting.tried + self.backoffs.after(waiting.attempts);
        if until <= now {
            return self.activate(uid);
        }
        self.leave(uid);
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.state = State::BackingOff {
                until,
                after_error: false,
            };
            self.backing_off.insert((until, uid.to_owned()));
        }
    }

    fn activate(&mut self, uid: &str) {
        self.leave(uid);
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let rank = (Reverse(waiting.pod.priority), waiting.since, self.next);
        self.next += 1;
        waiting.state = State::Active(rank);
        waiting.first.get_or_insert_with(Instant::now);
        self.active.insert(rank, uid.to_owned());
    }

    fn leave(&mut self, uid: &str) {
        let Some(waiting) = self.pods.get(uid) else { return };
        match waiting.state {
            State::Active(rank) => drop(self.active.remove(&rank)),
            State::BackingOff { until, .. } => drop(self.backing_off.remove(&(until, uid.to_owned()))),
            State::Unschedulable { until } => self.unschedulable.take(&(until, uid.to_owned()), &waiting.by),
            State::Gated => drop(self.gated.remove(uid)),
            State::InFlight | State::Binding => {}
        }
    }

    /// What has waited long enough becomes active.
    fn ripen(&mut self, now: Instant) {
        let ripe = |set: &BTreeSet<(Instant, String)>| -> Vec<String> {
            set.iter()
                .take_while(|(at, _)| *at <= now)
                .map(|(_, uid)| uid.clone())
                .collect()
        };
        let rested = ripe(&self.backing_off).into_iter().map(|uid| (uid, "BackoffComplete"));
        let late = ripe(self.unschedulable.all()).into_iter();
        for (uid, event) in rested.chain(late.map(|uid| (uid, "UnschedulableTimeout"))) {
            self.activate(&uid);
            self.comes(&uid, event);
        }
    }
}

/// Whether others are still being made to go for the pod, for all that the event tells.
fn is_early(evicting: &HashMap<String, Option<String>>, uid: &str, event: &ClusterEvent) -> bool {
    evicting.get(uid).is_some_and(|last| match event {
        ClusterEvent::PodLeft(gone) => last.as_deref() != Some(gone.uid()),
        ClusterEvent::Anything => false,
        _ => true,
    })
}

fn helps(helps: &Helps, waiting: &Waiting, event: &ClusterEvent) -> bool {
    // Refused by nobody in particular, there were no nodes: anything may help.
    matches!(event, ClusterEvent::Anything) || waiting.by.is_empty() || helps(event, &waiting.pod, &waiting.by)
}

/// Whether the pod asks for something else than before. Its status, for one, the scheduler itself writes.
fn matters(old: &PodInfo, new: &PodInfo) -> bool {
    let claims = |pod: &PodInfo| pod.pod.status.as_ref().and_then(|s| s.resource_claim_statuses.clone());
    old.pod.spec != new.pod.spec || old.labels() != new.labels() || claims(old) != claims(new)
}
