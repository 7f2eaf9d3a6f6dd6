//! A container's limits: from CRI's form to control groups, and merged by updates.

use keelson_cri::v1::LinuxContainerResources;
use keelson_sys::cgroup::Resources;
use serde_json::{Value, json};

/// What is 0 or empty in CRI means "leave it".
pub fn for_cgroup(r: &LinuxContainerResources) -> Resources {
    let number = |n: i64| (n != 0).then_some(n);
    let unsigned = |n: i64| u64::try_from(n).ok().filter(|n| *n != 0);
    let text = |s: &String| (!s.is_empty()).then(|| s.clone());
    Resources {
        cpu_shares: unsigned(r.cpu_shares),
        cpu_quota: number(r.cpu_quota),
        cpu_period: unsigned(r.cpu_period),
        cpuset_cpus: text(&r.cpuset_cpus),
        cpuset_mems: text(&r.cpuset_mems),
        memory_limit: number(r.memory_limit_in_bytes),
        // No swap beyond the limit unless it is asked for.
        memory_swap: number(r.memory_swap_limit_in_bytes).or(number(r.memory_limit_in_bytes)),
        pids_limit: None,
        hugepages: r
            .hugepage_limits
            .iter()
            .map(|h| (h.page_size.clone(), h.limit))
            .collect(),
        unified: r.unified.clone().into_iter().collect(),
    }
}

/// For external runtimes.
pub fn spec(r: &LinuxContainerResources) -> Value {
    let of = for_cgroup(r);
    let mut memory = json!({});
    if let Some(limit) = of.memory_limit {
        memory["limit"] = json!(limit);
    }
    if let Some(swap) = of.memory_swap {
        memory["swap"] = json!(swap);
    }
    let mut cpu = json!({"cpus": r.cpuset_cpus, "mems": r.cpuset_mems});
    for (name, value) in [
        ("shares", r.cpu_shares),
        ("quota", r.cpu_quota),
        ("period", r.cpu_period),
    ] {
        if value != 0 {
            cpu[name] = json!(value);
        }
    }
    json!({"memory": memory, "cpu": cpu, "unified": r.unified})
}

/// What an update leaves unsaid stays as it was.
pub fn merge(old: &LinuxContainerResources, new: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new != 0 { new } else { old };
    let text = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut unified = old.unified.clone();
    unified.extend(new.unified.clone());
    let hugepages = if new.hugepage_limits.is_empty() {
        &old.hugepage_limits
    } else {
        &new.hugepage_limits
    };
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepage_limits: hugepages.clone(),
        unified,
        memory_swap_limit_in_bytes: number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
    }
}
