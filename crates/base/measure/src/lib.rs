//! What a program measures, as Prometheus reads it.
//!
//! A program has one [`Measures`] and gives it to its parts. Each part asks for its families by name; a family that several
//! ask for is one and the same. So whatever runs together in a process, nothing is told twice; and as nothing is global,
//! two clusters in one test don't count for each other.
//!
//! What can be read when somebody asks isn't kept: a hook reads it [before](Measures::before) the page is made.

pub mod golden;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{Opts, Registry, TextEncoder};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

pub use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

/// Says whether what it reads is still there.
type Hook = Box<dyn Fn() -> bool + Send + Sync>;
type Writer = Box<dyn Fn(&mut String) + Send + Sync>;

#[derive(Clone, Default)]
pub struct Measures(Arc<Inner>);

#[derive(Default)]
struct Inner {
    registry: Registry,
    families: Mutex<HashMap<String, Box<dyn Any + Send>>>,
    hooks: Mutex<Vec<Hook>>,
    writers: Mutex<Vec<Writer>>,
}

impl std::fmt::Debug for Measures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Measures")
    }
}

impl Measures {
    /// The family of this name. A name that is wrong, or another kind's, is a fault of the code that asks, which that
    /// component's test of its page finds; then it counts for itself.
    fn family<C>(&self, name: &str, make: impl FnOnce() -> prometheus::Result<C>) -> C
    where
        C: Collector + Clone + Send + 'static,
    {
        let mut families = self.0.families.lock();
        if let Some(known) = families.get(name).and_then(|f| f.downcast_ref::<C>()) {
            return known.clone();
        }
        #[allow(clippy::expect_used)]
        let made = make().expect("families are well formed");
        match self.0.registry.register(Box::new(made.clone())) {
            Ok(()) => drop(families.insert(name.to_owned(), Box::new(made.clone()))),
            Err(e) => tracing::error!("the metric {name} can't be told: {e}"),
        }
        made
    }

    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.family(name, || IntCounter::new(name, help))
    }
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.family(name, || IntCounterVec::new(Opts::new(name, help), labels))
    }
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.family(name, || IntGauge::new(name, help))
    }
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.family(name, || IntGaugeVec::new(Opts::new(name, help), labels))
    }
    /// Gauges of fractions.
    pub fn reals(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.family(name, || GaugeVec::new(Opts::new(name, help), labels))
    }
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.family(name, || {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec()))
        })
    }
    pub fn histograms(&self, name: &str, help: &str, bounds: &[f64], labels: &[&str]) -> HistogramVec {
        self.family(name, || {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), labels)
        })
    }

    /// Runs each time before the page is made, until it says that what it reads is gone.
    pub fn before(&self, hook: impl Fn() -> bool + Send + Sync + 'static) {
        self.0.hooks.lock().push(Box::new(hook));
    }

    /// Adds lines to the page, in the text format.
    pub fn add(&self, writer: impl Fn(&mut String) + Send + Sync + 'static) {
        self.0.writers.lock().push(Box::new(writer));
    }

    /// The page, in Prometheus' text format. Families that nothing was counted in are left out.
    pub fn page(&self) -> String {
        let families = {
            // What a hook takes away to tell it anew, another reader must not miss.
            let mut hooks = self.0.hooks.lock();
            hooks.retain(|hook| hook());
            self.0.registry.gather()
        };
        let mut page = String::new();
        if let Err(e) = TextEncoder::new().encode_utf8(&families, &mut page) {
            tracing::error!("encoding the metrics failed: {e}");
        }
        for writer in self.0.writers.lock().iter() {
            writer(&mut page);
        }
        page
    }
}

/// So many bounds, each so many times the one before: the same numbers as Go's client makes.
pub fn exponential(start: f64, factor: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |last| Some(last * factor))
        .take(count)
        .collect()
}

/// So many bounds, each by so much above the one before.
pub fn linear(start: f64, width: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |last| Some(last + width))
        .take(count)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_family_asked_for_twice_is_the_same_and_told_once() {
        let measures = Measures::default();
        let ask = || measures.counters("requests_total", "Requests.", &["code"]);
        ask().with_label_values(&["200"]).inc();
        ask().with_label_values(&["200"]).inc();
        measures.gauge("depth", "Depth.").set(7);
        let page = measures.page();
        assert!(page.contains("requests_total{code=\"200\"} 2\n"), "{page}");
        assert_eq!(golden::repeated(&page), Vec::<String>::new());
        assert!(!Measures::default().page().contains("requests_total"));
    }

    #[test]
    fn hooks_run_before_each_page_until_what_they_read_is_gone() {
        let measures = Measures::default();
        let (gauge, there) = (measures.gauge("n", "N."), Arc::new(AtomicBool::new(true)));
        let seen = there.clone();
        measures.before(move || {
            gauge.inc();
            seen.load(Ordering::Relaxed)
        });
        measures.add(|page| page.push_str("more 1\n"));
        assert!(measures.page().contains("\nn 1\nmore 1\n"));
        there.store(false, Ordering::Relaxed);
        assert!(measures.page().contains("\nn 2\n"));
        assert!(measures.page().contains("\nn 2\n"));
    }

    #[test]
    fn bounds_are_those_that_go_makes() {
        let times: Vec<String> = exponential(10e-9, 10.0, 10).iter().map(f64::to_string).collect();
        assert_eq!(times[3], "0.000009999999999999999");
        assert_eq!(exponential(0.001, 2.0, 15)[14], 16.384);
        assert_eq!(linear(60.0, 5.0, 12)[11], 115.0);
    }
}
