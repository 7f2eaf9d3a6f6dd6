//! CPU, memory and processes: what is kept from pods, and what holds containers to their limits.

use super::super::reserved;
use super::super::show;
use super::*;
use crate::config::Swap;
use crate::managers::memory::reserved as reserved_memory;
use crate::managers::topology::{Policy, Scope};
use std::collections::BTreeMap;

pub(super) const FIELDS: &[Field] = &[
    field("kubeletCgroups", "kubelet-cgroups", Kind::Text, false, only("", GROUPS)),
    field("systemCgroups", "system-cgroups", Kind::Text, false, only("", GROUPS)),
    field(
        "cgroupRoot",
        "cgroup-root",
        Kind::Text,
        false,
        alone(
            |c, v| {
                c.cgroup_root = Some(text(v)).filter(|t| !t.is_empty()).unwrap_or_else(|| "/".into());
                Ok(())
            },
            |c| json!(c.cgroup_root),
            "",
            "--cgroup-root of the program says it",
        ),
    ),
    field(
        "cgroupsPerQOS",
        "cgroups-per-qos",
        Kind::Bool,
        true,
        only("true", "pods always have cgroups by class"),
    ),
    field(
        "cgroupDriver",
        "cgroup-driver",
        Kind::Text,
        false,
        only("cgroupfs", "systemd isn't asked for cgroups"),
    ),
    field(
        "cpuManagerPolicy",
        "cpu-manager-policy",
        Kind::Text,
        false,
        set(
            |c, v| {
                c.static_cpus = match text(v).as_str() {
                    "" | "none" => false,
                    "static" => true,
                    other => return Err(format!("unknown policy: {other:?}")),
                };
                Ok(())
            },
            |c| json!(if c.static_cpus { "static" } else { "none" }),
        ),
    ),
    field(
        "cpuManagerPolicyOptions",
        "cpu-manager-policy-options",
        Kind::Map('='),
        false,
        set(put!(cpu_options, options), |c| json!(c.cpu_options)),
    ),
    field(
        "cpuManagerReconcilePeriod",
        "cpu-manager-reconcile-period",
        Kind::Duration,
        false,
        set(put!(cpu_reconcile, some_time), |c| show::time(c.cpu_reconcile)),
    ),
    field(
        "memoryManagerPolicy",
        "memory-manager-policy",
        Kind::Text,
        false,
        set(
            |c, v| {
                c.static_memory = match text(v).as_str() {
                    "" | "None" => false,
                    "Static" => true,
                    "BestEffort" => return Err("policy \"BestEffort\" is not available for platform \"linux\"".into()),
                    other => return Err(format!("unknown policy: {other:?}")),
                };
                Ok(())
            },
            |c| json!(if c.static_memory { "Static" } else { "None" }),
        ),
    ),
    field(
        "reservedMemory",
        "reserved-memory",
        Kind::Memory,
        false,
        set(put!(reserved_memory, reserved_memory::parse), |c| {
            reserved_memory::show(&c.reserved_memory)
        }),
    ),
    field(
        "topologyManagerPolicy",
        "topology-manager-policy",
        Kind::Text,
        false,
        set(
            |c, v| {
                let name = text(v);
                let found = Policy::ALL.into_iter().find(|p| p.name() == name);
                let all = Policy::ALL.map(|p| format!("{:?}", p.name())).join(" ");
                c.topology = found.ok_or_else(|| format!("{name:?} must be one of: [{all}]"))?;
                Ok(())
            },
            |c| json!(c.topology.name()),
        ),
    ),
    field(
        "topologyManagerScope",
        "topology-manager-scope",
        Kind::Text,
        false,
        set(
            |c, v| {
                c.topology_scope = match text(v).as_str() {
                    "container" => Scope::Container,
                    "pod" => Scope::Pod,
                    other => return Err(format!("{other:?} must be one of: \"container\", or \"pod\"")),
                };
                Ok(())
            },
            |c| json!(c.topology_scope.name()),
        ),
    ),
    field(
        "topologyManagerPolicyOptions",
        "topology-manager-policy-options",
        Kind::Map('='),
        false,
        set(put!(topology_options, options), |c| json!(c.topology_options)),
    ),
    field(
        "qosReserved",
        "qos-reserved",
        Kind::Map('='),
        false,
        only("{}", "requests aren't kept from pods of lower classes"),
    ),
    field(
        "podPidsLimit",
        "pod-max-pids",
        Kind::Int,
        true,
        set(
            |c, v| {
                c.pod_pids_limit = v.as_i64().filter(|n| *n > 0);
                Ok(())
            },
            |c| json!(c.pod_pids_limit.unwrap_or(-1)),
        ),
    ),
    field(
        "cpuCFSQuota",
        "cpu-cfs-quota",
        Kind::Bool,
        true,
        set(put!(cpu_quota, |v| Ok::<_, String>(truth(v))), |c| json!(c.cpu_quota)),
    ),
    field(
        "cpuCFSQuotaPeriod",
        "cpu-cfs-quota-period",
        Kind::Duration,
        true,
        set(
            |c, v| match time(v)? {
                d if d < Duration::from_millis(1) || d > Duration::from_secs(1) => {
                    Err("must be between 1ms and 1sec, inclusive".into())
                }
                d => {
                    c.cpu_period = d;
                    Ok(())
                }
            },
            |c| show::time(c.cpu_period),
        ),
    ),
    field(
        "singleProcessOOMKill",
        "",
        Kind::Bool,
        true,
        set(
            |c, v| {
                c.single_process_oom_kill = Some(truth(v));
                Ok(())
            },
            |c| json!(c.single_process_oom_kill),
        ),
    ),
    field(
        "memorySwap",
        "",
        Kind::Object,
        false,
        set(
            |c, v| {
                known(v, "", &[("swapBehavior", Kind::Text)])?;
                c.swap = match v["swapBehavior"].as_str().unwrap_or_default() {
                    "" | "NoSwap" => Swap::None,
                    "LimitedSwap" => Swap::Limited,
                    other => {
                        return Err(format!(
                            "swapBehavior {other:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\""
                        ));
                    }
                };
                Ok(())
            },
            |c| json!({"swapBehavior": c.swap.name()}),
        ),
    ),
    field(
        "systemReserved",
        "system-reserved",
        Kind::Map('='),
        false,
        set(
            |c, v| {
                c.system_reserved = reserved::amounts(v)?;
                Ok(())
            },
            |c| json!(c.system_reserved),
        ),
    ),
    field(
        "kubeReserved",
        "kube-reserved",
        Kind::Map('='),
        false,
        set(
            |c, v| {
                c.kube_reserved = reserved::amounts(v)?;
                Ok(())
            },
            |c| json!(c.kube_reserved),
        ),
    ),
    field(
        "reservedSystemCPUs",
        "reserved-cpus",
        Kind::Text,
        false,
        set(
            |c, v| {
                let list = text(v);
                let count = || {
                    let wrong = || format!("unable to parse reservedSystemCPUs (--reserved-cpus) {list}");
                    reserved::cpus(&list).ok_or_else(wrong)
                };
                c.reserved_cpus = match list.is_empty() {
                    true => None,
                    false => Some((list.clone(), count()?)),
                };
                Ok(())
            },
            |c| json!(c.reserved_cpus.as_ref().map_or("", |(list, _)| list)),
        ),
    ),
    field(
        "systemReservedCgroup",
        "system-reserved-cgroup",
        Kind::Text,
        false,
        set(put!(system_reserved_cgroup, |v| Ok::<_, String>(text(v))), |c| {
            json!(c.system_reserved_cgroup)
        }),
    ),
    field(
        "kubeReservedCgroup",
        "kube-reserved-cgroup",
        Kind::Text,
        false,
        set(put!(kube_reserved_cgroup, |v| Ok::<_, String>(text(v))), |c| {
            json!(c.kube_reserved_cgroup)
        }),
    ),
    field(
        "enforceNodeAllocatable",
        "enforce-node-allocatable",
        Kind::Texts,
        true,
        set(
            |c, v| {
                c.enforce = reserved::enforced(&kinds::list(Some(v)))?;
                Ok(())
            },
            |c| json!(c.enforce),
        ),
    ),
    field(
        "memoryThrottlingFactor",
        "",
        Kind::Float,
        true,
        set(
            |c, v| {
                let factor = v.as_f64().filter(|f| *f > 0.0 && *f <= 1.0);
                c.memory_throttling = Some(factor.ok_or("must be greater than 0 and less than or equal to 1.0")?);
                Ok(())
            },
            |c| json!(c.memory_throttling),
        ),
    ),
    field(
        "memoryReservationPolicy",
        "",
        Kind::Text,
        false,
        set(
            |c, v| {
                c.memory_tiers = match text(v).as_str() {
                    "" | "None" => false,
                    "TieredReservation" => true,
                    other => {
                        return Err(format!(
                            "option {other:?} specified for memoryReservationPolicy. Valid options are \"None\" or \"TieredReservation\""
                        ));
                    }
                };
                Ok(())
            },
            |c| json!(if c.memory_tiers { "TieredReservation" } else { "None" }),
        ),
    ),
];

/// Options of a policy, which are judged together.
fn options(v: &Value) -> Result<BTreeMap<String, String>, String> {
    Ok(kinds::texts(Some(v)))
}
