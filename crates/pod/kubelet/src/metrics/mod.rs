//! What this kubelet counts, under upstream's names, labels and buckets. Whoever does something counts it here; the
//! [server](crate::server) writes it out. What can be read when somebody asks (how many pods there are, say) isn't kept here.

mod managers;
mod pods_api;
mod providers;
pub mod rates;

use crate::pods;
use crate::probes::Kind;
use k8s_openapi::api::core::v1::Pod;
use prometheus::core::Collector;
use prometheus::{
    DEFAULT_BUCKETS, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec,
    Opts, Registry, TextEncoder, exponential_buckets,
};
use std::time::Duration;

/// Seconds that a pod's start may take.
const START: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Seconds that a pull may take.
const PULL: &[f64] = &[
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// Seconds that work on a volume may take.
const STORAGE: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0,
];
const STATUS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];

/// Sizes of images as a label: above so many MiB.
const SIZES: [(u64, &str); 12] = [
    (0, "0-10MB"),
    (10, "10MB-100MB"),
    (100, "100MB-500MB"),
    (500, "500MB-1GB"),
    (1 << 10, "1GB-5GB"),
    (5 << 10, "5GB-10GB"),
    (10 << 10, "10GB-20GB"),
    (20 << 10, "20GB-30GB"),
    (30 << 10, "30GB-40GB"),
    (40 << 10, "40GB-60GB"),
    (60 << 10, "60GB-100GB"),
    (100 << 10, "GT100GB"),
];

pub struct Metrics {
    all: Registry,
    probes: Registry,
    pub pod_worker: HistogramVec,
    pub pod_worker_start: Histogram,
    pub pod_start: Histogram,
    pub pod_start_total: Histogram,
    pub containers_per_pod: Histogram,
    pub status_sync: Histogram,
    pub cgroups: HistogramVec,
    pub relist: Histogram,
    pub pod_relist: Histogram,
    pub last_seen: Gauge,
    pub events_connected: IntCounter,
    pub events_failed: IntCounter,
    pub operations: IntCounterVec,
    pub operation_errors: IntCounterVec,
    pub operation_durations: HistogramVec,
    pub run_sandbox: HistogramVec,
    pub run_sandbox_errors: IntCounterVec,
    pub managers: managers::Managers,
    pub providers: providers::Providers,
    pub storage: HistogramVec,
    pub pods_api: pods_api::PodsApi,
    pub memory_min: Gauge,
    pub memory_low: Gauge,
    pub shutdown_start: Gauge,
    pub shutdown_end: Gauge,
    pub evictions: IntCounterVec,
    pub rejections: IntCounterVec,
    pub started_pods: IntCounter,
    pub started_pods_errors: IntCounter,
    pub started_userns_pods: IntCounter,
    pub started_userns_pods_errors: IntCounter,
    pub started_containers: IntCounterVec,
    pub started_containers_errors: IntCounterVec,
    pub terminated: IntCounterVec,
    pub images_collected: IntCounterVec,
    pub image_pull: HistogramVec,
    pub requests: IntCounterVec,
    pub request_durations: HistogramVec,
    pub requests_inflight: IntGaugeVec,
    probe_total: IntCounterVec,
    probe_duration: HistogramVec,
}

/// Registers families. A name that is taken or wrong is a fault of this file, which its test finds.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        #[allow(clippy::expect_used)]
        let made = made.expect("the families of this file are well formed");
        if let Err(e) = self.0.register(Box::new(made.clone())) {
            tracing::error!("a family of metrics is there twice: {e}");
        }
        made
    }
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.keep(Gauge::new(name, help))
    }
    fn gauges_of(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.keep(GaugeVec::new(Opts::new(name, help), labels))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.keep(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }
    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(HistogramVec::new(options, labels))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let (all, probes) = (Registry::new(), Registry::new());
        let (m, p) = (Maker(&all), Maker(&probes));
        let operations = exponential_buckets(0.005, 2.5, 14).unwrap_or_default();
        let per_pod = exponential_buckets(1.0, 2.0, 5).unwrap_or_default();
        let http = ["method", "path", "server_type", "long_running"];
        Metrics {
            pod_worker: m.histograms(
                "kubelet_pod_worker_duration_seconds",
                "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
                DEFAULT_BUCKETS,
                &["operation_type"],
            ),
            pod_worker_start: m.histogram(
                "kubelet_pod_worker_start_duration_seconds",
                "Duration in seconds from kubelet seeing a pod to starting a worker.",
                DEFAULT_BUCKETS,
            ),
            pod_start: m.histogram(
                "kubelet_pod_start_duration_seconds",
                "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
                START,
            ),
            pod_start_total: m.histogram(
                "kubelet_pod_start_total_duration_seconds",
                "Duration in seconds to start a pod since creation, including time to pull images and run init containers, \
                 measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
                START,
            ),
            containers_per_pod: m.histogram(
                "kubelet_containers_per_pod_count",
                "The number of containers per pod.",
                &per_pod,
            ),
            status_sync: m.histogram(
                "kubelet_pod_status_sync_duration_seconds",
                "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status \
                 until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.",
                STATUS,
            ),
            cgroups: m.histograms(
                "kubelet_cgroup_manager_duration_seconds",
                "Duration in seconds for cgroup manager operations. Broken down by method.",
                DEFAULT_BUCKETS,
                &["operation_type"],
            ),
            relist: m.histogram(
                "kubelet_pleg_relist_duration_seconds",
                "Duration in seconds for relisting pods in PLEG.",
                DEFAULT_BUCKETS,
            ),
            pod_relist: m.histogram(
                "kubelet_pleg_pod_relist_duration_seconds",
                "Duration in seconds for relisting a single pod in PLEG.",
                DEFAULT_BUCKETS,
            ),
            last_seen: m.gauge(
                "kubelet_pleg_last_seen_seconds",
                "Timestamp in seconds when PLEG was last seen active.",
            ),
            events_connected: m.counter(
                "kubelet_evented_pleg_connection_success_count",
                "The number of times a streaming client was obtained to receive CRI Events.",
            ),
            events_failed: m.counter(
                "kubelet_evented_pleg_connection_error_count",
                "The number of errors encountered during the establishment of streaming connection with the CRI runtime.",
            ),
            operations: m.counters(
                "kubelet_runtime_operations_total",
                "Cumulative number of runtime operations by operation type.",
                &["operation_type"],
            ),
            operation_errors: m.counters(
                "kubelet_runtime_operations_errors_total",
                "Cumulative number of runtime operation errors by operation type.",
                &["operation_type"],
            ),
            operation_durations: m.histograms(
                "kubelet_runtime_operations_duration_seconds",
                "Duration in seconds of runtime operations. Broken down by operation type.",
                &operations,
                &["operation_type"],
            ),
            run_sandbox: m.histograms(
                "kubelet_run_podsandbox_duration_seconds",
                "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
                DEFAULT_BUCKETS,
                &["runtime_handler"],
            ),
            run_sandbox_errors: m.counters(
                "kubelet_run_podsandbox_errors_total",
                "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
                &["runtime_handler"],
            ),
            managers: managers::Managers::new(&m),
            providers: providers::Providers::new(&m),
            storage: m.histograms(
                "storage_operation_duration_seconds",
                "Storage operation duration",
                STORAGE,
                &["volume_plugin", "operation_name", "status", "migrated"],
            ),
            pods_api: pods_api::PodsApi::new(&m),
            memory_min: m.gauge(
                "kubelet_memory_qos_node_memory_min_bytes",
                "Total cgroup v2 memory.min in bytes for Guaranteed pods. This memory is hard-reserved and never reclaimed by the kernel.",
            ),
            memory_low: m.gauge(
                "kubelet_memory_qos_node_memory_low_bytes",
                "Total cgroup v2 memory.low in bytes for Burstable pods. This memory is soft-reserved and may be reclaimed under extreme pressure.",
            ),
            shutdown_start: m.gauge(
                "kubelet_graceful_shutdown_start_time_seconds",
                "Last graceful shutdown start time since unix epoch in seconds",
            ),
            shutdown_end: m.gauge(
                "kubelet_graceful_shutdown_end_time_seconds",
                "Last graceful shutdown end time since unix epoch in seconds",
            ),
            evictions: m.counters(
                "kubelet_evictions",
                "Cumulative number of pod evictions by eviction signal",
                &["eviction_signal"],
            ),
            rejections: m.counters(
                "kubelet_admission_rejections_total",
                "Cumulative number pod admission rejections by the Kubelet.",
                &["reason"],
            ),
            started_pods: m.counter("kubelet_started_pods_total", "Cumulative number of pods started"),
            started_pods_errors: m.counter(
                "kubelet_started_pods_errors_total",
                "Cumulative number of errors when starting pods",
            ),
            started_userns_pods: m.counter(
                "kubelet_started_user_namespaced_pods_total",
                "Cumulative number of pods with user namespaces started. This metric will only be collected on Linux.",
            ),
            started_userns_pods_errors: m.counter(
                "kubelet_started_user_namespaced_pods_errors_total",
                "Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.",
            ),
            started_containers: m.counters(
                "kubelet_started_containers_total",
                "Cumulative number of containers started",
                &["container_type"],
            ),
            started_containers_errors: m.counters(
                "kubelet_started_containers_errors_total",
                "Cumulative number of errors when starting containers",
                &["container_type", "code"],
            ),
            terminated: m.counters(
                "kubelet_terminated_containers_total",
                "Cumulative number of container terminations.",
                &["container_type", "exit_code", "reason"],
            ),
            images_collected: m.counters(
                "kubelet_image_garbage_collected_total",
                "Total number of images garbage collected by the kubelet, whether through disk usage or image age.",
                &["reason"],
            ),
            image_pull: m.histograms(
                "kubelet_image_pull_duration_seconds",
                "Duration in seconds to pull an image.",
                PULL,
                &["image_size_in_bytes"],
            ),
            requests: m.counters(
                "kubelet_http_requests_total",
                "Number of the http requests received since the server started",
                &http,
            ),
            request_durations: m.histograms(
                "kubelet_http_requests_duration_seconds",
                "Duration in seconds to serve http requests",
                DEFAULT_BUCKETS,
                &http,
            ),
            requests_inflight: m.gauges(
                "kubelet_http_inflight_requests",
                "Number of the inflight http requests",
                &http,
            ),
            probe_total: p.counters(
                "prober_probe_total",
                "Cumulative number of a liveness, readiness or startup probe for a container by result.",
                &["probe_type", "result", "container", "pod", "namespace", "pod_uid"],
            ),
            probe_duration: p.histograms(
                "prober_probe_duration_seconds",
                "Duration in seconds for a probe response.",
                DEFAULT_BUCKETS,
                &["probe_type", "container", "pod", "namespace"],
            ),
            all,
            probes,
        }
    }
}

/// How a check went, as upstream counts it.
const RESULTS: [&str; 3] = ["successful", "failed", "unknown"];

impl Metrics {
    /// One call of the runtime.
    pub fn operation(&self, name: &'static str, took: Duration, good: bool) {
        self.operations.with_label_values(&[name]).inc();
        let durations = self.operation_durations.with_label_values(&[name]);
        durations.observe(took.as_secs_f64());
        if !good {
            self.operation_errors.with_label_values(&[name]).inc();
        }
    }

    /// One check of a probe, and how long it took. `None`: it could not be made.
    pub fn probe(&self, kind: Kind, pod: &Pod, container: &str, result: Option<bool>, took: Duration) {
        let result = match result {
            Some(true) => RESULTS[0],
            Some(false) => RESULTS[1],
            None => RESULTS[2],
        };
        let (name, ns) = (pods::name(pod), pods::namespace(pod));
        let labels = [kind.as_str(), result, container, name, ns, pods::uid(pod)];
        self.probe_total.with_label_values(&labels).inc();
        if result == RESULTS[0] {
            let durations = self
                .probe_duration
                .with_label_values(&[kind.as_str(), container, name, ns]);
            durations.observe(took.as_secs_f64());
        }
    }

    /// A container isn't probed any more: its series end.
    pub fn forget_probes(&self, pod: &Pod, container: &str) {
        let (name, ns) = (pods::name(pod), pods::namespace(pod));
        for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
            for result in RESULTS {
                let labels = [kind.as_str(), result, container, name, ns, pods::uid(pod)];
                // There is one only of what has happened.
                let _ = self.probe_total.remove_label_values(&labels);
            }
            let labels = [kind.as_str(), container, name, ns];
            let _ = self.probe_duration.remove_label_values(&labels);
        }
    }

    /// A pull that went well. A size that isn't known is zero.
    pub fn pulled(&self, bytes: u64, took: Duration) {
        let size = SIZES.iter().rev().find(|(above, _)| bytes > above << 20);
        let durations = self
            .image_pull
            .with_label_values(&[size.map_or("N/A", |(_, label)| label)]);
        durations.observe(took.as_secs_f64());
    }

    /// All but what is counted of probes, in the text format.
    pub fn text(&self) -> String {
        encode(&self.all)
    }

    pub fn probes_text(&self) -> String {
        encode(&self.probes)
    }
}

fn encode(registry: &Registry) -> String {
    TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap_or_else(|e| {
            tracing::error!("metrics can't be written: {e}");
            String::new()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap()
    }

    #[test]
    fn families_are_well_formed_and_have_upstreams_buckets() {
        let m = Metrics::default();
        m.operation("version", Duration::from_millis(7), false);
        m.pod_start.observe(0.7);
        let text = m.text();
        for line in [
            "kubelet_runtime_operations_total{operation_type=\"version\"} 1",
            "kubelet_runtime_operations_errors_total{operation_type=\"version\"} 1",
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"version\",le=\"0.0125\"} 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"1\"} 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"+Inf\"} 1",
            "# TYPE kubelet_started_pods_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn probes_are_counted_until_their_container_is_gone() {
        let m = Metrics::default();
        m.probe(Kind::Liveness, &pod(), "c", Some(true), Duration::from_millis(3));
        m.probe(Kind::Readiness, &pod(), "c", None, Duration::ZERO);
        let text = m.probes_text();
        let labels =
            "container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",result=\"successful\"";
        assert!(text.contains(&format!("prober_probe_total{{{labels}}} 1")), "{text}");
        assert!(text.contains("prober_probe_duration_seconds_count"), "{text}");
        m.forget_probes(&pod(), "c");
        assert_eq!(m.probes_text(), "");
    }

    #[test]
    fn images_have_sizes_as_upstream_sorts_them() {
        let m = Metrics::default();
        for bytes in [0, 1, 10 << 20, (10 << 20) + 1, 200 << 30] {
            m.pulled(bytes, Duration::from_secs(2));
        }
        let text = m.text();
        for (label, count) in [("N/A", 1), ("0-10MB", 2), ("10MB-100MB", 1), ("GT100GB", 1)] {
            let line = format!("kubelet_image_pull_duration_seconds_count{{image_size_in_bytes=\"{label}\"}} {count}");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}
