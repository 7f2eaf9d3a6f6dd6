//! What the server tells, under CoreDNS's names. There is one zone to it, the root, as in a usual Corefile.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use keelson_measure::{HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Measures, exponential};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const ZONE: &str = ".";
const VIEW: &str = "";

/// Who made an answer, as CoreDNS's plug-ins are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Nobody,
    Cluster,
    Cache,
    Forward,
}

impl By {
    fn label(self) -> &'static str {
        match self {
            By::Nobody => "",
            By::Cluster => "kubernetes",
            By::Cache => "cache",
            By::Forward => "forward",
        }
    }
}

pub struct Told {
    requests: IntCounterVec,
    durations: HistogramVec,
    request_sizes: HistogramVec,
    response_sizes: HistogramVec,
    responses: IntCounterVec,
    cache_requests: IntCounterVec,
    hits: IntCounterVec,
    misses: IntCounterVec,
    entries: IntGaugeVec,
    asked: HistogramVec,
    pub refused: IntCounter,
}

impl Default for Told {
    fn default() -> Self {
        Told::new(&Measures::default())
    }
}

impl Told {
    pub fn new(m: &Measures) -> Told {
        let dns = |of: &str| format!("coredns_dns_{of}");
        let cache = |of: &str| format!("coredns_cache_{of}");
        let times = exponential(0.00025, 2.0, 16);
        let sizes = [
            0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3,
        ];
        let (by, cached) = (["server", "zone", "view", "proto"], ["server", "zones", "view", "type"]);
        Told {
            requests: m.counters(
                &dns("requests_total"),
                "Queries",
                &["server", "zone", "view", "proto", "family", "type"],
            ),
            durations: m.histograms(
                &dns("request_duration_seconds"),
                "Time until an answer was sent",
                &times,
                &by[..3],
            ),
            request_sizes: m.histograms(&dns("request_size_bytes"), "Bytes of queries", &sizes, &by),
            response_sizes: m.histograms(&dns("response_size_bytes"), "Bytes of answers", &sizes, &by),
            responses: m.counters(
                &dns("responses_total"),
                "Answers",
                &["server", "zone", "view", "rcode", "plugin"],
            ),
            cache_requests: m.counters(&cache("requests_total"), "Looks into the cache", &cached[..3]),
            hits: m.counters(&cache("hits_total"), "Answers found in the cache", &cached),
            misses: m.counters(&cache("misses_total"), "Answers not found in the cache", &cached[..3]),
            entries: m.gauges(&cache("entries"), "Answers in the cache", &cached),
            asked: m.histograms(
                "coredns_proxy_request_duration_seconds",
                "Time until another server answered",
                &times,
                &["proxy_name", "to", "rcode"],
            ),
            refused: m.counter(
                "coredns_forward_max_concurrent_rejects_total",
                "Queries that were not forwarded since too many wait",
            ),
        }
    }

    /// A query was answered.
    pub fn answered(&self, query: &Query<'_>, message: &Message, by: By, sent: usize) {
        let Query {
            server, client, began, ..
        } = query;
        let (proto, family) = (query.proto, if client.is_ipv4() { "1" } else { "2" });
        let kind = message.queries.first().map(|q| kind(q.query_type()));
        self.requests
            .with_label_values(&[server, ZONE, VIEW, proto, family, kind.unwrap_or("other")])
            .inc();
        self.durations
            .with_label_values(&[server, ZONE, VIEW])
            .observe(began.elapsed().as_secs_f64());
        let sizes = [(&self.request_sizes, query.bytes), (&self.response_sizes, sent)];
        for (sizes, bytes) in sizes {
            let sizes = sizes.with_label_values(&[server, ZONE, VIEW, proto]);
            sizes.observe(bytes as f64);
        }
        let code = code(message.metadata.response_code);
        self.responses
            .with_label_values(&[server, ZONE, VIEW, code, by.label()])
            .inc();
    }

    /// The cache was looked into.
    pub fn looked(&self, server: &str, found: Option<&Message>) {
        self.cache_requests.with_label_values(&[server, ZONE, VIEW]).inc();
        match found {
            Some(found) => self.hits.with_label_values(&[server, ZONE, VIEW, sort(found)]).inc(),
            None => self.misses.with_label_values(&[server, ZONE, VIEW]).inc(),
        }
    }

    /// How many answers are kept, good ones and denials.
    pub fn kept(&self, server: &str, good: usize, denials: usize) {
        for (sort, count) in [("success", good), ("denial", denials)] {
            let gauge = self.entries.with_label_values(&[server, ZONE, VIEW, sort]);
            gauge.set(count as i64);
        }
    }

    /// Another server has answered.
    pub fn asked(&self, to: SocketAddr, message: &Message, took: Duration) {
        let (to, code) = (to.to_string(), code(message.metadata.response_code));
        self.asked
            .with_label_values(&["forward", &to, code])
            .observe(took.as_secs_f64());
    }
}

/// Whether an answer says that there is something.
pub fn is_denial(message: &Message) -> bool {
    message.metadata.response_code != ResponseCode::NoError || message.answers.is_empty()
}

fn sort(message: &Message) -> &'static str {
    if is_denial(message) { "denial" } else { "success" }
}

/// A query as it came.
pub struct Query<'a> {
    /// As CoreDNS calls a listener.
    pub server: &'a str,
    pub proto: &'static str,
    pub client: IpAddr,
    pub began: Instant,
    pub bytes: usize,
}

/// Clients ask for what they like: what CoreDNS doesn't name isn't named.
fn kind(kind: RecordType) -> &'static str {
    match kind {
        RecordType::AAAA => "AAAA",
        RecordType::A => "A",
        RecordType::CNAME => "CNAME",
        RecordType::DNSKEY => "DNSKEY",
        RecordType::DS => "DS",
        RecordType::MX => "MX",
        RecordType::NSEC3 => "NSEC3",
        RecordType::NSEC => "NSEC",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::RRSIG => "RRSIG",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        RecordType::HTTPS => "HTTPS",
        RecordType::SVCB => "SVCB",
        RecordType::IXFR => "IXFR",
        RecordType::AXFR => "AXFR",
        RecordType::ANY => "ANY",
        _ => "other",
    }
}

fn code(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_measure::golden;

    #[test]
    fn families_are_coredns_and_each_is_told_once() {
        let measures = Measures::default();
        let told = Told::new(&measures);
        let mut message = Message::response(1, hickory_proto::op::OpCode::Query);
        message.metadata.response_code = ResponseCode::NXDomain;
        let query = Query {
            server: "dns://10.0.0.1:53",
            proto: "udp",
            client: IpAddr::from([10, 0, 0, 2]),
            began: Instant::now(),
            bytes: 50,
        };
        told.answered(&query, &message, By::Cluster, 450);
        told.looked(query.server, None);
        told.looked(query.server, Some(&message));
        told.kept(query.server, 3, 4);
        told.asked(([10, 0, 0, 3], 53).into(), &message, Duration::from_millis(3));
        told.refused.inc();
        let page = measures.page();
        let wrong = golden::differences(&page, include_str!("told.txt"), &[]);
        assert!(wrong.is_empty(), "{}\n{page}", wrong.join("\n"));
        let server = r#"server="dns://10.0.0.1:53""#;
        for line in [
            format!(
                r#"coredns_dns_responses_total{{plugin="kubernetes",rcode="NXDOMAIN",{server},view="",zone="."}} 1"#
            ),
            format!(r#"coredns_dns_response_size_bytes_bucket{{proto="udp",{server},view="",zone=".",le="511"}} 1"#),
            format!(r#"coredns_cache_hits_total{{{server},type="denial",view="",zones="."}} 1"#),
            format!(r#"coredns_cache_entries{{{server},type="success",view="",zones="."}} 3"#),
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }
}
