//! How many replicas a metric asks for. Pure: pods and samples in, a number out.
//!
//! Pods that can't be judged count for the cautious side: one without a sample as idle when there is to be more, as busy
//! when there is to be less; one that isn't ready as idle.

use crate::config::Autoscaling;
use crate::{pods, quota};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a pod's beginning may last.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// So long after its start a pod's CPU counts only if it was measured while the pod was ready.
    pub cpu_initialization: SignedDuration,
    /// A pod that became unready within this time of its start has never been ready.
    pub initial_readiness: SignedDuration,
}

impl Delays {
    pub fn of(settings: &Autoscaling) -> Delays {
        let time = |time| SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
        Delays {
            cpu_initialization: time(settings.cpu_initialization),
            initial_readiness: time(settings.initial_readiness),
        }
    }
}

const CPU: &str = "cpu";
/// The pod's resources as a whole may ask for these.
const POD_LEVEL: [&str; 2] = [CPU, "memory"];

/// What was measured of a pod, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub value: i64,
    pub at: Timestamp,
    pub window: SignedDuration,
}

/// By the names of pods.
pub type Samples = BTreeMap<String, Sample>;

/// How far usage may be off its target before anything is done, as parts of one.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    pub down: f64,
    pub up: f64,
}

impl Tolerances {
    fn hold(&self, ratio: f64) -> bool {
        1.0 - self.down <= ratio && ratio <= 1.0 + self.up
    }
}

/// What an answer follows from besides the metric.
pub struct Basis<'a> {
    pub replicas: i32,
    pub tolerances: Tolerances,
    pub pods: &'a [Arc<Pod>],
    pub now: Timestamp,
    pub delays: Delays,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";
const NO_METRICS: &str = "did not receive metrics for targeted pods (pods might be unready)";

fn ceil(number: f64) -> i32 {
    number.ceil() as i32
}

/// Whether a pod's sample tells nothing yet.
fn is_warming_up(pod: &Pod, sample: &Sample, now: Timestamp, delays: Delays) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else {
        return true;
    };
    let changed = ready
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let after = |time: Timestamp, more| time.saturating_add(more).unwrap_or(Timestamp::MAX);
    if after(started, delays.cpu_initialization) > now {
        ready.status == "False" || sample.at < after(changed, sample.window)
    } else {
        ready.status == "False" && after(started, delays.initial_readiness) > changed
    }
}

fn group(basis: &Basis, samples: &Samples, resource: &str) -> Groups {
    use keelson_client::ApiObject;
    let mut groups = Groups::default();
    for pod in basis.pods {
        let name = pod.name().to_string();
        let phase = pods::phase(pod);
        if pod.is_deleting() || phase == "Failed" {
            groups.ignored.insert(name);
        } else if phase == "Pending" {
            groups.unready.insert(name);
        } else {
            match samples.get(&name) {
                None => drop(groups.missing.insert(name)),
                Some(sample) if resource == CPU && is_warming_up(pod, sample, basis.now, basis.delays) => {
                    groups.unready.insert(name);
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// What one measure of the samples says: usage as parts of the target, and what is shown of it.
trait Measure {
    type Shown: Copy;
    fn ratio(&self, samples: &Samples) -> Result<(f64, Self::Shown), String>;
    /// What a pod without a sample is taken to use when there is to be less.
    fn busy(&self, pod: &str) -> i64;
}

fn count<M: Measure>(
    basis: &Basis,
    resource: &str,
    mut samples: Samples,
    measure: M,
) -> Result<(i32, M::Shown), String> {
    let groups = group(basis, &samples, resource);
    samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if samples.is_empty() {
        return Err(NO_METRICS.into());
    }
    let (ratio, shown) = measure.ratio(&samples)?;
    let more_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !more_unready && groups.missing.is_empty() {
        let replicas = match basis.tolerances.hold(ratio) {
            true => basis.replicas,
            false => ceil(ratio * groups.ready as f64),
        };
        return Ok((replicas, shown));
    }
    let assumed = |value| Sample {
        value,
        at: basis.now,
        window: SignedDuration::ZERO,
    };
    if ratio < 1.0 {
        let missing = groups.missing.iter();
        samples.extend(missing.map(|pod| (pod.clone(), assumed(measure.busy(pod)))));
    } else if ratio > 1.0 {
        samples.extend(groups.missing.iter().map(|pod| (pod.clone(), assumed(0))));
    }
    if more_unready {
        samples.extend(groups.unready.iter().map(|pod| (pod.clone(), assumed(0))));
    }
    let (corrected, _) = measure.ratio(&samples)?;
    let turned = (ratio < 1.0 && corrected > 1.0) || (ratio > 1.0 && corrected < 1.0);
    let replicas = ceil(corrected * samples.len() as f64);
    let wrong_way = (corrected < 1.0 && replicas > basis.replicas) || (corrected > 1.0 && replicas < basis.replicas);
    if basis.tolerances.hold(corrected) || turned || wrong_way {
        return Ok((basis.replicas, shown));
    }
    Ok((replicas, shown))
}

struct Utilization {
    target: i32,
    requests: BTreeMap<String, i64>,
}

impl Measure for Utilization {
    /// Per cent of the requests, and the average.
    type Shown = (i32, i64);

    fn ratio(&self, samples: &Samples) -> Result<(f64, (i32, i64)), String> {
        let known = samples
            .iter()
            .filter_map(|(pod, s)| Some((s.value, *self.requests.get(pod)?)));
        let (mut used, mut requested, mut entries) = (0i64, 0i64, 0i64);
        for (value, request) in known {
            used = used.saturating_add(value);
            requested = requested.saturating_add(request);
            entries += 1;
        }
        if requested == 0 {
            return Err("no metrics returned matched known pods".into());
        }
        let percent = i32::try_from(used.saturating_mul(100) / requested).unwrap_or(i32::MAX);
        Ok((f64::from(percent) / f64::from(self.target), (percent, used / entries)))
    }

    fn busy(&self, pod: &str) -> i64 {
        let percent = i64::from(self.target.max(100));
        self.requests
            .get(pod)
            .map_or(0, |request| request.saturating_mul(percent) / 100)
    }
}

/// Utilisation of a resource as per cent of what pods ask for. Returns replicas, per cent, and the average.
pub fn by_utilization(
    basis: &Basis,
    target: i32,
    resource: &str,
    container: Option<&str>,
    samples: Samples,
) -> Result<(i32, (i32, i64)), String> {
    if basis.pods.is_empty() {
        return Err(NO_PODS.into());
    }
    let groups = group(basis, &samples, resource);
    let counts = |pod: &String| !groups.ignored.contains(pod) && !groups.unready.contains(pod);
    if !samples.keys().any(counts) {
        return Err(NO_METRICS.into());
    }
    let requests = requests(basis.pods, resource, container)?;
    count(basis, resource, samples, Utilization { target, requests })
}

struct Average(i64);

impl Measure for Average {
    type Shown = i64;

    fn ratio(&self, samples: &Samples) -> Result<(f64, i64), String> {
        let sum = samples.values().fold(0i64, |sum, s| sum.saturating_add(s.value));
        let average = sum / samples.len() as i64;
        Ok((average as f64 / self.0 as f64, average))
    }

    fn busy(&self, _: &str) -> i64 {
        self.0
    }
}

/// An average over pods. `resource` is empty for metrics that are none of a resource. Returns replicas and the average.
pub fn by_average(basis: &Basis, target: i64, resource: &str, samples: Samples) -> Result<(i32, i64), String> {
    if basis.pods.is_empty() {
        return Err(NO_PODS.into());
    }
    count(basis, resource, samples, Average(target))
}

/// One value for all replicas together, in proportion to those that are ready.
pub fn by_value(basis: &Basis, target: i64, usage: i64) -> Result<i32, String> {
    let ratio = usage as f64 / target as f64;
    if basis.replicas == 0 {
        return Ok(ceil(ratio));
    }
    if basis.tolerances.hold(ratio) {
        return Ok(basis.replicas);
    }
    if basis.pods.is_empty() {
        return Err(format!("unable to calculate ready pods: {NO_PODS}"));
    }
    let ready = basis
        .pods
        .iter()
        .filter(|p| pods::phase(p) == "Running" && pods::is_ready(p))
        .count();
    Ok(ceil(ratio * ready as f64))
}

/// One value that replicas share evenly. Returns replicas and each one's share.
pub fn by_share(replicas: i32, tolerances: Tolerances, target: i64, usage: i64) -> (i32, i64) {
    let ratio = usage as f64 / (target as f64 * f64::from(replicas));
    let wanted = match tolerances.hold(ratio) {
        true => replicas,
        false => ceil(usage as f64 / target as f64),
    };
    (wanted, (usage as f64 / f64::from(replicas)).ceil() as i64)
}

/// What each pod asks for, in thousandths.
fn requests(pods: &[Arc<Pod>], resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
    use keelson_client::ApiObject;
    let of = |pod: &Arc<Pod>| Ok((pod.name().to_string(), request(pod, resource, container)?));
    pods.iter().map(of).collect()
}

fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    use keelson_client::ApiObject;
    let spec = pod.spec.as_ref();
    let whole = spec
        .and_then(|s| s.resources.as_ref())
        .and_then(|r| r.requests.as_ref());
    let is_whole = |name: &String| POD_LEVEL.contains(&name.as_str()) || name.starts_with("hugepages-");
    if container.is_none() && whole.is_some_and(|requests| requests.keys().any(is_whole)) {
        let all = quota::pod_requests(pod);
        let found = all.get(resource).map(|q| q.milli_value());
        return found.ok_or_else(|| format!("missing pod-level request for {resource} in Pod {}", pod.name()));
    }
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let main = spec.iter().flat_map(|s| &s.containers);
    let sidecars = spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .filter(sidecar);
    let mut sum = 0i64;
    for c in main
        .chain(sidecars)
        .filter(|c| container.is_none_or(|name| name == c.name))
    {
        let requests = quota::read_amounts(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
        let Some(request) = requests.get(resource) else {
            let (container, pod) = (&c.name, pod.name());
            return Err(format!(
                "missing request for {resource} in container {container} of Pod {pod}"
            ));
        };
        if container.is_some() {
            return Ok(request.milli_value());
        }
        sum = sum.saturating_add(request.milli_value());
    }
    match container {
        Some(name) => Err(format!("container {name} not found in Pod {}", pod.name())),
        None => Ok(sum),
    }
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
