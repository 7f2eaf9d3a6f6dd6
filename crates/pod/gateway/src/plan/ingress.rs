//! Ingress: rules by host and path, the default backend, certificates.

use super::services::{Passing, PortRef, resolve};
use super::{Owner, Plan, World, created};
use crate::table::{Action, Backend, Host, Listener, Order, PathRule, Port, Protocol, Rule, Speaks, Upstream, When};
use crate::{INGRESS_CLASS, INGRESS_CONTROLLER, NAMESPACE};
use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressClass};
use keelson_client::{ApiObject, ObjectKey};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

const HTTP: u16 = 80;
const HTTPS: u16 = 443;
/// Older than the field for the class.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub fn is_ours(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    let annotation = || ingress.metadata.annotations.as_ref()?.get(CLASS_ANNOTATION);
    let named = ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref());
    match named {
        Some(name) => classes.iter().any(|c| {
            let controller = c.spec.as_ref().and_then(|s| s.controller.as_deref());
            c.name() == name && controller == Some(INGRESS_CONTROLLER)
        }),
        None => annotation().is_some_and(|name| name == INGRESS_CLASS),
    }
}

pub fn plan(world: &World, plan: &mut Plan) {
    let ours = world
        .ingresses
        .iter()
        .filter(|i| is_ours(i, &world.ingress_classes) && !i.is_deleting());
    let ours: Vec<&Arc<Ingress>> = ours.collect();
    if ours.is_empty() {
        return;
    }
    plan.fronts.insert(Owner::Ingress, [HTTP.into(), HTTPS.into()].into());
    let mut hosts: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    let mut certificates = Vec::new();
    for ingress in &ours {
        rules(world, ingress, &mut hosts);
        for (host, secret) in tls(ingress) {
            match world.certificates.get(&secret) {
                Some(Ok(())) => drop(plan.certificates.insert(secret.clone())),
                Some(Err(why)) => drop(plan.problems.insert((ingress.key(), format!("secret {secret}: {why}")))),
                None => {
                    let why = format!("there is no secret {secret} of type kubernetes.io/tls");
                    plan.problems.insert((ingress.key(), why));
                }
            }
            certificates.push((created(ingress.as_ref()), host, secret));
        }
        plan.statuses.ingresses.push(ingress.key());
    }
    hosts
        .values_mut()
        .for_each(|rules| rules.sort_by(|a, b| a.order.cmp(&b.order)));
    // The most specific host, then the oldest object's certificate.
    certificates.sort_by_key(|(created, host, secret)| (Reverse(host.rank()), *created, secret.clone()));
    let usable = |secret: &ObjectKey| matches!(world.certificates.get(secret), Some(Ok(())));
    let certificates: Vec<_> = certificates
        .into_iter()
        .map(|(_, host, secret)| (host, secret))
        .filter(|(_, s)| usable(s))
        .collect();
    let listener = Listener {
        name: "Ingress".into(),
        one_label: true,
        hosts,
        ..Listener::default()
    };
    let Some(front) = world.fronts.get(&Owner::Ingress) else {
        return;
    };
    if let Some(why) = &front.refused {
        let problems = ours
            .iter()
            .map(|i| (i.key(), format!("service {NAMESPACE}/ingress has no address: {why}")));
        plan.problems.extend(problems);
    }
    for (number, speaks) in [(HTTP, Speaks::Http), (HTTPS, Speaks::Https)] {
        let Some(at) = front.ports.get(&number.into()) else {
            continue;
        };
        let mut listener = listener.clone();
        if speaks == Speaks::Https {
            listener.certificates = certificates.clone();
        }
        let listeners = vec![listener];
        let port = Port {
            number,
            speaks,
            listeners,
        };
        plan.table.ports.insert(*at, Arc::new(port));
    }
}

fn tls(ingress: &Ingress) -> Vec<(Host, ObjectKey)> {
    let sections = ingress.spec.iter().flat_map(|s| s.tls.iter().flatten());
    let mut all = Vec::new();
    for section in sections {
        let Some(name) = section.secret_name.as_ref().filter(|n| !n.is_empty()) else {
            continue;
        };
        let secret = ObjectKey::new(ingress.namespace(), name);
        match section.hosts.as_deref().unwrap_or_default() {
            [] => all.push((Host::default(), secret)),
            hosts => all.extend(hosts.iter().map(|h| (Host::new(h), secret.clone()))),
        }
    }
    all
}

fn rules(world: &World, ingress: &Ingress, hosts: &mut BTreeMap<String, Vec<Rule>>) {
    let Some(spec) = &ingress.spec else { return };
    let mut add = |host: &Host, path: PathRule, last: u8, place, backend: &IngressBackend| {
        let rank = path.rank();
        let order = Order {
            path: (rank.0 + last, rank.1),
            created: created(ingress),
            object: ingress.key(),
            place,
            ..Order::default()
        };
        let rule = Rule {
            route: format!("Ingress/{}", ingress.key()).into(),
            order,
            when: When {
                path,
                ..When::default()
            },
            then: Arc::new(action(world, ingress, backend)),
        };
        hosts.entry(host.text().into()).or_default().push(rule);
    };
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        let host = Host::new(rule.host.as_deref().unwrap_or_default());
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        for (j, path) in paths.enumerate() {
            let text = path.path.as_deref().unwrap_or("/");
            let rule = match path.path_type.as_str() {
                "Exact" => PathRule::Exact(text.into()),
                _ => PathRule::prefix(text),
            };
            add(&host, rule, 0, (i, j), &path.backend);
        }
        if rule.http.is_none()
            && let Some(backend) = &spec.default_backend
        {
            add(&host, PathRule::default(), LAST, (i, 0), backend);
        }
    }
    if let Some(backend) = &spec.default_backend {
        add(&Host::default(), PathRule::default(), LAST, (usize::MAX, 0), backend);
    }
}

/// Default backends come after all rules of their host.
const LAST: u8 = 10;

fn action(world: &World, ingress: &Ingress, backend: &IngressBackend) -> Action {
    let to = backend.service.as_ref().and_then(|service| {
        let key = ObjectKey::new(ingress.namespace(), &service.name);
        let port = service.port.as_ref()?;
        let port = match (&port.name, port.number) {
            (Some(name), _) => PortRef::Name(name),
            (None, number) => PortRef::Number(number?),
        };
        resolve(world, &key, port, Passing::Requests(Protocol::Http1), None).ok()
    });
    let to = Arc::new(to.unwrap_or(Upstream::Nowhere(503)));
    Action {
        backends: vec![Backend {
            weight: 1,
            to,
            filters: Default::default(),
        }],
        ..Action::default()
    }
}
