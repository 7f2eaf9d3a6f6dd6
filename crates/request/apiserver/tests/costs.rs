//! What requests cost, in allocations, the bytes of them and instructions: figures that are the same on every machine, quiet or not.
//!
//! `costs.txt` holds what each request allocated when it was written; a tenth more is a failure, and so is a third less, so that
//! what has been won stays won. `instructions.txt` holds what was executed (`costs/instructions.rs`). `KEELSON_WRITE_COSTS=1` writes both anew.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;
#[path = "costs/instructions.rs"]
mod instructions;

use harness::Api;
use keelson_api::{Value, value};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::fmt::Write;
use std::time::Duration;
use tokio::runtime::Runtime;

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

/// What is measured: a name, how often it is asked before and while it is counted, and the nth request.
struct Row {
    name: &'static str,
    request: Box<dyn Fn(usize) -> Request>,
}

fn row(name: &'static str, request: impl Fn(usize) -> Request + 'static) -> Row {
    Row {
        name,
        request: Box::new(request),
    }
}

/// In their order: later ones have what earlier ones made.
fn rows() -> Vec<Row> {
    const ONE: &str = "/api/v1/namespaces/default/pods/one";
    const ITS_STATUS: &str = "/api/v1/namespaces/default/pods/one/status";
    let made = |n: usize| format!("made-{n}");
    let applied = |n: usize| {
        let mut config = status(n);
        config.set_at(&["apiVersion"], "v1");
        config.set_at(&["kind"], "Pod");
        config.set_at(&["metadata", "name"], "one");
        config
    };
    let bound = |n: usize| {
        let target = value!({"apiVersion": "v1", "kind": "Node", "name": format!("node-{n}")});
        value!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": format!("made-{n}")}, "target": target})
    };
    let delete = |path: String| Request {
        method: "DELETE",
        ..read(path, JSON)
    };
    vec![
        row("get a pod, JSON", |_| read(ONE, JSON)),
        row("get a pod, protobuf", |_| read(ONE, PROTOBUF)),
        row("create a pod", move |n| write("POST", PODS, JSON, pod(&made(n)))),
        row("status of a pod, merge patch", |n| {
            write("PATCH", ITS_STATUS, "application/merge-patch+json", status(n))
        }),
        row("status of a pod, strategic patch", |n| {
            let kind = "application/strategic-merge-patch+json";
            write("PATCH", ITS_STATUS, kind, status(1000 + n))
        }),
        row("status of a pod, apply", move |n| {
            let path = format!("{ITS_STATUS}?fieldManager=tester&force=true");
            write("PATCH", path, "application/apply-patch+yaml", applied(2000 + n))
        }),
        row("list of all pods, JSON", |_| read(PODS, JSON)),
        row("list of all pods, Table", |_| read(PODS, TABLE)),
        row("bind a pod", move |n| {
            write("POST", format!("{PODS}/made-{n}/binding"), JSON, bound(n))
        }),
        row("delete a pod", move |n| {
            delete(format!("{PODS}/made-{n}?gracePeriodSeconds=0"))
        }),
        row("create a ConfigMap of 1 KiB", move |n| {
            write("POST", MAPS, JSON, map(&made(n), n))
        }),
        row("replace a ConfigMap of 1 KiB", |n| {
            write("PUT", format!("{MAPS}/one"), JSON, map("one", n + 1))
        }),
        row("delete a ConfigMap", move |n| delete(format!("{MAPS}/made-{n}"))),
    ]
}

/// A server that has what the first rows ask for.
async fn server() -> Api {
    let api = Api::new().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post(accounts, account).await.expect(201);
    api.post(PODS, pod("one")).await.expect(201);
    api.post(MAPS, map("one", 0)).await.expect(201);
    api
}

/// Asks, and lets what follows within the server be done.
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

/// One thread, so that whatever follows a request is done where it is counted; and a clock that stands still while there is
/// anything to do, so that what is kept for a time is still there on the slowest machine.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// Allocations and their bytes for one request, what follows it within the server included.
fn costs() -> Vec<(&'static str, (usize, usize))> {
    let runtime = runtime();
    let api = runtime.block_on(server());
    let cost = |row: Row| {
        let mut requests: Vec<Request> = (0..WARM + COUNTED).map(row.request).collect();
        let counted = requests.split_off(WARM);
        runtime.block_on(ask(&api, requests));
        let before = INSTRUMENTED_SYSTEM.stats();
        runtime.block_on(ask(&api, counted));
        let spent = INSTRUMENTED_SYSTEM.stats() - before;
        let each = |n: usize| (n + COUNTED / 2) / COUNTED;
        let allocations = each(spent.allocations + spent.reallocations);
        (row.name, (allocations, each(spent.bytes_allocated)))
    };
    rows().into_iter().map(cost).collect()
}

#[test]
fn requests_cost_what_they_did() {
    let _alone = instructions::ALONE.lock().unwrap();
    let found = costs();
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
