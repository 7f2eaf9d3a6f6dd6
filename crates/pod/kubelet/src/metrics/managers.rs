//! What the managers of CPUs, memory and topology count.

use super::Maker;
use prometheus::{Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, exponential_buckets};

pub struct Managers {
    pub cpu_requests: IntCounter,
    pub cpu_errors: IntCounter,
    pub cpu_shared: Gauge,
    pub cpu_exclusive: Gauge,
    pub cpu_by_node: GaugeVec,
    pub memory_requests: IntCounter,
    pub memory_errors: IntCounter,
    pub aligned: IntCounterVec,
    pub unaligned: IntCounterVec,
    pub topology_requests: IntCounter,
    pub topology_errors: IntCounter,
    pub topology_duration: Histogram,
}

impl Managers {
    pub(super) fn new(m: &Maker) -> Managers {
        let places = ["scope", "boundary"];
        Managers {
            cpu_requests: m.counter(
                "kubelet_cpu_manager_pinning_requests_total",
                "The number of cpu core allocations which required pinning.",
            ),
            cpu_errors: m.counter(
                "kubelet_cpu_manager_pinning_errors_total",
                "The number of cpu core allocations which required pinning failed.",
            ),
            cpu_shared: m.gauge(
                "kubelet_cpu_manager_shared_pool_size_millicores",
                "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.",
            ),
            cpu_exclusive: m.gauge(
                "kubelet_cpu_manager_exclusive_cpu_allocation_count",
                "The total number of CPUs exclusively allocated to containers running on this node",
            ),
            cpu_by_node: m.gauges_of(
                "kubelet_cpu_manager_allocation_per_numa",
                "Number of CPUs allocated per NUMA node",
                &["numa_node"],
            ),
            memory_requests: m.counter(
                "kubelet_memory_manager_pinning_requests_total",
                "The number of memory pages allocations which required pinning.",
            ),
            memory_errors: m.counter(
                "kubelet_memory_manager_pinning_errors_total",
                "The number of memory pages allocations which required pinning that failed.",
            ),
            aligned: m.counters(
                "kubelet_container_aligned_compute_resources_count",
                "Cumulative number of aligned compute resources allocated to containers by alignment type.",
                &places,
            ),
            unaligned: m.counters(
                "kubelet_container_aligned_compute_resources_failure_count",
                "Cumulative number of failures to allocate aligned compute resources to containers by alignment type.",
                &places,
            ),
            topology_requests: m.counter(
                "kubelet_topology_manager_admission_requests_total",
                "The number of admission requests where resources have to be aligned.",
            ),
            topology_errors: m.counter(
                "kubelet_topology_manager_admission_errors_total",
                "The number of admission request failures where resources could not be aligned.",
            ),
            topology_duration: m.histogram(
                "kubelet_topology_manager_admission_duration_ms",
                "Duration in milliseconds to serve a pod admission request.",
                &exponential_buckets(0.05, 2.0, 15).unwrap_or_default(),
            ),
        }
    }
}
