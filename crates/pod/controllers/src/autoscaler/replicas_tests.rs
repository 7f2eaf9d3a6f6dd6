//! `replicas.jsonl` has the facts of upstream's own tables: pods, what was measured, and what follows from it.

use super::*;
use keelson_client::ApiObject;
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize)]
struct Case {
    of: String,
    replicas: i32,
    container: Option<String>,
    #[serde(default)]
    requests: Vec<String>,
    levels: Vec<Vec<i64>>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    ready: Vec<String>,
    #[serde(default)]
    phase: Vec<String>,
    #[serde(default)]
    start: Vec<String>,
    #[serde(default)]
    deleted: Vec<bool>,
    #[serde(default)]
    target: i64,
    #[serde(default)]
    want: i32,
    #[serde(default)]
    percent: i32,
    #[serde(default)]
    raw: i64,
    down: Option<f64>,
    up: Option<f64>,
    error: Option<String>,
}

const NOW: i64 = 1_800_000_000;

fn time(second: i64) -> String {
    Timestamp::from_second(second).expect("a time").to_string()
}

impl Case {
    fn pod(&self, i: usize) -> Arc<Pod> {
        let mut meta = json!({"name": format!("test-pod-{i}")});
        if self.deleted.get(i) == Some(&true) {
            meta["deletionTimestamp"] = json!(time(NOW));
        }
        let resources = match self.requests.get(i) {
            Some(cpu) => json!({"requests": {"cpu": cpu}}),
            None => json!({}),
        };
        let started = match self.start.get(i).map(String::as_str) {
            Some("hot") => NOW,
            Some(_) => NOW - 180,
            None => 0,
        };
        let ready = self.ready.get(i).map_or("True", String::as_str);
        let pod = json!({
            "metadata": meta,
            "spec": {"containers": [
                {"name": "container1", "resources": resources},
                {"name": "container2", "resources": resources},
            ]},
            "status": {
                "phase": self.phase.get(i).map_or("Running", String::as_str),
                "startTime": time(started),
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": time(0)}],
            },
        });
        Arc::new(Pod::decode(pod.to_string().as_bytes()).expect("a pod"))
    }

    fn samples(&self) -> Samples {
        let mut samples = Samples::new();
        for (i, containers) in self.levels.iter().enumerate() {
            let value = match self.container.as_deref() {
                Some("container2") => match containers.get(1) {
                    Some(value) => *value,
                    None => continue,
                },
                Some(_) => containers[0],
                None => containers.iter().sum(),
            };
            let name = self.names.get(i).cloned().unwrap_or_else(|| format!("test-pod-{i}"));
            // Measured when the table is read, as upstream's fake server says.
            let sample = Sample {
                value,
                at: Timestamp::UNIX_EPOCH,
                window: SignedDuration::from_secs(60),
            };
            samples.insert(name, sample);
        }
        samples
    }
}

#[test]
fn counts_are_upstreams() {
    let (mut cases, mut wrong) = (0, Vec::new());
    for line in include_str!("replicas.jsonl").lines() {
        let case: Case = serde_json::from_str(line).expect("a case");
        cases += 1;
        let pods: Vec<_> = (0..(case.replicas as usize).max(case.phase.len()))
            .map(|i| case.pod(i))
            .collect();
        let basis = Basis {
            replicas: case.replicas,
            tolerances: Tolerances {
                down: case.down.unwrap_or(0.1),
                up: case.up.unwrap_or(0.1),
            },
            pods: &pods,
            now: Timestamp::from_second(NOW).expect("a time"),
            delays: Delays {
                cpu_initialization: SignedDuration::from_secs(120),
                initial_readiness: SignedDuration::from_secs(10),
            },
        };
        let samples = case.samples();
        let usage: i64 = case.levels.iter().map(|l| l[0]).sum();
        let got = match case.of.as_str() {
            "utilization" => by_utilization(&basis, case.target as i32, "cpu", case.container.as_deref(), samples)
                .map(|(replicas, (percent, raw))| (replicas, percent, raw)),
            "average" => by_average(&basis, case.target, "", samples).map(|(replicas, raw)| (replicas, 0, raw)),
            "value" => by_value(&basis, case.target, usage).map(|replicas| (replicas, 0, usage)),
            _ => {
                let (replicas, share) = by_share(case.replicas, basis.tolerances, case.target, usage);
                Ok((replicas, 0, share))
            }
        };
        let right = match (&got, &case.error) {
            (Err(got), Some(want)) => got.contains(want),
            (Ok(got), None) => *got == (case.want, case.percent, case.raw),
            _ => false,
        };
        if !right {
            wrong.push(format!("{got:?} for {line}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases > 60, "{cases} cases: the table is cut off");
}

#[test]
fn huge_values_end_at_the_largest_number() {
    let tolerances = Tolerances { down: 0.1, up: 0.1 };
    assert_eq!(by_share(1, tolerances, 1, i64::MAX), (i32::MAX, i64::MAX));
    assert_eq!(by_share(0, tolerances, 100, 250).0, 3, "none are there yet");
}

#[test]
fn a_pod_may_ask_as_a_whole() {
    let pod = |spec: &str| {
        let text = format!(r#"{{"metadata":{{"name":"p"}},"spec":{spec}}}"#);
        Pod::decode(text.as_bytes()).expect("a pod")
    };
    let whole = pod(r#"{"resources":{"requests":{"cpu":"2"}},"containers":[{"name":"a"},{"name":"b"}]}"#);
    assert_eq!(request(&whole, "cpu", None), Ok(2000));
    assert_eq!(
        request(&whole, "cpu", Some("a")),
        Err("missing request for cpu in container a of Pod p".into())
    );
    assert_eq!(
        request(&whole, "cpu", Some("c")),
        Err("container c not found in Pod p".into())
    );
    let sidecar = pod(r#"{"containers":[{"name":"a","resources":{"requests":{"cpu":"1"}}}],
            "initContainers":[{"name":"s","restartPolicy":"Always","resources":{"requests":{"cpu":"500m"}}},{"name":"i"}]}"#);
    assert_eq!(request(&sidecar, "cpu", None), Ok(1500));
}
