//! Probes that fail, by their answer.

use super::Container;
use crate::finding::Finding;
use crate::object::{Fields, port_text};
use crate::picture::Picture;
use serde_json::Value;

/// For a container that runs and isn't ready.
pub fn failing(container: &Container, picture: &Picture) -> Option<Finding> {
    let kind = match container.status.flag("/started") {
        false if container.spec.has("/startupProbe") => "startup",
        _ if container.spec.has("/readinessProbe") => "readiness",
        _ => return None,
    };
    let path = format!("/{kind}Probe");
    let probe = container.spec.pointer(&path)?;
    let Some((event, answer)) = answer(container, kind, picture) else {
        let age = picture.since(container.status.text("/state/running/startedAt"));
        let delay = probe.number("/initialDelaySeconds").unwrap_or_default();
        return age.filter(|a| a.as_secs() > delay + 30).map(|_| {
            Finding::likely(
                format!("{kind}-failed"),
                container.shown(),
                format!("its {kind} probe ({}) has not succeeded yet", asked(probe)),
            )
            .mended_by("Look at the container's log, and try the probe by hand in it (kubectl exec).")
        });
    };
    Some(judged(container, kind, probe, answer).shown_by(count(event)))
}

/// For a container that was ended because a probe failed.
pub fn killed(container: &Container, end: &Value, picture: &Picture) -> Option<Finding> {
    // A container ended in time ends with 0, 143 or what it likes; one killed after its grace with 137.
    if end.text("/reason") == "OOMKilled" || !end.has("/exitCode") {
        return None;
    }
    let killing = picture.events(container.pod).into_iter().find_map(|e| {
        let message = e.text("/message");
        let of_it = message.contains(&format!("Container {} failed", container.name()));
        let kind = ["liveness", "startup"]
            .into_iter()
            .find(|k| message.contains(&format!("failed {k} probe")));
        kind.filter(|_| of_it && e.text("/reason") == "Killing")
    })?;
    let probe = container.spec.pointer(&format!("/{killing}Probe"))?;
    let found = match answer(container, killing, picture) {
        Some((event, answer)) => judged(container, killing, probe, answer).shown_by(count(event)),
        None => Finding::certain(
            format!("{killing}-failed"),
            container.shown(),
            format!("its {killing} probe fails"),
        ),
    };
    let slow = match killing {
        "startup" => " If it only needs longer to start, raise failureThreshold.",
        _ => " If it only needs longer to start, give it a startupProbe.",
    };
    let says = format!("{}, and so it is ended and started anew", found.says);
    let fix = format!("{}{slow}", found.fix);
    Some(Finding { says, fix, ..found })
}

/// The newest answer to a probe of this kind. A pod's containers share events; the field path tells whose it is.
fn answer<'a>(container: &Container, kind: &str, picture: &'a Picture) -> Option<(&'a Value, &'a str)> {
    let mark = format!("{}{} probe", kind[..1].to_uppercase(), &kind[1..]);
    let own = format!("{{{}}}", container.name());
    picture.events(container.pod).into_iter().find_map(|e| {
        let path = e.text("/involvedObject/fieldPath");
        let message = e.text("/message").strip_prefix(mark.as_str())?;
        let of_it = path.is_empty() || path.contains(&own);
        let answer = message.split_once(": ").map_or(message, |(_, a)| a);
        (of_it && e.text("/reason") == "Unhealthy").then_some((e, answer))
    })
}

fn count(event: &Value) -> String {
    let times = event.number("/series/count").or(event.number("/count"));
    times
        .filter(|n| *n > 1)
        .map(|n| format!("{n} times"))
        .unwrap_or_default()
}

fn judged(container: &Container, kind: &str, probe: &Value, answer: &str) -> Finding {
    let asked = asked(probe);
    let found = |how: &str, says: String, fix: String| {
        Finding::certain(format!("{kind}-{how}"), container.shown(), says)
            .shown_by(answer)
            .mended_by(fix)
    };
    let words = answer.to_lowercase();
    let port = port(probe);
    if words.contains("connection refused") {
        let declared: Vec<String> = container
            .spec
            .list("/ports")
            .iter()
            .map(|p| port_text(p.pointer("/containerPort")))
            .collect();
        let declared = match declared.is_empty() {
            true => String::new(),
            false => format!(" (the container declares {})", declared.join(", ")),
        };
        found(
            "refused",
            format!("its {kind} probe ({asked}) finds nobody listening on port {port}{declared}"),
            format!(
                "Let the program listen on port {port} of all addresses (not only 127.0.0.1), or correct the probe's port."
            ),
        )
    } else if let Some((_, status)) = words.split_once("statuscode: ") {
        let status: String = status.chars().take_while(char::is_ascii_digit).collect();
        found(
            "status",
            format!("its {kind} probe ({asked}) is answered with HTTP status {status}"),
            match status.as_str() {
                "404" => "Correct the probe's path: the program doesn't serve it.".into(),
                "401" | "403" => "Let the program answer this path without credentials.".into(),
                _ => "The program itself says it isn't well: its log tells why.".into(),
            },
        )
    } else if words.contains("deadline exceeded") || words.contains("timeout") || words.contains("timed out") {
        let seconds = probe.number("/timeoutSeconds").unwrap_or(1);
        found(
            "timeout",
            format!("its {kind} probe ({asked}) is not answered within {seconds} s"),
            "Raise timeoutSeconds, or find what keeps the program from answering (CPU limit, lock, dependency).".into(),
        )
    } else if words.contains("couldn't find port") || words.contains("invalid port") {
        found(
            "port",
            format!("its {kind} probe names a port that the container doesn't have"),
            "Name a port of the container's own ports list, or give its number.".into(),
        )
    } else {
        found(
            "failed",
            format!("its {kind} probe ({asked}) fails"),
            "The answer is above; try it by hand in the container (kubectl exec).".into(),
        )
    }
}

fn port(probe: &Value) -> String {
    let ports = ["/httpGet/port", "/tcpSocket/port", "/grpc/port"];
    ports
        .iter()
        .map(|p| port_text(probe.pointer(p)))
        .find(|p| !p.is_empty())
        .unwrap_or_default()
}

/// What a probe asks, in short.
fn asked(probe: &Value) -> String {
    let port = port(probe);
    if let Some(get) = probe.pointer("/httpGet") {
        let scheme = if get.text("/scheme") == "HTTPS" { "HTTPS " } else { "" };
        return format!("{scheme}GET {} on port {port}", get.text("/path"));
    }
    if probe.has("/exec") {
        let words: Vec<&str> = probe.list("/exec/command").iter().filter_map(Value::as_str).collect();
        return crate::object::line(&words.join(" "));
    }
    match probe.has("/grpc") {
        true => format!("gRPC health on port {port}"),
        false => format!("connecting to port {port}"),
    }
}

/// A pod whose containers are ready and that waits for what others have to say.
pub fn gates(pod: &Value) -> Vec<Finding> {
    if pod.condition_is("ContainersReady", "True").is_none() || pod.condition_is("Ready", "True").is_some() {
        return Vec::new();
    }
    let gates = pod
        .list("/spec/readinessGates")
        .iter()
        .map(|g| g.text("/conditionType"));
    let closed = gates.filter(|g| pod.condition_is(g, "True").is_none());
    let finding = |gate: &str| {
        let condition = pod.condition(gate);
        Finding::certain(
            "readiness-gate",
            pod.shown(),
            format!("its containers are ready, but its readiness gate {gate} isn't open"),
        )
        .shown_by(match condition {
            Some(c) => format!(
                "{gate} is {}: {} {}",
                c.text("/status"),
                c.text("/reason"),
                c.text("/message")
            ),
            None => format!("nobody has set the condition {gate}"),
        })
        .mended_by(
            "The controller that owns this condition (a load balancer's, usually) has to set it: look at that one.",
        )
    };
    closed.map(finding).collect()
}
