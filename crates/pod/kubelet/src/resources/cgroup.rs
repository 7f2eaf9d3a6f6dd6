//! Numbers and names of cgroups: where a pod's cgroup is and which limits it carries; `host` writes them.

use super::memory_qos::{self, Files, MemoryQos};
use super::{pod as amounts, qos, quantity};
use crate::config::Swap;
use crate::host::Host;
use crate::pods;
use k8s_openapi::api::core::v1::{self as api, Container, Pod};
use keelson_cri::v1 as cri;
use std::collections::HashMap;

/// The kernel's own period, in microseconds.
pub const CPU_PERIOD: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA: i64 = 1_000;
const OOM_GROUP: &str = "memory.oom.group";
const SWAP_MAX: &str = "memory.swap.max";

/// CPU weight as cgroup v1 counts it: 1024 for a whole CPU.
pub fn shares(milli: i64) -> i64 {
    if milli == 0 {
        MIN_SHARES
    } else {
        (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
    }
}

/// Microseconds a period; zero when there is no limit.
pub fn quota(milli: i64, period: i64) -> i64 {
    if milli == 0 {
        0
    } else {
        (milli * period / 1000).max(MIN_QUOTA)
    }
}

/// Milli-CPUs that a weight stands for.
pub fn shares_to_milli(shares: i64) -> i64 {
    if shares <= MIN_SHARES {
        MIN_SHARES
    } else {
        (shares * 1000 + 1023) / 1024
    }
}

/// Milli-CPUs that a quota stands for; `None` is unlimited.
pub fn quota_to_milli(quota: i64, period: i64) -> Option<i64> {
    (quota > 0 && period > 0).then(|| quota * 1000 / period)
}

/// The limits of one cgroup; `None` leaves the kernel's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    pub cpu_shares: Option<i64>,
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<i64>,
    pub memory: Option<i64>,
    pub pids: Option<i64>,
    /// Files that only cgroups of version 2 have.
    pub unified: Files,
}

/// How limits of CPUs hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuQuota {
    pub enforced: bool,
    /// Microseconds.
    pub period: i64,
}

impl Default for CpuQuota {
    fn default() -> Self {
        CpuQuota {
            enforced: true,
            period: CPU_PERIOD,
        }
    }
}

impl CpuQuota {
    /// Quota and period as CRI has them; zeros leave both as they are.
    pub fn of(self, milli: i64) -> (i64, i64) {
        match self.enforced {
            true => (quota(milli, self.period), self.period),
            false => (0, 0),
        }
    }
}

/// The pod's cgroup below the root: `/kubepods[/class]/pod<uid>`.
pub fn pod_path(root: &str, pod: &Pod) -> String {
    format!("{}/pod{}", qos_path(root, qos::class(pod)), pods::uid(pod))
}

pub fn qos_path(root: &str, class: qos::Qos) -> String {
    let base = format!("{}/kubepods", root.trim_end_matches('/'));
    match class {
        qos::Qos::Guaranteed => base,
        qos::Qos::Burstable => format!("{base}/burstable"),
        qos::Qos::BestEffort => format!("{base}/besteffort"),
    }
}

/// Whether the pod as a whole has a limit: its own, or one of every container.
pub fn is_declared(pod: &Pod, name: &str) -> bool {
    match amounts::pod_level(pod) {
        Some(level) if quantity::milli_of(level.limits.as_ref(), name) > 0 => true,
        _ => pods::containers(pod)
            .iter()
            .chain(pods::init_containers(pod))
            .all(|c| quantity::milli_of(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name) > 0),
    }
}

/// The ceilings of a whole pod, in milli-CPUs and bytes, where it has them.
pub fn ceilings(pod: &Pod) -> (Option<i64>, Option<i64>) {
    let limits = amounts::pod_limits(pod);
    let has = |name: &str| qos::class(pod) != qos::Qos::BestEffort && is_declared(pod, name);
    (
        has("cpu").then(|| quantity::milli_of(Some(&limits), "cpu")),
        has("memory").then(|| quantity::value_of(Some(&limits), "memory")),
    )
}

/// The pod's own limits: weight by requests, ceilings only where every container (or the pod) declares one.
pub fn pod_limits(pod: &Pod, pids: Option<i64>, node: &Node) -> CgroupLimits {
    let requests = amounts::pod_requests(pod);
    let limits = amounts::pod_limits(pod);
    let mut cpu_request = quantity::milli_of(Some(&requests), "cpu");
    if cpu_request == 0 {
        cpu_request = quantity::milli_of(Some(&limits), "cpu");
    }
    let best_effort = qos::class(pod) == qos::Qos::BestEffort;
    let (cpu, memory) = ceilings(pod);
    let cpu = cpu.filter(|_| node.quota.enforced);
    CgroupLimits {
        cpu_shares: Some(if best_effort { MIN_SHARES } else { shares(cpu_request) }),
        cpu_quota: cpu.map(|milli| quota(milli, node.quota.period)),
        cpu_period: cpu.map(|_| node.quota.period),
        memory,
        pids,
        unified: node.memory_qos.map(|m| m.pod(pod)).unwrap_or_default(),
    }
}

/// What the kernel can do with pods' memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limited {
    pub oom_group: bool,
    pub swap: bool,
    /// It keeps memory for groups, and slows them down.
    pub memory_qos: bool,
}

impl Limited {
    /// Asks by the cgroup of all pods: a kernel without the memory controller has none of the files, and one that doesn't
    /// account for swap lacks that file.
    pub fn ask(host: &dyn Host, root: &str) -> Limited {
        let pods = qos_path(root, qos::Qos::Guaranteed);
        let has = |file: &str| host.unified_cgroups() && host.cgroup_has(&pods, file);
        Limited {
            oom_group: has(OOM_GROUP),
            swap: has(SWAP_MAX),
            memory_qos: [memory_qos::MIN, memory_qos::LOW, memory_qos::HIGH]
                .into_iter()
                .all(has),
        }
    }
}

/// What the node has, and how it holds containers to their limits.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub memory: i64,
    /// Swap for all pods together.
    pub swap: i64,
    pub hugepage_sizes: Vec<String>,
    /// The kernel limits it.
    pub swap_limits: bool,
    pub quota: CpuQuota,
    /// Where the kernel has what it takes.
    pub memory_qos: Option<MemoryQos>,
    pub swap_behaviour: Swap,
    /// When memory runs out all processes of a container end, not only one.
    pub oom_group: bool,
}

impl Node {
    /// Files of version 2, which has them for what CRI has no fields for.
    fn unified(&self, pod: &Pod, c: &Container) -> HashMap<String, String> {
        let mut files = HashMap::new();
        if self.oom_group {
            files.insert(OOM_GROUP.to_owned(), "1".to_owned());
        }
        // Without any, too: it may be turned on later.
        if self.swap_limits {
            files.insert(SWAP_MAX.to_owned(), self.swap_of(pod, c).to_string());
        }
        files.extend(self.memory_qos.iter().flat_map(|m| m.container(pod, c)));
        files
    }

    /// How much a container may be swapped out: burstable pods share what there is by their requests of memory, where that is
    /// wanted.
    fn swap_of(&self, pod: &Pod, c: &Container) -> i64 {
        let of = |list: fn(&api::ResourceRequirements) -> Option<&quantity::ResourceList>| {
            quantity::value_of(c.resources.as_ref().and_then(list), "memory")
        };
        let (request, limit) = (of(|r| r.requests.as_ref()), of(|r| r.limits.as_ref()));
        let shared = self.swap_behaviour == Swap::Limited
            && qos::class(pod) == qos::Qos::Burstable
            && !pods::is_critical(pod)
            && request > 0
            && request != limit
            && self.memory > 0;
        if !shared {
            return 0;
        }
        (i128::from(request) * i128::from(self.swap) / i128::from(self.memory)) as i64
    }
}

/// A container's limits as CRI takes them.
pub fn container_resources(pod: &Pod, c: &Container, node: &Node) -> cri::LinuxContainerResources {
    let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
    let cpu_limit = amounts::effective_limit(pod, c, "cpu").map_or(0, quantity::milli);
    let memory_limit = amounts::effective_limit(pod, c, "memory").map_or(0, quantity::value);
    let cpu_request = match requests.and_then(|r| r.get("cpu")) {
        Some(q) => quantity::milli(q),
        None => cpu_limit,
    };
    let (cpu_quota, cpu_period) = node.quota.of(cpu_limit);
    cri::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: memory_limit,
        oom_score_adj: qos::oom_score_adj(pod, c, node.memory),
        unified: node.unified(pod, c),
        hugepage_limits: hugepage_limits(pod, c, &node.hugepage_sizes),
        ..Default::default()
    }
}

/// Every page size of the machine is limited: to what is asked, else to nothing.
fn hugepage_limits(pod: &Pod, c: &Container, sizes: &[String]) -> Vec<cri::HugepageLimit> {
    sizes
        .iter()
        .map(|size| {
            let limit = amounts::effective_limit(pod, c, &super::hugepages(size)).map_or(0, quantity::value);
            cri::HugepageLimit {
                page_size: size.clone(),
                limit: limit as u64,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    #[test]
    fn numbers_match_the_kernel() {
        assert_eq!((shares(0), shares(1), shares(100), shares(1000)), (2, 2, 102, 1024));
        assert_eq!(
            (quota(0, CPU_PERIOD), quota(5, CPU_PERIOD), quota(500, CPU_PERIOD)),
            (0, 1000, 50_000)
        );
        // What is below the kernel's least quota is more in a short period.
        assert_eq!(
            (quota(100, 5_000), quota(500, 5_000), quota(500, 1_000_000)),
            (1_000, 2_500, 500_000)
        );
        assert_eq!(shares_to_milli(shares(100)), 100);
        assert_eq!(quota_to_milli(50_000, CPU_PERIOD), Some(500));
    }

    #[tokio::test]
    async fn only_what_the_kernel_has_is_asked_of_it() {
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(Limited::ask(&host, "/"), Limited::default(), "there is no cgroup");
        host.create_cgroup("/kubepods", &CgroupLimits::default()).unwrap();
        let all = Limited::ask(&host, "/");
        assert_eq!((all.oom_group, all.swap, all.memory_qos), (true, true, true));
        host.spoil(std::path::Path::new("/kubepods/memory.high"), true);
        assert!(!Limited::ask(&host, "/").memory_qos);
        host.spoil(std::path::Path::new("/kubepods/memory.swap.max"), true);
        let some = Limited::ask(&host, "/");
        assert_eq!((some.oom_group, some.swap), (true, false));
        let (pod, container) = (Pod::default(), Container::default());
        let files = |l: Limited| {
            let node = Node {
                swap_limits: l.swap,
                oom_group: l.oom_group,
                ..Node::default()
            };
            let mut files: Vec<_> = node.unified(&pod, &container).into_iter().collect();
            files.sort();
            files
        };
        let (group, swap) = (
            (OOM_GROUP.to_owned(), "1".to_owned()),
            (SWAP_MAX.to_owned(), "0".to_owned()),
        );
        assert_eq!(files(all), [group.clone(), swap]);
        assert_eq!(files(some), [group]);
        assert!(files(Limited::default()).is_empty());
    }

    #[test]
    fn a_missing_limit_leaves_the_pod_open() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "u"},
            "spec": {"containers": [
                {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "500m"}}},
                {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}}]}}))
        .unwrap();
        let mut node = Node::default();
        let limits = pod_limits(&pod, None, &node);
        assert_eq!(
            limits,
            CgroupLimits {
                cpu_shares: Some(1024),
                cpu_quota: Some(200_000),
                cpu_period: Some(100_000),
                ..CgroupLimits::default()
            }
        );
        // The same CPUs in shorter turns; and none of it where limits don't hold.
        node.quota.period = 5_000;
        let limits = pod_limits(&pod, None, &node);
        assert_eq!((limits.cpu_quota, limits.cpu_period), (Some(10_000), Some(5_000)));
        let of = |node: &Node| {
            let r = container_resources(&pod, &pods::containers(&pod)[0], node);
            (r.cpu_quota, r.cpu_period)
        };
        assert_eq!(of(&node), (5_000, 5_000));
        node.quota.enforced = false;
        let limits = pod_limits(&pod, None, &node);
        assert_eq!((limits.cpu_quota, limits.cpu_period), (None, None));
        assert_eq!(of(&node), (0, 0));
        assert_eq!(pod_path("/", &pod), "/kubepods/burstable/podu");
    }
}
