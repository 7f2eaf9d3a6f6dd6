use super::*;
use crate::observe::SandboxView;
use serde_json::{Value, json};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).unwrap()
}

fn view(pod: &Pod, name: &str, state: State, code: i32) -> ContainerView {
    let hash = pods::find_container(pod, name).map_or(0, |c| pods::container_hash(&c));
    ContainerView {
        id: format!("{name}-id"),
        name: name.into(),
        image: String::new(),
        image_ref: String::new(),
        sandbox_id: "s".into(),
        hash,
        restart_count: 0,
        state,
        created: 1,
        started: 1,
        finished: 2,
        exit_code: code,
        reason: String::new(),
        message: String::new(),
        log_path: String::new(),
        resources: None,
        user: None,
        stop_signal: 0,
        annotations: HashMap::new(),
    }
}

fn sandbox(ready: bool) -> SandboxView {
    SandboxView {
        id: "s".into(),
        ready,
        created: 1,
        attempt: 0,
        host_network: false,
        ips: vec!["10.0.0.2".into()],
    }
}

fn plan(pod: &Pod, ready: Option<bool>, containers: &[(&str, State, i32)], probes: &ProbeResults) -> Actions {
    let observed = Observed {
        sandboxes: ready.map(sandbox).into_iter().collect(),
        containers: containers.iter().map(|(n, s, c)| view(pod, n, *s, *c)).collect(),
    };
    compute(&Input {
        pod,
        observed: &observed,
        probes,
        actuated: &Actuated::new(),
        actuated_pod: None,
        restart_all: false,
    })
}

const NO: fn() -> ProbeResults = ProbeResults::default;

#[test]
fn a_new_pod_gets_a_sandbox_and_all_containers() {
    let p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let a = plan(&p, None, &[], &NO());
    assert!(a.create_sandbox && a.kill_pod);
    assert_eq!((a.start, a.attempt), (vec![0, 1], 0));
}

#[test]
fn init_containers_go_one_by_one() {
    let p = pod(json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "a"}]}));
    assert_eq!(plan(&p, None, &[], &NO()).start_init, [0]);
    let a = plan(&p, Some(true), &[("i1", State::Running, 0)], &NO());
    assert!(a.start_init.is_empty() && a.start.is_empty());
    let a = plan(&p, Some(true), &[("i1", State::Exited, 0)], &NO());
    assert_eq!((a.start_init, a.start), (vec![1], vec![]));
    let a = plan(
        &p,
        Some(true),
        &[("i2", State::Exited, 0), ("i1", State::Exited, 0)],
        &NO(),
    );
    assert_eq!((a.start_init, a.start), (vec![], vec![0]));
    let a = plan(&p, Some(true), &[("i1", State::Exited, 1)], &NO());
    assert_eq!(a.start_init, [0]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let p = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let a = plan(&p, Some(true), &[("i", State::Exited, 1)], &NO());
    assert!(a.kill_pod && !a.create_sandbox && a.start_init.is_empty());
}

#[test]
fn sidecars_gate_by_their_startup_probe_and_are_kept_running() {
    let p = pod(
        json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}, {"name": "i"}],
        "containers": [{"name": "a"}]}),
    );
    let a = plan(&p, Some(true), &[("s", State::Running, 0)], &NO());
    assert!(a.start_init.is_empty() && a.start.is_empty());
    let probes = ProbeResults {
        startup: HashMap::from([("s-id".into(), true)]),
        ..NO()
    };
    assert_eq!(
        plan(&p, Some(true), &[("s", State::Running, 0)], &probes).start_init,
        [1]
    );
    let all = [
        ("a", State::Running, 0),
        ("i", State::Exited, 0),
        ("s", State::Exited, 1),
    ];
    assert_eq!(plan(&p, Some(true), &all, &probes).start_init, [0]);
    let failed = ProbeResults {
        startup: HashMap::from([("s-id".into(), false)]),
        ..NO()
    };
    let a = plan(&p, Some(true), &[("s", State::Running, 0)], &failed);
    assert_eq!(
        (a.kill[0].message.as_str(), a.start_init),
        ("Init container s failed startup probe", vec![0])
    );
}

#[test]
fn restart_policies() {
    for (policy, code, starts, kills) in [
        ("Always", 0, true, false),
        ("Always", 1, true, false),
        ("OnFailure", 0, false, true),
        ("OnFailure", 1, true, false),
        ("Never", 0, false, true),
        ("Never", 1, false, true),
    ] {
        let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        let a = plan(&p, Some(true), &[("a", State::Exited, code)], &NO());
        assert_eq!((!a.start.is_empty(), a.kill_pod), (starts, kills), "{policy} {code}");
    }
}

#[test]
fn a_containers_own_rules_win() {
    let p = pod(
        json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}),
    );
    assert_eq!(plan(&p, Some(true), &[("a", State::Exited, 42)], &NO()).start, [0]);
    assert!(plan(&p, Some(true), &[("a", State::Exited, 1)], &NO()).start.is_empty());
}

#[test]
fn a_failed_liveness_probe_kills_and_restarts() {
    let p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let probes = ProbeResults {
        liveness: HashMap::from([("a-id".into(), false)]),
        ..NO()
    };
    let a = plan(
        &p,
        Some(true),
        &[("a", State::Running, 0), ("b", State::Running, 0)],
        &probes,
    );
    assert_eq!(a.kill.len(), 1);
    assert_eq!(
        (a.kill[0].message.as_str(), a.kill[0].reason),
        (
            "Container a failed liveness probe, will be restarted",
            KillReason::LivenessProbe
        )
    );
    assert_eq!(a.start, [0]);
}

#[test]
fn a_changed_image_restarts_whatever_the_policy() {
    let old = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x:1"}]}));
    let new = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x:2"}]}));
    let observed = Observed {
        sandboxes: vec![sandbox(true)],
        containers: vec![view(&old, "a", State::Running, 0)],
    };
    let a = compute(&Input {
        pod: &new,
        observed: &observed,
        probes: &NO(),
        actuated: &Actuated::new(),
        actuated_pod: None,
        restart_all: false,
    });
    assert_eq!(
        (a.kill[0].message.as_str(), a.start),
        ("Container a definition changed, will be restarted", vec![0])
    );
}

#[test]
fn a_dead_sandbox_is_replaced_unless_the_pod_is_done() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let a = plan(&p, Some(false), &[("a", State::Exited, 137)], &NO());
    assert!(a.create_sandbox && a.attempt == 1 && a.start == [0]);
    let p = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    assert!(!plan(&p, Some(false), &[("a", State::Exited, 0)], &NO()).create_sandbox);
}

#[test]
fn ephemeral_containers_start_once() {
    let p = pod(json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e"}]}));
    assert_eq!(
        plan(&p, Some(true), &[("a", State::Running, 0)], &NO()).start_ephemeral,
        [0]
    );
    let a = plan(
        &p,
        Some(true),
        &[("a", State::Running, 0), ("e", State::Exited, 1)],
        &NO(),
    );
    assert!(a.start_ephemeral.is_empty() && !a.kill_pod);
}

#[test]
fn resizes_update_or_restart_as_the_policy_says() {
    let resized = |policy: Value| {
        pod(json!({"containers": [{"name": "a", "resizePolicy": policy,
            "resources": {"requests": {"cpu": "200m"}, "limits": {"cpu": "200m"}}}]}))
    };
    let from = Amounts {
        cpu_request: 100,
        cpu_limit: 100,
        ..Amounts::default()
    };
    let act = |p: &Pod| {
        let observed = Observed {
            sandboxes: vec![sandbox(true)],
            containers: vec![view(p, "a", State::Running, 0)],
        };
        let actuated = Actuated::from([("a".to_owned(), from.clone())]);
        compute(&Input {
            pod: p,
            observed: &observed,
            probes: &NO(),
            actuated: &actuated,
            actuated_pod: None,
            restart_all: false,
        })
    };
    let a = act(&resized(json!([])));
    assert_eq!((a.update[0].to.cpu_limit, a.kill.len(), a.kill_pod), (200, 0, false));
    let a = act(&resized(
        json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]),
    ));
    assert_eq!(
        (a.update.len(), a.kill[0].message.as_str(), a.start),
        (0, "Container a resize requires restart", vec![0])
    );
}

#[test]
fn the_whole_pod_is_reset_in_reverse() {
    let p = pod(json!({"initContainers": [{"name": "i"}], "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [9]}}]},
        {"name": "b"}]}));
    let observed = Observed {
        sandboxes: vec![sandbox(true)],
        containers: vec![
            view(&p, "a", State::Exited, 9),
            view(&p, "b", State::Running, 0),
            view(&p, "i", State::Exited, 0),
        ],
    };
    assert!(wants_restart_all(&p, &observed, &Default::default()));
    let a = compute(&Input {
        pod: &p,
        observed: &observed,
        probes: &NO(),
        actuated: &Actuated::new(),
        actuated_pod: None,
        restart_all: true,
    });
    let order: Vec<(&str, bool)> = a.reset.iter().map(|r| (r.name.as_str(), r.kill)).collect();
    assert_eq!(order, [("b", true), ("i", false), ("a", false)]);
}
