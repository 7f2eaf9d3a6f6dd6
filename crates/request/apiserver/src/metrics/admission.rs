//! What admission takes, and what webhooks answer.

use keelson_measure::{Histogram, HistogramVec, IntCounterVec, Measures};
use keelson_registry::Operation;
use std::sync::OnceLock;
use std::time::Duration;

/// Seconds.
const TIMES: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

/// Which half of admission a plug-in belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Mutating,
    Validating,
}

impl Phase {
    /// As it is called of plug-ins and steps.
    fn step(self) -> &'static str {
        match self {
            Phase::Mutating => "admit",
            Phase::Validating => "validate",
        }
    }
    /// As it is called of webhooks.
    fn hook(self) -> &'static str {
        match self {
            Phase::Mutating => "admit",
            Phase::Validating => "validating",
        }
    }
}

/// How a webhook's call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    Allowed,
    Denied(u16),
    /// It couldn't be asked, which counts for it or against it.
    Failed {
        code: u16,
        open: bool,
    },
    /// The server itself failed.
    Broken,
}

pub struct AdmissionMetrics {
    steps: HistogramVec,
    plugins: HistogramVec,
    webhooks: HistogramVec,
    requests: IntCounterVec,
    rejections: IntCounterVec,
    failed_open: IntCounterVec,
}

impl AdmissionMetrics {
    pub fn new(m: &Measures) -> Self {
        let name = |of: &str| format!("apiserver_admission_{of}");
        let short = &TIMES[..6];
        let plugin = ["name", "type", "operation", "rejected"];
        AdmissionMetrics {
            steps: m.histograms(
                &name("step_admission_duration_seconds"),
                "Time of a half of admission",
                short,
                &plugin[1..],
            ),
            plugins: m.histograms(
                &name("controller_admission_duration_seconds"),
                "Time of a plug-in of admission",
                short,
                &plugin,
            ),
            webhooks: m.histograms(
                &name("webhook_admission_duration_seconds"),
                "Time of a webhook",
                TIMES,
                &plugin,
            ),
            requests: m.counters(
                &name("webhook_request_total"),
                "Calls of webhooks",
                &["name", "type", "operation", "code", "rejected"],
            ),
            rejections: m.counters(
                &name("webhook_rejection_count"),
                "Requests that a webhook didn't let through",
                &["name", "type", "operation", "error_type", "rejection_code"],
            ),
            failed_open: m.counters(
                &name("webhook_fail_open_count"),
                "Requests that went on without a webhook's answer",
                &["name", "type"],
            ),
        }
    }

    pub fn step(&self, phase: Phase, op: Operation, took: Duration, good: bool) {
        self.steps
            .with_label_values(&[phase.step(), op.as_str(), rejected(!good)])
            .observe(took.as_secs_f64());
    }

    pub fn plugin(&self, cells: &Cells, name: &str, phase: Phase, op: Operation, took: Duration, good: bool) {
        let cell = &cells.0[op as usize][usize::from(good)];
        let labels = [name, phase.step(), op.as_str(), rejected(!good)];
        cell.get_or_init(|| self.plugins.with_label_values(&labels))
            .observe(took.as_secs_f64());
    }

    pub fn webhook(&self, name: &str, phase: Phase, op: Operation, took: Duration, called: Called) {
        let (kind, op) = (phase.hook(), op.as_str());
        let (code, refused, why) = match called {
            Called::Allowed => (200, false, None),
            Called::Denied(code) => (code.min(600), true, Some("no_error")),
            Called::Failed { code, open } => (code, !open, (!open).then_some("calling_webhook_error")),
            Called::Broken => (0, true, Some("apiserver_internal_error")),
        };
        let code = code.to_string();
        let refused = rejected(refused);
        self.webhooks
            .with_label_values(&[name, kind, op, refused])
            .observe(took.as_secs_f64());
        self.requests.with_label_values(&[name, kind, op, &code, refused]).inc();
        if let Some(why) = why {
            self.rejections.with_label_values(&[name, kind, op, why, &code]).inc();
        }
        if matches!(called, Called::Failed { open: true, .. }) {
            self.failed_open.with_label_values(&[name, kind]).inc();
        }
    }
}

fn rejected(so: bool) -> &'static str {
    if so { "true" } else { "false" }
}

/// A plug-in's series, by operation and outcome: found once.
#[derive(Default)]
pub struct Cells([[OnceLock<Histogram>; 2]; 4]);
