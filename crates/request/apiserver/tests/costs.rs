//! What requests cost, in allocations and the bytes of them: figures that are the same on every machine, quiet or not.
//!
//! `costs.txt` holds what each request cost when it was written; a tenth more is a failure, and so is a third less, so that
//! what has been won stays won. `KEELSON_WRITE_COSTS=1` writes it anew.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::fmt::Write;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How often each is asked before and while it is counted.
const WARM: usize = 30;
const COUNTED: usize = 60;
/// In hundredths of what is written.
const MOST: usize = 110;
const LEAST: usize = 67;

fn pod(name: &str) -> Value {
    let env: Vec<Value> = (0..30)
        .map(|i| value!({"name": format!("SOME_VARIABLE_{i}"), "value": format!("some-value-of-a-typical-length-{i}")}))
        .collect();
    let probe = value!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 5});
    value!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench", "tier": "backend"}, "annotations": {"a": "1"}},
        "spec": {"schedulerName": "nobody",
            "containers": [{"name": "main", "image": "agnhost", "args": ["netexec"], "env": env,
                "ports": [{"containerPort": 8080}], "readinessProbe": probe,
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}],
            "volumes": [{"name": "tmp", "emptyDir": {}}]}})
}

fn status(n: usize) -> Value {
    let condition = |kind: &str| value!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    value!({"status": {"phase": "Running", "podIP": format!("10.244.0.{}", n % 250),
        "conditions": [condition("Initialized"), condition("Ready"), condition("PodScheduled")],
        "containerStatuses": [{"name": "main", "image": "agnhost", "imageID": "x", "containerID": format!("containerd://{n}"),
            "ready": true, "restartCount": n as i64, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "lastState": {}}]}})
}

fn map(name: &str, n: usize) -> Value {
    value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": n.to_string(), "k": "x".repeat(1024)}})
}

struct Request {
    method: &'static str,
    path: String,
    kind: &'static str,
    accept: &'static str,
    body: Vec<u8>,
}

fn read(path: impl Into<String>, accept: &'static str) -> Request {
    Request {
        method: "GET",
        path: path.into(),
        kind: "",
        accept,
        body: Vec::new(),
    }
}

fn write(method: &'static str, path: impl Into<String>, kind: &'static str, body: Value) -> Request {
    Request {
        method,
        path: path.into(),
        kind,
        accept: JSON,
        body: serde_json::to_vec(&body).unwrap(),
    }
}

/// Allocations and their bytes for one request, what follows it within the server included.
async fn cost(api: &Api, request: impl Fn(usize) -> Request) -> (usize, usize) {
    let mut requests: Vec<Request> = (0..WARM + COUNTED).map(request).collect();
    let counted = requests.split_off(WARM);
    ask(api, requests).await;
    let before = INSTRUMENTED_SYSTEM.stats();
    ask(api, counted).await;
    let spent = INSTRUMENTED_SYSTEM.stats() - before;
    let each = |n: usize| (n + COUNTED / 2) / COUNTED;
    (
        each(spent.allocations + spent.reallocations),
        each(spent.bytes_allocated),
    )
}

async fn ask(api: &Api, requests: Vec<Request>) {
    for r in requests {
        let answer = api.call(r.method, &r.path, r.kind, r.accept, r.body).await;
        assert!(
            answer.code < 300,
            "{} {}: {}",
            r.method,
            r.path,
            String::from_utf8_lossy(&answer.bytes)
        );
    }
    // The server's own followers are a moment behind.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn costs() -> Vec<(&'static str, (usize, usize))> {
    let api = Api::new().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post(accounts, account).await.expect(201);
    api.post(PODS, pod("one")).await.expect(201);
    api.post(MAPS, map("one", 0)).await.expect(201);
    let one = format!("{PODS}/one");
    let its_status = format!("{one}/status");
    let applied = |n: usize| {
        let mut config = status(n);
        config.set_at(&["apiVersion"], "v1");
        config.set_at(&["kind"], "Pod");
        config.set_at(&["metadata", "name"], "one");
        config
    };
    let mut found = Vec::new();
    macro_rules! row {
        ($name:literal, $request:expr) => {
            found.push(($name, cost(&api, $request).await))
        };
    }
    row!("get a pod, JSON", |_| read(one.clone(), JSON));
    row!("get a pod, protobuf", |_| read(one.clone(), PROTOBUF));
    row!("create a pod", |n| write("POST", PODS, JSON, pod(&format!("made-{n}"))));
    row!("status of a pod, merge patch", |n| write(
        "PATCH",
        its_status.clone(),
        "application/merge-patch+json",
        status(n)
    ));
    row!("status of a pod, strategic patch", |n| write(
        "PATCH",
        its_status.clone(),
        "application/strategic-merge-patch+json",
        status(1000 + n)
    ));
    row!("status of a pod, apply", |n| write(
        "PATCH",
        format!("{its_status}?fieldManager=tester&force=true"),
        "application/apply-patch+yaml",
        applied(2000 + n)
    ));
    row!("list 91 pods, JSON", |_| read(PODS, JSON));
    row!("list 91 pods, Table", |_| read(PODS, TABLE));
    row!("create a ConfigMap of 1 KiB", |n| write(
        "POST",
        MAPS,
        JSON,
        map(&format!("made-{n}"), n)
    ));
    row!("replace a ConfigMap of 1 KiB", |n| write(
        "PUT",
        format!("{MAPS}/one"),
        JSON,
        map("one", n + 1)
    ));
    row!("delete a ConfigMap", |n| Request {
        method: "DELETE",
        ..read(format!("{MAPS}/made-{n}"), JSON)
    });
    found
}

#[tokio::test]
async fn requests_cost_what_they_did() {
    let found = costs().await;
    let mut text = String::new();
    for (name, (allocations, bytes)) in &found {
        writeln!(text, "{name:<36}{allocations:>8} allocations {bytes:>9} bytes").unwrap();
    }
    println!("{text}");
    if std::env::var_os("KEELSON_WRITE_COSTS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/costs.txt"), &text).unwrap();
        return;
    }
    let wanted = include_str!("costs.txt");
    let number = |word: Option<&str>| word.and_then(|w| w.parse::<usize>().ok());
    let mut wrong = Vec::new();
    for (name, (allocations, bytes)) in found {
        let Some(line) = wanted.lines().find(|line| line.starts_with(&format!("{name} "))) else {
            wrong.push(format!("{name} isn't in costs.txt"));
            continue;
        };
        let mut words = line[name.len()..].split_whitespace().step_by(2);
        for (what, now) in [("allocations", allocations), ("bytes", bytes)] {
            let then = number(words.next()).unwrap_or_default();
            if now * 100 > then * MOST || now * 100 < then * LEAST {
                wrong.push(format!("{name}: {now} {what}, written are {then}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
