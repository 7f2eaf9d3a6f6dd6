//! Rules of routes: what has to hold, and what is done then.

use super::filters::{self, Refused, duration};
use super::services::{Passing, PortRef, Unresolved, resolve};
use super::status::Told;
use super::trust::Policies;
use super::{World, created};
use crate::kinds::{GROUP, Match, MethodMatch, Reference, Rule, ValueMatch};
use crate::table::{self, Action, Backend, Order, PathRule, Pattern, Protocol, Text, Upstream, When};
use http::HeaderName;
use keelson_client::{ApiObject, ObjectKey};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A route as it is meant, whoever its parents are.
pub struct Read {
    pub rules: Result<Vec<table::Rule>, Refused>,
    pub resolved: Told,
    /// What is for its backends, in force or not.
    pub policies: BTreeSet<ObjectKey>,
}

/// A kind of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub &'static str);

pub const HTTP: Kind = Kind("HTTPRoute");
pub const GRPC: Kind = Kind("GRPCRoute");
pub const TLS: Kind = Kind("TLSRoute");
pub const TCP: Kind = Kind("TCPRoute");
pub const UDP: Kind = Kind("UDPRoute");

struct Reader<'a> {
    world: &'a World,
    policies: &'a Policies,
    touched: BTreeSet<ObjectKey>,
    kind: Kind,
    route: ObjectKey,
    name: Arc<str>,
    created: i64,
    unresolved: Option<Told>,
}

pub fn read<K: ApiObject>(world: &World, policies: &Policies, kind: Kind, route: &K, rules: Option<&[Rule]>) -> Read {
    let mut reader = Reader {
        world,
        policies,
        touched: BTreeSet::new(),
        kind,
        route: route.key(),
        name: format!("{}/{}", kind.0, route.key()).into(),
        created: created(route),
        unresolved: None,
    };
    let rules = rules.unwrap_or_default();
    let read = rules.iter().enumerate().map(|(i, rule)| reader.rule(i, rule));
    let rules = read
        .collect::<Result<Vec<_>, _>>()
        .map(|all| all.into_iter().flatten().collect());
    let fine = Told::new("ResolvedRefs", true, "ResolvedRefs", "All references are resolved");
    Read {
        rules,
        resolved: reader.unresolved.unwrap_or(fine),
        policies: reader.touched,
    }
}

impl Reader<'_> {
    fn rule(&mut self, i: usize, rule: &Rule) -> Result<Vec<table::Rule>, Refused> {
        for (field, given) in [
            ("retry", &rule.retry),
            ("sessionPersistence", &rule.session_persistence),
        ] {
            if given.is_some() {
                return Err(Refused("UnsupportedValue", format!("{field} is not supported")));
            }
        }
        let filters = self.filters(&rule.filters)?;
        let mut backends = Vec::new();
        for reference in &rule.backend_refs {
            let own = self.filters(&reference.filters)?;
            if own.redirect.is_some() || own.rewrite.is_some() || own.cors.is_some() || !own.mirrors.is_empty() {
                return Err(Refused(
                    "UnsupportedValue",
                    "a backend's filters can only change headers".into(),
                ));
            }
            backends.push(Backend {
                weight: u32::try_from(reference.weight.unwrap_or(1)).unwrap_or(0),
                to: self.upstream(reference),
                filters: own,
            });
        }
        let timeouts = rule.timeouts.clone().unwrap_or_default();
        let action = Arc::new(Action {
            filters,
            backends,
            request: duration(timeouts.request.as_deref())?,
            backend: duration(timeouts.backend_request.as_deref())?,
        });
        let all = [Match::default()];
        let matches = if rule.matches.is_empty() {
            &all[..]
        } else {
            &rule.matches
        };
        let one = |(j, wanted): (usize, &Match)| {
            let when = when(wanted)?;
            let order = Order {
                path: when.path.rank(),
                method: Reverse(when.method.is_some()),
                headers: Reverse(when.headers.len()),
                query: Reverse(when.query.len()),
                created: self.created,
                object: self.route.clone(),
                place: (i, j),
            };
            Ok(table::Rule {
                route: self.name.clone(),
                order,
                when,
                then: action.clone(),
            })
        };
        matches.iter().enumerate().map(one).collect()
    }

    fn filters(&mut self, all: &[crate::kinds::Filter]) -> Result<table::Filters, Refused> {
        filters::read(all, |reference| {
            let to = self.upstream(reference);
            if let Upstream::External { host, .. } = &*to {
                let why = format!("requests can't be mirrored to the external name {host}");
                self.unresolved
                    .get_or_insert(Told::new("ResolvedRefs", false, "BackendNotFound", why));
            }
            to
        })
    }

    fn upstream(&mut self, reference: &Reference) -> Arc<Upstream> {
        let found = self.find(reference);
        Arc::new(found.unwrap_or_else(|(reason, message)| {
            self.unresolved
                .get_or_insert(Told::new("ResolvedRefs", false, reason, message));
            Upstream::Nowhere(500)
        }))
    }

    fn find(&mut self, reference: &Reference) -> Result<Upstream, (&'static str, String)> {
        let group = reference.group.as_deref().unwrap_or_default();
        let kind = reference.kind.as_deref().unwrap_or("Service");
        if (group, kind) != ("", "Service") {
            return Err(("InvalidKind", format!("a backend can't be a {kind} of group {group:?}")));
        }
        let namespace = reference.namespace.as_deref().unwrap_or(&self.route.namespace);
        let key = ObjectKey::new(namespace, &reference.name);
        if !permitted(self.world, (self.kind.0, &self.route.namespace), ("", "Service", &key)) {
            return Err((
                "RefNotPermitted",
                format!("no ReferenceGrant permits the reference to service {key}"),
            ));
        }
        let Some(port) = reference.port else {
            return Err(("BackendNotFound", format!("a port of service {key} has to be named")));
        };
        let passing = match self.kind {
            GRPC => Passing::Requests(Protocol::H2c),
            HTTP => Passing::Requests(Protocol::Http1),
            UDP => Passing::Datagrams,
            _ => Passing::Bytes,
        };
        // Who passes on what comes, TLS or not, asks nothing of a backend.
        let policies = match self.kind {
            TCP | UDP => None,
            _ => self.policies.of(self.world, &key, port, passing),
        };
        let trust = match policies {
            Some(found) => {
                self.touched.extend(found.touched.iter().cloned());
                let Some(trust) = &found.trust else {
                    return Ok(Upstream::Nowhere(500));
                };
                Some(Arc::clone(trust))
            }
            None => None,
        };
        resolve(self.world, &key, PortRef::Number(port), passing, trust).map_err(|why| match why {
            Unresolved::NoService => ("BackendNotFound", format!("there is no service {key}")),
            Unresolved::NoPort => {
                let transport = passing.transport();
                (
                    "BackendNotFound",
                    format!("service {key} has no {transport} port {port}"),
                )
            }
            Unresolved::Protocol(other) => (
                "UnsupportedProtocol",
                format!("port {port} of service {key} speaks {other}, which is not supported"),
            ),
        })
    }
}

/// Whether an object may refer to one of another namespace: one there says so.
pub fn permitted(world: &World, from: (&str, &str), to: (&str, &str, &ObjectKey)) -> bool {
    let ((kind, namespace), (to_group, to_kind, key)) = (from, to);
    let grants = world.grants.iter().filter(|g| g.namespace() == key.namespace);
    namespace == key.namespace
        || grants.into_iter().any(|grant| {
            let from = grant.spec.from.iter();
            let mut from = from.filter(|f| f.group == GROUP && f.kind == kind && f.namespace == namespace);
            let named = |name: &Option<String>| name.as_ref().is_none_or(|n| n.is_empty() || *n == key.name);
            let mut to = grant
                .spec
                .to
                .iter()
                .filter(|t| t.group == to_group && t.kind == to_kind && named(&t.name));
            from.next().is_some() && to.next().is_some()
        })
}

fn when(wanted: &Match) -> Result<When, Refused> {
    let bad = |text: String| Refused("UnsupportedValue", text);
    let text = |m: &ValueMatch| match m.r#type.as_deref() {
        Some("RegularExpression") => Pattern::new(&m.value).map(Text::Pattern).map_err(bad),
        None | Some("Exact") => Ok(Text::Exact(m.value.clone())),
        Some(other) => Err(bad(format!("values can't be matched by {other}"))),
    };
    let mut when = When::default();
    if let Some(path) = &wanted.path {
        let value = if path.value.is_empty() { "/" } else { &path.value };
        when.path = match path.r#type.as_deref() {
            Some("Exact") => PathRule::Exact(value.into()),
            Some("RegularExpression") => PathRule::Pattern(Pattern::new(value).map_err(bad)?),
            None | Some("PathPrefix") => PathRule::prefix(value),
            Some(other) => return Err(bad(format!("paths can't be matched by {other}"))),
        };
    }
    match &wanted.method {
        Some(MethodMatch::Http(method)) => when.method = Some(method.clone()),
        Some(MethodMatch::Grpc {
            r#type,
            service,
            method,
        }) => {
            let given = |part: &Option<String>| part.clone().filter(|p| !p.is_empty());
            when.path = match (given(service), given(method), r#type.as_deref()) {
                (None, None, _) => PathRule::default(),
                (Some(service), Some(method), None | Some("Exact")) => PathRule::Exact(format!("/{service}/{method}")),
                (Some(service), None, None | Some("Exact")) => PathRule::prefix(&format!("/{service}")),
                (service, method, kind) => {
                    let exact = kind != Some("RegularExpression");
                    let part = |p: Option<String>| match p {
                        Some(p) if exact => regex::escape(&p),
                        Some(p) => format!("(?:{p})"),
                        None => "[^/]+".into(),
                    };
                    PathRule::Pattern(Pattern::new(&format!("/{}/{}", part(service), part(method))).map_err(bad)?)
                }
            };
        }
        None => {}
    }
    for header in &wanted.headers {
        let name = header
            .name
            .parse::<HeaderName>()
            .map_err(|_| bad(format!("{:?} is no name of a header", header.name)))?;
        // Of several conditions on one header the first counts.
        if !when.headers.iter().any(|(known, _)| *known == name) {
            when.headers.push((name, text(header)?));
        }
    }
    for param in &wanted.query_params {
        if !when.query.iter().any(|(known, _)| *known == param.name) {
            when.query.push((param.name.clone(), text(param)?));
        }
    }
    Ok(when)
}
