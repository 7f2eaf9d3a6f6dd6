//! Series of containers and pods for monitoring, told by CRI under cAdvisor's names.

use keelson_cri::series::{self, Disk, Family, Group};
use keelson_cri::v1;
use keelson_sys::open::{OpenFiles, open_files};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Container;
use crate::records::{self, ContainerRecord, ContainerState};
use crate::runtime::Inner;
use crate::sandbox::Sandbox;

/// The labels that tell a group, before those of the family.
const GROUP: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Every family there is.
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let families = series::SPEC.iter().chain(series::USED);
    let described = families.map(|f| v1::MetricDescriptor {
        name: f.name.to_owned(),
        help: f.help.to_owned(),
        label_keys: GROUP.iter().chain(f.labels).map(|l| (*l).to_owned()).collect(),
    });
    described.collect()
}

fn metrics(group: &Group, labels: &[String; 6]) -> Vec<v1::Metric> {
    let families = series::SPEC.iter().chain(series::USED);
    families.flat_map(|f| of_family(f, group, labels)).collect()
}

fn of_family<'a>(family: &'a Family, group: &Group, labels: &'a [String; 6]) -> impl Iterator<Item = v1::Metric> + 'a {
    let metric_type = match family.counter {
        true => v1::MetricType::Counter,
        false => v1::MetricType::Gauge,
    };
    family
        .values(group)
        .into_iter()
        .map(move |(values, number)| v1::Metric {
            name: family.name.to_owned(),
            // It was measured for this question.
            timestamp: 0,
            metric_type: metric_type as i32,
            label_values: labels.iter().cloned().chain(values).collect(),
            // What the message has room for: whole numbers from zero on.
            value: Some(v1::UInt64Value {
                value: number.max(0.0) as u64,
            }),
        })
}

impl Inner {
    /// `None`: the sandbox has no group of its own, or it has gone meanwhile.
    pub fn sandbox_metrics(&self, sandbox: &Sandbox) -> anyhow::Result<Option<v1::PodSandboxMetrics>> {
        let record = sandbox.record.lock().clone();
        let parent = record.config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
        let Some(mut group) = self.group(parent)? else {
            return Ok(None);
        };
        if let Some(pid) = group.account.processes.first().filter(|_| record.own_network) {
            // A process that has ended meanwhile takes the answer with it, and nothing else.
            group.interfaces = keelson_sys::net::carried(Some(*pid)).unwrap_or_default();
        }
        let pod = record.config.metadata.unwrap_or_default();
        let of = |container: &str, id: &str, image: &str, name: &str| {
            [container, id, image, name, &pod.namespace, &pod.name].map(str::to_owned)
        };
        let (mut container_metrics, mut open) = (Vec::new(), Vec::<OpenFiles>::new());
        for container in self.containers_of(&sandbox.id) {
            let Some((record, group)) = self.container_group(&container)? else {
                continue;
            };
            let name = record.config.metadata.as_ref().map_or("", |m| m.name.as_str());
            let image = record
                .config
                .image
                .as_ref()
                .map_or("", |i| match i.user_specified_image.as_str() {
                    "" => i.image.as_str(),
                    given => given,
                });
            open.extend(group.open);
            container_metrics.push(v1::ContainerMetrics {
                metrics: metrics(&group, &of(name, &record.cgroup, image, &record.id)),
                container_id: record.id,
            });
        }
        group.open = Some(open.into_iter().sum());
        Ok(Some(v1::PodSandboxMetrics {
            metrics: metrics(&group, &of("", parent, "", "")),
            pod_sandbox_id: record.id,
            container_metrics,
        }))
    }

    fn group(&self, path: &str) -> anyhow::Result<Option<Group>> {
        if path.is_empty() {
            return Ok(None);
        }
        let account = match self.cgroups.account(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            account => account?,
        };
        Ok(Some(Group {
            account,
            seen: Some(SystemTime::now()),
            ..Group::default()
        }))
    }

    fn container_group(&self, container: &Container) -> anyhow::Result<Option<(ContainerRecord, Group)>> {
        let record = container.record.lock().clone();
        if record.state != ContainerState::Running {
            return Ok(None);
        }
        let Some(mut group) = self.group(&record.cgroup)? else {
            return Ok(None);
        };
        group.open = Some(open_files(&group.account.processes));
        group.started = Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(record.started_at.max(0) as u64));
        group.disk = Some(self.written(container)?);
        Ok(Some((record, group)))
    }

    /// What a container has written into its layer, and the file system that it is on.
    fn written(&self, container: &Container) -> anyhow::Result<Disk> {
        let root: &Path = &self.config.root;
        let directory = records::directory::<ContainerRecord>(root, &container.id);
        let used = container.layer.usage(&directory.join("upper"), root);
        let fs = nix::sys::statvfs::statvfs(root)?;
        let mount = keelson_sys::mount::mount_of(&std::fs::canonicalize(root)?)?;
        Ok(Disk {
            device: mount.map(|m| m.source).unwrap_or_default(),
            used: used.used_bytes.map_or(0, |v| v.value),
            limit: fs.blocks() as u64 * fs.fragment_size() as u64,
            inodes: fs.files() as u64,
            inodes_free: fs.files_free() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_description_and_its_labels() {
        let labels = ["c", "/g", "i", "id", "ns", "p"].map(str::to_owned);
        let mut group = Group::default();
        group.account.cpu.total = Some(2_500_000_000);
        let told = metrics(&group, &labels);
        let described = descriptors();
        for m in &told {
            let d = described.iter().find(|d| d.name == m.name).unwrap();
            assert_eq!(d.label_keys.len(), m.label_values.len(), "{}", m.name);
        }
        let cpu = told
            .iter()
            .find(|m| m.name == "container_cpu_usage_seconds_total")
            .unwrap();
        assert_eq!(cpu.value.unwrap().value, 2);
        assert_eq!(cpu.label_values, ["c", "/g", "i", "id", "ns", "p", "total"]);
    }
}
