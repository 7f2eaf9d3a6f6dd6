//! Who wanted to act as another, in which mode, and what was asked for that.

use keelson_measure::{HistogramVec, IntCounterVec, Measures, exponential};
use std::time::Duration;

#[derive(Clone)]
pub struct Impersonations {
    attempts: IntCounterVec,
    attempt: HistogramVec,
    questions: IntCounterVec,
    question: HistogramVec,
}

impl Impersonations {
    pub fn new(m: &Measures) -> Self {
        let labels = ["mode", "decision"];
        let times = exponential(0.001, 2.0, 15);
        Impersonations {
            attempts: m.counters(
                "apiserver_impersonation_attempts_total",
                "Impersonations by mode and decision",
                &labels,
            ),
            attempt: m.histograms(
                "apiserver_impersonation_attempts_duration_seconds",
                "Time that it took to decide impersonations",
                &times,
                &labels,
            ),
            questions: m.counters(
                "apiserver_impersonation_authorization_attempts_total",
                "Authorizations that impersonations took, by mode and decision",
                &labels,
            ),
            question: m.histograms(
                "apiserver_impersonation_authorization_attempts_duration_seconds",
                "Time that these authorizations took",
                &times,
                &labels,
            ),
        }
    }

    /// The mode that allows it, if one does.
    pub fn attempted(&self, mode: Option<&str>, took: Duration) {
        let labels = [mode.unwrap_or_default(), decision(mode.is_some())];
        self.attempts.with_label_values(&labels).inc();
        self.attempt.with_label_values(&labels).observe(took.as_secs_f64());
    }

    pub fn authorized(&self, mode: &str, is_allowed: bool, took: Duration) {
        let labels = [mode, decision(is_allowed)];
        self.questions.with_label_values(&labels).inc();
        self.question.with_label_values(&labels).observe(took.as_secs_f64());
    }
}

fn decision(is_allowed: bool) -> &'static str {
    if is_allowed { "allowed" } else { "denied" }
}
