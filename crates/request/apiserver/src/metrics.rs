//! `/metrics`: counted under upstream's names, written in the Prometheus text format.
//!
//! What is counted for each request allocates nothing: series are found by labels that stand somewhere already.

mod access;
mod admission;
mod impersonation;
pub mod process;
mod requests;
mod store;
#[cfg(test)]
mod tests;

pub use admission::{AdmissionMetrics, Called, Cells, Phase};
pub use requests::{InFlight, Terminated, WatchEvents};

use crate::aggregation::Services;
use crate::flow::LevelUsage;
use crate::version;
use access::{Access, Flow};
pub use impersonation::Impersonations;
use keelson_measure::{IntCounter, IntCounterVec, IntGaugeVec, Measures};
use parking_lot::Mutex;
use requests::Requests;
use std::sync::Arc;
pub use store::StoreMetrics;

pub struct Metrics {
    measures: Measures,
    /// One reader at a time.
    reading: Mutex<()>,
    pub requests: Requests,
    pub access: Access,
    pub impersonations: Impersonations,
    pub flow: Flow,
    pub admission: Arc<AdmissionMetrics>,
    pub store: Arc<StoreMetrics>,
    pub failed_handshakes: IntCounter,
    unavailable: IntGaugeVec,
    became_unavailable: IntCounterVec,
}

impl Metrics {
    pub fn new(measures: Measures) -> Self {
        let m = &measures;
        version::tell(m);
        Metrics {
            requests: Requests::new(m),
            access: Access::new(m),
            impersonations: Impersonations::new(m),
            flow: Flow::new(m),
            admission: Arc::new(AdmissionMetrics::new(m)),
            store: Arc::new(StoreMetrics::new(m)),
            failed_handshakes: m.counter(
                "apiserver_tls_handshake_errors_total",
                "Connections that came to no TLS session",
            ),
            unavailable: m.gauges(
                "aggregator_unavailable_apiservice",
                "Whether an APIService's server can't be reached",
                &["name"],
            ),
            became_unavailable: m.counters(
                "aggregator_unavailable_apiservice_total",
                "How often an APIService's server couldn't be reached any more",
                &["name", "reason"],
            ),
            measures,
            reading: Mutex::default(),
        }
    }

    /// Adds a writer of further lines, in the text format.
    pub fn add(&self, extra: impl Fn(&mut String) + Send + Sync + 'static) {
        self.measures.add(extra);
    }

    pub fn unavailable(&self, service: &str, reason: &str) {
        self.became_unavailable.with_label_values(&[service, reason]).inc();
    }

    /// The page, with what isn't kept as it is told now. `size`: bytes of the store, if it says.
    pub fn told(
        &self,
        usage: &[LevelUsage],
        objects: &[(keelson_api::Str, keelson_api::Str, usize)],
        services: &Services,
        size: Option<u64>,
    ) -> String {
        // What one reader has taken away, to tell it anew, another must not miss.
        let _one = self.reading.lock();
        self.store.size(size);
        self.flow.levels(usage);
        self.store.objects(objects);
        self.unavailable.reset();
        for service in services.remote() {
            let gauge = self.unavailable.with_label_values(&[&*service.name]);
            gauge.set(i64::from(!service.available));
        }
        self.page()
    }

    fn page(&self) -> String {
        let mut page = self.measures.page();
        process::write(&mut page);
        page
    }
}
