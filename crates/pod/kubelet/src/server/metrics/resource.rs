//! `/metrics/resource`: what the resource metrics pipeline reads.

use super::text::Text;
use crate::host::Usage;
use crate::kubelet::Kubelet;
use crate::pods;
use crate::server::stats;
use crate::worker::Stage;
use keelson_cri::v1 as cri;

struct Sample {
    namespace: String,
    pod: String,
    container: String,
    /// Milliseconds since 1970.
    at: i64,
    cpu: f64,
    memory: u64,
    swap: Option<u64>,
    swap_limit: Option<u64>,
    start: Option<f64>,
}

impl Sample {
    fn labels(&self) -> [(&str, &str); 3] {
        let (container, namespace, pod) = (self.container.as_str(), self.namespace.as_str(), self.pod.as_str());
        [("container", container), ("namespace", namespace), ("pod", pod)]
    }
}

async fn samples(kl: &Kubelet) -> Result<Vec<Sample>, String> {
    let stats = stats::containers(kl).await?;
    let value = |v: Option<&cri::UInt64Value>| v.map(|v| v.value);
    let mut all = Vec::new();
    for handle in kl.workers.all() {
        let pod = handle.pod();
        let status = kl.status.get(&handle.uid).unwrap_or_default();
        for s in stats.get(&handle.uid).into_iter().flatten() {
            // One that has ended meanwhile uses nothing that could be told.
            let (Some(cpu), Some(memory)) = (&s.cpu, &s.memory) else {
                continue;
            };
            let container = stats::container_name(s);
            let start = pods::any_status(&status, &container)
                .and_then(|s| s.state.as_ref()?.running.as_ref()?.started_at.as_ref())
                .map(|t| t.0.as_millisecond() as f64 / 1000.0);
            let used = s.swap.as_ref().and_then(|s| value(s.swap_usage_bytes.as_ref()));
            let left = s.swap.as_ref().and_then(|s| value(s.swap_available_bytes.as_ref()));
            all.push(Sample {
                namespace: pods::namespace(&pod).to_owned(),
                pod: pods::name(&pod).to_owned(),
                container,
                at: cpu.timestamp / 1_000_000,
                cpu: value(cpu.usage_core_nano_seconds.as_ref()).unwrap_or(0) as f64 / 1e9,
                memory: value(memory.working_set_bytes.as_ref()).unwrap_or(0),
                swap: used,
                swap_limit: left.map(|left| left + used.unwrap_or(0)),
                start,
            });
        }
    }
    Ok(all)
}

/// A family of containers' samples: name, help, whether it only grows, and the number.
type OfContainer = (&'static str, &'static str, bool, fn(&Sample) -> Option<f64>);
const CONTAINERS: [OfContainer; 5] = [
    (
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        true,
        |s| Some(s.cpu),
    ),
    (
        "container_memory_working_set_bytes",
        "[STABLE] Current working set of the container in bytes",
        false,
        |s| Some(s.memory as f64),
    ),
    (
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
        false,
        |s| s.start,
    ),
    (
        "container_swap_limit_bytes",
        "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems",
        false,
        |s| s.swap_limit.map(|n| n as f64),
    ),
    (
        "container_swap_usage_bytes",
        "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        false,
        |s| s.swap.map(|n| n as f64),
    ),
];

/// The same of the node, and of pods.
type OfGroup = (&'static str, &'static str, bool, fn(&Usage) -> Option<f64>);
const NODE: [OfGroup; 3] = [
    (
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        true,
        |u| Some(u.cpu_nanos as f64 / 1e9),
    ),
    (
        "node_memory_working_set_bytes",
        "[STABLE] Current working set of the node in bytes",
        false,
        |u| Some(u.working_set as f64),
    ),
    (
        "node_swap_usage_bytes",
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
        false,
        |u| u.swap.map(|n| n as f64),
    ),
];
const PODS: [OfGroup; 3] = [
    (
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        true,
        |u| Some(u.cpu_nanos as f64 / 1e9),
    ),
    (
        "pod_memory_working_set_bytes",
        "[STABLE] Current working set of the pod in bytes",
        false,
        |u| Some(u.working_set as f64),
    ),
    (
        "pod_swap_usage_bytes",
        "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        false,
        |u| u.swap.map(|n| n as f64),
    ),
];

pub async fn text(kl: &Kubelet) -> String {
    let mut out = Text::default();
    let failed = match samples(kl).await {
        Ok(all) => {
            containers(&mut out, &all);
            groups(kl, &mut out)
        }
        Err(e) => {
            tracing::warn!("what containers use can't be read: {e}");
            true
        }
    };
    out.gauge(
        "resource_scrape_error",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        &[],
        f64::from(failed),
    );
    out.into_string()
}

fn containers(out: &mut Text, all: &[Sample]) {
    for (name, help, counter, of) in CONTAINERS {
        let mut values = all.iter().filter_map(|s| Some((s, of(s)?))).peekable();
        if values.peek().is_some() {
            out.family(name, help, counter);
        }
        for (s, value) in values {
            // A start is not of a time: it doesn't change.
            let at = (name != "container_start_time_seconds").then_some(s.at);
            out.sample(name, &s.labels(), value, at);
        }
    }
}

/// Returns whether one couldn't be measured.
fn groups(kl: &Kubelet, out: &mut Text) -> bool {
    let mut failed = false;
    let at = kl.host.now().as_millisecond();
    if let Some(node) = kl.unmeasured.measured("/", kl.host.node_usage(), &mut failed) {
        for (name, help, counter, of) in NODE {
            if let Some(value) = of(&node) {
                out.family(name, help, counter);
                out.sample(name, &[], value, Some(at));
            }
        }
    }
    let running = kl.workers.all().into_iter().filter(|h| h.stage() == Stage::Syncing);
    let used = running.filter_map(|h| {
        let (pod, path) = (h.pod(), kl.cgroup_of(&h.pod()));
        let usage = kl.host.cgroup_usage(&path);
        Some((pod, kl.unmeasured.measured(&path, usage, &mut failed)?))
    });
    let used: Vec<_> = used.collect();
    for (name, help, counter, of) in PODS {
        let mut values = used.iter().filter_map(|(pod, u)| Some((pod, of(u)?))).peekable();
        if values.peek().is_some() {
            out.family(name, help, counter);
        }
        for (pod, value) in values {
            let labels = [("namespace", pods::namespace(pod)), ("pod", pods::name(pod))];
            out.sample(name, &labels, value, Some(at));
        }
    }
    failed
}
