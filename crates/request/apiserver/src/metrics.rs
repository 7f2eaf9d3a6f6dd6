//! `/metrics`: counted under upstream's names, written in the Prometheus text format.

use crate::connect;
use crate::request::RequestContext;
use keelson_registry::ResourceDef;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt::Write;
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    request_kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LevelLabels {
    priority_level: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new([0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0])
}

/// What other parts add to the page when it is asked for.
type Extra = Box<dyn Fn(&mut String) + Send + Sync>;

pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    inflight: Family<KindLabels, Gauge>,
    long_running: Family<DurationLabels, Gauge>,
    authentication: Family<ResultLabels, Counter>,
    authorization: Family<ResultLabels, Counter>,
    seats: Family<LevelLabels, Gauge>,
    waiting: Family<LevelLabels, Gauge>,
    extra: Mutex<Vec<Extra>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let durations = Family::<DurationLabels, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        let (requests, inflight, long_running) = (Family::default(), Family::default(), Family::default());
        let (authentication, authorization) = (Family::default(), Family::default());
        let (seats, waiting) = (Family::default(), Family::default());
        let r = &mut registry;
        r.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            Clone::clone(&requests),
        );
        r.register(
            "apiserver_request_duration_seconds",
            "Time until the response began",
            durations.clone(),
        );
        r.register(
            "apiserver_current_inflight_requests",
            "Requests being served",
            Clone::clone(&inflight),
        );
        r.register(
            "apiserver_longrunning_requests",
            "Watches and streams being served",
            Clone::clone(&long_running),
        );
        r.register(
            "authentication_attempts",
            "Authentications by result",
            Clone::clone(&authentication),
        );
        r.register(
            "apiserver_authorization_decisions",
            "Authorizations by result",
            Clone::clone(&authorization),
        );
        r.register(
            "apiserver_flowcontrol_current_executing_requests",
            "Seats in use",
            Clone::clone(&seats),
        );
        r.register(
            "apiserver_flowcontrol_current_inqueue_requests",
            "Requests that wait",
            Clone::clone(&waiting),
        );
        Metrics {
            registry,
            requests,
            durations,
            inflight,
            long_running,
            authentication,
            authorization,
            seats,
            waiting,
            extra: Mutex::default(),
        }
    }

    /// Adds a writer of further lines, in the text format.
    pub fn add(&self, extra: impl Fn(&mut String) + Send + Sync + 'static) {
        self.extra.lock().push(Box::new(extra));
    }

    pub fn authenticated(&self, ok: bool) {
        let result = if ok { "success" } else { "failure" };
        self.authentication.get_or_create(&ResultLabels { result }).inc();
    }
    pub fn authorized(&self, ok: bool) {
        let result = if ok { "allowed" } else { "denied" };
        self.authorization.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a request that is being served, until what is returned is dropped.
    pub fn begin(&self, context: &RequestContext, resource: Option<&ResourceDef>) -> InFlight {
        let gauge = if context.info.is_long_running() {
            self.long_running
                .get_or_create_owned(&duration_labels(context, resource))
        } else {
            let request_kind = if context.info.is_read_only() {
                "readOnly"
            } else {
                "mutating"
            };
            self.inflight.get_or_create_owned(&KindLabels { request_kind })
        };
        gauge.inc();
        InFlight(gauge)
    }

    pub fn served(
        &self,
        context: &RequestContext,
        resource: Option<&ResourceDef>,
        code: http::StatusCode,
        took: Duration,
    ) {
        let d = duration_labels(context, resource);
        let labels = RequestLabels {
            verb: d.verb,
            dry_run: match context.info.query.get("dryRun") {
                None | Some("") => "",
                Some("All") => "All",
                Some(_) => "invalid",
            },
            group: d.group.clone(),
            version: d.version.clone(),
            resource: d.resource.clone(),
            subresource: d.subresource.clone(),
            scope: d.scope,
            component: "apiserver",
            code: code.as_str().to_string(),
        };
        self.requests.get_or_create(&labels).inc();
        if !context.info.is_long_running() {
            self.durations.get_or_create(&d).observe(took.as_secs_f64());
        }
    }

    /// The page.
    pub fn text(&self, usage: &[(keelson_api::Str, usize, usize)]) -> String {
        for (level, seats, waiting) in usage {
            let labels = LevelLabels {
                priority_level: level.to_string(),
            };
            self.seats.get_or_create(&labels).set(*seats as i64);
            self.waiting.get_or_create(&labels).set(*waiting as i64);
        }
        let mut open_metrics = String::new();
        if let Err(e) = encode(&mut open_metrics, &self.registry) {
            tracing::error!("encoding the metrics failed: {e}");
        }
        let mut page = as_prometheus(&open_metrics);
        for extra in self.extra.lock().iter() {
            extra(&mut page);
        }
        page
    }
}

/// Counts one request while it lives.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Clients say what they like in paths and methods; they must not make endless series by it. So only what is served is
/// named.
fn duration_labels(context: &RequestContext, resource: Option<&ResourceDef>) -> DurationLabels {
    let info = &context.info;
    let verb = match info.verb.as_str() {
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
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
    let gvr = resource.filter(known).map(|d| d.gvr.clone()).unwrap_or_default();
    let subresource = match info.path.as_str() {
        path @ ("/healthz" | "/livez" | "/readyz" | "/metrics" | "/version") => path,
        _ if gvr.resource.is_empty() => "",
        _ => info.subresource.as_str(),
    };
    DurationLabels {
        verb,
        group: gvr.group.into(),
        version: gvr.version.into(),
        resource: gvr.resource.into(),
        subresource: subresource.into(),
        scope,
        component: "apiserver",
    }
}

/// OpenMetrics names the family of a counter without `_total`, and the Prometheus text format with it.
fn as_prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, text)) = help.take() {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if line != "# EOF" {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{RequestInfo, UserInfo};

    fn context(path: &str) -> RequestContext {
        let info = RequestInfo::parse(&http::Method::GET, &path.parse().unwrap()).unwrap();
        RequestContext::new(info, UserInfo::anonymous())
    }

    #[test]
    fn requests_are_counted_under_upstreams_names() {
        let metrics = Metrics::new();
        let context = context("/api/v1/namespaces/a/pods");
        let pods = keelson_registry::resources::rows()
            .into_iter()
            .find(|d| d.is("", "pods"));
        {
            let _open = metrics.begin(&context, pods.as_ref());
            assert!(
                metrics
                    .text(&[])
                    .contains(r#"apiserver_current_inflight_requests{request_kind="readOnly"} 1"#)
            );
        }
        metrics.served(&context, pods.as_ref(), http::StatusCode::OK, Duration::from_millis(3));
        let page = metrics.text(&[]);
        assert!(page.contains("# TYPE apiserver_request_total counter\n"), "{page}");
        assert!(page.contains(r#"apiserver_request_total{verb="LIST",dry_run="",group="",version="v1",resource="pods",subresource="",scope="namespace",component="apiserver",code="200"} 1"#), "{page}");
        assert!(page.contains(r#"apiserver_current_inflight_requests{request_kind="readOnly"} 0"#));
    }

    #[test]
    fn what_is_not_served_makes_no_series() {
        let metrics = Metrics::new();
        let pods = keelson_registry::resources::rows()
            .into_iter()
            .find(|d| d.is("", "pods"));
        for i in 0..3 {
            let unknown = context(&format!("/apis/g{i}/v{i}/things{i}?dryRun={i}"));
            metrics.served(&unknown, None, http::StatusCode::NOT_FOUND, Duration::ZERO);
            let below = context(&format!("/api/v1/namespaces/a/pods/p/sub{i}?dryRun={i}"));
            metrics.served(&below, pods.as_ref(), http::StatusCode::NOT_FOUND, Duration::ZERO);
        }
        let page = metrics.text(&[]);
        let series = page.lines().filter(|l| l.starts_with("apiserver_request_total{"));
        assert_eq!(series.count(), 2, "{page}");
    }
}
