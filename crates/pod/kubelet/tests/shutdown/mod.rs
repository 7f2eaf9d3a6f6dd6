//! The machine stops: who ends when, what is told, and what is refused meanwhile.

mod bus;

use crate::support::{Node, condition};
use keelson_kubelet::Host;
use keelson_kubelet::fake::STOP_SECONDS;
use keelson_kubelet::shutdown::groups::{self, Period};
use keelson_kubelet::shutdown::{self, Power};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A machine that says what the test says, and notes until when it was held up.
struct Machine {
    says: mpsc::Receiver<bool>,
    held: Arc<Mutex<bool>>,
}

#[tonic::async_trait]
impl Power for Machine {
    async fn next(&mut self) -> Result<bool, String> {
        self.says.recv().await.ok_or_else(|| "the test is over".into())
    }
    async fn hold(&mut self) -> Result<(), String> {
        *self.held.lock() = true;
        Ok(())
    }
    fn release(&mut self) {
        *self.held.lock() = false;
    }
}

fn machine(node: &Node) -> (mpsc::Sender<bool>, Arc<Mutex<bool>>) {
    let (say, says) = mpsc::channel(4);
    let held = Arc::new(Mutex::new(true));
    let mut machine = Machine {
        says,
        held: held.clone(),
    };
    let kl = node.kubelet();
    tokio::spawn(async move {
        let periods = groups::periods(&kl.cfg);
        shutdown::follow(&kl, &mut machine, &periods).await
    });
    (say, held)
}

fn pod(node: &Node, name: &str, priority: i32, own_grace: i64, takes: &str) -> String {
    node.pod_with(
        json!({"name": name, "annotations": {STOP_SECONDS: takes}}),
        json!({"priority": priority, "terminationGracePeriodSeconds": own_grace, "containers": [{"name": name}]}),
    )
}

fn settings(c: &mut keelson_kubelet::Config) {
    let period = |(priority, seconds)| Period { priority, seconds };
    c.shutdown_by_priority = [(2_000_000_000, 20), (0, 10), (1000, 5)].map(period).into();
}

fn phase(node: &Node, path: &str) -> String {
    let pod = node.api.get(path).unwrap();
    pod["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

fn ready(node: &Node) -> Value {
    let node = node.api.get("nodes/n1").unwrap();
    let all = node["status"]["conditions"].as_array().unwrap().clone();
    all.into_iter().find(|c| c["type"] == "Ready").unwrap()
}

#[tokio::test(start_paused = true)]
async fn pods_end_in_the_order_of_their_priorities() {
    let mut node = Node::start_with(settings).await;
    // The first one takes longer than it is given; the second is shorter than what it is given.
    let slow = pod(&node, "slow", 0, 60, "100");
    let quick = pod(&node, "quick", 1500, 3, "2");
    let critical = pod(&node, "critical", 2_000_001_000, 30, "1");
    for path in [&slow, &quick, &critical] {
        node.ready(path).await;
    }
    let (say, held) = machine(&node);
    let began = Instant::now();
    say.send(true).await.unwrap();
    node.until("the node says so", |_| {
        (ready(&node)["status"] == "False").then_some(())
    })
    .await;
    assert_eq!(ready(&node)["reason"], "KubeletNotReady");
    assert_eq!(ready(&node)["message"], "node is shutting down");
    let late = pod(&node, "late", 2_000_001_000, 30, "0");
    let refused = node.phase(&late, "Failed").await;
    assert_eq!(refused["status"]["reason"], "NodeShutdown");
    assert_eq!(
        refused["status"]["message"],
        "Pod was rejected: Pod was rejected as the node is shutting down."
    );
    tokio::time::sleep_until(began + Duration::from_secs(9)).await;
    let runs = |n: &Node, name: &str| n.runtime.running().iter().any(|r| r == name);
    assert!(["slow", "quick", "critical"].iter().all(|name| runs(&node, name)));
    node.until("the slow one has ended", |n| (!runs(n, "slow")).then_some(()))
        .await;
    assert!(began.elapsed() >= Duration::from_secs(10));
    assert!(runs(&node, "quick") && runs(&node, "critical"));
    node.until("the quick one has ended", |n| (!runs(n, "quick")).then_some(()))
        .await;
    assert!(runs(&node, "critical"));
    node.until("the critical one has ended", |n| (!runs(n, "critical")).then_some(()))
        .await;
    for path in [&slow, &quick] {
        assert_eq!(node.phase(path, "Failed").await["status"]["reason"], "Terminated");
    }
    let ended = node.phase(&critical, "Failed").await;
    assert_eq!(ended["status"]["reason"], "Terminated");
    let message = "Pod was terminated in response to imminent node shutdown.";
    assert_eq!(ended["status"]["message"], message);
    assert_eq!(condition(&ended, "DisruptionTarget"), "True");
    node.until("the machine goes on", |_| (!*held.lock()).then_some(()))
        .await;
    // The slow one at ten seconds, the quick one two later, the critical one after one more.
    let took = began.elapsed().as_secs();
    assert!((12..=16).contains(&took), "{took} s");
    assert!(node.events().iter().any(|(reason, _)| reason == "NodeShutdown"));

    let page = node.kubelet().metrics.text();
    let gauge = |page: &str, what: &str| -> f64 {
        let name = format!("kubelet_graceful_shutdown_{what}_time_seconds ");
        page.lines()
            .find_map(|l| l.strip_prefix(&name))
            .unwrap()
            .parse()
            .unwrap()
    };
    let (start, end) = (gauge(&page, "start"), gauge(&page, "end"));
    assert!(start > 1e9 && end >= start + 12.0, "{start} {end}");

    // The machine goes on after all: pods are taken again, and it is held up again.
    say.send(false).await.unwrap();
    let next = pod(&node, "next", 0, 30, "0");
    node.ready(&next).await;
    assert!(*held.lock());
    node.until("the node is ready", |_| {
        (ready(&node)["status"] == "True").then_some(())
    })
    .await;

    // A kubelet that stops ends nothing, and the next one knows when the last shutdown was.
    node.halt().await;
    assert_eq!(phase(&node, &next), "Running");
    node.resume();
    node.until("its metrics tell of it", |n| {
        let page = n.kubelet().metrics.text();
        (gauge(&page, "end") == end && gauge(&page, "start") == start).then_some(())
    })
    .await;
    let record = Path::new("/var/lib/kubelet/graceful_node_shutdown_state");
    let record: Value = serde_json::from_slice(&node.host.read(record, 4096).unwrap()).unwrap();
    assert!(record["startTime"].is_string() && record["endTime"].is_string());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_well_has_succeeded() {
    let node = Node::start_with(settings).await;
    let done = node.pod(json!({"restartPolicy": "Never", "containers": [{"name": "c", "command": ["true"]}]}));
    node.phase(&done, "Succeeded").await;
    let (say, held) = machine(&node);
    say.send(true).await.unwrap();
    node.until("the machine goes on", |_| (!*held.lock()).then_some(()))
        .await;
    assert_eq!(phase(&node, &done), "Succeeded");
}
