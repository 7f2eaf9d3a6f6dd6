//! What the registry counts.

use crate::store::{Collected, Store};
use http::{Method, StatusCode};
use keelson_measure::{HistogramVec, IntCounter, IntCounterVec, Measures, exponential};
use std::sync::{Arc, Weak};
use std::time::Duration;

#[derive(Clone)]
pub struct Measured {
    requests: IntCounterVec,
    seconds: HistogramVec,
    pub received: IntCounter,
    pub sent: IntCounter,
    collected: IntCounterVec,
    pub fetched: IntCounterVec,
}

impl Measured {
    pub fn new(measures: &Measures, store: &Arc<Store>) -> Measured {
        let kept = measures.gauge("keelson_registry_kept_bytes", "Bytes of content and of uploads.");
        let uploads = measures.gauge("keelson_registry_uploads", "Uploads under way.");
        let store: Weak<Store> = Arc::downgrade(store);
        measures.before(move || match store.upgrade() {
            Some(store) => {
                kept.set(i64::try_from(store.kept()).unwrap_or(i64::MAX));
                uploads.set(i64::try_from(store.uploads()).unwrap_or(i64::MAX));
                true
            }
            None => false,
        });
        Measured {
            requests: measures.counters(
                "keelson_registry_requests_total",
                "Requests, by what they were for.",
                &["method", "kind", "code"],
            ),
            seconds: measures.histograms(
                "keelson_registry_request_duration_seconds",
                "Time until an answer's first byte.",
                &exponential(0.001, 4.0, 8),
                &["kind"],
            ),
            received: measures.counter("keelson_registry_received_bytes_total", "Bytes of blobs that came."),
            sent: measures.counter("keelson_registry_sent_bytes_total", "Bytes of blobs that were sent."),
            collected: measures.counters(
                "keelson_registry_collected_total",
                "What the collection removed.",
                &["what"],
            ),
            fetched: measures.counters(
                "keelson_registry_fetched_total",
                "What was asked of registries behind this one.",
                &["registry", "what"],
            ),
        }
    }

    pub fn answered(&self, method: &Method, kind: &str, status: StatusCode, after: Duration) {
        // Methods of strangers' own making would be labels without end.
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "PUT" | "POST" | "PATCH" | "DELETE") => known,
            _ => "other",
        };
        self.requests.with_label_values(&[method, kind, status.as_str()]).inc();
        self.seconds.with_label_values(&[kind]).observe(after.as_secs_f64());
    }

    pub fn collected(&self, done: &Collected) {
        for (what, count) in [
            ("manifests", done.manifests),
            ("blobs", done.blobs),
            ("bytes", done.bytes),
        ] {
            self.collected.with_label_values(&[what]).inc_by(count);
        }
    }
}
