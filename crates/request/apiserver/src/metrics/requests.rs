//! Requests as kube-apiserver counts them: by verb and resource, how long they took, what they sent.

use crate::connect;
use crate::request::{Body, RequestContext, Response};
use http_body::Body as _;
use keelson_measure::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Measures, exponential,
};
use keelson_registry::ResourceDef;
use std::time::Duration;

/// The labels that tell a kind of request.
const KIND: [&str; 7] = [
    "verb",
    "group",
    "version",
    "resource",
    "subresource",
    "scope",
    "component",
];
const WITH_CODE: [&str; 8] = [
    "verb",
    "group",
    "version",
    "resource",
    "subresource",
    "scope",
    "component",
    "code",
];
const WITH_DRY_RUN: [&str; 8] = [
    "verb",
    "group",
    "version",
    "resource",
    "subresource",
    "scope",
    "component",
    "dry_run",
];
const WITH_BOTH: [&str; 9] = [
    "verb",
    "group",
    "version",
    "resource",
    "subresource",
    "scope",
    "component",
    "dry_run",
    "code",
];
const RESOURCE: [&str; 3] = ["group", "version", "resource"];

/// Seconds, as upstream's histograms of requests have them.
pub const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// What service levels are counted by begins at 50 ms.
const LEVEL_SECONDS: &[f64] = SECONDS.split_at(2).1;

/// A request that the server ended so as to go on itself.
#[derive(Clone, Copy)]
pub struct Terminated;

pub struct Requests {
    total: IntCounterVec,
    durations: HistogramVec,
    service_levels: HistogramVec,
    sizes: HistogramVec,
    terminated: IntCounterVec,
    inflight: IntGaugeVec,
    long_running: IntGaugeVec,
    watch_events: IntCounterVec,
    watch_sizes: HistogramVec,
}

impl Requests {
    pub fn new(m: &Measures) -> Self {
        Requests {
            total: m.counters(
                "apiserver_request_total",
                "Requests by verb, resource and code",
                &WITH_BOTH,
            ),
            durations: m.histograms(
                "apiserver_request_duration_seconds",
                "Time until the response began",
                SECONDS,
                &WITH_DRY_RUN,
            ),
            service_levels: m.histograms(
                "apiserver_request_sli_duration_seconds",
                "Time until the response began, without waiting for seats and webhooks",
                LEVEL_SECONDS,
                &KIND,
            ),
            sizes: m.histograms(
                "apiserver_response_sizes",
                "Bytes of answers to reads",
                &exponential(1000.0, 10.0, 7),
                &KIND,
            ),
            terminated: m.counters(
                "apiserver_request_terminations_total",
                "Requests that were ended because they took too long or there was no place for them",
                &WITH_CODE,
            ),
            inflight: m.gauges(
                "apiserver_current_inflight_requests",
                "Requests being served",
                &["request_kind"],
            ),
            long_running: m.gauges(
                "apiserver_longrunning_requests",
                "Watches and streams being served",
                &KIND,
            ),
            watch_events: m.counters("apiserver_watch_events_total", "Events sent to watchers", &RESOURCE),
            watch_sizes: m.histograms(
                "apiserver_watch_events_sizes",
                "Bytes of events sent to watchers",
                &exponential(1024.0, 2.0, 8),
                &RESOURCE,
            ),
        }
    }

    /// Counts a request that is being served, until what is returned is dropped.
    pub fn begin(&self, context: &RequestContext, resource: Option<&ResourceDef>) -> InFlight {
        InFlight::of(if context.info.is_long_running() {
            self.long_running.with_label_values(&labels(context, resource))
        } else if context.info.is_read_only() {
            self.inflight.with_label_values(&["readOnly"])
        } else {
            self.inflight.with_label_values(&["mutating"])
        })
    }

    /// The head of the answer is there. Its bytes are counted when they have gone.
    pub fn served(
        &self,
        context: &RequestContext,
        resource: Option<&ResourceDef>,
        answer: Response,
        took: Duration,
    ) -> Response {
        let kind = labels(context, resource);
        let [verb, group, version, name, subresource, scope, component] = kind;
        let dry_run = match context.info.query.get("dryRun") {
            None | Some("") => "",
            Some("All") => "All",
            Some(_) => "invalid",
        };
        let status = answer.status();
        let code = status.as_str();
        let by_code = [verb, group, version, name, subresource, scope, component, dry_run, code];
        self.total.with_label_values(&by_code).inc();
        if answer.extensions().get::<Terminated>().is_some() {
            let by_code = [verb, group, version, name, subresource, scope, component, code];
            self.terminated.with_label_values(&by_code).inc();
        }
        if context.info.is_long_running() {
            return answer;
        }
        let by_dry_run = [verb, group, version, name, subresource, scope, component, dry_run];
        self.durations
            .with_label_values(&by_dry_run)
            .observe(took.as_secs_f64());
        if dry_run.is_empty() {
            let own = took.saturating_sub(context.seat.waited());
            self.service_levels.with_label_values(&kind).observe(own.as_secs_f64());
        }
        if !matches!(verb, "GET" | "LIST") {
            return answer;
        }
        let sizes = self.sizes.with_label_values(&kind);
        match answer.body().size_hint().exact() {
            Some(bytes) => {
                sizes.observe(bytes as f64);
                answer
            }
            None => answer.map(|body| Body::counted(body, move |bytes| sizes.observe(bytes as f64))),
        }
    }

    /// For a watch that begins.
    pub fn watch(&self, def: &ResourceDef) -> WatchEvents {
        let labels = [&*def.gvr.group, &*def.gvr.version, &*def.gvr.resource];
        WatchEvents {
            total: self.watch_events.with_label_values(&labels),
            sizes: self.watch_sizes.with_label_values(&labels),
        }
    }
}

/// What one watch sends.
pub struct WatchEvents {
    total: IntCounter,
    sizes: Histogram,
}

impl WatchEvents {
    pub fn sent(&self, bytes: usize) {
        self.total.inc();
        self.sizes.observe(bytes as f64);
    }
}

/// Counts one request while it lives.
pub struct InFlight(IntGauge);

impl InFlight {
    pub fn of(gauge: IntGauge) -> Self {
        gauge.inc();
        InFlight(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Clients say what they like in paths and methods; they must not make endless series by it. So only what is served is
/// named.
fn labels<'a>(context: &'a RequestContext, resource: Option<&'a ResourceDef>) -> [&'a str; KIND.len()] {
    let info = &context.info;
    let verb = match info.verb.as_str() {
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "patch" if context.applies => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "proxy" => "PROXY",
        "head" => "HEAD",
        "options" => "OPTIONS",
        _ => "OTHER",
    };
    let scope = match (info.verb.as_str(), info.name.is_empty(), info.namespace.is_empty()) {
        _ if !info.is_resource_request => "",
        ("create", ..) | (_, false, _) => "resource",
        (_, true, false) => "namespace",
        (_, true, true) => "cluster",
    };
    let known = |d: &&ResourceDef| {
        info.subresource.is_empty() || d.subresource(&info.subresource).is_some() || connect::is_connect(info)
    };
    let [group, version, resource] = resource
        .filter(known)
        .map_or([""; 3], |d| [&*d.gvr.group, &*d.gvr.version, &*d.gvr.resource]);
    let subresource = match info.path.as_str() {
        path @ ("/healthz" | "/livez" | "/readyz" | "/metrics" | "/version") => path,
        _ if resource.is_empty() => "",
        _ => info.subresource.as_str(),
    };
    [verb, group, version, resource, subresource, scope, "apiserver"]
}
