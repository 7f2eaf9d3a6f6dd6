//! `/metrics`: counted under upstream's names, written in the Prometheus text format.

pub mod process;

use crate::connect;
use crate::flow::LevelUsage;
use crate::request::RequestContext;
use keelson_registry::ResourceDef;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::fmt::Write;
use std::time::Duration;

/// The labels that tell a kind of request.
const REQUEST: [&str; 7] = [
    "verb",
    "group",
    "version",
    "resource",
    "subresource",
    "scope",
    "component",
];

/// Seconds, as upstream's histograms of requests have them.
const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// What service levels are counted by begins at 50 ms.
const LEVEL_SECONDS: &[f64] = SECONDS.split_at(2).1;

/// What other parts add to the page when it is asked for.
type Extra = Box<dyn Fn(&mut String) + Send + Sync>;

pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    service_levels: HistogramVec,
    inflight: IntGaugeVec,
    long_running: IntGaugeVec,
    authentication: IntCounterVec,
    authorization: IntCounterVec,
    seats: IntGaugeVec,
    waiting: IntGaugeVec,
    nominal: IntGaugeVec,
    limit: IntGaugeVec,
    extra: Mutex<Vec<Extra>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Registers families. A name that is taken or wrong is a fault of this file, which its tests find.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        #[allow(clippy::expect_used)]
        let made = made.expect("the families of this file are well formed");
        if let Err(e) = self.0.register(Box::new(made.clone())) {
            tracing::error!("a family of metrics is there twice: {e}");
        }
        made
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(HistogramVec::new(options, labels))
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let m = Maker(&registry);
        let with = |more: &[&'static str]| [&REQUEST, more].concat();
        let level = ["priority_level"];
        Metrics {
            requests: m.counters(
                "apiserver_request_total",
                "Requests by verb, resource and code",
                &with(&["dry_run", "code"]),
            ),
            durations: m.histograms(
                "apiserver_request_duration_seconds",
                "Time until the response began",
                SECONDS,
                &with(&["dry_run"]),
            ),
            service_levels: m.histograms(
                "apiserver_request_sli_duration_seconds",
                "Time until the response began, without waiting for a seat",
                LEVEL_SECONDS,
                &REQUEST,
            ),
            inflight: m.gauges(
                "apiserver_current_inflight_requests",
                "Requests being served",
                &["request_kind"],
            ),
            long_running: m.gauges(
                "apiserver_longrunning_requests",
                "Watches and streams being served",
                &REQUEST,
            ),
            authentication: m.counters(
                "authentication_attempts_total",
                "Authentications by result",
                &["result"],
            ),
            authorization: m.counters(
                "apiserver_authorization_decisions_total",
                "Authorizations by result",
                &["result"],
            ),
            seats: m.gauges(
                "apiserver_flowcontrol_current_executing_requests",
                "Seats in use",
                &level,
            ),
            waiting: m.gauges(
                "apiserver_flowcontrol_current_inqueue_requests",
                "Requests that wait",
                &level,
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
            extra: Mutex::default(),
            registry,
        }
    }

    /// Adds a writer of further lines, in the text format.
    pub fn add(&self, extra: impl Fn(&mut String) + Send + Sync + 'static) {
        self.extra.lock().push(Box::new(extra));
    }

    pub fn authenticated(&self, ok: bool) {
        let result = if ok { "success" } else { "failure" };
        self.authentication.with_label_values(&[result]).inc();
    }
    pub fn authorized(&self, ok: bool) {
        let result = if ok { "allowed" } else { "denied" };
        self.authorization.with_label_values(&[result]).inc();
    }

    /// Counts a request that is being served, until what is returned is dropped.
    pub fn begin(&self, context: &RequestContext, resource: Option<&ResourceDef>) -> InFlight {
        let gauge = if context.info.is_long_running() {
            self.long_running.with_label_values(&labels(context, resource))
        } else {
            let request_kind = if context.info.is_read_only() {
                "readOnly"
            } else {
                "mutating"
            };
            self.inflight.with_label_values(&[request_kind])
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
        let labels = labels(context, resource);
        let dry_run = match context.info.query.get("dryRun") {
            None | Some("") => "",
            Some("All") => "All",
            Some(_) => "invalid",
        };
        let requests = [&labels[..], &[dry_run, code.as_str()]].concat();
        self.requests.with_label_values(&requests).inc();
        if !context.info.is_long_running() {
            let own = took.saturating_sub(context.seat.waited());
            self.service_levels
                .with_label_values(&labels)
                .observe(own.as_secs_f64());
            self.durations
                .with_label_values(&[&labels[..], &[dry_run]].concat())
                .observe(took.as_secs_f64());
        }
    }

    /// The page. `objects`: how many there are, by group and resource.
    pub fn text(&self, usage: &[LevelUsage], objects: &[(keelson_api::Str, keelson_api::Str, usize)]) -> String {
        for level in usage {
            let figures = [
                (&self.seats, level.executing),
                (&self.waiting, level.waiting),
                (&self.nominal, level.nominal),
                (&self.limit, level.limit),
            ];
            for (family, figure) in figures {
                family.with_label_values(&[&*level.level]).set(figure as i64);
            }
        }
        let mut page = String::new();
        if let Err(e) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut page) {
            tracing::error!("encoding the metrics failed: {e}");
        }
        held(&mut page, objects);
        process::write(&mut page);
        for extra in self.extra.lock().iter() {
            extra(&mut page);
        }
        page
    }
}

/// Counts one request while it lives.
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Clients say what they like in paths and methods; they must not make endless series by it. So only what is served is
/// named.
fn labels<'a>(context: &'a RequestContext, resource: Option<&'a ResourceDef>) -> [&'a str; REQUEST.len()] {
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

/// How many objects there are, as the caches have them: each resource that somebody has asked for.
fn held(page: &mut String, objects: &[(keelson_api::Str, keelson_api::Str, usize)]) {
    page.push_str(
        "# HELP apiserver_resource_objects Objects that are stored\n# TYPE apiserver_resource_objects gauge\n",
    );
    for (group, resource, count) in objects {
        let _ = writeln!(
            page,
            "apiserver_resource_objects{{group=\"{group}\",resource=\"{resource}\"}} {count}"
        );
    }
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
                    .text(&[], &[])
                    .contains(r#"apiserver_current_inflight_requests{request_kind="readOnly"} 1"#)
            );
        }
        metrics.served(&context, pods.as_ref(), http::StatusCode::OK, Duration::from_millis(3));
        let page = metrics.text(&[], &[]);
        assert!(page.contains("# TYPE apiserver_request_total counter\n"), "{page}");
        assert!(page.contains(r#"apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1"} 1"#), "{page}");
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
        let page = metrics.text(&[], &[]);
        let series = page.lines().filter(|l| l.starts_with("apiserver_request_total{"));
        assert_eq!(series.count(), 2, "{page}");
    }

    /// Family, type, labels and bounds of buckets, as kube-apiserver 1.37.2 wrote them on its page.
    const UPSTREAM: &str = include_str!("metrics/upstream.txt");

    fn part<'a>(sample: &'a str, before: &str, after: &str) -> Option<&'a str> {
        sample.split_once(before)?.1.split_once(after).map(|(found, _)| found)
    }

    #[test]
    fn families_types_labels_and_bounds_are_upstreams() {
        let metrics = Metrics::new();
        let rows = keelson_registry::resources::rows();
        let pods = rows.iter().find(|d| d.is("", "pods"));
        let mut request = context("/api/v1/namespaces/a/pods/p");
        request.seat.has_waited(Duration::from_secs(3));
        metrics.served(&request, pods, http::StatusCode::OK, Duration::from_secs(4));
        let info = RequestInfo::parse(&http::Method::PATCH, &"/api/v1/namespaces/a/pods/p".parse().unwrap()).unwrap();
        request = RequestContext::new(info, UserInfo::anonymous());
        request.applies = true;
        metrics.served(&request, pods, http::StatusCode::OK, Duration::from_millis(3));
        let _open = metrics.begin(&request, pods);
        let _watch = metrics.begin(&context("/api/v1/pods?watch=1"), pods);
        let level = LevelUsage {
            level: "system".into(),
            executing: 1,
            waiting: 2,
            nominal: 3,
            limit: 4,
        };
        let page = metrics.text(&[level], &[("".into(), "pods".into(), 5)]);
        for line in UPSTREAM.lines() {
            let mut columns = line.split('|').map(str::trim);
            let mut next = || columns.next().unwrap_or_default();
            let (name, kind, labels, bounds) = (next(), next(), next(), next());
            assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
            let prefix = if kind == "histogram" {
                format!("{name}_bucket")
            } else {
                name.to_string()
            };
            let of_it = |l: &&str| l.starts_with(&format!("{prefix}{{")) || l.starts_with(&format!("{prefix} "));
            let samples: Vec<&str> = page.lines().filter(of_it).collect();
            let first = samples.first().unwrap_or_else(|| panic!("{name} has no sample"));
            let given = part(first, "{", "} ").unwrap_or_default();
            let mut names: Vec<&str> = given
                .split(',')
                .filter_map(|l| l.split_once('='))
                .map(|(n, _)| n)
                .collect();
            names.retain(|n| *n != "le");
            names.sort();
            assert_eq!(names.join(" "), labels, "{name}");
            if !bounds.is_empty() {
                let count = bounds.split(' ').count();
                let found: Vec<&str> = samples
                    .iter()
                    .take(count)
                    .filter_map(|l| part(l, "le=\"", "\""))
                    .collect();
                assert_eq!(found.join(" "), bounds, "{name}");
            }
        }
        assert!(page.contains("verb=\"APPLY\""), "an apply is told from other patches");
        let of_get =
            |l: &&str| l.starts_with("apiserver_request_sli_duration_seconds_bucket") && l.contains("verb=\"GET\"");
        let at_one = page.lines().filter(of_get).find(|l| l.contains("le=\"1\""));
        let at_one = at_one.and_then(|l| l.rsplit_once(' ')).map(|(_, count)| count);
        assert_eq!(at_one, Some("1"), "waiting for a seat doesn't count");
    }
}
