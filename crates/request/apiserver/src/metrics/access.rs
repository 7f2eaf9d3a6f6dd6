//! Who asks and whether they may, and what flow control makes of it.

use super::requests::InFlight;
use crate::authz::{Decision, Verdict};
use crate::flow::{Class, LevelUsage, TooMany};
use keelson_measure::{Histogram, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Measures, exponential};
use std::time::Duration;

pub struct Access {
    attempts: IntCounterVec,
    authentication: HistogramVec,
    users: IntCounterVec,
    certificates: Histogram,
    authorizations: IntCounterVec,
    authorization: HistogramVec,
}

const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;

impl Access {
    pub fn new(m: &Measures) -> Self {
        let result = ["result"];
        let times = exponential(0.001, 2.0, 15);
        let left = [
            0.0,
            30.0 * MINUTE,
            HOUR,
            2.0 * HOUR,
            6.0 * HOUR,
            12.0 * HOUR,
            DAY,
            2.0 * DAY,
            4.0 * DAY,
            7.0 * DAY,
            30.0 * DAY,
            90.0 * DAY,
            180.0 * DAY,
            360.0 * DAY,
        ];
        Access {
            attempts: m.counters("authentication_attempts", "Authentications by result", &result),
            authentication: m.histograms(
                "authentication_duration_seconds",
                "Time that authentications took",
                &times,
                &result,
            ),
            users: m.counters(
                "authenticated_user_requests",
                "Authenticated requests by sort of user",
                &["username"],
            ),
            certificates: m.histogram(
                "apiserver_client_certificate_expiration_seconds",
                "What was left of the certificates by which requests were authenticated",
                &left,
            ),
            authorizations: m.counters("authorization_attempts_total", "Authorizations by result", &result),
            authorization: m.histograms(
                "authorization_duration_seconds",
                "Time that authorizations took",
                &times,
                &result,
            ),
        }
    }

    /// How an authentication ended, and who the user is.
    pub fn authenticated(&self, user: Option<&str>, took: Duration) {
        let result = [if user.is_some() { "success" } else { "failure" }];
        self.attempts.with_label_values(&result).inc();
        self.authentication
            .with_label_values(&result)
            .observe(took.as_secs_f64());
        if let Some(user) = user {
            self.users.with_label_values(&[sort(user)]).inc();
        }
    }

    pub fn by_certificate(&self, seconds_left: i64) {
        self.certificates.observe(seconds_left as f64);
    }

    pub fn authorized(&self, verdict: &Verdict, took: Duration) {
        let result = [match (&verdict.decision, &verdict.error) {
            (Decision::Allow(_), _) => "allowed",
            (_, Some(_)) => "error",
            (Decision::Deny(_), _) => "denied",
            (Decision::NoOpinion(_), _) => "no-opinion",
        }];
        self.authorizations.with_label_values(&result).inc();
        self.authorization
            .with_label_values(&result)
            .observe(took.as_secs_f64());
    }
}

/// As upstream shortens names: there are as many as there are users.
fn sort(user: &str) -> &str {
    match user {
        "admin" | "client" | "kube_proxy" | "kubelet" | "system:serviceaccount:kube-system:default" => user,
        _ if user.contains('@') => "email_id",
        _ => "other",
    }
}

/// Seconds that requests wait for seats.
const WAITS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const FLOW: [&str; 2] = ["priority_level", "flow_schema"];

pub struct Flow {
    executing: IntGaugeVec,
    waiting: IntGaugeVec,
    dispatched: IntCounterVec,
    rejected: IntCounterVec,
    waits: HistogramVec,
    nominal: IntGaugeVec,
    limit: IntGaugeVec,
}

impl Flow {
    pub fn new(m: &Measures) -> Self {
        let level = ["priority_level"];
        Flow {
            executing: m.gauges(
                "apiserver_flowcontrol_current_executing_requests",
                "Requests that have seats",
                &FLOW,
            ),
            waiting: m.gauges(
                "apiserver_flowcontrol_current_inqueue_requests",
                "Requests that wait for seats",
                &FLOW,
            ),
            dispatched: m.counters(
                "apiserver_flowcontrol_dispatched_requests_total",
                "Requests that got seats",
                &FLOW,
            ),
            rejected: m.counters(
                "apiserver_flowcontrol_rejected_requests_total",
                "Requests that got no seats",
                &[FLOW[0], FLOW[1], "reason"],
            ),
            waits: m.histograms(
                "apiserver_flowcontrol_request_wait_duration_seconds",
                "Time that requests waited for seats",
                WAITS,
                &[FLOW[0], FLOW[1], "execute"],
            ),
            nominal: m.gauges(
                "apiserver_flowcontrol_nominal_limit_seats",
                "Seats of a priority level by its shares",
                &level,
            ),
            limit: m.gauges(
                "apiserver_flowcontrol_current_limit_seats",
                "Seats of a priority level with what is lent and borrowed",
                &level,
            ),
        }
    }

    pub fn waits(&self, class: &Class) -> InFlight {
        InFlight::of(self.waiting.with_label_values(&[&*class.level, &*class.schema]))
    }

    /// A request's wait has ended; with seats, what counts them is returned. `again`: it had seats before, and was told of.
    pub fn waited(&self, class: &Class, took: Duration, refused: Option<&TooMany>, again: bool) -> Option<IntGauge> {
        let of = [&*class.level, &*class.schema];
        let execute = if refused.is_none() { "true" } else { "false" };
        if !again {
            let waits = self.waits.with_label_values(&[of[0], of[1], execute]);
            waits.observe(took.as_secs_f64());
        }
        match refused {
            Some(TooMany(reason)) => {
                self.rejected.with_label_values(&[of[0], of[1], reason]).inc();
                None
            }
            None => {
                if !again {
                    self.dispatched.with_label_values(&of).inc();
                }
                Some(self.executing.with_label_values(&of))
            }
        }
    }

    pub fn levels(&self, usage: &[LevelUsage]) {
        self.nominal.reset();
        self.limit.reset();
        for level in usage {
            let name = [&*level.level];
            self.nominal.with_label_values(&name).set(level.nominal as i64);
            self.limit.with_label_values(&name).set(level.limit as i64);
        }
    }
}
