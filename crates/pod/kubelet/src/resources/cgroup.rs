//! Numbers and names of cgroups: where a pod's cgroup is and which limits it carries. Pure; `host` writes them.

use super::{pod as amounts, qos, quantity};
use crate::pods;
use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::v1 as cri;

pub const CPU_PERIOD: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA: i64 = 1_000;

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
    pub memory: Option<i64>,
    pub pids: Option<i64>,
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

/// The pod's own limits: weight by requests, ceilings only where every container (or the pod) declares one.
pub fn pod_limits(pod: &Pod, pids: Option<i64>) -> CgroupLimits {
    let requests = amounts::pod_requests(pod);
    let limits = amounts::pod_limits(pod);
    let declared = |name: &str| match amounts::pod_level(pod) {
        Some(level) if quantity::milli_of(level.limits.as_ref(), name) > 0 => true,
        _ => pods::containers(pod)
            .iter()
            .chain(pods::init_containers(pod))
            .all(|c| quantity::milli_of(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name) > 0),
    };
    let mut cpu_request = quantity::milli_of(Some(&requests), "cpu");
    if cpu_request == 0 {
        cpu_request = quantity::milli_of(Some(&limits), "cpu");
    }
    let best_effort = qos::class(pod) == qos::Qos::BestEffort;
    CgroupLimits {
        cpu_shares: Some(if best_effort { MIN_SHARES } else { shares(cpu_request) }),
        cpu_quota: (!best_effort && declared("cpu"))
            .then(|| quota(quantity::milli_of(Some(&limits), "cpu"), CPU_PERIOD)),
        memory: (!best_effort && declared("memory")).then(|| quantity::value_of(Some(&limits), "memory")),
        pids,
    }
}

/// A container's limits as CRI takes them.
pub fn container_resources(
    pod: &Pod,
    c: &Container,
    memory_capacity: i64,
    hugepage_sizes: &[String],
) -> cri::LinuxContainerResources {
    let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
    let cpu_limit = amounts::effective_limit(pod, c, "cpu").map_or(0, quantity::milli);
    let memory_limit = amounts::effective_limit(pod, c, "memory").map_or(0, quantity::value);
    let cpu_request = match requests.and_then(|r| r.get("cpu")) {
        Some(q) => quantity::milli(q),
        None => cpu_limit,
    };
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(cpu_limit, CPU_PERIOD),
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: memory_limit,
        oom_score_adj: qos::oom_score_adj(pod, c, memory_capacity),
        hugepage_limits: hugepage_limits(pod, c, hugepage_sizes),
        ..Default::default()
    }
}

/// Every page size of the machine is limited: to what is asked, else to nothing.
fn hugepage_limits(pod: &Pod, c: &Container, sizes: &[String]) -> Vec<cri::HugepageLimit> {
    sizes
        .iter()
        .map(|size| {
            // `2MB` in the kernel's spelling is `hugepages-2Mi` in the API's.
            let resource = format!(
                "hugepages-{}",
                size.replace("KB", "Ki").replace("MB", "Mi").replace("GB", "Gi")
            );
            let limit = amounts::effective_limit(pod, c, &resource).map_or(0, quantity::value);
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

    #[test]
    fn numbers_match_the_kernel() {
        assert_eq!((shares(0), shares(1), shares(100), shares(1000)), (2, 2, 102, 1024));
        assert_eq!(
            (quota(0, CPU_PERIOD), quota(5, CPU_PERIOD), quota(500, CPU_PERIOD)),
            (0, 1000, 50_000)
        );
        assert_eq!(shares_to_milli(shares(100)), 100);
        assert_eq!(quota_to_milli(50_000, CPU_PERIOD), Some(500));
    }

    #[test]
    fn a_missing_limit_leaves_the_pod_open() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "u"},
            "spec": {"containers": [
                {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "500m"}}},
                {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}}]}}))
        .unwrap();
        let limits = pod_limits(&pod, None);
        assert_eq!(
            limits,
            CgroupLimits {
                cpu_shares: Some(1024),
                cpu_quota: Some(200_000),
                memory: None,
                pids: None
            }
        );
        assert_eq!(pod_path("/", &pod), "/kubepods/burstable/podu");
    }
}
