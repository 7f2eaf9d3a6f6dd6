//! Metrics in the Prometheus text format.

use super::stats;
use crate::kubelet::Kubelet;
use crate::pods;
use crate::volumes::Stats;
use crate::worker::Stage;
use std::collections::BTreeMap;
use std::fmt::Write;

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// What claims' volumes hold, in upstream's order: name, help and where it stands.
type Held = (&'static str, &'static str, fn(&Stats) -> u64);
const HELD: [Held; 6] = [
    ("available_bytes", "Number of available bytes in the volume", |s| {
        s.fs.available
    }),
    ("capacity_bytes", "Capacity in bytes of the volume", |s| s.fs.capacity),
    ("inodes", "Maximum number of inodes in the volume", |s| s.fs.inodes),
    ("inodes_free", "Number of free inodes in the volume", |s| {
        s.fs.inodes_free
    }),
    ("inodes_used", "Number of used inodes in the volume", |s| s.inodes_used),
    ("used_bytes", "Number of used bytes in the volume", |s| s.used),
];

async fn volumes(kl: &Kubelet, out: &mut String) {
    let mut claims: BTreeMap<(String, String), Stats> = BTreeMap::new();
    let measured = futures::future::join_all(kl.workers.all().into_iter().map(|h| async move {
        let pod = h.pod();
        (pods::namespace(&pod).to_owned(), kl.volumes.stats(&h.uid).await)
    }));
    for (namespace, held) in measured.await {
        for (mounted, stats) in held.into_values() {
            if let Some(claim) = mounted.claim {
                claims.insert((namespace.clone(), claim), stats);
            }
        }
    }
    for (name, help, value) in HELD.iter().filter(|_| !claims.is_empty()) {
        let name = format!("kubelet_volume_stats_{name}");
        head(out, &name, "gauge", help);
        for ((namespace, claim), stats) in &claims {
            let value = value(stats);
            let _ = writeln!(
                out,
                "{name}{{namespace=\"{namespace}\",persistentvolumeclaim=\"{claim}\"}} {value}"
            );
        }
    }
}

/// The kubelet's own.
pub async fn kubelet(kl: &Kubelet) -> String {
    let mut out = String::new();
    let all = kl.workers.all();
    let running = all.iter().filter(|h| h.stage() == Stage::Syncing).count();
    head(
        &mut out,
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
    );
    let _ = writeln!(out, "kubelet_running_pods {running}");
    head(
        &mut out,
        "kubelet_terminated_containers_total",
        "counter",
        "Cumulative number of container terminations.",
    );
    for ((kind, code, reason), count) in kl.terminated.lock().iter() {
        let labels = format!("container_type=\"{kind}\",exit_code=\"{code}\",reason=\"{reason}\"");
        let _ = writeln!(out, "kubelet_terminated_containers_total{{{labels}}} {count}");
    }
    head(
        &mut out,
        "kubelet_node_name",
        "gauge",
        "The node's name. The count is always 1.",
    );
    let _ = writeln!(out, "kubelet_node_name{{node=\"{}\"}} 1", kl.cfg.node_name);
    head(
        &mut out,
        "kubernetes_build_info",
        "gauge",
        "The version whose behaviour this kubelet has.",
    );
    let _ = writeln!(
        out,
        "kubernetes_build_info{{git_version=\"{}\"}} 1",
        crate::node::status::VERSION
    );
    volumes(kl, &mut out).await;
    out
}

struct Sample {
    namespace: String,
    pod: String,
    container: String,
    cpu: f64,
    memory: u64,
    start: Option<f64>,
}

async fn samples(kl: &Kubelet) -> Result<Vec<Sample>, String> {
    let stats = stats::containers(kl).await?;
    let mut all = Vec::new();
    for handle in kl.workers.all() {
        let pod = handle.pod();
        let status = kl.status.get(&handle.uid).unwrap_or_default();
        for s in stats.get(&handle.uid).into_iter().flatten() {
            let container = stats::container_name(s);
            let cpu = s
                .cpu
                .as_ref()
                .and_then(|c| c.usage_core_nano_seconds.as_ref())
                .map_or(0, |v| v.value);
            let memory = s
                .memory
                .as_ref()
                .and_then(|m| m.working_set_bytes.as_ref())
                .map_or(0, |v| v.value);
            let start = pods::any_status(&status, &container)
                .and_then(|s| s.state.as_ref()?.running.as_ref()?.started_at.as_ref())
                .map(|t| t.0.as_millisecond() as f64 / 1000.0);
            all.push(Sample {
                namespace: pods::namespace(&pod).to_owned(),
                pod: pods::name(&pod).to_owned(),
                container,
                cpu: cpu as f64 / 1e9,
                memory,
                start,
            });
        }
    }
    Ok(all)
}

/// What the resource metrics pipeline reads.
pub async fn resource(kl: &Kubelet) -> Result<String, String> {
    let all = samples(kl).await?;
    let node = kl.host.node_usage().unwrap_or_default();
    let mut out = String::new();
    head(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    for s in &all {
        let _ = writeln!(out, "container_cpu_usage_seconds_total{} {}", labels(s), s.cpu);
    }
    head(
        &mut out,
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
    );
    for s in &all {
        let _ = writeln!(out, "container_memory_working_set_bytes{} {}", labels(s), s.memory);
    }
    head(
        &mut out,
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
    );
    for s in &all {
        if let Some(start) = s.start {
            let _ = writeln!(out, "container_start_time_seconds{} {start}", labels(s));
        }
    }
    head(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    let _ = writeln!(out, "node_cpu_usage_seconds_total {}", node.cpu_nanos as f64 / 1e9);
    head(
        &mut out,
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
    );
    let _ = writeln!(out, "node_memory_working_set_bytes {}", node.working_set);
    let usage: Vec<_> = kl
        .workers
        .all()
        .iter()
        .filter(|h| h.stage() == Stage::Syncing)
        .map(|h| {
            (
                h.pod(),
                kl.host.cgroup_usage(&kl.cgroup_of(&h.pod())).unwrap_or_default(),
            )
        })
        .collect();
    head(
        &mut out,
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
    );
    for (pod, u) in &usage {
        let _ = writeln!(
            out,
            "pod_cpu_usage_seconds_total{} {}",
            pod_labels(pod),
            u.cpu_nanos as f64 / 1e9
        );
    }
    head(
        &mut out,
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
    );
    for (pod, u) in &usage {
        let _ = writeln!(out, "pod_memory_working_set_bytes{} {}", pod_labels(pod), u.working_set);
    }
    head(
        &mut out,
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    let _ = writeln!(out, "resource_scrape_error 0");
    Ok(out)
}

fn labels(s: &Sample) -> String {
    format!(
        "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
        s.container, s.namespace, s.pod
    )
}

fn pod_labels(pod: &k8s_openapi::api::core::v1::Pod) -> String {
    format!("{{namespace=\"{}\",pod=\"{}\"}}", pods::namespace(pod), pods::name(pod))
}

/// The few container metrics that tools expect under cAdvisor's names.
pub async fn cadvisor(kl: &Kubelet) -> Result<String, String> {
    let all = samples(kl).await?;
    let mut out = String::new();
    head(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
    );
    for s in &all {
        let _ = writeln!(out, "container_cpu_usage_seconds_total{} {}", labels(s), s.cpu);
    }
    head(
        &mut out,
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set in bytes.",
    );
    for s in &all {
        let _ = writeln!(out, "container_memory_working_set_bytes{} {}", labels(s), s.memory);
    }
    head(&mut out, "machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    let _ = writeln!(out, "machine_cpu_cores {}", kl.machine.cpus);
    head(
        &mut out,
        "machine_memory_bytes",
        "gauge",
        "Amount of memory installed on the machine.",
    );
    let _ = writeln!(out, "machine_memory_bytes {}", kl.machine.memory);
    Ok(out)
}
