//! What all parts of the kubelet share. Holds no logic of its own beyond small questions about the node.

use crate::act::dns::{self, ClusterDns};
use crate::act::images::Images;
use crate::backoff::Backoff;
use crate::claims::Claims;
use crate::config::Config;
use crate::devices::Devices;
use crate::disks::Disks;
use crate::host::{Host, Layout, Machine};
use crate::managers::Managers;
use crate::metrics::Metrics;
use crate::metrics::rates::Rates;
use crate::node::NodeState;
use crate::probes::Probes;
use crate::providers::Providers;
use crate::resources::cgroup;
use crate::resources::memory_qos::MemoryQos;
use crate::resources::quantity::ResourceList;
use crate::shutdown::Shutdown;
use crate::status::manager::StatusManager;
use crate::volumes::Volumes;
use crate::worker::Workers;
use crate::{plugins, pods};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use keelson_client::{EventType, Informer, Recorder, Rest};
use keelson_cri::{CriClients, v1 as cri};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub struct Kubelet {
    pub cfg: Config,
    pub host: Arc<dyn Host>,
    pub machine: Machine,
    pub layout: Layout,
    pub cri: CriClients,
    /// What the runtime calls itself: the prefix of container ids.
    pub runtime_name: String,
    pub runtime_version: String,
    pub rest: Rest,
    /// For what waits for no rate: the lease and the status by which others see that the node lives, and reviews of who comes.
    pub unpaced: Rest,
    pub recorder: Recorder,
    pub volumes: Volumes,
    pub devices: Arc<Devices>,
    pub managers: Managers,
    pub claims: Arc<Claims>,
    /// The types of plug-ins that can register.
    pub plugins: Arc<[Arc<dyn plugins::Kind>]>,
    pub images: Images,
    /// Programs that have credentials for images.
    pub providers: Providers,
    /// What is known of images' use. Held while images are removed.
    pub image_gc: tokio::sync::Mutex<crate::gc::images::Seen>,
    pub probes: Probes,
    pub status: StatusManager,
    pub node: NodeState,
    pub shutdown: Shutdown,
    pub services: Informer<Service>,
    pub classes: Informer<RuntimeClass>,
    pub workers: Arc<Workers>,
    pub crash: Mutex<Backoff>,
    /// Only one pod is admitted at a time, so that two don't get the same room.
    pub admission: tokio::sync::Mutex<()>,
    pub userns: crate::userns::UserNamespaces,
    /// When this kubelet started: what ran before keeps its readiness.
    pub started: jiff::Timestamp,
    /// Counts what the runtime tells: whoever waits for the end of a container looks when it changes.
    pub runtime_events: tokio::sync::watch::Sender<u64>,
    /// `/statusz` and `/flagz`.
    pub pages: keelson_zpages::Pages,
    /// What is counted for whoever watches this kubelet.
    pub metrics: Arc<Metrics>,
    /// Use of CPU between two readings.
    pub rates: Rates,
    pub unmeasured: crate::server::metrics::Unmeasured,
    /// What the kernel can limit.
    pub limited: cgroup::Limited,
    pub known_disks: tokio::sync::OnceCell<Disks>,
    pub stop: CancellationToken,
}

impl Kubelet {
    /// An event about a pod, or about one of its containers.
    pub fn event(&self, pod: &Pod, container: Option<&str>, kind: EventType, reason: &str, message: String) {
        let mut reference = keelson_client::events::reference(&<Pod as keelson_client::Kind>::RESOURCE, &pod.metadata);
        reference.field_path = container.and_then(|c| pods::field_path(pod, c));
        self.recorder.event_for(&reference, kind, reason, message);
    }

    pub fn warn(&self, pod: &Pod, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.event(pod, container, EventType::Warning, reason, message.into());
    }

    /// The pod's addresses as the node prefers them.
    pub fn sorted_ips(&self, ips: &[String]) -> Vec<String> {
        crate::status::generate::sort_ips(ips, &self.cfg.node_ips)
    }

    pub fn dns_config(&self, pod: &Pod) -> cri::DnsConfig {
        let text = self.host.read(&self.cfg.resolv_conf, 1 << 20).unwrap_or_else(|e| {
            tracing::debug!("the node's resolver configuration can't be read: {e}");
            Vec::new()
        });
        let host = dns::parse_resolv_conf(&String::from_utf8_lossy(&text));
        let cluster = ClusterDns {
            servers: &self.cfg.cluster_dns,
            domain: &self.cfg.cluster_domain,
            host: &host,
        };
        dns::config(pod, &cluster)
    }

    /// The runtime's handler for the pod's class; the empty name is the default one.
    pub fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let Some(class) = pods::spec(pod).runtime_class_name.as_deref().filter(|c| !c.is_empty()) else {
            return Ok(String::new());
        };
        match self.classes.store().get("", class) {
            Some(found) => Ok(found.handler.clone()),
            None => Err(format!(
                "failed to get RuntimeClass: RuntimeClass \"{class}\" not found"
            )),
        }
    }

    pub fn allocatable(&self) -> ResourceList {
        self.node.allocatable()
    }

    /// The moment of tokio's clock that a wall-clock time (in nanoseconds) was or will be.
    pub fn instant_of(&self, nanos: i64) -> Instant {
        let now = self.host.now().as_nanosecond() as i64;
        let here = Instant::now();
        if nanos <= now {
            here.checked_sub(Duration::from_nanos((now - nanos) as u64))
                .unwrap_or(here)
        } else {
            here + Duration::from_nanos((nanos - now) as u64)
        }
    }

    pub fn instant_at(&self, at: jiff::Timestamp) -> Instant {
        self.instant_of(at.as_nanosecond() as i64)
    }

    /// What containers are held to their limits by.
    pub fn limits(&self) -> cgroup::Node {
        cgroup::Node {
            memory: self.machine.memory as i64,
            swap: self.machine.swap as i64,
            hugepage_sizes: self.machine.hugepage_sizes(),
            swap_limits: self.limited.swap,
            quota: cgroup::CpuQuota {
                enforced: self.cfg.cpu_quota,
                period: self.cfg.cpu_period.as_micros() as i64,
            },
            memory_qos: self.limited.memory_qos.then(|| self.memory_qos()),
            swap_behaviour: self.cfg.swap,
            oom_group: self.limited.oom_group && !self.cfg.single_process_oom_kill.unwrap_or(false),
        }
    }

    fn memory_qos(&self) -> MemoryQos {
        let (all, reserved) = (
            self.machine.memory as i64,
            crate::node::status::reserved(&self.cfg, "memory"),
        );
        MemoryQos {
            throttling: self.cfg.memory_throttling,
            tiered: self.cfg.memory_tiers,
            allocatable: (all - (reserved + 999) / 1000).max(0),
            page: page(),
        }
    }

    /// The limits of a pod's cgroup.
    pub fn pod_limits(&self, pod: &Pod, pids: Option<i64>) -> cgroup::CgroupLimits {
        let mut node = self.limits();
        // Who has CPUs alone is limited by these.
        node.quota.enforced &= !self.managers.cpus.has_exclusive(pods::uid(pod));
        cgroup::pod_limits(pod, pids, &node)
    }

    pub fn cgroup_of(&self, pod: &Pod) -> String {
        crate::resources::cgroup::pod_path(&self.cfg.cgroup_root, pod)
    }
}

/// Bytes of a page of memory.
fn page() -> i64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok().flatten().unwrap_or(4096)
}
