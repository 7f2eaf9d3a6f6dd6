//! What containers and pods use.

use std::path::Path;

use keelson_cri::v1;

use super::Container;
use crate::records::{self, ContainerRecord, ContainerState};
use crate::runtime::{Inner, now};
use crate::sandbox::Sandbox;

impl Inner {
    /// `None`: the container does not run, and there is nothing to say.
    pub fn container_stats(&self, container: &Container) -> anyhow::Result<v1::ContainerStats> {
        let record = container.record.lock().clone();
        let directory = records::directory::<ContainerRecord>(&self.config.root, &record.id);
        let mut stats = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            writable_layer: Some(container.layer.usage(&directory.join("upper"), &self.config.root)),
            ..v1::ContainerStats::default()
        };
        if record.state == ContainerState::Running {
            (stats.cpu, stats.memory, stats.swap, _) = self.usage(&record.cgroup)?;
        }
        Ok(stats)
    }

    pub fn sandbox_stats(&self, sandbox: &Sandbox) -> anyhow::Result<v1::PodSandboxStats> {
        let record = sandbox.record.lock().clone();
        let mut linux = v1::LinuxPodSandboxStats::default();
        let parent = record.config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
        if sandbox.is_ready() && !parent.is_empty() && self.cgroups.exists(parent) {
            let (cpu, memory, _, processes) = self.usage(parent)?;
            (linux.cpu, linux.memory) = (cpu, memory);
            linux.process = Some(v1::ProcessUsage {
                timestamp: now(),
                process_count: Some(v1::UInt64Value { value: processes }),
            });
            if record.own_network {
                linux.network = network(&sandbox.shim.namespace("net"))?;
            }
        }
        for container in self.containers_of(&sandbox.id) {
            if container.state() == ContainerState::Running {
                linux.containers.push(self.container_stats(&container)?);
            }
        }
        Ok(v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            linux: Some(linux),
            windows: None,
        })
    }

    fn usage(
        &self,
        group: &str,
    ) -> anyhow::Result<(
        Option<v1::CpuUsage>,
        Option<v1::MemoryUsage>,
        Option<v1::SwapUsage>,
        u64,
    )> {
        let usage = match self.cgroups.usage(group) {
            // It ended between the question and the answer.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((None, None, None, 0)),
            usage => usage?,
        };
        let timestamp = now();
        let value = |value| Some(v1::UInt64Value { value });
        let memory = usage.memory;
        Ok((
            Some(v1::CpuUsage {
                timestamp,
                usage_core_nano_seconds: value(usage.cpu.total_nanos),
                ..v1::CpuUsage::default()
            }),
            Some(v1::MemoryUsage {
                timestamp,
                working_set_bytes: value(memory.working_set),
                available_bytes: memory.limit.and_then(|l| value(l.saturating_sub(memory.working_set))),
                usage_bytes: value(memory.usage),
                rss_bytes: value(memory.rss),
                page_faults: value(memory.page_faults),
                major_page_faults: value(memory.major_page_faults),
                psi: None,
            }),
            memory.swap_usage.map(|used| v1::SwapUsage {
                timestamp,
                swap_available_bytes: memory.swap_limit.and_then(|l| value(l.saturating_sub(used))),
                swap_usage_bytes: value(used),
            }),
            usage.pids,
        ))
    }
}

/// What a directory takes on disk.
pub fn filesystem(directory: &Path, mount_point: &Path) -> v1::FilesystemUsage {
    let (bytes, inodes) = disk_usage(directory);
    v1::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: mount_point.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(v1::UInt64Value { value: bytes }),
        inodes_used: Some(v1::UInt64Value { value: inodes }),
    }
}

/// Files may come and go meanwhile; what cannot be read is not counted.
fn disk_usage(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut waiting = vec![directory.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&path) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            bytes += meta.blocks() * 512;
            inodes += 1;
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

/// Traffic of the pod's interface.
fn network(netns: &Path) -> anyhow::Result<Option<v1::NetworkUsage>> {
    let Ok(namespace) = keelson_sys::process::open_namespace(netns) else {
        return Ok(None);
    };
    // The file shows the namespace of the thread that reads it.
    let text = keelson_sys::process::in_network_namespace(&namespace, || {
        std::fs::read_to_string("/proc/thread-self/net/dev")
    })??;
    let interfaces: Vec<v1::NetworkInterfaceUsage> = text.lines().filter_map(interface).collect();
    let (mut default, mut others) = (None, Vec::new());
    for interface in interfaces {
        if interface.name == "eth0" {
            default = Some(interface)
        } else {
            others.push(interface)
        }
    }
    Ok(Some(v1::NetworkUsage {
        timestamp: now(),
        default_interface: default,
        interfaces: others,
    }))
}

fn interface(line: &str) -> Option<v1::NetworkInterfaceUsage> {
    let (name, rest) = line.split_once(':')?;
    let numbers: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let value = |i: usize| numbers.get(i).map(|value| v1::UInt64Value { value: *value });
    let name = name.trim().to_owned();
    (name != "lo").then(|| v1::NetworkInterfaceUsage {
        name,
        rx_bytes: value(0),
        rx_errors: value(2),
        tx_bytes: value(8),
        tx_errors: value(10),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_net_dev() {
        let i = interface("  eth0: 1296 16 1 0 0 0 0 0 850 11 2 0 0 0 0 0").unwrap();
        assert_eq!((i.rx_bytes.unwrap().value, i.tx_bytes.unwrap().value), (1296, 850));
        assert_eq!((i.rx_errors.unwrap().value, i.tx_errors.unwrap().value), (1, 2));
        assert!(interface("Inter-|   Receive").is_none());
    }
}
