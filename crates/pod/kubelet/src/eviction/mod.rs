//! Ends pods before the machine runs out of memory, disk or processes. What to do is decided by `rank` (pure); this file
//! looks at the machine every ten seconds, as upstream does, and acts on one pod at a time, after what can be had without
//! ending any ([`reclaim`]).

mod rank;
mod reclaim;
pub mod threshold;

use crate::disks::{Disk, Disks};
use crate::host::{FsStats, Usage};
use crate::kubelet::Kubelet;
use crate::pods;
use crate::resources::{cgroup, qos::Qos, quantity};
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
    let looking = kl.clone();
    // A runtime that doesn't answer holds up nobody.
    let asking = kl.clone();
    tokio::spawn(async move {
        while asking.known_disks.get().is_none() && next(&asking).await {
            asking.disks().await;
        }
    });
    let judged = kl.cfg.eviction.at_once().next().is_some() || !kl.cfg.eviction.soft.is_empty();
    if judged {
        tokio::spawn(async move {
            let mut seen = Seen::default();
            while next(&looking).await {
                if let Err(e) = Box::pin(turn(&looking, &mut seen)).await {
                    tracing::error!("measuring the machine failed: {e}");
                }
            }
        });
    }
    // Walks all that pods have written, which memory isn't to wait for.
    let walking = kl.clone();
    tokio::spawn(async move {
        while next(&walking).await {
            if let Err(e) = Box::pin(limits_turn(&walking)).await {
                tracing::error!("measuring what pods have written failed: {e}");
            }
        }
    });
}

/// Waits for the next look; `false`: there is none.
async fn next(kl: &Kubelet) -> bool {
    tokio::select! {
        () = kl.stop.cancelled() => false,
        () = tokio::time::sleep(LOOK) => true,
    }
}

/// One look at the machine, and what follows from it.
async fn turn(kl: &Arc<Kubelet>, seen: &mut Seen) -> Result<(), tokio::task::JoinError> {
    let disks = kl.disks_now().clone();
    let (looking, on) = (kl.clone(), disks.clone());
    let sample = match tokio::task::spawn_blocking(move || sample(&looking, &on)).await? {
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
    // What is of the disk waits until it is measured; memory and processes don't.
    let (disk, urgent): (Vec<Met>, Vec<Met>) = met.into_iter().partition(|m| m.threshold.signal.is_disk());
    if let Some(first) = urgent.first().copied() {
        first.tell();
        let (choosing, on) = (kl.clone(), disks.clone());
        if tokio::task::spawn_blocking(move || end_one(&choosing, &on, first, &Layers::new())).await? {
            return Ok(());
        }
    }
    match disk.is_empty() {
        false => disk_turn(kl, disks, disk).await,
        true => Ok(()),
    }
}

/// Disks are short: first goes what nobody needs of what is on them.
async fn disk_turn(kl: &Arc<Kubelet>, disks: Disks, mut met: Vec<Met>) -> Result<(), tokio::task::JoinError> {
    met.iter().for_each(Met::tell);
    let short: BTreeSet<Disk> = met.iter().filter_map(|m| m.threshold.signal.disk(&disks)).collect();
    for disk in short {
        reclaim::on(kl, &disks, disk).await;
    }
    let (looking, on) = (kl.clone(), disks.clone());
    if let Ok(left) = tokio::task::spawn_blocking(move || sample(&looking, &on)).await? {
        met.retain(|m| left.meets(&m.threshold, &kl.cfg.eviction.reclaim, true));
    }
    if met.is_empty() {
        tracing::info!("no pod has to end for a disk");
        return Ok(());
    }
    let Some(layers) = layers(kl).await else {
        tracing::warn!("no pod ends for a disk: who has written what isn't known");
        return Ok(());
    };
    let choosing = kl.clone();
    tokio::task::spawn_blocking(move || met.into_iter().any(|m| end_one(&choosing, &disks, m, &layers))).await?;
    Ok(())
}

/// Pods that have written more than they may.
async fn limits_turn(kl: &Arc<Kubelet>) -> Result<(), tokio::task::JoinError> {
    let pods: Vec<Arc<Pod>> = (kl.workers.all().iter())
        .filter(|h| h.stage() == Stage::Syncing)
        .map(|h| h.pod())
        .collect();
    let limited = |pod: &Arc<Pod>| crate::resources::pod::pod_limits(pod).contains_key(STORAGE);
    let has_limited_volumes = |pod: &Arc<Pod>| {
        let mut volumes = pods::spec(pod).volumes.iter().flatten();
        volumes.any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
    };
    if !pods.iter().any(|p| limited(p) || has_limited_volumes(p)) {
        return Ok(());
    }
    // Where the runtime doesn't answer, volumes and logs are judged alone.
    let layers = match pods.iter().any(limited) {
        true => layers(kl).await.unwrap_or_default(),
        false => Layers::new(),
    };
    let one_disk = kl.disks_now().is_one();
    let walking = kl.clone();
    tokio::task::spawn_blocking(move || local_limits(&walking, one_disk, &layers)).await
}

/// A threshold that is met, and has been for long enough.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Met {
    threshold: Threshold,
    hard: bool,
}

impl Met {
    fn tell(&self) {
        tracing::warn!(signal = ?self.threshold.signal, hard = self.hard, "the node is short of a resource");
    }
}

impl Seen {
    /// What pods have to end for, the first first: hard thresholds at once, soft ones after their time.
    fn look(&mut self, wanted: &crate::config::Eviction, sample: &Sample, now: Instant) -> Vec<Met> {
        let hard = wanted.at_once().map(|t| (t, true, Duration::ZERO));
        let soft = wanted.in_time().map(|(t, grace)| (t, false, grace));
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

/// Returns whether a pod ends.
fn end_one(kl: &Kubelet, disks: &Disks, met: Met, layers: &Layers) -> bool {
    let signal = met.threshold.signal;
    let candidates: Vec<Candidate> = kl
        .workers
        .all()
        .iter()
        .filter_map(|h| candidate(kl, disks, h, met, layers))
        .collect();
    if candidates.iter().any(|c| c.ending) {
        // One is on its way out; what it frees is seen first.
        return true;
    }
    match rank::choose(candidates) {
        Some(victim) => {
            let what = signal.resource();
            let message = format!("The node was low on resource: {what}. ");
            // Where it isn't pressing pods may end in their own way, for so long.
            let grace = if met.hard { 0 } else { kl.cfg.eviction.max_pod_grace };
            evict(kl, &victim.uid, message, grace);
            kl.metrics.evictions.with_label_values(&[signal.name()]).inc();
            true
        }
        None => {
            tracing::warn!(?signal, "there is no pod to evict");
            false
        }
    }
}

fn sample(kl: &Kubelet, disks: &Disks) -> std::io::Result<Sample> {
    let usage = kl.host.node_usage()?;
    let measure = |disk| disks.measure(&*kl.host, &kl.layout.root, disk);
    let fs = measure(Disk::Node)?;
    // Without another disk the rest of the machine is looked at all the same.
    let other = |disk| {
        measure(disk).unwrap_or_else(|error| {
            tracing::warn!(?disk, %error, "a disk can't be measured");
            FsStats::default()
        })
    };
    let pods_memory = limit_of_pods(kl);
    let of_pods = cgroup::qos_path(&kl.cfg.cgroup_root, Qos::Guaranteed);
    // Where their cgroup can't be read the machine is looked at all the same.
    let used = kl.host.cgroup_usage(&of_pods).map(|u| u.working_set);
    Ok(Sample {
        pods_memory: if used.is_ok() { pods_memory } else { 0 },
        pods_memory_available: pods_memory.saturating_sub(used.unwrap_or(0)),
        memory: kl.machine.memory,
        memory_available: kl.machine.memory.saturating_sub(usage.working_set),
        fs,
        images: match disks.images {
            Disk::Node => fs,
            own => other(own),
        },
        layers: match disks.layers {
            Disk::Layers => other(Disk::Layers),
            _ => FsStats::default(),
        },
        pids: usage.pids,
        max_pids: kl.machine.max_pids.max(0) as u64,
    })
}

/// What all pods together may have of memory; zero: nothing is enforced.
fn limit_of_pods(kl: &Kubelet) -> u64 {
    if !kl.cfg.enforce.contains("pods") {
        return 0;
    }
    let there_is = i64::try_from(kl.machine.memory).unwrap_or(i64::MAX);
    let left = crate::run::left_to_pods(&kl.cfg, "memory", there_is);
    left.and_then(|left| u64::try_from(left).ok()).unwrap_or(0)
}

/// Whether what a pod frees has to be waited for: of one that its owner ends nobody knows when that is, and where it presses
/// no time of its own is left to one.
fn is_awaited(eviction: Option<&Eviction>, hard: bool) -> bool {
    eviction.is_some_and(|e| !hard || e.grace.is_some_and(|g| g <= 1))
}

fn candidate(kl: &Kubelet, disks: &Disks, handle: &Handle, met: Met, layers: &Layers) -> Option<Candidate> {
    if !matches!(handle.stage(), Stage::Syncing | Stage::Terminating) {
        return None;
    }
    let desired = handle.desired();
    let pod = &desired.pod;
    if pods::is_critical(pod) {
        return None;
    }
    let of_cgroup = |what: fn(Usage) -> u64| kl.host.cgroup_usage(&kl.cgroup_of(pod)).ok().map(what);
    let asked = |name: &str| quantity::value_of(Some(&crate::resources::pod::pod_requests(pod)), name) as u64;
    // What the signal measures: of volumes, logs and writable layers what is on its disk, in bytes or in inodes.
    let signal = met.threshold.signal;
    let on_disk = || {
        let disk = signal.disk(disks);
        let sum = match disk {
            Some(Disk::Node) => on_disk(kl, pod, &handle.uid)?,
            _ => (0, 0),
        };
        let layers = layers.get(&handle.uid).filter(|_| disk == Some(disks.layers));
        let layers = layers.into_iter().flat_map(BTreeMap::values);
        Some(layers.fold(sum, |sum, l| (sum.0 + l.0, sum.1 + l.1)))
    };
    let (used, requested) = match signal {
        Signal::Memory | Signal::PodsMemory => (of_cgroup(|u| u.working_set), asked("memory")),
        Signal::Disk | Signal::ImageDisk | Signal::LayerDisk => (on_disk().map(|d| d.0), asked(STORAGE)),
        // Nobody asks for inodes or processes.
        Signal::Inodes | Signal::ImageInodes | Signal::LayerInodes => (on_disk().map(|d| d.1), 0),
        Signal::Pids => (of_cgroup(|u| u.pids), 0),
    };
    Some(Candidate {
        uid: handle.uid.clone(),
        used,
        requested,
        priority: pods::spec(pod).priority.unwrap_or(0),
        ending: is_awaited(desired.eviction.as_ref(), met.hard),
    })
}

/// Bytes and inodes of a pod's volumes and logs; `None` if they can't be measured.
fn on_disk(kl: &Kubelet, pod: &Pod, uid: &str) -> Option<(u64, u64)> {
    let logs = kl.layout.pod_logs(pods::namespace(pod), pods::name(pod), uid);
    let mut sum = (0, 0);
    for dir in [kl.layout.pod(uid), logs] {
        match kl.host.disk_usage(&dir) {
            Ok(used) => sum = (sum.0 + used.0, sum.1 + used.1),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                tracing::warn!("{} can't be measured: {e}", dir.display());
                return None;
            }
        }
    }
    Some(sum)
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

/// Bytes and inodes that containers have written into their own layers, by pod uid and container.
type Layers = BTreeMap<String, BTreeMap<String, (u64, u64)>>;

/// `None`: the runtime doesn't tell.
async fn layers(kl: &Kubelet) -> Option<Layers> {
    match crate::server::stats::containers(kl).await {
        Ok(all) => Some(all.iter().map(|(uid, list)| (uid.clone(), written(list))).collect()),
        Err(e) => {
            tracing::warn!("what containers write can't be measured: {e}");
            None
        }
    }
}

/// What each container of a pod has written.
fn written(stats: &[keelson_cri::v1::ContainerStats]) -> BTreeMap<String, (u64, u64)> {
    let number = |v: Option<&keelson_cri::v1::UInt64Value>| v.map_or(0, |v| v.value);
    let all = stats.iter().map(|s| {
        let layer = s.writable_layer.as_ref();
        let bytes = number(layer.and_then(|l| l.used_bytes.as_ref()));
        let inodes = number(layer.and_then(|l| l.inodes_used.as_ref()));
        (crate::server::stats::container_name(s), (bytes, inodes))
    });
    all.collect()
}

const STORAGE: &str = "ephemeral-storage";

/// Pods that use more disk than they were given end, whether or not the node has enough.
fn local_limits(kl: &Kubelet, one_disk: bool, layers: &Layers) {
    let none = BTreeMap::new();
    for handle in kl.workers.all().iter().filter(|h| h.stage() == Stage::Syncing) {
        let pod = handle.pod();
        if pods::is_critical(&pod) {
            continue;
        }
        if let Some((what, message)) = over_limit(kl, &pod, one_disk, layers.get(&handle.uid).unwrap_or(&none)) {
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
fn over_limit(
    kl: &Kubelet,
    pod: &Pod,
    one_disk: bool,
    layers: &BTreeMap<String, (u64, u64)>,
) -> Option<(&'static str, String)> {
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
    let layer = |name: &str| layers.get(name).map_or(0, |l| l.0);
    let logged = |name: &str| kl.host.disk_usage(&logs.join(name)).map_or(0, |u| u.0);
    let used = |name: &str| layer(name) + logged(name);
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
        // A container's own limit is one of the node's disk: what it writes elsewhere doesn't count, as upstream has it.
        let counted = || if one_disk { used(&c.name) } else { logged(&c.name) };
        if let Some(own) = own.filter(|l| counted() > quantity::value(l) as u64) {
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

    #[test]
    fn layers_count_in_bytes_and_inodes() {
        use keelson_cri::v1 as cri;
        let number = |value| Some(cri::UInt64Value { value });
        let stats = |name: &str, layer: Option<cri::FilesystemUsage>| cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                labels: [(crate::observe::LABEL_CONTAINER_NAME.to_owned(), name.to_owned())].into(),
                ..Default::default()
            }),
            writable_layer: layer,
            ..Default::default()
        };
        let layer = cri::FilesystemUsage {
            used_bytes: number(4096),
            inodes_used: number(3),
            ..Default::default()
        };
        let all = written(&[stats("a", Some(layer)), stats("b", None)]);
        assert_eq!(all, [("a".to_owned(), (4096, 3)), ("b".to_owned(), (0, 0))].into());
    }

    #[test]
    fn only_what_ends_soon_by_the_node_is_awaited() {
        let ended = |grace| crate::worker::Eviction {
            reason: String::new(),
            message: String::new(),
            grace: Some(grace),
            condition: None,
        };
        for (eviction, hard, wanted) in [
            (None, false, false),
            (None, true, false),
            (Some(ended(30)), false, true),
            (Some(ended(30)), true, false),
            (Some(ended(1)), true, true),
            (Some(ended(0)), true, true),
        ] {
            assert_eq!(is_awaited(eviction.as_ref(), hard), wanted, "{eviction:?} {hard}");
        }
    }
}
