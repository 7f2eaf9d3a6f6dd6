//! Ends pods before the machine runs out of memory, disk or processes. What to do is decided by `rank` (pure); this file
//! looks at the machine every ten seconds, as upstream does, and acts on one pod at a time, after what can be had without
//! ending any ([`reclaim`]).

mod rank;
mod reclaim;
pub mod threshold;

use crate::kubelet::Kubelet;
use crate::pods;
use crate::resources::quantity;
use crate::worker::{Eviction, Handle, Stage};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use keelson_client::EventType;
use rank::Candidate;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use threshold::{Sample, Signal, Threshold};
use tokio::time::Instant;

/// How often the machine is looked at: upstream's own period.
const LOOK: Duration = Duration::from_secs(10);

/// What was seen at the looks before.
#[derive(Default)]
struct Seen {
    /// When a signal's threshold was met last.
    last: BTreeMap<Signal, Instant>,
    /// Since when a threshold is met, hard (`true`) and soft.
    since: BTreeMap<(Signal, bool), Instant>,
    /// What pods had to end for at the last look: only of these the margin has to be free, too.
    pressing: BTreeSet<(Signal, bool)>,
}

pub fn start(kl: &Arc<Kubelet>) {
    let kl = kl.clone();
    tokio::spawn(async move {
        let mut seen = Seen::default();
        loop {
            tokio::select! {
                () = kl.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let layers = layers(&kl).await;
            if let Err(e) = turn(&kl, layers, &mut seen).await {
                tracing::error!("measuring the machine failed: {e}");
            }
        }
    });
}

/// One look at the machine, and what follows from it. Measuring walks trees on the disk, which no other task should wait
/// for.
async fn turn(kl: &Arc<Kubelet>, layers: Layers, seen: &mut Seen) -> Result<(), tokio::task::JoinError> {
    let layers = Arc::new(layers);
    let (looking, measured) = (kl.clone(), layers.clone());
    let looked = tokio::task::spawn_blocking(move || {
        local_limits(&looking, &measured);
        sample(&looking)
    });
    let sample = match looked.await? {
        Ok(sample) => sample,
        Err(e) => {
            tracing::warn!("the machine's resources can't be measured: {e}");
            return Ok(());
        }
    };
    let now = Instant::now();
    let met = seen.look(&kl.cfg.eviction, &sample, now);
    // A condition outlives its cause for a while, so that it doesn't flap.
    let conditions: BTreeSet<&'static str> = seen
        .last
        .iter()
        .filter(|(_, at)| **at == now || now.duration_since(**at) < kl.cfg.eviction.transition)
        .map(|(signal, _)| signal.condition())
        .collect();
    kl.node.set_pressures(conditions);
    let Some(first) = met.first().copied() else {
        return Ok(());
    };
    let signal = first.threshold.signal;
    tracing::warn!(?signal, hard = first.hard, "the node is short of a resource");
    if signal.is_disk() {
        reclaim::all(kl).await;
        let looking = kl.clone();
        let left = tokio::task::spawn_blocking(move || self::sample(&looking)).await?;
        let reclaim = &kl.cfg.eviction.reclaim;
        if left.is_ok_and(|left| !met.iter().any(|m| left.meets(&m.threshold, reclaim, true))) {
            tracing::info!(?signal, "no pod has to end for it");
            return Ok(());
        }
    }
    let choosing = kl.clone();
    tokio::task::spawn_blocking(move || end_one(&choosing, first, &layers)).await
}

/// A threshold that is met, and has been for long enough.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Met {
    threshold: Threshold,
    hard: bool,
}

impl Seen {
    /// What pods have to end for, the first first: hard thresholds at once, soft ones after their time.
    fn look(&mut self, wanted: &crate::config::Eviction, sample: &Sample, now: Instant) -> Vec<Met> {
        let hard = wanted.hard.iter().map(|t| (*t, true, Duration::ZERO));
        let soft = wanted.soft.iter().map(|(t, grace)| (*t, false, *grace));
        let mut met = Vec::new();
        let before = std::mem::take(&mut self.pressing);
        for (threshold, hard, grace) in hard.chain(soft) {
            let key = (threshold.signal, hard);
            if !sample.meets(&threshold, &wanted.reclaim, before.contains(&key)) {
                self.since.remove(&key);
                continue;
            }
            self.last.insert(threshold.signal, now);
            let since = *self.since.entry(key).or_insert(now);
            if now.duration_since(since) >= grace {
                self.pressing.insert(key);
                met.push(Met { threshold, hard });
            }
        }
        met.sort_by_key(|m| (m.threshold.signal, !m.hard));
        met
    }
}

fn end_one(kl: &Kubelet, met: Met, layers: &Layers) {
    let signal = met.threshold.signal;
    let candidates: Vec<Candidate> = kl
        .workers
        .all()
        .iter()
        .filter_map(|h| candidate(kl, h, signal, layers))
        .collect();
    if candidates.iter().any(|c| c.ending) {
        // One is on its way out; what it frees is seen first.
        return;
    }
    match rank::choose(candidates) {
        Some(victim) => {
            let what = signal.resource();
            let message = format!("The node was low on resource: {what}. ");
            // Where it isn't pressing pods may end in their own way, for so long.
            let grace = if met.hard { 0 } else { kl.cfg.eviction.max_pod_grace };
            evict(kl, &victim.uid, message, grace);
            kl.metrics.evictions.with_label_values(&[signal.name()]).inc();
        }
        None => tracing::warn!(?signal, "there is no pod to evict"),
    }
}

fn sample(kl: &Kubelet) -> std::io::Result<Sample> {
    let usage = kl.host.node_usage()?;
    let fs = kl.host.fs_stats(&kl.layout.root)?;
    Ok(Sample {
        memory: kl.machine.memory,
        memory_available: kl.machine.memory.saturating_sub(usage.working_set),
        fs,
        pids: usage.pids,
        max_pids: kl.machine.max_pids.max(0) as u64,
    })
}

fn candidate(kl: &Kubelet, handle: &Handle, signal: Signal, layers: &Layers) -> Option<Candidate> {
    let view = handle.view();
    if !matches!(view.stage, Stage::Syncing | Stage::Terminating) {
        return None;
    }
    let pod = handle.pod();
    if pods::is_critical(&pod) {
        return None;
    }
    let (used, requested) = match signal {
        Signal::Memory => {
            let used = kl
                .host
                .cgroup_usage(&kl.cgroup_of(&pod))
                .map(|u| u.working_set)
                .unwrap_or(0);
            (
                used,
                quantity::value_of(Some(&crate::resources::pod::pod_requests(&pod)), "memory") as u64,
            )
        }
        // What the signal measures: volumes, logs and writable layers, in bytes or in inodes. Nobody asks for inodes.
        Signal::Disk | Signal::ImageDisk => {
            let written: u64 = layers.get(&handle.uid).map_or(0, |l| l.values().sum());
            let requests = crate::resources::pod::pod_requests(&pod);
            (
                on_disk(kl, &pod, &handle.uid).0 + written,
                quantity::value_of(Some(&requests), STORAGE) as u64,
            )
        }
        Signal::Inodes | Signal::ImageInodes => (on_disk(kl, &pod, &handle.uid).1, 0),
        Signal::Pids => (
            kl.host.cgroup_usage(&kl.cgroup_of(&pod)).map(|u| u.pids).unwrap_or(0),
            0,
        ),
    };
    Some(Candidate {
        uid: handle.uid.clone(),
        used,
        requested,
        priority: pods::spec(&pod).priority.unwrap_or(0),
        ending: view.stage == Stage::Terminating,
    })
}

/// Bytes and inodes of a pod's volumes and logs. What can't be measured counts as nothing.
fn on_disk(kl: &Kubelet, pod: &Pod, uid: &str) -> (u64, u64) {
    let logs = kl.layout.pod_logs(pods::namespace(pod), pods::name(pod), uid);
    [kl.layout.pod(uid), logs]
        .iter()
        .filter_map(|dir| kl.host.disk_usage(dir).ok())
        .fold((0, 0), |sum, used| (sum.0 + used.0, sum.1 + used.1))
}

fn evict(kl: &Kubelet, uid: &str, message: String, grace: i64) {
    let Some(handle) = kl.workers.get(uid) else { return };
    let pod = handle.pod();
    tracing::warn!(pod = %pods::describe(&pod), "evicting: {message}");
    kl.event(&pod, None, EventType::Warning, "Evicted", message.clone());
    let condition = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("TerminationByKubelet".into()),
        message: Some(message.clone()),
        observed_generation: pods::generation(&pod),
        ..Default::default()
    };
    let eviction = Eviction {
        reason: "Evicted".into(),
        message,
        grace: Some(grace.min(pods::spec(&pod).termination_grace_period_seconds.unwrap_or(30))),
        condition: Some(condition),
    };
    kl.workers.evict(uid, eviction);
}

/// Bytes that containers have written into their own layers, by pod uid and container.
type Layers = BTreeMap<String, BTreeMap<String, u64>>;

/// Asked of the runtime only where some pod has a limit, or the disk is short.
async fn layers(kl: &Kubelet) -> Layers {
    let disk = |t: &&Threshold| matches!(t.signal, Signal::Disk | Signal::ImageDisk);
    let wanted = &kl.cfg.eviction;
    let thresholds = wanted.hard.iter().chain(wanted.soft.iter().map(|(t, _)| t));
    let short = sample(kl).is_ok_and(|s| thresholds.filter(disk).any(|t| s.meets(t, &wanted.reclaim, true)));
    let limited = |pod: &Pod| crate::resources::pod::pod_limits(pod).contains_key(STORAGE);
    if !short
        && !kl
            .workers
            .all()
            .iter()
            .any(|h| h.stage() == Stage::Syncing && limited(&h.pod()))
    {
        return Layers::new();
    }
    match crate::server::stats::containers(kl).await {
        Ok(all) => all
            .into_iter()
            .map(|(uid, list)| {
                let used = |s: &keelson_cri::v1::ContainerStats| {
                    s.writable_layer
                        .as_ref()
                        .and_then(|l| l.used_bytes.as_ref())
                        .map_or(0, |v| v.value)
                };
                (
                    uid,
                    list.iter()
                        .map(|s| (crate::server::stats::container_name(s), used(s)))
                        .collect(),
                )
            })
            .collect(),
        Err(e) => {
            tracing::warn!("what containers write can't be measured: {e}");
            Layers::new()
        }
    }
}

const STORAGE: &str = "ephemeral-storage";

/// Pods that use more disk than they were given end, whether or not the node has enough.
fn local_limits(kl: &Kubelet, layers: &Layers) {
    let none = BTreeMap::new();
    for handle in kl.workers.all().iter().filter(|h| h.stage() == Stage::Syncing) {
        let pod = handle.pod();
        if pods::is_critical(&pod) {
            continue;
        }
        if let Some((what, message)) = over_limit(kl, &pod, layers.get(&handle.uid).unwrap_or(&none)) {
            kl.metrics.evictions.with_label_values(&[what]).inc();
            kl.event(&pod, None, EventType::Warning, "Evicted", message.clone());
            let eviction = Eviction {
                reason: "Evicted".into(),
                message,
                grace: Some(0),
                condition: None,
            };
            kl.workers.evict(&handle.uid, eviction);
        }
    }
}

/// Upstream's name of the limit that is passed, and what is told.
fn over_limit(kl: &Kubelet, pod: &Pod, layers: &BTreeMap<String, u64>) -> Option<(&'static str, String)> {
    let uid = pods::uid(pod);
    let limit = crate::resources::pod::pod_limits(pod).get(STORAGE).cloned();
    let mut volumes = 0;
    for v in pods::spec(pod).volumes.iter().flatten() {
        let Some(e) = v.empty_dir.as_ref().filter(|e| e.medium.as_deref() != Some("Memory")) else {
            continue;
        };
        let own = e.size_limit.as_ref().filter(|l| quantity::value(l) > 0);
        if own.is_none() && limit.is_none() {
            continue;
        }
        let used = kl
            .host
            .disk_usage(&kl.layout.volume(uid, "empty-dir", &v.name))
            .map_or(0, |u| u.0);
        volumes += used;
        if let Some(own) = own.filter(|l| used > quantity::value(l) as u64) {
            let message = format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
                v.name, own.0
            );
            return Some(("emptydirfs.limit", message));
        }
    }
    let limit = limit?;
    let logs = kl.layout.pod_logs(pods::namespace(pod), pods::name(pod), uid);
    let used =
        |name: &str| layers.get(name).copied().unwrap_or(0) + kl.host.disk_usage(&logs.join(name)).map_or(0, |u| u.0);
    let all = || {
        pods::containers(pod)
            .iter()
            .chain(pods::init_containers(pod).iter().filter(|c| pods::is_sidecar(c)))
    };
    let total = volumes + all().map(|c| used(&c.name)).sum::<u64>();
    if total > quantity::value(&limit) as u64 {
        let message = format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            limit.0
        );
        return Some(("ephemeralpodfs.limit", message));
    }
    for c in all() {
        let own = c.resources.as_ref().and_then(|r| r.limits.as_ref()?.get(STORAGE));
        if let Some(own) = own.filter(|l| used(&c.name) > quantity::value(l) as u64) {
            let message = format!(
                "Container {} exceeded its local ephemeral storage limit \"{}\". ",
                c.name, own.0
            );
            return Some(("ephemeralcontainerfs.limit", message));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use threshold::{Amount, Eviction};

    #[tokio::test(start_paused = true)]
    async fn soft_thresholds_are_met_after_their_time() {
        let t = |mib: u64| Threshold {
            signal: Signal::Memory,
            amount: Amount::Number(mib << 20),
        };
        let wanted = Eviction {
            hard: vec![t(100)],
            soft: vec![(t(500), Duration::from_secs(60))],
            ..Eviction::default()
        };
        let with = |mib: u64| Sample {
            memory: 4 << 30,
            memory_available: mib << 20,
            ..Sample::default()
        };
        let (mut seen, start) = (Seen::default(), Instant::now());
        let after = |s: u64| start + Duration::from_secs(s);
        assert_eq!(seen.look(&wanted, &with(400), start), []);
        assert!(seen.last.contains_key(&Signal::Memory), "the condition is told at once");
        assert_eq!(seen.look(&wanted, &with(400), after(50)), []);
        // Enough again: the time begins anew.
        assert_eq!(seen.look(&wanted, &with(600), after(55)), []);
        assert_eq!(seen.look(&wanted, &with(400), after(60)), []);
        let met = seen.look(&wanted, &with(400), after(120));
        assert_eq!(met.iter().map(|m| m.hard).collect::<Vec<_>>(), [false]);
        let met = seen.look(&wanted, &with(50), after(121));
        assert_eq!(met.iter().map(|m| m.hard).collect::<Vec<_>>(), [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_margin_counts_once_pods_have_to_end() {
        let t = |mib: u64| Threshold {
            signal: Signal::Memory,
            amount: Amount::Number(mib << 20),
        };
        let wanted = Eviction {
            hard: Vec::new(),
            soft: vec![(t(500), Duration::from_secs(60))],
            reclaim: vec![t(200)],
            ..Eviction::default()
        };
        let with = |mib: u64| Sample {
            memory: 4 << 30,
            memory_available: mib << 20,
            ..Sample::default()
        };
        let (mut seen, start) = (Seen::default(), Instant::now());
        let after = |s: u64| start + Duration::from_secs(s);
        let mut look = |mib, at| seen.look(&wanted, &with(mib), after(at)).len();
        // Enough before the time, and at the time.
        assert_eq!((look(490, 0), look(600, 10), look(600, 70)), (0, 0, 0));
        assert_eq!((look(490, 80), look(490, 130), look(600, 140)), (0, 0, 0));
        assert_eq!(
            (look(490, 150), look(490, 210), look(600, 220), look(700, 230)),
            (0, 1, 1, 0)
        );
    }
}
