//! A service that leads nowhere.

use crate::finding::{Finding, Report};
use crate::object::{Fields, port_text};
use crate::picture::{Need, Picture, labels_of};
use crate::pod;
use crate::workload::of_pods;
use serde_json::Value;

pub fn diagnose(service: &Value, picture: &Picture, report: &mut Report) {
    if service.text("/spec/type") == "ExternalName" {
        let name = service.text("/spec/externalName");
        report.notes.push(format!(
            "it is an alias of {name}: what is wrong there can't be seen from here"
        ));
        return;
    }
    let wanted = service.pairs("/spec/selector");
    if wanted.is_empty() {
        return unselected(service, picture, report);
    }
    let pods = selected(service, picture);
    if pods.is_empty() {
        if picture.knows("Pod", service.namespace()) {
            report.add(nothing(service, &wanted, picture));
        }
        return;
    }
    let serving: Vec<&&Value> = pods.iter().filter(|p| pod::is_ready(p)).collect();
    for port in service.list("/spec/ports") {
        report.add_all(lost(service, port, &pods));
    }
    if serving.is_empty() && !service.flag("/spec/publishNotReadyAddresses") {
        report.add(
            Finding::certain(
                "no-ready-pods",
                service.shown(),
                format!("none of the {} pods it selects is ready", pods.len()),
            )
            .shown_by_all(pods.iter().take(5).map(|p| format!("{} is {}", p.shown(), state(p))))
            .mended_by("Mend the pods: their own causes follow."),
        );
        of_pods(&pods, picture, report);
    } else if report.findings.is_empty() {
        report.add_all(unlistened(service, &pods));
        report
            .notes
            .push(format!("{} of {} pods it selects are ready", serving.len(), pods.len()));
    }
    report.add_all(balancer(service, picture));
}

/// The pods behind a service, but for those that have ended.
pub fn selected<'a>(service: &Value, picture: &'a Picture) -> Vec<&'a Value> {
    let wanted = service.pairs("/spec/selector");
    let pods = picture.all("Pod", service.namespace());
    let matching = pods.filter(|p| {
        let has = labels_of(p);
        wanted.iter().all(|(k, v)| has.get(*k).map(String::as_str) == Some(*v))
    });
    matching
        .filter(|p| !matches!(p.text("/status/phase"), "Succeeded" | "Failed"))
        .collect()
}

fn state(pod: &Value) -> String {
    if pod.is_deleting() {
        return "being deleted".into();
    }
    let phase = pod.text("/status/phase");
    match phase {
        "Running" => "running, not ready".into(),
        phase => phase.to_lowercase(),
    }
}

fn nothing(service: &Value, wanted: &[(&str, &str)], picture: &Picture) -> Finding {
    let text: Vec<String> = wanted.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut found = Finding::certain(
        "selector-matches-nothing",
        service.shown(),
        format!(
            "no pod in namespace {} has the labels of its selector ({})",
            service.namespace(),
            text.join(", ")
        ),
    )
    .mended_by("Correct spec.selector or the pods' labels (kubectl get pods --show-labels).");
    // Pods that miss it narrowly: one label less, or the right labels in another namespace.
    for pod in picture.all("Pod", service.namespace()) {
        let has = labels_of(pod);
        let lacks: Vec<&(&str, &str)> = wanted
            .iter()
            .filter(|(k, v)| has.get(*k).map(String::as_str) != Some(*v))
            .collect();
        let [(key, value)] = lacks[..] else { continue };
        let likeness = has
            .get(*key)
            .map(|other| format!("{} has {key}={other}, not {value}", pod.shown()));
        if wanted.len() > 1 || likeness.is_some() {
            found = found.shown_by(likeness.unwrap_or_else(|| format!("{} has no label {key}", pod.shown())));
        }
        if found.evidence.len() >= 3 {
            break;
        }
    }
    let elsewhere = picture.all("Pod", "").find(|p| {
        let has = labels_of(p);
        p.namespace() != service.namespace() && wanted.iter().all(|(k, v)| has.get(*k).map(String::as_str) == Some(*v))
    });
    match elsewhere {
        Some(pod) => found.shown_by(format!(
            "{} in namespace {} has them: a service leads to pods of its own namespace only",
            pod.shown(),
            pod.namespace()
        )),
        None => found,
    }
}

/// A port whose name no pod has.
fn lost(service: &Value, port: &Value, pods: &[&Value]) -> Option<Finding> {
    let Some(Value::String(name)) = port.pointer("/targetPort") else {
        return None;
    };
    if pods.iter().any(|p| declares(p, |d| d.text("/name") == name)) {
        return None;
    }
    let names: Vec<String> = pods
        .iter()
        .flat_map(|p| ports(p))
        .map(|d| d.text("/name").to_string())
        .collect();
    let mut names: Vec<&String> = names.iter().filter(|n| !n.is_empty()).collect();
    names.sort();
    names.dedup();
    Some(
        Finding::certain(
            "port-name-wrong",
            service.shown(),
            format!(
                "its port {} leads to the container port named {name}, which none of its pods has",
                port_text(port.pointer("/port"))
            ),
        )
        .shown_by(match names.is_empty() {
            true => "its pods name no port".to_string(),
            false => format!(
                "its pods name {}",
                names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")
            ),
        })
        .mended_by("Correct targetPort, or name the port in the container's ports list."),
    )
}

fn ports(pod: &Value) -> impl Iterator<Item = &Value> {
    let containers = pod.list("/spec/containers").iter();
    containers.flat_map(|c| c.list("/ports"))
}

fn declares(pod: &Value, is_it: impl Fn(&Value) -> bool) -> bool {
    ports(pod).any(is_it)
}

/// A number that no container declares is allowed; where others are declared it is usually a mistake.
fn unlistened(service: &Value, pods: &[&Value]) -> Option<Finding> {
    let wrong = service.list("/spec/ports").iter().find(|port| {
        let target = port.number("/targetPort").or(port.number("/port"));
        let is_named = matches!(port.pointer("/targetPort"), Some(Value::String(_)));
        let all_declare = pods.iter().all(|p| ports(p).next().is_some());
        !is_named
            && all_declare
            && !pods
                .iter()
                .any(|p| declares(p, |d| d.number("/containerPort") == target))
    })?;
    let target = port_text(wrong.pointer("/targetPort").or(wrong.pointer("/port")));
    let declared: Vec<String> = pods
        .iter()
        .flat_map(|p| ports(p))
        .map(|d| port_text(d.pointer("/containerPort")))
        .collect();
    Some(
        Finding::likely(
            "port-not-declared",
            service.shown(),
            format!(
                "its port {} leads to port {target} of its pods, which declare others",
                port_text(wrong.pointer("/port"))
            ),
        )
        .shown_by(format!("declared: {}", declared.join(", ")))
        .mended_by("Set targetPort to the port on which the program listens."),
    )
}

/// Without a selector somebody else writes the endpoints.
fn unselected(service: &Value, picture: &Picture, report: &mut Report) {
    let of_it = |s: &&Value| s.text("/metadata/labels/kubernetes.io~1service-name") == service.name();
    let slices: Vec<&Value> = picture
        .all("EndpointSlice", service.namespace())
        .filter(of_it)
        .collect();
    let has_any = slices.iter().any(|s| !s.list("/endpoints").is_empty());
    if !has_any && picture.knows("EndpointSlice", service.namespace()) {
        report.add(
            Finding::certain(
                "no-selector",
                service.shown(),
                "it has no selector, and nobody has written endpoints for it",
            )
            .mended_by("Give it a selector, or an EndpointSlice with the label kubernetes.io/service-name."),
        );
    }
}

fn balancer(service: &Value, picture: &Picture) -> Option<Finding> {
    if service.text("/spec/type") != "LoadBalancer" || !service.list("/status/loadBalancer/ingress").is_empty() {
        return None;
    }
    let event = picture.event(service, &["SyncLoadBalancerFailed", "UnAvailableLoadBalancer"]);
    let said = service
        .list("/status/conditions")
        .iter()
        .find(|c| c.text("/status") == "False");
    let message = said.or(event).map(|told| told.text("/message")).unwrap_or_default();
    let class = service.text("/spec/loadBalancerClass");
    let found = match (message, class) {
        ("", "") => Finding::likely("load-balancer-pending", service.shown(), "it has no address yet")
            .mended_by("Nobody gives it one: see that a load balancer runs, and that a node is ready."),
        ("", class) => Finding::likely(
            "load-balancer-pending",
            service.shown(),
            format!("it has no address yet: the load balancer of class {class} has to give it one"),
        )
        .mended_by("See that this load balancer runs, or leave loadBalancerClass out."),
        (message, _) if said.is_some_and(|told| told.text("/reason") == "AllocationFailed") => {
            Finding::certain("load-balancer-pending", service.shown(), "no pool has an address for it")
                .shown_by(message)
                .mended_by("Give a pool more addresses (kubectl get lbippools), ask for one that is free, or delete what isn't needed.")
        }
        (message, _) => Finding::certain("load-balancer-pending", service.shown(), "it gets no address")
            .shown_by(message)
            .mended_by("Free the port that another service has, use another port, or see that nodes are ready: the message says which."),
    };
    Some(found)
}

pub fn needs(service: &Value) -> Vec<Need> {
    let namespace = service.namespace().to_string();
    vec![
        Need::All("Event", namespace.clone()),
        Need::All("Pod", namespace.clone()),
        Need::All("EndpointSlice", namespace),
    ]
}

/// What its pods need to be judged, if none is ready.
pub fn needs_of_pods(service: &Value, picture: &Picture) -> Vec<Need> {
    let pods = selected(service, picture);
    match pods.iter().any(|p| pod::is_ready(p)) {
        true => Vec::new(),
        false => pods.into_iter().take(5).flat_map(pod::needs).collect(),
    }
}
