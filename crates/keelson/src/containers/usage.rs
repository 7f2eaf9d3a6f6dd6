//! What containers and pods use, by CRI. CPU time only grows: two readings make a rate.

use super::node::{Detail, POD_NAME, POD_NAMESPACE};
use super::{Filter, cells, pids};
use anyhow::anyhow;
use keelson_cri::CriClients;
use keelson_cri::v1 as cri;
use keelson_kubelet::rpc_text;
use keelson_sys::cgroup::Cgroups;
use serde_json::{Value, json};
use std::collections::HashMap;

/// CPU time at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cpu {
    /// In nanoseconds since 1970.
    at: i64,
    nanoseconds: u64,
    /// What the runtime itself takes for the rate, in billionths of a CPU.
    told: Option<u64>,
}

/// A row: a container, or a pod where `container` is none.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub id: String,
    pub namespace: String,
    pub pod: String,
    pub container: Option<String>,
    /// The container's own and its pod's.
    labels: Vec<HashMap<String, String>>,
    counted: Option<Cpu>,
    /// In thousandths of a CPU.
    pub cpu: Option<u64>,
    pub memory: Option<u64>,
    pub processes: Option<u64>,
    /// What it has written over its image.
    pub rootfs: Option<u64>,
}

/// A pod, and its containers.
#[derive(Clone, Debug, Default)]
struct Pod {
    row: Row,
    containers: Vec<Row>,
}

#[derive(Clone, Debug, Default)]
pub struct Used {
    pub pods: Vec<Row>,
    pub containers: Vec<Row>,
}

impl Used {
    /// Pods or containers, those that are meant, by name.
    pub fn rows(&self, pods: bool, filter: &Filter) -> Vec<&Row> {
        let rows = if pods { &self.pods } else { &self.containers };
        let mut rows: Vec<&Row> = rows.iter().filter(|row| row.is_meant(filter)).collect();
        rows.sort_by(|a, b| (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container)));
        rows
    }
}

impl Row {
    fn is_meant(&self, filter: &Filter) -> bool {
        let labels: Vec<_> = self.labels.iter().collect();
        filter.takes(&self.namespace, &self.pod, self.container.as_deref(), &labels)
    }

    pub fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.namespace.clone(), self.pod.clone()];
        cells.extend(self.container.clone());
        cells.extend([
            cells::known(self.cpu, cells::cpu),
            cells::known(self.memory, cells::bytes),
            cells::known(self.processes, |count| count.to_string()),
            cells::known(self.rootfs, cells::bytes),
        ]);
        cells
    }

    pub fn object(&self) -> Value {
        let mut object = json!({
            "id": self.id,
            "namespace": self.namespace,
            "pod": self.pod,
            "container": self.container,
            "cpuMillicores": self.cpu,
            "memoryBytes": self.memory,
            "processes": self.processes,
            "rootfsBytes": self.rootfs,
        });
        if let Some(object) = object.as_object_mut() {
            object.retain(|_, value| !value.is_null());
        }
        object
    }
}

pub fn head(pods: bool) -> Vec<&'static str> {
    let all = ["NAMESPACE", "POD", "CONTAINER", "CPU", "MEMORY", "PIDS", "ROOTFS"];
    all.into_iter()
        .filter(|title| !(pods && *title == "CONTAINER"))
        .collect()
}

/// Reads again and again, and remembers what the next reading is compared with.
pub struct Sampler {
    cri: CriClients,
    /// Where the kernel counts processes, if it does.
    cgroups: Option<Cgroups>,
    /// The first process of each container, once it is told.
    first: HashMap<String, i64>,
    before: HashMap<String, Cpu>,
}

impl Sampler {
    pub fn new(cri: CriClients) -> Sampler {
        Sampler {
            cri,
            cgroups: Cgroups::detect().ok(),
            first: HashMap::new(),
            before: HashMap::new(),
        }
    }

    pub async fn take(&mut self) -> anyhow::Result<Used> {
        let mut pods = self.read().await?;
        self.count(&mut pods).await;
        let mut now = HashMap::new();
        let mut used = Used::default();
        for mut pod in pods {
            for row in pod.containers.iter_mut().chain([&mut pod.row]) {
                row.cpu = millicores(self.before.get(&row.id).copied(), row.counted);
                now.extend(row.counted.map(|cpu| (row.id.clone(), cpu)));
            }
            used.pods.push(with_sums(pod.row, &pod.containers));
            used.containers.extend(pod.containers);
        }
        self.before = now;
        Ok(used)
    }

    async fn read(&self) -> anyhow::Result<Vec<Pod>> {
        let (mut pods, mut containers) = (self.cri.runtime.clone(), self.cri.runtime.clone());
        let first = match pods
            .list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())
            .await
        {
            Ok(answer) => return Ok(answer.into_inner().stats.into_iter().map(pod).collect()),
            Err(error) => error,
        };
        // Some runtimes tell of containers only.
        match containers
            .list_container_stats(cri::ListContainerStatsRequest::default())
            .await
        {
            Ok(answer) => Ok(by_pod(answer.into_inner().stats)),
            Err(_) => Err(anyhow!("what is used: {}", rpc_text(&first))),
        }
    }

    /// How many processes each container has.
    async fn count(&mut self, pods: &mut [Pod]) {
        let Some(cgroups) = &self.cgroups else { return };
        let mut first = HashMap::new();
        for row in pods.iter_mut().flat_map(|pod| &mut pod.containers) {
            let pid = match self.first.get(&row.id).copied() {
                None => Detail::read(&self.cri, &row.id).await.and_then(|detail| detail.pid),
                known => known,
            };
            row.processes = pid.and_then(|pid| pids::of(cgroups, pid));
            first.extend(pid.map(|pid| (row.id.clone(), pid)));
        }
        self.first = first;
    }
}

/// What of a pod isn't told is the sum of what is told of its containers.
fn with_sums(mut row: Row, containers: &[Row]) -> Row {
    let sum = |of: fn(&Row) -> Option<u64>| {
        let known: Vec<u64> = containers.iter().filter_map(of).collect();
        (!known.is_empty()).then(|| known.iter().fold(0u64, |sum, one| sum.saturating_add(*one)))
    };
    row.cpu = row.cpu.or_else(|| sum(|one| one.cpu));
    row.memory = row.memory.or_else(|| sum(|one| one.memory));
    row.processes = row.processes.or_else(|| sum(|one| one.processes));
    row.rootfs = row.rootfs.or_else(|| sum(|one| one.rootfs));
    row
}

/// In thousandths of a CPU. Without two readings of the same counter the runtime's own rate counts, if it tells one.
fn millicores(before: Option<Cpu>, now: Option<Cpu>) -> Option<u64> {
    let now = now?;
    let told = now.told.map(|rate| rate / 1_000_000);
    let Some(before) = before else { return told };
    let elapsed = u64::try_from(now.at.saturating_sub(before.at))
        .ok()
        .filter(|elapsed| *elapsed > 0);
    let spent = now.nanoseconds.checked_sub(before.nanoseconds);
    match (elapsed, spent) {
        (Some(elapsed), Some(spent)) => u64::try_from(u128::from(spent) * 1000 / u128::from(elapsed)).ok(),
        _ => told,
    }
}

fn pod(stats: cri::PodSandboxStats) -> Pod {
    let attributes = stats.attributes.unwrap_or_default();
    let metadata = attributes.metadata.unwrap_or_default();
    let linux = stats.linux.unwrap_or_default();
    let row = Row {
        id: attributes.id,
        namespace: metadata.namespace,
        pod: metadata.name,
        labels: vec![attributes.labels],
        counted: linux.cpu.and_then(cpu),
        memory: linux.memory.and_then(memory),
        processes: linux.process.and_then(|process| value(process.process_count)),
        ..Row::default()
    };
    let containers = linux
        .containers
        .into_iter()
        .map(|stats| container(stats, &row))
        .collect();
    Pod { row, containers }
}

/// Of a runtime that tells of containers only: whose they are their labels say.
fn by_pod(stats: Vec<cri::ContainerStats>) -> Vec<Pod> {
    let mut pods: Vec<Pod> = Vec::new();
    for stats in stats {
        let labels = stats.attributes.as_ref().map(|attributes| &attributes.labels);
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).cloned().unwrap_or_default();
        let (namespace, name) = (label(POD_NAMESPACE), label(POD_NAME));
        let known = pods
            .iter()
            .position(|pod| pod.row.namespace == namespace && pod.row.pod == name);
        let at = known.unwrap_or_else(|| {
            let row = Row {
                id: format!("{namespace}/{name}"),
                namespace,
                pod: name,
                ..Row::default()
            };
            let containers = Vec::new();
            pods.push(Pod { row, containers });
            pods.len() - 1
        });
        let row = container(stats, &pods[at].row);
        pods[at].containers.push(row);
    }
    pods
}

fn container(stats: cri::ContainerStats, pod: &Row) -> Row {
    let attributes = stats.attributes.unwrap_or_default();
    Row {
        id: attributes.id,
        namespace: pod.namespace.clone(),
        pod: pod.pod.clone(),
        container: Some(attributes.metadata.unwrap_or_default().name),
        labels: [vec![attributes.labels], pod.labels.clone()].concat(),
        counted: stats.cpu.and_then(cpu),
        memory: stats.memory.and_then(memory),
        rootfs: stats.writable_layer.and_then(|layer| value(layer.used_bytes)),
        ..Row::default()
    }
}

fn cpu(usage: cri::CpuUsage) -> Option<Cpu> {
    Some(Cpu {
        at: usage.timestamp,
        nanoseconds: value(usage.usage_core_nano_seconds)?,
        told: value(usage.usage_nano_cores),
    })
}

fn memory(usage: cri::MemoryUsage) -> Option<u64> {
    value(usage.working_set_bytes)
}

fn value(value: Option<cri::UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(seconds: i64, milliseconds: u64, told: Option<u64>) -> Option<Cpu> {
        Some(Cpu {
            at: seconds * SECOND,
            nanoseconds: milliseconds * 1_000_000,
            told,
        })
    }

    /// A row of a container with these figures.
    pub fn row(pod: &str, container: &str, cpu: Option<u64>, memory: Option<u64>) -> Row {
        Row {
            namespace: "shop".to_string(),
            pod: pod.to_string(),
            container: Some(container.to_string()),
            cpu,
            memory,
            ..Row::default()
        }
    }

    #[test]
    fn a_rate_is_what_was_spent_between_two_readings() {
        assert_eq!(millicores(at(10, 500, None), at(12, 1500, Some(1))), Some(500));
        assert_eq!(
            millicores(at(10, 0, None), at(11, 4000, None)),
            Some(4000),
            "four whole CPUs"
        );
        assert_eq!(millicores(at(10, 500, None), at(11, 500, None)), Some(0));
        let told = Some(250_000_000);
        assert_eq!(millicores(None, at(12, 1500, told)), Some(250));
        assert_eq!(
            millicores(at(12, 1500, None), at(12, 1500, told)),
            Some(250),
            "the same reading"
        );
        assert_eq!(
            millicores(at(12, 1500, None), at(13, 10, None)),
            None,
            "another counter"
        );
        assert_eq!(millicores(at(12, 1500, None), None), None);
    }

    fn stats(name: &str, pod: &str, bytes: u64) -> cri::ContainerStats {
        let number = |value| Some(cri::UInt64Value { value });
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: format!("id-{name}"),
                metadata: Some(cri::ContainerMetadata {
                    name: name.to_string(),
                    attempt: 0,
                }),
                labels: [
                    (POD_NAME.to_string(), pod.to_string()),
                    (POD_NAMESPACE.to_string(), "shop".to_string()),
                ]
                .into(),
                ..cri::ContainerAttributes::default()
            }),
            memory: Some(cri::MemoryUsage {
                working_set_bytes: number(bytes),
                ..cri::MemoryUsage::default()
            }),
            writable_layer: Some(cri::FilesystemUsage {
                used_bytes: number(4096),
                ..cri::FilesystemUsage::default()
            }),
            ..cri::ContainerStats::default()
        }
    }

    #[test]
    fn a_pod_has_what_is_told_of_it_and_else_the_sum_of_its_containers() {
        let told = pod(cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: "pod".to_string(),
                metadata: Some(cri::PodSandboxMetadata {
                    name: "web-0".to_string(),
                    namespace: "shop".to_string(),
                    ..cri::PodSandboxMetadata::default()
                }),
                ..cri::PodSandboxAttributes::default()
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                memory: Some(cri::MemoryUsage {
                    working_set_bytes: Some(cri::UInt64Value { value: 1000 }),
                    ..cri::MemoryUsage::default()
                }),
                containers: vec![stats("a", "other", 300), stats("b", "other", 400)],
                ..cri::LinuxPodSandboxStats::default()
            }),
            windows: None,
        });
        let row = with_sums(told.row, &told.containers);
        assert_eq!((row.memory, row.rootfs, row.processes), (Some(1000), Some(8192), None));
        assert_eq!(
            (told.containers[0].pod.as_str(), told.containers[0].memory),
            ("web-0", Some(300))
        );

        let grouped = by_pod(vec![stats("a", "x", 300), stats("b", "y", 1), stats("c", "x", 400)]);
        let shown: Vec<_> = grouped
            .iter()
            .map(|pod| (pod.row.pod.as_str(), pod.containers.len()))
            .collect();
        assert_eq!(shown, [("x", 2), ("y", 1)]);
        let row = with_sums(grouped[0].row.clone(), &grouped[0].containers);
        assert_eq!(row.memory, Some(700));
    }

    #[test]
    fn what_isnt_known_is_a_dash_in_tables_and_absent_in_objects() {
        let row = row("web-0", "app", Some(12), None);
        assert_eq!(row.cells(), ["shop", "web-0", "app", "12m", "-", "-", "-"]);
        assert_eq!(row.cells().len(), head(false).len());
        let object = row.object();
        assert_eq!(object["cpuMillicores"], 12);
        assert!(object.get("memoryBytes").is_none());
        let pod = Row { container: None, ..row };
        assert_eq!(pod.cells().len(), head(true).len());
    }
}
