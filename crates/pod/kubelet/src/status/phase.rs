//! The phase of a pod from its container statuses. Pure.

use crate::pods;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

#[derive(Default)]
struct Count {
    init_pending: usize,
    sidecars_pending: usize,
    init_failed: usize,
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
}

const RESTARTING_ALL: &str = "RestartingAllContainers";

pub fn phase(pod: &Pod, statuses: &[&ContainerStatus], terminal: bool, initialized: bool) -> &'static str {
    let find = |name: &str| statuses.iter().find(|s| s.name == name).copied();
    let mut n = Count::default();
    for c in pods::init_containers(pod).iter().filter(|c| !pods::is_sidecar(c)) {
        let Some(state) = find(&c.name).and_then(|s| s.state.as_ref().map(|st| (s, st))) else {
            n.init_pending += 1;
            continue;
        };
        let ended = match (&state.1.terminated, &state.1.waiting) {
            (Some(t), _) => Some(t),
            (None, Some(_)) => state.0.last_state.as_ref().and_then(|l| l.terminated.as_ref()),
            _ => None,
        };
        match ended {
            None => n.init_pending += 1,
            Some(t) if t.exit_code != 0 => {
                let restarts = pods::should_restart(c, pod, t.exit_code) || t.reason.as_deref() == Some(RESTARTING_ALL);
                n.init_failed += usize::from(!restarts);
            }
            Some(_) => {}
        }
    }
    for c in pods::init_containers(pod).iter().filter(|c| pods::is_sidecar(c)) {
        let Some((status, state)) = find(&c.name).and_then(|s| s.state.as_ref().map(|st| (s, st))) else {
            n.unknown += 1;
            continue;
        };
        if state.running.is_some() {
            n.sidecars_pending += usize::from(status.started != Some(true));
            n.running += 1;
        } else if state.terminated.is_none() {
            let before = status.last_state.as_ref().and_then(|l| l.terminated.as_ref());
            if state.waiting.is_some() && before.is_none() {
                n.sidecars_pending += 1;
                n.waiting += 1;
            } else if state.waiting.is_none() {
                n.sidecars_pending += 1;
                n.unknown += 1;
            }
        }
    }
    for c in pods::containers(pod) {
        let Some((status, state)) = find(&c.name).and_then(|s| s.state.as_ref().map(|st| (s, st))) else {
            n.unknown += 1;
            continue;
        };
        if state.running.is_some() {
            n.running += 1;
            continue;
        }
        let (ended, current) = match (&state.terminated, &state.waiting) {
            (Some(t), _) => (Some(t), true),
            (None, Some(_)) => (status.last_state.as_ref().and_then(|l| l.terminated.as_ref()), false),
            _ => {
                n.unknown += 1;
                continue;
            }
        };
        let Some(t) = ended else {
            n.waiting += 1;
            continue;
        };
        n.stopped += 1;
        let restarts = pods::should_restart(c, pod, t.exit_code) || t.reason.as_deref() == Some(RESTARTING_ALL);
        n.stopped_for_good += usize::from(!restarts);
        n.succeeded += usize::from(current && t.exit_code == 0);
    }
    decide(pod, &n, terminal, initialized)
}

fn decide(pod: &Pod, n: &Count, terminal: bool, initialized: bool) -> &'static str {
    let ended = if n.stopped == n.succeeded {
        "Succeeded"
    } else {
        "Failed"
    };
    if n.init_failed > 0 {
        "Failed"
    } else if n.init_pending > 0 || (n.sidecars_pending > 0 && !initialized) || n.waiting > 0 {
        "Pending"
    } else if n.running > 0 && n.unknown == 0 {
        "Running"
    } else if n.running == 0 && n.stopped > 0 && n.unknown == 0 {
        if terminal && !pods::is_static(pod) {
            ended
        } else if n.stopped != n.stopped_for_good {
            "Running"
        } else {
            ended
        }
    } else {
        "Pending"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(policy: &str, init: Value, states: Value, terminal: bool) -> &'static str {
        let statuses: Vec<ContainerStatus> = states
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, s)| {
                let mut v = json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0});
                for (k, x) in s.as_object().unwrap() {
                    v[k] = x.clone();
                }
                serde_json::from_value(v).unwrap()
            })
            .collect();
        let pod: Pod = serde_json::from_value(json!({"spec": {"restartPolicy": policy, "initContainers": init,
            "containers": [{"name": "a"}, {"name": "b"}]}}))
        .unwrap();
        phase(&pod, &statuses.iter().collect::<Vec<_>>(), terminal, false)
    }

    fn running() -> Value {
        json!({"state": {"running": {}}})
    }

    fn exited(code: i32) -> Value {
        json!({"state": {"terminated": {"exitCode": code}}})
    }

    #[test]
    fn table() {
        let waiting = json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
        let crash = json!({"state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1}}});
        for (policy, a, b, terminal, want) in [
            ("Always", running(), running(), false, "Running"),
            ("Always", running(), waiting.clone(), false, "Pending"),
            ("Always", exited(0), exited(1), false, "Running"),
            ("Always", crash.clone(), running(), false, "Running"),
            ("Never", exited(0), exited(0), false, "Succeeded"),
            ("Never", exited(0), exited(2), false, "Failed"),
            ("Never", exited(2), running(), false, "Running"),
            ("OnFailure", exited(0), exited(2), false, "Running"),
            ("OnFailure", exited(0), exited(0), false, "Succeeded"),
            ("Always", exited(0), exited(0), true, "Succeeded"),
            ("Always", exited(0), exited(137), true, "Failed"),
        ] {
            assert_eq!(
                check(policy, json!([]), json!({"a": a, "b": b}), terminal),
                want,
                "{policy} {a} {b}"
            );
        }
    }

    #[test]
    fn a_failed_init_container_fails_a_pod_that_never_restarts() {
        let init = json!([{"name": "i"}]);
        let states = json!({"i": exited(1), "a": {"state": {"waiting": {}}}, "b": {"state": {"waiting": {}}}});
        assert_eq!(check("Never", init.clone(), states.clone(), false), "Failed");
        assert_eq!(check("Always", init, states, false), "Pending");
    }
}
