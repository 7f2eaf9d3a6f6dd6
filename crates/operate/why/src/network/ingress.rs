//! An ingress whose rules lead nowhere, or that nobody reads.

use super::service;
use crate::finding::{Finding, Report};
use crate::object::{Fields, port_text};
use crate::picture::{Lookup, Need, Picture};
use serde_json::Value;

pub fn diagnose(ingress: &Value, picture: &Picture, report: &mut Report) {
    report.add_all(class(ingress, picture));
    for backend in backends(ingress) {
        let name = backend.text("/service/name");
        match picture.find("Service", ingress.namespace(), name) {
            Lookup::Missing => report.add(
                Finding::certain(
                    "backend-missing",
                    ingress.shown(),
                    format!(
                        "it leads to the service {name}, which doesn't exist in namespace {}",
                        ingress.namespace()
                    ),
                )
                .mended_by(
                    "Create the service, or correct its name: an ingress leads to services of its own namespace only.",
                ),
            ),
            Lookup::Found(found) => match port(ingress, backend, found) {
                Some(wrong) => report.add(wrong),
                None => service::diagnose(found, picture, report),
            },
            Lookup::Unknown => {}
        }
    }
    for secret in ingress
        .list("/spec/tls")
        .iter()
        .map(|t| t.text("/secretName"))
        .filter(|s| !s.is_empty())
    {
        if picture.find("Secret", ingress.namespace(), secret).is_missing() {
            report.add(
                Finding::certain(
                    "tls-secret-missing",
                    ingress.shown(),
                    format!(
                        "its TLS secret {secret} doesn't exist in namespace {}",
                        ingress.namespace()
                    ),
                )
                .mended_by(
                    "kubectl create secret tls, or see the issuer that should have made it (kubectl get certificate).",
                ),
            );
        }
    }
}

fn class(ingress: &Value, picture: &Picture) -> Option<Finding> {
    let annotated = ingress.text("/metadata/annotations/kubernetes.io~1ingress.class");
    let name = ingress.text("/spec/ingressClassName");
    if name.is_empty() {
        let has_any = picture.all("IngressClass", "").next().is_some();
        let known = picture.knows("IngressClass", "") && annotated.is_empty();
        return known.then(|| {
            let says = match has_any {
                true => "it names no ingress class, and none is the default: no controller takes it",
                false => "it names no ingress class, and the cluster has none: no ingress controller is installed",
            };
            Finding::certain("no-ingress-class", ingress.shown(), says)
                .mended_by("Install an ingress controller and name its class (spec.ingressClassName).")
        });
    }
    if picture.find("IngressClass", "", name).is_missing() {
        return Some(
            Finding::certain(
                "ingress-class-missing",
                ingress.shown(),
                format!("its ingress class {name} doesn't exist"),
            )
            .mended_by("Correct spec.ingressClassName (kubectl get ingressclass), or install that controller."),
        );
    }
    let age = picture.since(ingress.text("/metadata/creationTimestamp"));
    let has_address = !ingress.list("/status/loadBalancer/ingress").is_empty();
    (!has_address && age.is_some_and(|a| a.as_secs() > 60)).then(|| {
        Finding::likely(
            "ingress-unserved",
            ingress.shown(),
            format!("the controller of class {name} has given it no address"),
        )
        .mended_by(
            "See that the controller's pods run and that its service has an address. Some controllers never write one.",
        )
    })
}

fn backends(ingress: &Value) -> Vec<&Value> {
    let rules = ingress.list("/spec/rules").iter().flat_map(|r| r.list("/http/paths"));
    let paths = rules.filter_map(|p| p.pointer("/backend"));
    let all = ingress.pointer("/spec/defaultBackend").into_iter().chain(paths);
    all.filter(|b| b.has("/service")).collect()
}

fn port(ingress: &Value, backend: &Value, service: &Value) -> Option<Finding> {
    let (name, number) = (
        backend.text("/service/port/name"),
        backend.number("/service/port/number"),
    );
    let has =
        |p: &Value| (!name.is_empty() && p.text("/name") == name) || (number.is_some() && p.number("/port") == number);
    if service.list("/spec/ports").iter().any(has) {
        return None;
    }
    let wanted = if name.is_empty() {
        port_text(backend.pointer("/service/port/number"))
    } else {
        name.to_string()
    };
    let ports: Vec<String> = service
        .list("/spec/ports")
        .iter()
        .map(|p| {
            format!("{} {}", port_text(p.pointer("/port")), p.text("/name"))
                .trim()
                .to_string()
        })
        .collect();
    Some(
        Finding::certain(
            "backend-port-missing",
            ingress.shown(),
            format!(
                "it leads to port {wanted} of {}, which has no such port",
                service.shown()
            ),
        )
        .shown_by(format!("its ports: {}", ports.join(", ")))
        .mended_by("Name a port of the service (its own port, not its targetPort)."),
    )
}

pub fn needs(ingress: &Value) -> Vec<Need> {
    let namespace = ingress.namespace().to_string();
    let mut needs = vec![
        Need::All("IngressClass", String::new()),
        Need::All("Event", namespace.clone()),
        Need::All("Service", namespace.clone()),
        Need::All("Pod", namespace.clone()),
        Need::All("EndpointSlice", namespace.clone()),
    ];
    let secrets = ingress.list("/spec/tls").iter().map(|t| t.text("/secretName"));
    needs.extend(
        secrets
            .filter(|s| !s.is_empty())
            .map(|s| Need::One("Secret", namespace.clone(), s.into())),
    );
    needs
}
