//! Requests to the store, as kube-apiserver counts those to etcd, whichever store it is; and what is in it.

use super::requests::SECONDS;
use keelson_api::GroupResource;
use keelson_measure::{HistogramVec, IntCounterVec, IntGaugeVec, Measures};
use keelson_registry::engine::Observer;
use std::time::Duration;

/// What upstream calls its only store, unless resources have others.
const CLUSTER: &str = "etcd-0";

pub struct StoreMetrics {
    durations: HistogramVec,
    total: IntCounterVec,
    errors: IntCounterVec,
    objects: IntGaugeVec,
    size: IntGaugeVec,
    compared: IntCounterVec,
}

impl StoreMetrics {
    pub fn new(m: &Measures) -> Self {
        let of = ["operation", "group", "resource"];
        StoreMetrics {
            durations: m.histograms(
                "etcd_request_duration_seconds",
                "Time of requests to the store",
                SECONDS,
                &of,
            ),
            total: m.counters("etcd_requests_total", "Requests to the store", &of),
            errors: m.counters("etcd_request_errors_total", "Requests to the store that failed", &of),
            objects: m.gauges("apiserver_resource_objects", "Objects that are stored", &of[1..]),
            size: m.gauges(
                "apiserver_storage_size_bytes",
                "Bytes of the store's files",
                &["storage_cluster_id"],
            ),
            compared: m.counters(
                "apiserver_storage_consistency_checks_total",
                "Comparisons of caches with the store, by what came of them",
                &["group", "resource", "status"],
            ),
        }
    }

    /// How many objects there are, as the caches have them: of each resource that somebody has asked for.
    pub fn objects(&self, counts: &[(keelson_api::Str, keelson_api::Str, usize)]) {
        self.objects.reset();
        for (group, resource, count) in counts {
            self.objects
                .with_label_values(&[&**group, &**resource])
                .set(*count as i64);
        }
    }

    /// What came of a comparison of a resource's cache with the store.
    pub fn compared(&self, of: &GroupResource, status: &str) {
        self.compared
            .with_label_values(&[&*of.group, &*of.resource, status])
            .inc();
    }

    pub fn size(&self, bytes: Option<u64>) {
        self.size.reset();
        if let Some(bytes) = bytes {
            self.size.with_label_values(&[CLUSTER]).set(bytes as i64);
        }
    }
}

impl Observer for StoreMetrics {
    fn asked(&self, of: &GroupResource, operation: &'static str, took: Duration, good: bool) {
        let labels = [operation, &*of.group, &*of.resource];
        self.durations.with_label_values(&labels).observe(took.as_secs_f64());
        self.total.with_label_values(&labels).inc();
        if !good {
            self.errors.with_label_values(&labels).inc();
        }
    }
}
