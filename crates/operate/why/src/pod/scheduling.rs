//! A pod without a node: what the scheduler said of it, and node by node what stands in its way.

use super::setup::{claims, missing_claim};
use super::verdict;
use crate::finding::{Finding, Report};
use crate::object::{Fields, between};
use crate::picture::{Picture, labels_of};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::SignedDuration;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::plan::{Plan, Turn, plan};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::Profile;
use keelson_scheduler::world::Fixed;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A scheduler that hasn't said anything by then is probably not there.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);
/// Nodes that are told one by one.
const SHOWN: usize = 10;

pub fn waiting(pod: &Value, picture: &Picture, report: &mut Report) {
    let gates: Vec<&str> = pod
        .list("/spec/schedulingGates")
        .iter()
        .map(|g| g.text("/name"))
        .collect();
    if !gates.is_empty() {
        report.add(
            Finding::certain(
                "scheduling-gated",
                pod.shown(),
                format!("it is held back by scheduling gates: {}", gates.join(", ")),
            )
            .shown_by(pod.condition("PodScheduled").map_or("", |c| c.text("/message")))
            .mended_by("The controller that owns a gate removes it when it is time; by hand: kubectl edit pod, spec.schedulingGates."),
        );
        return;
    }
    let condition = pod.condition_is("PodScheduled", "False");
    match condition.map(|c| c.text("/message")) {
        Some(message) if !message.is_empty() => refused(pod, message, picture, report),
        _ => unseen(pod, picture, report),
    }
    let nominated = pod.text("/status/nominatedNodeName");
    if !nominated.is_empty() {
        report.notes.push(format!(
            "less important pods are being ended on node {nominated} to make room for it"
        ));
    }
}

/// Nobody has judged it.
fn unseen(pod: &Value, picture: &Picture, report: &mut Report) {
    let age = picture.since(pod.text("/metadata/creationTimestamp"));
    if age.is_none_or(|age| age < PATIENCE) {
        return;
    }
    let scheduler = match pod.text("/spec/schedulerName") {
        "" => "default-scheduler",
        name => name,
    };
    report.add(if scheduler == "default-scheduler" {
        Finding::likely(
            "scheduler-silent",
            pod.shown(),
            "no scheduler has looked at it since it was made",
        )
        .mended_by("See that the scheduler runs (its lease: kubectl get lease -n kube-system kube-scheduler).")
    } else {
        Finding::likely(
            "no-such-scheduler",
            pod.shown(),
            format!("it asks for the scheduler {scheduler}, and none of that name has looked at it"),
        )
        .mended_by("Correct spec.schedulerName, or run that scheduler.")
    });
}

fn refused(pod: &Value, message: &str, picture: &Picture, report: &mut Report) {
    if message.contains("no nodes available to schedule pods") {
        report.add(
            Finding::certain("no-nodes", pod.shown(), "the cluster has no node")
                .shown_by(message)
                .mended_by("Start a node: keelson agent --server … --token …"),
        );
        return;
    }
    if let Some(name) = between(message, "persistentvolumeclaim \"", "\" not found") {
        report.add(missing_claim(pod, name).shown_by(message));
        return;
    }
    if message.contains("unbound immediate PersistentVolumeClaims") || message.contains("persistentvolumeclaim") {
        let found = claims(pod, picture).unwrap_or_else(|| {
            Finding::certain("claim-unbound", pod.shown(), "a claim that it mounts has no volume yet")
                .mended_by("See keelson why pvc/NAME for each of its claims.")
        });
        report.add(found.shown_by(message));
        return;
    }
    if message.contains("resourceclaim") || message.contains("ResourceClaim") {
        report.add(
            Finding::certain(
                "device-claim",
                pod.shown(),
                "a resource claim of it isn't there or can't be given",
            )
            .shown_by(message)
            .mended_by("See kubectl describe resourceclaim."),
        );
        return;
    }
    by_node(pod, message, picture, report);
}

/// One finding a cause, the pod's own faults before the nodes'.
fn by_node(pod: &Value, message: &str, picture: &Picture, report: &mut Report) {
    let nodes = node_by_node(pod, picture);
    let mut causes: BTreeMap<usize, Vec<(usize, &str)>> = BTreeMap::new();
    for (count, reason) in verdict::reasons(message) {
        let row = verdict::row_of(reason).map_or(usize::MAX, |(index, _)| index);
        causes.entry(row).or_default().push((count, reason));
    }
    for (index, reasons) in causes {
        let found = match verdict::ROWS.get(index) {
            Some(row) => Finding::certain(row.cause, pod.shown(), row.says).mended_by(row.fix),
            None => Finding::certain("unschedulable", pod.shown(), "no node will do")
                .mended_by("The scheduler's words above name the plug-in's reason."),
        };
        let told = reasons
            .iter()
            .map(|(count, reason)| format!("{count} of the nodes: {reason}"));
        let same = |reason: &str| verdict::row_of(reason).map_or(usize::MAX, |(i, _)| i) == index;
        let each = nodes.iter().filter(|(_, reason)| same(reason));
        let each = each
            .take(SHOWN)
            .map(|(node, reason)| format!("node {node}: {reason}{}", numbers(pod, node, reason, picture)));
        report.add(found.shown_by_all(told).shown_by_all(each));
    }
    if report.findings.is_empty() {
        report.add(
            Finding::certain("unschedulable", pod.shown(), "the scheduler finds no node for it")
                .shown_by(message)
                .mended_by("The scheduler's words above are all there is."),
        );
    }
}

/// What our own scheduler would say of each node now: the same rules, on the same objects.
fn node_by_node(pod: &Value, picture: &Picture) -> Vec<(String, String)> {
    if !picture.knows("Node", "") || !picture.knows("Pod", "") {
        return Vec::new();
    }
    let Some(info) = typed::<Pod>(pod).map(|p| PodInfo::of(Arc::new(p))) else {
        return Vec::new();
    };
    let mut cluster = Cluster::default();
    let mut nodes: Vec<Node> = picture.all("Node", "").filter_map(typed).collect();
    nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    nodes.into_iter().for_each(|n| cluster.set_node(Arc::new(n)));
    let is_there =
        |p: &&Value| !p.text("/spec/nodeName").is_empty() && !matches!(p.text("/status/phase"), "Succeeded" | "Failed");
    for other in picture.all("Pod", "").filter(is_there).filter_map(typed::<Pod>) {
        cluster.set_pod(Arc::new(PodInfo::of(Arc::new(other))));
    }
    let snapshot = cluster.snapshot(Arc::new(world(picture)));
    match plan(
        &Profile::default(),
        &info,
        &snapshot,
        &mut Turn::new(StdRng::seed_from_u64(0)),
    ) {
        Plan::Bind { .. } => Vec::new(),
        Plan::Wait(why) => {
            let each = why.nodes.iter().flat_map(|refused| {
                let name = snapshot
                    .at(refused.node)
                    .map_or(String::new(), |n| n.name().to_string());
                refused
                    .reject
                    .reasons()
                    .map(move |r| (name.clone(), r.to_string()))
                    .collect::<Vec<_>>()
            });
            let mut each: Vec<(String, String)> = each.collect();
            each.sort();
            each
        }
    }
}

fn typed<T: DeserializeOwned>(object: &Value) -> Option<T> {
    serde_json::from_value(object.clone()).ok()
}

fn world(picture: &Picture) -> Fixed {
    fn each<T: DeserializeOwned>(picture: &Picture, kind: &str) -> Vec<Arc<T>> {
        picture.all(kind, "").filter_map(typed).map(Arc::new).collect()
    }
    let namespaces = picture.all("Namespace", "");
    Fixed {
        namespaces: namespaces.map(|n| (n.name().to_string(), labels_of(n))).collect(),
        claims: each(picture, "PersistentVolumeClaim"),
        volumes: each(picture, "PersistentVolume"),
        classes: each(picture, "StorageClass"),
        csi_nodes: each(picture, "CSINode"),
        csi_drivers: each(picture, "CSIDriver"),
        capacities: each(picture, "CSIStorageCapacity"),
        attachments: each(picture, "VolumeAttachment"),
        ..Fixed::default()
    }
}

/// For a reason that is about an amount: what is asked, and what the node has; for a taint: which.
fn numbers(pod: &Value, node: &str, reason: &str, picture: &Picture) -> String {
    let Some(object) = picture.all("Node", "").find(|n| n.name() == node) else {
        return String::new();
    };
    if let Some(resource) = reason.strip_prefix("Insufficient ") {
        let asked = amount(pod, resource);
        let others = picture.all("Pod", "").filter(|p| p.text("/spec/nodeName") == node);
        let taken: f64 = others
            .filter(|p| !matches!(p.text("/status/phase"), "Succeeded" | "Failed"))
            .map(|p| amount(p, resource))
            .sum();
        let all = quantity(object.text(&format!("/status/allocatable/{}", resource.replace('/', "~1"))));
        let shown = |n: f64| amount_text(resource, n);
        return format!(
            " (asks {}, {} of {} free)",
            shown(asked),
            shown((all - taken).max(0.0)),
            shown(all)
        );
    }
    if reason.contains("node affinity/selector") {
        let wanted = pod.pairs("/spec/nodeSelector").into_iter();
        let has = labels_of(object);
        let lacks: Vec<String> = wanted
            .filter(|(k, v)| has.get(*k).map(String::as_str) != Some(*v))
            .map(|(k, v)| match has.get(k) {
                Some(other) => format!("{k} is {other}, not {v}"),
                None => format!("no label {k}={v}"),
            })
            .collect();
        return if lacks.is_empty() {
            String::new()
        } else {
            format!(" ({})", lacks.join(", "))
        };
    }
    String::new()
}

/// What the containers of a pod ask for of a resource, in its base unit.
fn amount(pod: &Value, resource: &str) -> f64 {
    let path = format!("/resources/requests/{}", resource.replace('/', "~1"));
    let of = |c: &Value| quantity(c.text(&path));
    let init = pod.list("/spec/initContainers").iter().map(of).fold(0.0, f64::max);
    let main: f64 = pod.list("/spec/containers").iter().map(of).sum();
    main.max(init) + quantity(pod.text(&format!("/spec/overhead/{}", resource.replace('/', "~1"))))
}

pub(crate) fn quantity(text: &str) -> f64 {
    let parsed = keelson_api::Quantity::parse(text).ok();
    parsed.map_or(0.0, |q| q.as_f64())
}

fn amount_text(resource: &str, amount: f64) -> String {
    match resource {
        "memory" | "ephemeral-storage" => format!("{:.0}Mi", amount / f64::from(1 << 20)),
        "cpu" => format!("{:.0}m", amount * 1000.0),
        _ => format!("{amount:.0}"),
    }
}

/// `key=value:Effect`
pub(crate) fn taint_shown(taint: &Value) -> String {
    let value = match taint.text("/value") {
        "" => String::new(),
        value => format!("={value}"),
    };
    format!("{}{value}:{}", taint.text("/key"), taint.text("/effect"))
}
