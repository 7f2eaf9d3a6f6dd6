//! Rows of what runs pods, and of what governs it.

use super::cells::{AGE, Col, NAME, NONE, Row, UNKNOWN, UNSET, flag, human, number, selector, text, wide};
use keelson_api::{Map, Value};

const CONTAINERS: Col = wide("Containers", |r| r.containers("spec.template").0.into());
const IMAGES: Col = wide("Images", |r| r.containers("spec.template").1.into());
const SELECTOR: Col = wide("Selector", |r| selector(r.at("spec.selector")).into());

const REPLICA_SET: &[Col] = &[
    NAME,
    number("Desired", |r| r.int("spec.replicas").into()),
    number("Current", |r| r.int("status.replicas").into()),
    number("Ready", |r| r.int("status.readyReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const DEPLOYMENT: &[Col] = &[
    NAME,
    text("Ready", |r| {
        format!("{}/{}", r.int("status.readyReplicas"), r.int("spec.replicas")).into()
    }),
    text("Up-to-date", |r| r.int("status.updatedReplicas").into()),
    text("Available", |r| r.int("status.availableReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const DAEMON_SET: &[Col] = &[
    NAME,
    number("Desired", |r| r.int("status.desiredNumberScheduled").into()),
    number("Current", |r| r.int("status.currentNumberScheduled").into()),
    number("Ready", |r| r.int("status.numberReady").into()),
    number("Up-to-date", |r| r.int("status.updatedNumberScheduled").into()),
    number("Available", |r| r.int("status.numberAvailable").into()),
    text("Node Selector", |r| {
        selector(r.at("spec.template.spec.nodeSelector")).into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const STATEFUL_SET: &[Col] = &[
    NAME,
    text("Ready", |r| {
        format!("{}/{}", r.int("status.readyReplicas"), r.int("spec.replicas")).into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
];

const CONTROLLER_REVISION: &[Col] = &[
    NAME,
    text("Controller", |r| {
        let owner = r.object.owner_references().find(|o| o.bool("controller") == Some(true));
        owner.map_or(NONE.into(), |o| reference(o).into())
    }),
    text("Revision", |r| r.int("revision").into()),
    AGE,
];

const POD_TEMPLATE: &[Col] = &[
    NAME,
    text("Containers", |r| r.containers("template").0.into()),
    text("Images", |r| r.containers("template").1.into()),
    text("Pod Labels", |r| selector(r.at("template.metadata.labels")).into()),
];

const JOB: &[Col] = &[
    NAME,
    text("Status", job_status),
    text("Completions", job_completions),
    text("Duration", |r| {
        let seconds = |path: &str| r.str(path).parse::<jiff::Timestamp>().ok().map(|t| t.as_second());
        match (seconds("status.startTime"), seconds("status.completionTime")) {
            (Some(start), Some(end)) => human(end - start).into(),
            (Some(start), None) => human(r.now.as_second() - start).into(),
            _ => "".into(),
        }
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const CRON_JOB: &[Col] = &[
    NAME,
    text("Schedule", |r| r.str("spec.schedule").into()),
    text("Timezone", |r| r.str_or("spec.timeZone", NONE)),
    flag("Suspend", |r| {
        if r.bool("spec.suspend") { "True" } else { "False" }.into()
    }),
    number("Active", |r| r.list("status.active").len().into()),
    text("Last Schedule", |r| match r.str("status.lastScheduleTime") {
        "" => NONE.into(),
        time => r.since(time).into(),
    }),
    AGE,
    wide("Containers", |r| {
        r.containers("spec.jobTemplate.spec.template").0.into()
    }),
    wide("Images", |r| r.containers("spec.jobTemplate.spec.template").1.into()),
    wide("Selector", |r| selector(r.at("spec.jobTemplate.spec.selector")).into()),
];

const AUTOSCALER: &[Col] = &[
    NAME,
    text("Reference", |r| {
        r.map("spec.scaleTargetRef")
            .map_or(NONE.into(), |m| reference(m).into())
    }),
    text("Targets", targets),
    text("MinPods", |r| match r.at("spec.minReplicas") {
        Some(n) => n.as_i64().unwrap_or(0).to_string().into(),
        None => UNSET.into(),
    }),
    text("MaxPods", |r| r.int("spec.maxReplicas").into()),
    text("Replicas", |r| r.int("status.currentReplicas").into()),
    AGE,
];

const DISRUPTION_BUDGET: &[Col] = &[
    NAME,
    text("Min Available", |r| number_or_percent(r.at("spec.minAvailable"))),
    text("Max Unavailable", |r| number_or_percent(r.at("spec.maxUnavailable"))),
    number("Allowed Disruptions", |r| r.int("status.disruptionsAllowed").into()),
    AGE,
];

const SCALE: &[Col] = &[
    NAME,
    number("Desired", |r| r.int("spec.replicas").into()),
    number("Available", |r| r.int("status.replicas").into()),
    AGE,
];

pub fn core(kind: &str) -> Option<&'static [Col]> {
    Some(match kind {
        "ReplicationController" => REPLICA_SET,
        "PodTemplate" => POD_TEMPLATE,
        _ => return None,
    })
}

pub fn groups(group: &str, kind: &str) -> Option<&'static [Col]> {
    Some(match (group, kind) {
        ("apps", "ReplicaSet") => REPLICA_SET,
        ("apps", "Deployment") => DEPLOYMENT,
        ("apps", "DaemonSet") => DAEMON_SET,
        ("apps", "StatefulSet") => STATEFUL_SET,
        ("apps", "ControllerRevision") => CONTROLLER_REVISION,
        ("batch", "Job") => JOB,
        ("batch", "CronJob") => CRON_JOB,
        ("autoscaling", "HorizontalPodAutoscaler") => AUTOSCALER,
        ("autoscaling", "Scale") => SCALE,
        ("policy", "PodDisruptionBudget") => DISRUPTION_BUDGET,
        _ => return None,
    })
}

/// `deployment.apps/web` of an owner, `Deployment/web` of a target.
fn reference(m: &Map) -> String {
    let kind = m.str("kind").unwrap_or_default();
    let name = m.str("name").unwrap_or_default();
    if m.contains_key("uid") {
        let group = m
            .str("apiVersion")
            .and_then(|v| v.split_once('/'))
            .map_or("", |(g, _)| g);
        let dot = if group.is_empty() { "" } else { "." };
        return format!("{}{dot}{group}/{name}", kind.to_lowercase());
    }
    format!("{kind}/{name}")
}

fn number_or_percent(value: Option<&Value>) -> Value {
    match value {
        Some(Value::String(s)) => s.as_str().into(),
        Some(Value::Int(i)) => i.to_string().into(),
        _ => "N/A".into(),
    }
}

fn job_status(r: &Row) -> Value {
    let has = |kind: &str| {
        r.list("status.conditions").iter().any(|c| {
            c.get("type").and_then(Value::as_str) == Some(kind)
                && c.get("status").and_then(Value::as_str) == Some("True")
        })
    };
    let status = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if r.object.deletion_timestamp().is_some() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    status.into()
}

fn job_completions(r: &Row) -> Value {
    let succeeded = r.int("status.succeeded");
    match (
        r.at("spec.completions").and_then(Value::as_i64),
        r.int("spec.parallelism"),
    ) {
        (Some(n), _) => format!("{succeeded}/{n}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    }
    .into()
}

/// `cpu: 20%/80%` for each metric.
fn targets(r: &Row) -> Value {
    // `v1` has most of them elsewhere.
    let whole = crate::convert::autoscaling::to_v2(r.object.clone());
    let of = |path: &[&str]| whole.at(path).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let specs = of(&["spec", "metrics"]);
    let currents = of(&["status", "currentMetrics"]);
    let mut shown: Vec<String> = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let Some(kind) = spec.get("type").and_then(Value::as_str) else {
            continue;
        };
        let mut key = kind.to_string();
        if let Some(first) = key.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        let Some(source) = spec.get(&key) else { continue };
        let current = currents.get(i).and_then(|c| c.at(&[&key, "current"]));
        let target = source.get("target");
        let pick = |v: Option<&Value>, percent: bool| {
            let field = if percent { "averageUtilization" } else { "averageValue" };
            let found = v.and_then(|v| v.get(field).or_else(|| v.get("value")));
            match found {
                Some(Value::Int(n)) if percent => format!("{n}%"),
                Some(Value::Int(n)) => n.to_string(),
                Some(Value::String(s)) => s.to_string(),
                _ => UNKNOWN.into(),
            }
        };
        let percent = target.is_some_and(|t| t.get("averageUtilization").is_some());
        let prefix = match source.get("name").and_then(Value::as_str) {
            Some(name) if kind.ends_with("Resource") => format!("{name}: "),
            _ => String::new(),
        };
        let may_be_average = matches!(kind, "External" | "Object");
        let average = if may_be_average && target.is_some_and(|t| t.get("averageValue").is_some()) {
            " (avg)"
        } else {
            ""
        };
        shown.push(format!(
            "{prefix}{}/{}{average}",
            pick(current, percent),
            pick(target, percent)
        ));
    }
    match shown.len() {
        0 => NONE.into(),
        n if n > 2 => format!("{} + {} more...", shown[..2].join(", "), n - 2).into(),
        _ => shown.join(", ").into(),
    }
}
