//! What the proxy tells, under kube-proxy's names.

use keelson_measure::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, Measures, exponential};
use keelson_sys::nft::Family;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub struct Told {
    syncs: HistogramVec,
    whole: HistogramVec,
    partial: HistogramVec,
    last: GaugeVec,
    queued: GaugeVec,
    failures: IntCounterVec,
    pub services: Changes,
    pub endpoints: Changes,
}

/// Of services, or of endpoints.
#[derive(Clone)]
pub struct Changes {
    total: IntCounter,
    pending: IntGauge,
}

impl Changes {
    fn new(m: &Measures, what: &str) -> Changes {
        let name = |of: &str| format!("kubeproxy_sync_proxy_rules_{what}_changes_{of}");
        Changes {
            total: m.counter(&name("total"), "Changes that were seen"),
            pending: m.gauge(&name("pending"), "Changes that are in no rules yet"),
        }
    }
    pub fn seen(&self) {
        self.total.inc();
        self.pending.inc();
    }
    /// What was seen is being taken in.
    pub fn taken(&self) {
        self.pending.set(0);
    }
}

fn family(of: Family) -> [&'static str; 1] {
    match of {
        Family::Ip6 => ["IPv6"],
        // The proxy has no table of both.
        Family::Ip | Family::Inet => ["IPv4"],
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

impl Told {
    pub fn new(m: &Measures) -> Arc<Told> {
        let name = |of: &str| format!("kubeproxy_{of}");
        let (times, by) = (exponential(0.001, 2.0, 15), ["ip_family"]);
        Arc::new(Told {
            syncs: m.histograms(
                &name("sync_proxy_rules_duration_seconds"),
                "Time of a change of rules",
                &times,
                &by,
            ),
            whole: m.histograms(
                &name("sync_full_proxy_rules_duration_seconds"),
                "Time of writing all rules",
                &times,
                &by,
            ),
            partial: m.histograms(
                &name("sync_partial_proxy_rules_duration_seconds"),
                "Time of writing what changed",
                &times,
                &by,
            ),
            last: m.reals(
                &name("sync_proxy_rules_last_timestamp_seconds"),
                "When rules were last brought up to date",
                &by,
            ),
            queued: m.reals(
                &name("sync_proxy_rules_last_queued_timestamp_seconds"),
                "When something last changed that rules come from",
                &by,
            ),
            failures: m.counters(
                &name("sync_proxy_rules_nftables_sync_failures_total"),
                "Changes of rules that were refused",
                &by,
            ),
            services: Changes::new(m, "service"),
            endpoints: Changes::new(m, "endpoint"),
        })
    }

    pub fn queued(&self, of: Family) {
        self.queued.with_label_values(&family(of)).set(now());
    }

    /// A family's rules were written, or were to be.
    pub fn synced(&self, of: Family, whole: bool, took: Duration, good: bool) {
        let of = family(of);
        if !good {
            return self.failures.with_label_values(&of).inc();
        }
        let part = if whole { &self.whole } else { &self.partial };
        for times in [&self.syncs, part] {
            times.with_label_values(&of).observe(took.as_secs_f64());
        }
        self.last.with_label_values(&of).set(now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_measure::golden;

    #[test]
    fn families_are_upstreams_and_each_is_told_once() {
        let measures = Measures::default();
        let told = Told::new(&measures);
        told.queued(Family::Ip);
        told.synced(Family::Ip, true, Duration::from_millis(3), true);
        told.synced(Family::Ip6, false, Duration::from_millis(3), true);
        told.synced(Family::Ip6, false, Duration::from_millis(3), false);
        told.services.seen();
        told.endpoints.seen();
        told.endpoints.taken();
        let page = measures.page();
        let wrong = golden::differences(&page, include_str!("told.txt"), &[]);
        assert!(wrong.is_empty(), "{}\n{page}", wrong.join("\n"));
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.004\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_pending 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }
}
