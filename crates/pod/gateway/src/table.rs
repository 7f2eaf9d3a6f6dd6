//! What a node does with requests, as plain data: made by [`crate::plan`], looked up by [`crate::matching`], served as it is.

use http::{HeaderName, HeaderValue};
use keelson_client::ObjectKey;
use regex::Regex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use crate::trust::{AltName, Authorities, ClientTrust, Trust, TrustId};

/// By the port on the node that a request comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    pub ports: BTreeMap<u16, Arc<Port>>,
}

impl Table {
    /// Where requests go, and copies of requests.
    fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        let listeners = self.ports.values().flat_map(|port| &port.listeners);
        let rules = listeners.flat_map(|l| l.hosts.values().flatten());
        rules.flat_map(|rule| {
            let backends = rule.then.backends.iter();
            let filters = backends.clone().map(|b| &b.filters).chain([&rule.then.filters]);
            let mirrors = filters.flat_map(|f| f.mirrors.iter().map(|m| &*m.to));
            backends.map(|b| &*b.to).chain(mirrors)
        })
    }

    /// The services whose endpoints it has.
    pub fn services(&self) -> BTreeSet<ObjectKey> {
        let services = self.upstreams().filter_map(|to| match to {
            Upstream::Endpoints { service, .. } => Some(service.clone()),
            _ => None,
        });
        services.collect()
    }

    /// What is asked of backends that speak TLS.
    pub fn trusts(&self) -> BTreeSet<TrustId> {
        let trusts = self.upstreams().filter_map(|to| match to {
            Upstream::Endpoints { trust, .. } | Upstream::External { trust, .. } => Some(trust.as_ref()?.id),
            Upstream::Nowhere(_) => None,
        });
        trusts.collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Port {
    /// What clients see: behind a load balancer it is another than the node's.
    pub number: u16,
    pub speaks: Speaks,
    /// The most specific host first; the first that has a request's host answers it.
    pub listeners: Vec<Listener>,
}

/// What comes to a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speaks {
    #[default]
    Http,
    Https,
    /// Connections, by the name in their hello. Those for a listener without certificates go on as they are, others are ended here.
    Tls,
    /// Connections, all alike.
    Tcp,
    /// Datagrams, all alike.
    Udp,
}

/// A port as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outer {
    pub number: u16,
    pub udp: bool,
}

impl From<u16> for Outer {
    fn from(number: u16) -> Outer {
        Outer { number, udp: false }
    }
}

impl Outer {
    pub fn transport(self) -> &'static str {
        if self.udp { "UDP" } else { "TCP" }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listener {
    /// By which what comes to it is counted.
    pub name: Arc<str>,
    pub host: Host,
    /// Whose certificate is shown for which names.
    pub certificates: Vec<(Host, ObjectKey)>,
    /// What clients have to show before anything is taken from them.
    pub clients: Option<Arc<ClientTrust>>,
    /// A wildcard in a rule's host stands for one label (Ingress), not for any number (Gateway API).
    pub one_label: bool,
    /// By [`Host`]'s text, the rule that goes first before the others.
    pub hosts: BTreeMap<String, Vec<Rule>>,
}

/// A name, `*.` and a name, or nothing for all names.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    pub fn new(text: &str) -> Host {
        Host(text.to_ascii_lowercase())
    }
    pub fn text(&self) -> &str {
        &self.0
    }
    fn suffix(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }
    /// A greater one is more specific: names before wildcards before all, then by length.
    pub fn rank(&self) -> (u8, usize) {
        let kind = match self.0.as_bytes().first() {
            None => 0,
            Some(b'*') => 1,
            Some(_) => 2,
        };
        (kind, self.0.len())
    }
    pub fn has(&self, name: &str) -> bool {
        match self.suffix() {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => self.0.is_empty() || self.0 == name,
        }
    }
    /// As [`Host::has`], with one label for the wildcard.
    pub fn has_label(&self, name: &str) -> bool {
        let label = |suffix: &str| {
            name.strip_suffix(suffix)
                .is_some_and(|l| !l.is_empty() && !l.contains('.'))
        };
        match self.suffix() {
            Some(suffix) => label(suffix),
            None => self.has(name),
        }
    }
    /// What both have; `None`: no name is in both.
    pub fn and(&self, other: &Host) -> Option<Host> {
        match (self.suffix(), other.suffix()) {
            _ if self.0.is_empty() => Some(other.clone()),
            _ if other.0.is_empty() => Some(self.clone()),
            (None, _) => other.has(&self.0).then(|| self.clone()),
            (_, None) => self.has(&other.0).then(|| other.clone()),
            (Some(a), Some(b)) if b.ends_with(a) => Some(other.clone()),
            (Some(a), Some(b)) if a.ends_with(b) => Some(self.clone()),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Kind, namespace and name of whose it is.
    pub route: Arc<str>,
    pub order: Order,
    pub when: When,
    pub then: Arc<Action>,
}

/// The smaller one goes first: exact paths, longer ones, a method, more headers, more query parameters; then older objects, then by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    pub path: (u8, Reverse<usize>),
    pub method: Reverse<bool>,
    pub headers: Reverse<usize>,
    pub query: Reverse<usize>,
    pub created: i64,
    pub object: ObjectKey,
    pub place: (usize, usize),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct When {
    pub path: PathRule,
    pub method: Option<String>,
    pub headers: Vec<(HeaderName, Text)>,
    pub query: Vec<(String, Text)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PathRule {
    Exact(String),
    /// By path elements; without a slash at its end, so the root is empty.
    Prefix(String),
    Pattern(Pattern),
}

impl Default for PathRule {
    fn default() -> Self {
        PathRule::prefix("/")
    }
}

impl PathRule {
    pub fn prefix(path: &str) -> PathRule {
        PathRule::Prefix(path.trim_end_matches('/').into())
    }
    pub fn rank(&self) -> (u8, Reverse<usize>) {
        match self {
            PathRule::Exact(path) => (0, Reverse(path.len())),
            PathRule::Pattern(pattern) => (1, Reverse(pattern.0.as_str().len())),
            PathRule::Prefix(path) => (2, Reverse(path.len())),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    Exact(String),
    Pattern(Pattern),
}

/// A regular expression that the whole text has to match; how large it gets is bounded.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

const PATTERN_BYTES: usize = 256 << 10;

impl Pattern {
    pub fn new(text: &str) -> Result<Pattern, String> {
        let build = |text: &str| {
            let mut builder = regex::RegexBuilder::new(text);
            builder.size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES).build()
        };
        // By itself first: `a)|(b` is none, but would be one in brackets, and match what only begins or ends so.
        build(text)
            .and_then(|_| build(&format!("^(?:{text})$")))
            .map(Pattern)
            .map_err(|_| format!("{text:?} is no regular expression that can be used"))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Action {
    pub filters: Filters,
    pub backends: Vec<Backend>,
    /// Until the whole answer has been sent, and until a backend's answer begins.
    pub request: Option<Duration>,
    pub backend: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    pub request: Headers,
    pub response: Headers,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<Mirror>,
    pub cors: Option<Cors>,
}

/// What browsers may do with answers on behalf of pages from elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cors {
    pub origins: Vec<Origin>,
    pub credentials: bool,
    pub methods: Listed,
    pub headers: Listed,
    pub exposed: Listed,
    /// For how many seconds a browser may keep what it was told.
    pub keep: u32,
}

/// Names as they are told, or all.
#[derive(Clone, Debug, PartialEq)]
pub enum Listed {
    All,
    /// Empty: nothing is told.
    Only(String),
}

impl Default for Listed {
    fn default() -> Self {
        Listed::Only(String::new())
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Any,
    /// A host may be one with a wildcard, which stands for any number of labels.
    Of {
        scheme: String,
        host: Host,
        port: u16,
    },
}

impl Origin {
    /// `scheme://host`, perhaps with a port; or `*`.
    pub fn new(text: &str) -> Option<Origin> {
        if text == "*" {
            return Some(Origin::Any);
        }
        let (scheme, host, port) = origin(text)?;
        let host = if host == "*" { "" } else { host };
        Some(Origin::Of {
            scheme: scheme.to_ascii_lowercase(),
            host: Host::new(host),
            port,
        })
    }
    /// Of what a browser says.
    pub fn is(&self, text: &str) -> bool {
        match (self, origin(text)) {
            (Origin::Any, _) => true,
            (Origin::Of { scheme, host, port }, Some((s, h, p))) => {
                s.eq_ignore_ascii_case(scheme) && host.has(&h.to_ascii_lowercase()) && p == *port
            }
            (_, None) => false,
        }
    }
}

fn origin(text: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = text.split_once("://")?;
    let usual = match scheme.to_ascii_lowercase().as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    match rest.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => Some((scheme, host, port.parse().ok()?)),
        None => Some((scheme, rest, usual)),
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathChange>,
    pub status: u16,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    pub host: Option<String>,
    pub path: Option<PathChange>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PathChange {
    Full(String),
    /// What stands in place of the prefix that matched.
    Prefix(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    pub to: Arc<Upstream>,
    /// So many of so many requests.
    pub share: (u32, u32),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub weight: u32,
    pub to: Arc<Upstream>,
    pub filters: Filters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS.
    H2c,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Upstream {
    Endpoints {
        service: ObjectKey,
        addresses: Vec<SocketAddr>,
        protocol: Protocol,
        /// `None`: it is reached without TLS.
        trust: Option<Arc<Trust>>,
    },
    /// A name that DNS knows.
    External {
        host: String,
        port: u16,
        protocol: Protocol,
        trust: Option<Arc<Trust>>,
    },
    /// What was meant is not there or not allowed.
    Nowhere(u16),
}
