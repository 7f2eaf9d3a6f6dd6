//! A pod's row: above all the one word that says how it is.

use super::cells::{AGE, Col, NAME, NONE, Row, human, text, wide};
use keelson_api::{Map, Object, Value, value};

pub const POD: &[Col] = &[
    NAME,
    text("Ready", |r| {
        let s = summary(r);
        format!("{}/{}", s.ready, s.total).into()
    }),
    text("Status", |r| summary(r).reason.as_str().into()),
    text("Restarts", |r| restarts(r).into()),
    AGE,
    wide("IP", |r| {
        match r.list("status.podIPs").first().and_then(|ip| ip.get("ip")?.as_str()) {
            Some(ip) => ip.into(),
            None => r.str_or("status.podIP", NONE),
        }
    }),
    wide("Node", |r| r.str_or("spec.nodeName", NONE)),
    wide("Nominated Node", |r| r.str_or("status.nominatedNodeName", NONE)),
    wide("Readiness Gates", gates),
];

/// What the cells look at, by type.
pub const LOOKS_AT: &[(&str, &[&str])] = &[
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
        &["name", "creationTimestamp", "deletionTimestamp"],
    ),
    (
        "io.k8s.api.core.v1.PodSpec",
        &["nodeName", "containers", "initContainers", "readinessGates"],
    ),
    ("io.k8s.api.core.v1.Container", &["name", "restartPolicy"]),
    (
        "io.k8s.api.core.v1.PodStatus",
        &[
            "phase",
            "reason",
            "conditions",
            "containerStatuses",
            "initContainerStatuses",
            "podIP",
            "podIPs",
            "nominatedNodeName",
        ],
    ),
    ("io.k8s.api.core.v1.PodCondition", &["type", "status", "reason"]),
    (
        "io.k8s.api.core.v1.ContainerStatus",
        &["name", "ready", "restartCount", "started", "state", "lastState"],
    ),
];

#[derive(Debug)]
pub struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<jiff::Timestamp>,
}

fn condition<'a>(r: &Row<'a>, kind: &str) -> Option<&'a Map> {
    let conditions = r.list("status.conditions").iter().filter_map(Value::as_object);
    conditions.into_iter().find(|c| c.str("type") == Some(kind))
}

fn condition_true(r: &Row, kind: &str) -> bool {
    condition(r, kind).is_some_and(|c| c.str("status") == Some("True"))
}

fn state<'a>(status: &'a Value, name: &str) -> Option<&'a Map> {
    status.at(&["state", name]).and_then(Value::as_object)
}

/// `Signal:9`, `ExitCode:1` or the reason given.
fn ended(terminated: &Map) -> String {
    match terminated.str("reason") {
        Some(reason) if !reason.is_empty() => reason.into(),
        _ => match terminated.int("signal") {
            Some(signal) if signal != 0 => format!("Signal:{signal}"),
            _ => format!("ExitCode:{}", terminated.int("exitCode").unwrap_or(0)),
        },
    }
}

fn last_end(status: &Value) -> Option<jiff::Timestamp> {
    status
        .at(&["lastState", "terminated", "finishedAt"])?
        .as_str()?
        .parse()
        .ok()
}

fn flag(status: &Value, key: &str) -> bool {
    status.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn count(status: &Value) -> i64 {
    status.get("restartCount").and_then(Value::as_i64).unwrap_or(0)
}

fn summary<'r>(r: &'r Row) -> &'r Summary {
    r.pod.get_or_init(|| summed(r))
}

fn summed(r: &Row) -> Summary {
    let mut s = Summary {
        ready: 0,
        total: r.list("spec.containers").len(),
        reason: r.str("status.phase").into(),
        restarts: 0,
        last_restart: None,
    };
    if !r.str("status.reason").is_empty() {
        s.reason = r.str("status.reason").into();
    }
    if condition(r, "PodScheduled").is_some_and(|c| c.str("reason") == Some("SchedulingGated")) {
        s.reason = "SchedulingGated".into();
    }
    let initializing = init_containers(r, &mut s);
    if !initializing || condition_true(r, "Initialized") {
        containers(r, &mut s);
    }
    let phase = r.str("status.phase");
    if r.object.deletion_timestamp().is_some() {
        if r.str("status.reason") == "NodeLost" {
            s.reason = "Unknown".into();
        } else if phase != "Failed" && phase != "Succeeded" {
            s.reason = "Terminating".into();
        }
    }
    s
}

/// Whether an init container is still at work. Sidecars count as containers.
fn init_containers(r: &Row, s: &mut Summary) -> bool {
    let specs = r.list("spec.initContainers");
    let sidecar = |name: &str| {
        specs.iter().any(|c| {
            c.get("name").and_then(Value::as_str) == Some(name)
                && c.get("restartPolicy").and_then(Value::as_str) == Some("Always")
        })
    };
    s.total += specs
        .iter()
        .filter(|c| c.get("restartPolicy").and_then(Value::as_str) == Some("Always"))
        .count();
    let mut sidecar_restarts = 0;
    let mut sidecar_last = None;
    for (i, status) in r.list("status.initContainerStatuses").iter().enumerate() {
        let is_sidecar = sidecar(status.get("name").and_then(Value::as_str).unwrap_or_default());
        s.restarts += count(status);
        s.last_restart = s.last_restart.max(last_end(status));
        if is_sidecar {
            sidecar_restarts += count(status);
            sidecar_last = sidecar_last.max(last_end(status));
        }
        let terminated = state(status, "terminated");
        if terminated.is_some_and(|t| t.int("exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if is_sidecar && flag(status, "started") {
            s.ready += usize::from(flag(status, "ready"));
            continue;
        }
        s.reason = match (terminated, state(status, "waiting").and_then(|w| w.str("reason"))) {
            (Some(t), _) => format!("Init:{}", ended(t)),
            (None, Some(reason)) if !reason.is_empty() && reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{i}/{}", specs.len()),
        };
        return true;
    }
    s.restarts = sidecar_restarts;
    s.last_restart = sidecar_last;
    false
}

fn containers(r: &Row, s: &mut Summary) {
    let mut running = false;
    for status in r.list("status.containerStatuses").iter().rev() {
        s.restarts += count(status);
        s.last_restart = s.last_restart.max(last_end(status));
        let waiting = state(status, "waiting")
            .and_then(|w| w.str("reason"))
            .filter(|w| !w.is_empty());
        if let Some(reason) = waiting {
            s.reason = reason.into();
        } else if let Some(t) = state(status, "terminated") {
            s.reason = ended(t);
        } else if flag(status, "ready") && state(status, "running").is_some() {
            running = true;
            s.ready += 1;
        }
    }
    if s.reason == "Completed" && running {
        s.reason = if condition_true(r, "Ready") {
            "Running"
        } else {
            "NotReady"
        }
        .into();
    }
}

fn restarts(r: &Row) -> String {
    let s = summary(r);
    match s.last_restart {
        Some(t) if s.restarts > 0 => format!("{} ({} ago)", s.restarts, human(r.now.as_second() - t.as_second())),
        _ => s.restarts.to_string(),
    }
}

fn gates(r: &Row) -> Value {
    let gates = r.list("spec.readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let met = gates.iter().filter(|g| {
        g.get("conditionType")
            .and_then(Value::as_str)
            .is_some_and(|kind| condition_true(r, kind))
    });
    format!("{}/{}", met.count(), gates.len()).into()
}

/// Marks the rows of pods that have run to their end.
pub fn conditions(pod: &Object) -> Vec<Value> {
    match pod.str_at(&["status", "phase"]) {
        Some(phase @ ("Succeeded" | "Failed")) => {
            let message = if phase == "Failed" {
                "The pod failed."
            } else {
                "The pod has completed successfully."
            };
            vec![value!({"type": "Completed", "status": "True", "reason": phase, "message": message})]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::builtin::builtin_kind_at;
    use keelson_api::codec::proto;

    fn shown(status: serde_json::Value) -> String {
        let pod = serde_json::json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}],
                "nodeName": "n", "readinessGates": [{"conditionType": "g"}, {"conditionType": "h"}]},
            "status": status,
        });
        let object: Object = serde_json::from_value(pod).unwrap();
        let now = "2026-01-01T00:05:30Z".parse().unwrap();
        let row = Row::new(&object, now);
        let schema = builtin_kind_at("v1", "Pod").unwrap();
        let only = proto::Only::new(&schema, LOOKS_AT).unwrap();
        let bytes = proto::encode(&object, &schema).unwrap();
        let some = proto::open(&bytes).unwrap().decode_only(&only).unwrap();
        let all = |row: &Row| POD.iter().map(|c| (c.cell)(row)).collect::<Vec<_>>();
        assert_eq!(all(&Row::new(&some, now)), all(&row), "{some:?}");
        assert_eq!(conditions(&some), conditions(&object));
        let cells = POD[..5]
            .iter()
            .map(|c| (c.cell)(&row).as_str().unwrap_or_default().to_string());
        cells.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn whatever_a_cell_looks_at_is_read() {
        let conditions = serde_json::json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"},
            {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}, {"type": "g", "status": "True"}]);
        let ended = serde_json::json!({"name": "a", "state": {"terminated": {"signal": 9}}});
        for status in [
            serde_json::json!({"phase": "Succeeded", "reason": "NodeLost", "podIP": "10.0.0.1", "nominatedNodeName": "n"}),
            serde_json::json!({"phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.2"}], "conditions": conditions}),
            serde_json::json!({"phase": "Running", "conditions": conditions, "containerStatuses": [ended],
                "initContainerStatuses": [{"name": "i", "started": true, "ready": true, "restartCount": 2}]}),
        ] {
            shown(status);
        }
    }

    #[test]
    fn one_word_says_how_a_pod_is() {
        let running = |ready: bool| serde_json::json!({"name": "a", "ready": ready, "state": {"running": {}}});
        assert_eq!(shown(serde_json::json!({"phase": "Pending"})), "p 0/2 Pending 0 5m30s");
        assert_eq!(
            shown(serde_json::json!({"phase": "Running", "containerStatuses": [running(true), running(false)]})),
            "p 1/2 Running 0 5m30s"
        );
        let backoff = serde_json::json!({"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}});
        assert_eq!(
            shown(serde_json::json!({"phase": "Running", "containerStatuses": [running(true), backoff]})),
            "p 1/2 CrashLoopBackOff 3 (30s ago) 5m30s"
        );
        let init = serde_json::json!([{"name": "i", "state": {"terminated": {"exitCode": 2}}}]);
        assert_eq!(
            shown(serde_json::json!({"phase": "Pending", "initContainerStatuses": init})),
            "p 0/2 Init:ExitCode:2 0 5m30s"
        );
        let waiting = serde_json::json!([{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]);
        assert_eq!(
            shown(serde_json::json!({"phase": "Pending", "initContainerStatuses": waiting})),
            "p 0/2 Init:0/1 0 5m30s"
        );
    }
}
