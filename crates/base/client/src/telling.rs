//! What a component's queues, requests and elections tell, under the names that client-go gives them.

use keelson_measure::{
    GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Measures, exponential,
};
use std::sync::Arc;
use std::time::Duration;

/// Where a component counts, and which API server it asks. The default counts for nobody.
#[derive(Clone, Debug, Default)]
pub struct Telling {
    pub measures: Measures,
    /// The API server's `host:port`.
    pub host: String,
}

impl Telling {
    pub fn new(measures: &Measures, host: &str) -> Self {
        Telling {
            measures: measures.clone(),
            host: host.into(),
        }
    }
}

/// Requests to the API server, and who leads.
pub struct Requests {
    host: String,
    total: IntCounterVec,
    durations: HistogramVec,
    paced: HistogramVec,
    sent: HistogramVec,
    received: HistogramVec,
    leads: IntGaugeVec,
}

/// Bytes.
const SIZES: &[f64] = &[
    64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
];
/// Seconds.
const TIMES: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

impl Requests {
    pub(crate) fn new(telling: &Telling) -> Arc<Requests> {
        let m = &telling.measures;
        Arc::new(Requests {
            host: telling.host.clone(),
            total: m.counters(
                "rest_client_requests_total",
                "Requests to the API server",
                &["code", "method", "host"],
            ),
            durations: m.histograms(
                "rest_client_request_duration_seconds",
                "Time of requests to the API server",
                TIMES,
                &["verb", "host"],
            ),
            paced: m.histograms(
                "rest_client_rate_limiter_duration_seconds",
                "How long requests waited here for their turn",
                TIMES,
                &["verb", "host"],
            ),
            sent: m.histograms(
                "rest_client_request_size_bytes",
                "Size of requests' bodies",
                SIZES,
                &["verb", "host"],
            ),
            received: m.histograms(
                "rest_client_response_size_bytes",
                "Size of answers' bodies",
                SIZES,
                &["verb", "host"],
            ),
            leads: m.gauges(
                "leader_election_master_status",
                "Whether this process holds the lease",
                &["name"],
            ),
        })
    }

    /// It is its turn.
    pub(crate) fn begins(&self, method: &str, bytes: usize, waited: Duration) {
        let of = [method, self.host.as_str()];
        self.paced.with_label_values(&of).observe(waited.as_secs_f64());
        self.sent.with_label_values(&of).observe(bytes as f64);
    }

    /// The whole of an answer is there.
    pub(crate) fn read(&self, method: &str, bytes: usize) {
        let of = [method, self.host.as_str()];
        self.received.with_label_values(&of).observe(bytes as f64);
    }

    /// The head of an answer is there; no code: none came. Streams take as long as they like.
    pub(crate) fn answered(&self, method: &str, code: Option<&str>, took: Option<Duration>) {
        let host = self.host.as_str();
        let code = code.unwrap_or("<error>");
        self.total.with_label_values(&[code, method, host]).inc();
        if let Some(took) = took {
            self.durations
                .with_label_values(&[method, host])
                .observe(took.as_secs_f64());
        }
    }

    pub(crate) fn leads(&self, lease: &str, so: bool) {
        self.leads.with_label_values(&[lease]).set(i64::from(so));
    }
}

/// One queue's series.
pub(crate) struct QueueSeries {
    pub adds: IntCounter,
    pub retries: IntCounter,
    pub depth: IntGauge,
    pub waits: Histogram,
    pub works: Histogram,
    unfinished: GaugeVec,
    longest: GaugeVec,
    name: String,
}

impl QueueSeries {
    pub fn new(m: &Measures, name: &str) -> Self {
        let (by, of) = (["name"], [name]);
        let times = exponential(10e-9, 10.0, 10);
        let counter = |name, help| m.counters(name, help, &by).with_label_values(&of);
        let times = |name, help| m.histograms(name, help, &times, &by).with_label_values(&of);
        QueueSeries {
            adds: counter("workqueue_adds_total", "Keys that were added"),
            retries: counter("workqueue_retries_total", "Keys that were added for later"),
            depth: m
                .gauges("workqueue_depth", "Keys that wait", &by)
                .with_label_values(&of),
            waits: times("workqueue_queue_duration_seconds", "How long keys waited"),
            works: times("workqueue_work_duration_seconds", "How long work on keys took"),
            unfinished: m.reals(
                "workqueue_unfinished_work_seconds",
                "How long all work under way has been",
                &by,
            ),
            longest: m.reals(
                "workqueue_longest_running_processor_seconds",
                "How long the longest work under way has been",
                &by,
            ),
            name: name.into(),
        }
    }

    /// How long each work under way has been.
    pub fn under_way(&self, since: impl Iterator<Item = Duration>) {
        let (sum, longest) = since.fold((0.0, 0.0_f64), |(sum, longest), d| {
            (sum + d.as_secs_f64(), longest.max(d.as_secs_f64()))
        });
        let of = [self.name.as_str()];
        self.unfinished.with_label_values(&of).set(sum);
        self.longest.with_label_values(&of).set(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::{JSON, Rest};
    use bytes::Bytes;
    use http_body_util::Full;
    use keelson_measure::golden;
    use kube::client::Body;

    #[tokio::test]
    async fn requests_are_counted_by_code_and_streams_are_not_timed() {
        let service = tower::service_fn(|request: http::Request<Body>| async move {
            let code = match request.uri().path() {
                "/lost" => return Err(std::io::Error::other("no way there")),
                "/no" => 404,
                _ => 200,
            };
            let answer = http::Response::builder().status(code);
            answer
                .body(Full::new(Bytes::from_static(b"{}")))
                .map_err(std::io::Error::other)
        });
        let telling = Telling::new(&Measures::default(), "10.0.0.1:6443");
        let rest = Rest::new(kube::Client::new(service, "default"), "test").telling(&telling);
        rest.get("/yes", JSON).await.unwrap();
        drop(rest.stream("/yes", JSON).await.unwrap());
        assert!(rest.get("/no", JSON).await.is_err() && rest.get("/lost", JSON).await.is_err());
        // Another client of the process has a part in the same families.
        let other = Requests::new(&telling);
        other.answered("POST", Some("201"), None);
        other.leads("kube-scheduler", true);
        let page = telling.measures.page();
        let wrong = golden::differences(&page, include_str!("telling/requests.txt"), &[]);
        assert!(wrong.is_empty(), "{}\n{page}", wrong.join("\n"));
        let host = r#"host="10.0.0.1:6443""#;
        for line in [
            format!(r#"rest_client_requests_total{{code="200",{host},method="GET"}} 2"#),
            format!(r#"rest_client_requests_total{{code="404",{host},method="GET"}} 1"#),
            format!(r#"rest_client_requests_total{{code="<error>",{host},method="GET"}} 1"#),
            format!(r#"rest_client_requests_total{{code="201",{host},method="POST"}} 1"#),
            format!(r#"rest_client_request_duration_seconds_count{{{host},verb="GET"}} 3"#),
            format!(r#"rest_client_rate_limiter_duration_seconds_count{{{host},verb="GET"}} 4"#),
            format!(r#"rest_client_request_size_bytes_count{{{host},verb="GET"}} 4"#),
            format!(r#"rest_client_response_size_bytes_sum{{{host},verb="GET"}} 4"#),
            format!(r#"rest_client_response_size_bytes_count{{{host},verb="GET"}} 2"#),
            r#"leader_election_master_status{name="kube-scheduler"} 1"#.into(),
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }
}
