//! The CRI configurations of a pod's sandbox and containers. Pure.

use super::security::{self, ContainerInput, ImageUser};
use super::{dns, env};
use crate::observe::{self as labels};
use crate::pods;
use crate::resources::cgroup;
use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::v1 as cri;
use std::collections::HashMap;

pub struct SandboxInput<'a> {
    pub pod: &'a Pod,
    pub attempt: u32,
    pub dns: cri::DnsConfig,
    pub cluster_domain: &'a str,
    pub cgroup_parent: String,
    pub log_directory: String,
    pub userns: Option<cri::UserNamespace>,
    pub volume_groups: &'a [i64],
    pub limits: &'a cgroup::Node,
}

fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (labels::LABEL_POD_NAME.into(), pods::name(pod).into()),
        (labels::LABEL_POD_NAMESPACE.into(), pods::namespace(pod).into()),
        (labels::LABEL_POD_UID.into(), pods::uid(pod).into()),
    ])
}

pub fn sandbox(input: &SandboxInput) -> Result<cri::PodSandboxConfig, String> {
    let pod = input.pod;
    let mut all_labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    all_labels.extend(pod_labels(pod));
    let hostname = if pods::is_host_network(pod) {
        String::new()
    } else {
        let (host, domain) = dns::names(pod, input.cluster_domain);
        dns::kernel_name(pod, &host, &domain)?
    };
    let sysctls = pods::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.sysctls.as_ref());
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pods::name(pod).into(),
            uid: pods::uid(pod).into(),
            namespace: pods::namespace(pod).into(),
            attempt: input.attempt,
        }),
        hostname,
        log_directory: input.log_directory.clone(),
        dns_config: Some(input.dns.clone()),
        port_mappings: port_mappings(pod),
        labels: all_labels,
        annotations: pod
            .metadata
            .annotations
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: input.cgroup_parent.clone(),
            security_context: Some(security::sandbox(pod, input.userns.clone(), input.volume_groups)),
            // The kernel separates by dots; slashes are accepted in the API.
            sysctls: sysctls
                .into_iter()
                .flatten()
                .map(|s| (s.name.replace('/', "."), s.value.clone()))
                .collect(),
            overhead: Some(overhead(pod, input.limits)),
            resources: Some(sandbox_resources(pod, input.limits)),
        }),
        ..Default::default()
    })
}

fn overhead(pod: &Pod, node: &cgroup::Node) -> cri::LinuxContainerResources {
    let Some(o) = &pods::spec(pod).overhead else {
        return Default::default();
    };
    use crate::resources::quantity as q;
    let cpu = q::milli_of(Some(o), "cpu");
    let (cpu_quota, cpu_period) = node.quota.of(cpu);
    cri::LinuxContainerResources {
        cpu_period,
        cpu_shares: cgroup::shares(cpu),
        cpu_quota,
        memory_limit_in_bytes: q::value_of(Some(o), "memory"),
        ..Default::default()
    }
}

fn sandbox_resources(pod: &Pod, node: &cgroup::Node) -> cri::LinuxContainerResources {
    let limits = cgroup::pod_limits(pod, None, node);
    let (cpu_quota, cpu_period) = node.quota.of(cgroup::ceilings(pod).0.unwrap_or(0));
    cri::LinuxContainerResources {
        cpu_period,
        cpu_shares: limits.cpu_shares.unwrap_or(0),
        cpu_quota,
        memory_limit_in_bytes: limits.memory.unwrap_or(0),
        ..Default::default()
    }
}

fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    let sidecars = pods::init_containers(pod).iter().filter(|c| pods::is_sidecar(c));
    pods::containers(pod)
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .map(|p| cri::PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            } as i32,
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

pub struct Config<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub restart_count: i32,
    pub image_ref: String,
    pub env: &'a [(String, String)],
    pub mounts: Vec<cri::Mount>,
    pub user: &'a ImageUser,
    pub userns: Option<cri::UserNamespace>,
    /// The container whose processes an ephemeral container joins.
    pub target: Option<String>,
    pub volume_groups: &'a [i64],
    pub seccomp_root: &'a std::path::Path,
    pub seccomp_default: bool,
    pub limits: &'a cgroup::Node,
}

pub fn container(input: Config) -> Result<cri::ContainerConfig, String> {
    let (pod, c) = (input.pod, input.container);
    let (command, args) = env::command_line(c, input.env);
    let mut security_context = security::container(&ContainerInput {
        pod,
        container: c,
        user: input.user,
        userns: input.userns.clone(),
        volume_groups: input.volume_groups,
        seccomp_root: input.seccomp_root,
        seccomp_default: input.seccomp_default,
    })?;
    if let (Some(target), Some(ns)) = (&input.target, security_context.namespace_options.as_mut())
        && ns.pid == cri::NamespaceMode::Container as i32
    {
        ns.pid = cri::NamespaceMode::Target as i32;
        ns.target_id = target.clone();
    }
    let mut all_labels = pod_labels(pod);
    all_labels.insert(labels::LABEL_CONTAINER_NAME.into(), c.name.clone());
    let mut mounts = input.mounts;
    if let Some(userns) = input
        .userns
        .as_ref()
        .filter(|u| u.mode == cri::NamespaceMode::Pod as i32)
    {
        for m in &mut mounts {
            m.uid_mappings = userns.uids.clone();
            m.gid_mappings = userns.gids.clone();
        }
    }
    let stop_signal = c
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref())
        .and_then(|s| cri::Signal::from_str_name(&format!("SIGNAL_{}", s.replace('+', "PLUS").replace('-', "MINUS"))))
        .map_or(0, |s| s as i32);
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: c.name.clone(),
            attempt: input.restart_count as u32,
        }),
        image: Some(cri::ImageSpec {
            image: input.image_ref,
            user_specified_image: c.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: c.working_dir.clone().unwrap_or_default(),
        envs: input
            .env
            .iter()
            .map(|(k, v)| cri::KeyValue {
                key: k.clone(),
                value: v.clone().into_bytes().into(),
            })
            .collect(),
        mounts,
        labels: all_labels,
        annotations: annotations(pod, c, input.restart_count),
        log_path: format!("{}/{}.log", c.name, input.restart_count),
        stdin: c.stdin.unwrap_or(false),
        stdin_once: c.stdin_once.unwrap_or(false),
        tty: c.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cgroup::container_resources(pod, c, input.limits)),
            security_context: Some(security_context),
        }),
        stop_signal,
        ..Default::default()
    })
}

/// What has to be known of the container when its pod isn't known any more.
fn annotations(pod: &Pod, c: &Container, restart_count: i32) -> HashMap<String, String> {
    let mut notes = HashMap::from([
        (labels::NOTE_HASH.into(), format!("{:x}", pods::container_hash(c))),
        (labels::NOTE_RESTART_COUNT.into(), restart_count.to_string()),
        (
            labels::NOTE_MESSAGE_PATH.into(),
            c.termination_message_path.clone().unwrap_or_default(),
        ),
        (
            labels::NOTE_MESSAGE_POLICY.into(),
            c.termination_message_policy.clone().unwrap_or_default(),
        ),
    ]);
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        notes.insert(labels::NOTE_DELETION_GRACE.into(), grace.to_string());
    }
    if let Some(grace) = pods::spec(pod).termination_grace_period_seconds {
        notes.insert(labels::NOTE_POD_GRACE.into(), grace.to_string());
    }
    if let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && let Ok(json) = serde_json::to_string(hook)
    {
        notes.insert(labels::NOTE_PRE_STOP.into(), json);
    }
    if let Some(ports) = c.ports.as_ref().filter(|p| !p.is_empty())
        && let Ok(json) = serde_json::to_string(ports)
    {
        notes.insert(labels::NOTE_PORTS.into(), json);
    }
    notes
}
