//! Whether a pod reaches another pod or a service, step by step: the service and its port, a pod behind it that is ready,
//! and what network policies say at both ends. Nothing is sent; rules are asked.

use super::service;
use crate::finding::{Confidence, Finding, Report};
use crate::object::{Fields, port_text};
use crate::picture::{Lookup, Need, Picture, labels_of};
use crate::pod;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use keelson_client::cluster_policies::ClusterNetworkPolicy;
use keelson_policy::judge::{self, Connection, Direction, End, Verdict};
use keelson_policy::{cluster, facts};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::net::IpAddr;

/// From where to where: pods by their names, `to` a pod or a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub from: (String, String),
    pub to_kind: &'static str,
    pub to: (String, String),
    /// A number or a name; empty: the only one there is.
    pub port: String,
}

pub fn diagnose(way: &Way, picture: &Picture, report: &mut Report) {
    let Some(from) = found("Pod", &way.from, picture, report) else {
        return;
    };
    let Some(to) = found(way.to_kind, &way.to, picture, report) else {
        return;
    };
    let trouble = |pod: &Value| pod.text("/status/podIP").is_empty() || pod.text("/status/phase") != "Running";
    if trouble(from) {
        report.add(
            Finding::certain(
                "source-not-running",
                from.shown(),
                "it doesn't run, so it reaches nobody",
            )
            .mended_by(format!("keelson why {} -n {}", from.shown(), from.namespace())),
        );
        return;
    }
    let rules = rules_of(picture);
    if way.to_kind == "Pod" && way.from == way.to {
        // By a service it isn't: then its packets come to the node.
        report.notes.push("a pod always reaches itself".to_string());
        return;
    }
    if way.to_kind == "Pod" {
        if trouble(to) {
            report.add(
                Finding::certain("target-not-running", to.shown(), "it doesn't run, so nobody reaches it")
                    .mended_by(format!("keelson why {} -n {}", to.shown(), to.namespace())),
            );
            return;
        }
        return to_pod(from, to, (&way.port, ""), &rules, picture, report);
    }
    to_service(from, to, &way.port, &rules, picture, report);
}

fn found<'a>(
    kind: &'static str,
    (namespace, name): &(String, String),
    picture: &'a Picture,
    report: &mut Report,
) -> Option<&'a Value> {
    match picture.find(kind, namespace, name) {
        Lookup::Found(object) => Some(object),
        Lookup::Missing => {
            report.add(Finding::certain(
                "does-not-exist",
                format!("{}/{name}", kind.to_lowercase()),
                format!("it doesn't exist in namespace {namespace}"),
            ));
            None
        }
        Lookup::Unknown => None,
    }
}

fn to_service(from: &Value, to: &Value, port: &str, rules: &judge::Rules, picture: &Picture, report: &mut Report) {
    if to.text("/spec/type") == "ExternalName" {
        return service::diagnose(to, picture, report);
    }
    let ports = to.list("/spec/ports");
    let is_it = |p: &&Value| port.is_empty() || p.text("/name") == port || port_text(p.pointer("/port")) == port;
    let Some(chosen) = ports.iter().find(is_it) else {
        let has: Vec<String> = ports.iter().map(|p| port_text(p.pointer("/port"))).collect();
        report.add(
            Finding::certain("service-port-missing", to.shown(), format!("it has no port {port}"))
                .shown_by(format!("its ports: {}", has.join(", ")))
                .mended_by("Ask for a port of the service: its own port, not the pods' (targetPort)."),
        );
        return;
    };
    let before = report.findings.len();
    service::diagnose(to, picture, report);
    report.findings.retain(|f| f.cause != "load-balancer-pending");
    if report.findings.len() > before && !report.findings.iter().any(|f| f.cause == "port-not-declared") {
        return;
    }
    let behind = service::selected(to, picture);
    let ready: Vec<&&Value> = behind.iter().filter(|p| pod::is_ready(p)).collect();
    let mut blocked = Vec::new();
    for target in &ready {
        let mut own = Report::default();
        let number = target_port(chosen, target);
        let way = (number.as_str(), chosen.text("/protocol"));
        to_pod(from, target, way, rules, picture, &mut own);
        match own.findings.is_empty() {
            true => {}
            false => blocked.extend(own.findings),
        }
    }
    let is_known = is_known(from, picture) && ready.iter().all(|target| is_known(target, picture));
    let count = blocked
        .iter()
        .map(|f| &f.object)
        .collect::<std::collections::BTreeSet<_>>()
        .len();
    report.add_all(
        blocked
            .into_iter()
            .map(|f| f.shown_by(format!("{} leads to {} pods", to.shown(), ready.len()))),
    );
    if count == 0 && is_known {
        report.notes.push(format!(
            "{} may reach all {} ready pods of {} on port {}",
            from.shown(),
            ready.len(),
            to.shown(),
            port_text(chosen.pointer("/port"))
        ));
    }
}

/// The number of the pod's port to which a service's port leads.
fn target_port(port: &Value, pod: &Value) -> String {
    let target = port.pointer("/targetPort").or(port.pointer("/port"));
    match target {
        Some(Value::String(name)) => {
            let declared = pod.list("/spec/containers").iter().flat_map(|c| c.list("/ports"));
            let mut named = declared.filter(|p| p.text("/name") == name);
            named
                .next()
                .map(|p| port_text(p.pointer("/containerPort")))
                .unwrap_or_default()
        }
        other => port_text(other),
    }
}

/// `protocol`: as a service has it; empty: as the pod declares the port, or TCP.
fn to_pod(
    from: &Value,
    to: &Value,
    (port, protocol): (&str, &str),
    rules: &judge::Rules,
    picture: &Picture,
    report: &mut Report,
) {
    let declared = to
        .list("/spec/containers")
        .iter()
        .flat_map(|c| c.list("/ports"))
        .collect::<Vec<_>>();
    let number = match port {
        "" => declared
            .first()
            .and_then(|p| p.number("/containerPort"))
            .unwrap_or(0)
            .to_string(),
        port => port.to_string(),
    };
    let number = number.parse::<u16>().ok().or_else(|| {
        let named = declared.iter().find(|p| p.text("/name") == number)?;
        u16::try_from(named.number("/containerPort")?).ok()
    });
    let Some(number) = number else {
        report.add(Finding::certain(
            "port-name-wrong",
            to.shown(),
            format!("it has no port {port}"),
        ));
        return;
    };
    let of_port = |p: &&&Value| p.number("/containerPort") == Some(i64::from(number));
    let declared_as = declared.iter().find(of_port).map_or("", |p| p.text("/protocol"));
    let protocol = match (protocol, declared_as) {
        ("", "UDP") | ("UDP", _) => ("UDP", facts::UDP),
        ("", "SCTP") | ("SCTP", _) => ("SCTP", facts::SCTP),
        _ => ("TCP", facts::TCP),
    };
    for (direction, own, other, word) in [
        (Direction::Egress, from, to, "leave"),
        (Direction::Ingress, to, from, "come to"),
    ] {
        let found = match verdict(direction, (from, to), (number, protocol.1), rules) {
            Some(Verdict::Ruled(policy, rule)) if rule.action == cluster::Action::Accept => {
                report.notes.push(format!(
                    "rule {} of ClusterNetworkPolicy {} accepts what goes from {} to {}",
                    rule.name,
                    policy.name,
                    from.shown(),
                    to.shown()
                ));
                None
            }
            Some(verdict) => denied(&verdict, direction, (number, protocol.0), own, other, word),
            None => None,
        };
        // What other policies, or namespaces' labels, say of it isn't known.
        report.add_all(found.map(|finding| match is_known(own, picture) {
            true => finding,
            false => Finding {
                confidence: Confidence::Likely,
                ..finding
            },
        }));
    }
    for end in [from, to] {
        let node = picture.find("Node", "", end.text("/spec/nodeName"));
        if let Some(node) = node.found()
            && node.condition_is("Ready", "True").is_none()
        {
            report.add(
                Finding::certain(
                    "node-silent",
                    end.shown(),
                    format!("its node {} isn't ready", node.name()),
                )
                .mended_by(format!("keelson why node/{}", node.name())),
            );
        }
    }
}

fn verdict<'a>(
    direction: Direction,
    (from, to): (&Value, &Value),
    (port, protocol): (u16, u8),
    rules: &'a judge::Rules,
) -> Option<Verdict<'a>> {
    let (source, target) = (facts_of(from), facts_of(to));
    let connection = Connection {
        from: End {
            address: address(from)?,
            pod: source.as_ref(),
        },
        to: End {
            address: address(to)?,
            pod: target.as_ref(),
        },
        protocol,
        port,
    };
    Some(judge::judge(&connection, direction, rules))
}

fn denied(
    verdict: &Verdict,
    direction: Direction,
    (port, protocol): (u16, &str),
    own: &Value,
    other: &Value,
    word: &str,
) -> Option<Finding> {
    let (ingress, way) = match direction {
        Direction::Ingress => (true, "from"),
        Direction::Egress => (false, "to"),
    };
    let cause = |one, two| if ingress { one } else { two };
    let labels = format!("labels of {}: {}", other.shown(), shown_labels(other));
    let doing = format!("let {protocol} port {port} {word} it {way} {}", other.shown());
    match verdict {
        Verdict::Open | Verdict::AllowedBy(_) => None,
        Verdict::Ruled(_, rule) if rule.action == cluster::Action::Accept => None,
        Verdict::Ruled(policy, rule) => Some(
            Finding::certain(
                cause("ingress-cluster-policy", "egress-cluster-policy"),
                own.shown(),
                format!("a rule of the cluster doesn't {doing}"),
            )
            .shown_by(format!(
                "ClusterNetworkPolicy {}, tier {:?}, priority {}: {} rule {} denies it",
                policy.name,
                policy.tier,
                policy.priority,
                cause("ingress", "egress"),
                rule.name
            ))
            .shown_by(labels)
            .mended_by(match policy.tier {
                cluster::Tier::Admin => format!(
                    "Have who administers the cluster accept it, or pass it on, by a rule before that one (`kubectl get cnp {}`): network policies are asked later.",
                    policy.name
                ),
                cluster::Tier::Baseline => format!(
                    "Add a NetworkPolicy for {} that allows it: what the Baseline tier says counts only for pods that no network policy selects.",
                    own.shown()
                ),
            }),
        ),
        Verdict::Denied(by) => {
            let names: Vec<String> = by.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
            Some(
                Finding::certain(
                    cause("ingress-policy", "egress-policy"),
                    own.shown(),
                    format!("network policies don't {doing}"),
                )
                .shown_by(format!("policies that select it, of which none allows this: {}", names.join(", ")))
                .shown_by(labels)
                .mended_by(format!(
                    "Let one of them allow it (a rule with the labels above, namespace {} and port {port}), or add a NetworkPolicy that does.",
                    other.namespace()
                )),
            )
        }
    }
}

fn shown_labels(object: &Value) -> String {
    let labels: Vec<String> = labels_of(object).iter().map(|(k, v)| format!("{k}={v}")).collect();
    if labels.is_empty() {
        "none".into()
    } else {
        labels.join(", ")
    }
}

fn address(pod: &Value) -> Option<IpAddr> {
    pod.text("/status/podIP").parse().ok()
}

fn facts_of(pod: &Value) -> Option<facts::Pod> {
    let typed: Pod = serde_json::from_value(pod.clone()).ok()?;
    facts::pod(&typed, &[], pod.text("/spec/nodeName"), |_| false)
}

/// Whether all policies that could select a pod have been read, and what they select by.
fn is_known(pod: &Value, picture: &Picture) -> bool {
    picture.knows("NetworkPolicy", pod.namespace())
        && picture.knows("ClusterNetworkPolicy", "")
        && picture.knows("Namespace", "")
}

fn rules_of(picture: &Picture) -> judge::Rules {
    fn typed<T: DeserializeOwned>(picture: &Picture, kind: &str) -> Vec<T> {
        let all = picture.all(kind, "");
        all.filter_map(|object| T::deserialize(object).ok()).collect()
    }
    let namespaces = picture.all("Namespace", "");
    judge::Rules {
        policies: typed::<NetworkPolicy>(picture, "NetworkPolicy")
            .iter()
            .filter_map(facts::policy)
            .collect(),
        cluster: typed::<ClusterNetworkPolicy>(picture, "ClusterNetworkPolicy")
            .iter()
            .filter_map(cluster::policy)
            .collect(),
        namespaces: namespaces.map(|n| (n.name().to_string(), labels_of(n))).collect(),
        nodes: typed::<Node>(picture, "Node").iter().map(cluster::node).collect(),
    }
    .sort()
}

pub fn needs(way: &Way) -> Vec<Need> {
    let mut needs = vec![
        Need::One("Pod", way.from.0.clone(), way.from.1.clone()),
        Need::One(way.to_kind, way.to.0.clone(), way.to.1.clone()),
        Need::All("Namespace", String::new()),
        Need::All("Node", String::new()),
        Need::All("ClusterNetworkPolicy", String::new()),
    ];
    for namespace in [&way.from.0, &way.to.0] {
        needs.push(Need::All("NetworkPolicy", namespace.clone()));
    }
    if way.to_kind == "Service" {
        needs.extend(["Pod", "EndpointSlice", "Event"].map(|kind| Need::All(kind, way.to.0.clone())));
    }
    needs
}
