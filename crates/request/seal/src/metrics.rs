//! What upstream counts of values that are sealed and opened, under its names, in the Prometheus text format.
//!
//! Labels come from the configuration, but for ids of keys, of which no more than [`MOST_KEYS`] are shown at a time.

use crate::kms::hash;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Upstream's.
const MOST_KEYS: usize = 100;

/// By labels as they are written, without braces.
#[derive(Default)]
pub struct Metrics(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    operations: BTreeMap<String, u64>,
    latencies: BTreeMap<String, Histogram>,
    seeds_missed: u64,
    seeds: BTreeMap<String, usize>,
    calls: BTreeMap<String, Histogram>,
    /// How often, and when last.
    keys: BTreeMap<String, (u64, f64)>,
    told: BTreeMap<String, f64>,
    invalid: BTreeMap<String, u64>,
    reloads: BTreeMap<&'static str, (u64, f64)>,
    config: String,
}

struct Histogram {
    /// Each twice the one before.
    first: f64,
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    fn new(first: f64, buckets: usize) -> Histogram {
        Histogram {
            first,
            counts: vec![0; buckets],
            sum: 0.0,
            count: 0,
        }
    }

    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.sum += seconds;
        self.count += 1;
        let mut bound = self.first;
        for count in &mut self.counts {
            if seconds <= bound {
                *count += 1;
            }
            bound *= 2.0;
        }
    }

    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let mut bound = self.first;
        for count in &self.counts {
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            bound *= 2.0;
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {}", self.count);
    }
}

fn now() -> f64 {
    keelson_clock::now().as_millisecond() as f64 / 1000.0
}

/// Room for one more key, by giving up the one used longest ago.
fn room<T>(map: &mut BTreeMap<String, T>, labels: &str, last: impl Fn(&T) -> f64) {
    if map.len() >= MOST_KEYS && !map.contains_key(labels) {
        let oldest = map.iter().min_by(|a, b| last(a.1).total_cmp(&last(b.1)));
        if let Some(oldest) = oldest.map(|(labels, _)| labels.clone()) {
            map.remove(&oldest);
        }
    }
}

impl Metrics {
    /// A value was sealed (`to_storage`) or opened (`from_storage`).
    pub(crate) fn transformed(&self, resource: &str, kind: &str, prefix: &str, ok: bool, took: Duration) {
        let status = if ok { "OK" } else { "unknown-non-grpc" };
        let by = format!("transformation_type=\"{kind}\",transformer_prefix=\"{prefix}\"");
        let mut counted = self.0.lock();
        let labels = format!("resource=\"{resource}\",status=\"{status}\",{by}");
        *counted.operations.entry(labels).or_default() += 1;
        if ok {
            let latencies = counted.latencies.entry(by);
            latencies.or_insert_with(|| Histogram::new(5e-6, 25)).observe(took);
        }
    }

    pub(crate) fn seed_missed(&self) {
        self.0.lock().seeds_missed += 1;
    }

    pub(crate) fn seeds(&self, provider: &str, count: usize) {
        self.0
            .lock()
            .seeds
            .insert(format!("provider_name=\"{provider}\""), count);
    }

    /// A plug-in was called.
    pub(crate) fn asked(&self, provider: &str, method: &str, code: &str, took: Duration) {
        let labels = format!("grpc_status_code=\"{code}\",method_name=\"{method}\",provider_name=\"{provider}\"");
        let mut counted = self.0.lock();
        let calls = counted.calls.entry(labels);
        calls.or_insert_with(|| Histogram::new(1e-4, 20)).observe(took);
    }

    pub(crate) fn key_used(&self, kind: &str, provider: &str, key_id: &str) {
        let id = hash(key_id);
        let labels = format!("key_id_hash=\"{id}\",provider_name=\"{provider}\",transformation_type=\"{kind}\"");
        let mut counted = self.0.lock();
        room(&mut counted.keys, &labels, |(_, last)| *last);
        let (count, last) = counted.keys.entry(labels).or_default();
        *count += 1;
        *last = now();
    }

    pub(crate) fn key_told(&self, provider: &str, key_id: &str) {
        let labels = format!("key_id_hash=\"{}\",provider_name=\"{provider}\"", hash(key_id));
        let mut counted = self.0.lock();
        room(&mut counted.told, &labels, |last| *last);
        counted.told.insert(labels, now());
    }

    pub(crate) fn invalid_key(&self, provider: &str, code: &str) {
        let labels = format!("error=\"{code}\",provider_name=\"{provider}\"");
        *self.0.lock().invalid.entry(labels).or_default() += 1;
    }

    pub(crate) fn reloaded(&self, ok: bool) {
        let status = if ok { "success" } else { "failure" };
        let mut counted = self.0.lock();
        let (count, last) = counted.reloads.entry(status).or_default();
        *count += 1;
        *last = now();
    }

    pub(crate) fn config(&self, hash: &str) {
        self.0.lock().config = hash.into();
    }

    /// Adds what has been counted; a family of which nothing has been has no lines.
    pub fn write(&self, out: &mut String) {
        let counted = self.0.lock();
        let storage = "apiserver_storage";
        let kms = "apiserver_envelope_encryption";
        let controller = "apiserver_encryption_config_controller";
        let operations = counted.operations.iter().map(|(l, n)| (l.clone(), n.to_string()));
        family(
            out,
            &format!("{storage}_transformation_operations_total"),
            "counter",
            operations,
        );
        histograms(
            out,
            &format!("{storage}_transformation_duration_seconds"),
            &counted.latencies,
        );
        if counted.seeds_missed > 0 {
            let name = format!("{storage}_envelope_transformation_cache_misses_total");
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {}", counted.seeds_missed);
        }
        let seeds = counted.seeds.iter().map(|(l, n)| (l.clone(), n.to_string()));
        family(out, &format!("{kms}_dek_source_cache_size"), "gauge", seeds);
        histograms(out, &format!("{kms}_kms_operations_latency_seconds"), &counted.calls);
        let keys = counted.keys.iter().map(|(l, (n, _))| (l.clone(), n.to_string()));
        family(out, &format!("{kms}_key_id_hash_total"), "counter", keys);
        let last = counted.keys.iter().map(|(l, (_, at))| (l.clone(), at.to_string()));
        family(out, &format!("{kms}_key_id_hash_last_timestamp_seconds"), "gauge", last);
        let told = counted.told.iter().map(|(l, at)| (l.clone(), at.to_string()));
        family(
            out,
            &format!("{kms}_key_id_hash_status_last_timestamp_seconds"),
            "gauge",
            told,
        );
        let invalid = counted.invalid.iter().map(|(l, n)| (l.clone(), n.to_string()));
        family(
            out,
            &format!("{kms}_invalid_key_id_from_status_total"),
            "counter",
            invalid,
        );
        let status = |status: &&str| format!("status=\"{status}\"");
        let reloads = counted.reloads.iter().map(|(s, (n, _))| (status(s), n.to_string()));
        family(
            out,
            &format!("{controller}_automatic_reloads_total"),
            "counter",
            reloads,
        );
        let last = counted.reloads.iter().map(|(s, (_, at))| (status(s), at.to_string()));
        family(
            out,
            &format!("{controller}_automatic_reload_last_timestamp_seconds"),
            "gauge",
            last,
        );
        if !counted.config.is_empty() {
            let info = [(format!("hash=\"{}\"", counted.config), "1".to_string())];
            family(
                out,
                &format!("{controller}_last_config_info"),
                "gauge",
                info.into_iter(),
            );
        }
    }
}

fn family(out: &mut String, name: &str, kind: &str, lines: impl Iterator<Item = (String, String)>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        let _ = writeln!(out, "# TYPE {name} {kind}");
    }
    for (labels, value) in lines {
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
}

fn histograms(out: &mut String, name: &str, all: &BTreeMap<String, Histogram>) {
    if !all.is_empty() {
        let _ = writeln!(out, "# TYPE {name} histogram");
    }
    for (labels, histogram) in all {
        histogram.write(name, labels, out);
    }
}
