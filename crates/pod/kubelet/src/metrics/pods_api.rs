//! What the pods API counts.

use super::Maker;
use prometheus::{IntCounter, IntCounterVec};
use tonic::Code;

pub struct PodsApi {
    all: IntCounterVec,
    list: IntCounterVec,
    get: IntCounterVec,
    watch: IntCounterVec,
    pub dropped: IntCounter,
}

impl PodsApi {
    pub(super) fn new(m: &Maker) -> PodsApi {
        let labels = ["server_api_version", "status_code"];
        let of = |name: &str, what: &str| {
            let help = format!("{what}. Broken down by server api version and status code.");
            m.counters(name, &help, &labels)
        };
        PodsApi {
            all: of(
                "kubelet_pod_requests_total",
                "Cumulative number of requests to the PodsAPI endpoint",
            ),
            list: of(
                "kubelet_pod_requests_list_total",
                "Number of requests to the PodsAPI List endpoint",
            ),
            get: of(
                "kubelet_pod_requests_get_total",
                "Number of requests to the PodsAPI Get endpoint",
            ),
            watch: of(
                "kubelet_pod_requests_watch_total",
                "Number of requests to the PodsAPI Watch endpoint",
            ),
            dropped: m.counter(
                "kubelet_pod_watch_events_dropped_total",
                "Cumulative number of pod watch events dropped.",
            ),
        }
    }

    /// A request, and what came of it.
    pub fn asked(&self, method: &str, code: Code) {
        let one = match method {
            "list" => &self.list,
            "get" => &self.get,
            _ => &self.watch,
        };
        let labels = ["v1alpha1", name(code)];
        self.all.with_label_values(&labels).inc();
        one.with_label_values(&labels).inc();
    }
}

/// As Go's gRPC calls it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::NotFound => "NotFound",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::Internal => "Internal",
        _ => "Unknown",
    }
}
