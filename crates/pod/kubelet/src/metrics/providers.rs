//! What is counted of credential providers.

use super::Maker;
use prometheus::{DEFAULT_BUCKETS, HistogramVec, IntCounterVec, IntGaugeVec};
use std::time::Duration;

pub struct Providers {
    errors: IntCounterVec,
    duration: HistogramVec,
    config: IntGaugeVec,
}

impl Providers {
    pub(super) fn new(m: &Maker) -> Providers {
        Providers {
            errors: m.counters(
                "kubelet_credential_provider_plugin_errors_total",
                "Number of errors from credential provider plugin",
                &["plugin_name"],
            ),
            duration: m.histograms(
                "kubelet_credential_provider_plugin_duration",
                "Duration of execution in seconds for credential provider plugin",
                DEFAULT_BUCKETS,
                &["plugin_name"],
            ),
            config: m.gauges(
                "kubelet_credential_provider_config_info",
                "Information about the last applied credential provider configuration with hash as label",
                &["hash"],
            ),
        }
    }

    /// The configuration with this hash counts.
    pub fn in_force(&self, hash: &str) {
        self.config.reset();
        self.config.with_label_values(&[hash]).set(1);
    }

    pub fn called(&self, name: &str, took: Duration, good: bool) {
        self.duration.with_label_values(&[name]).observe(took.as_secs_f64());
        if !good {
            self.errors.with_label_values(&[name]).inc();
        }
    }
}
