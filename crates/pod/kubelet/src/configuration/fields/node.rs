//! The node as a whole: how it registers and reports, what it asks of the API server and of the machine.

use super::super::reserved;
use super::super::show;
use super::*;
use crate::shutdown::groups::Period;

pub(super) const FIELDS: &[Field] = &[
    field(
        "nodeStatusUpdateFrequency",
        "node-status-update-frequency",
        Kind::Duration,
        false,
        set(put!(status_update, some_time), |c| show::time(c.status_update)),
    ),
    field(
        "nodeStatusReportFrequency",
        "",
        Kind::Duration,
        false,
        set(put!(status_report, some_time), |c| show::time(c.status_report)),
    ),
    field(
        "nodeLeaseDurationSeconds",
        "",
        Kind::Int,
        false,
        set(
            |c, v| {
                let seconds = int(v, 1, 1 << 31).map_err(|_| "must be greater than 0".to_owned())?;
                c.lease_duration = Duration::from_secs(seconds as u64);
                Ok(())
            },
            |c| json!(c.lease_duration.as_secs()),
        ),
    ),
    field(
        "nodeStatusMaxImages",
        "node-status-max-images",
        Kind::Int,
        true,
        set(
            |c, v| {
                c.status_images = usize::try_from(int(v, -1, i64::MAX)?).ok();
                Ok(())
            },
            |c| c.status_images.map_or(json!(-1), |n| json!(n)),
        ),
    ),
    field(
        "registerNode",
        "register-node",
        Kind::Bool,
        true,
        set(put!(register_node, |v| Ok::<_, String>(truth(v))), |c| {
            json!(c.register_node)
        }),
    ),
    field(
        "registerWithTaints",
        "register-with-taints",
        Kind::Taints,
        false,
        set(
            |c, v| {
                c.register_taints = reserved::taints(v)?;
                Ok(())
            },
            |c| Kind::Taints.read(&c.register_taints.join(",")).unwrap_or_default(),
        ),
    ),
    field(
        "providerID",
        "provider-id",
        Kind::Text,
        false,
        set(put!(provider_id, |v| Ok::<_, String>(text(v))), |c| {
            json!(c.provider_id)
        }),
    ),
    field(
        "maxPods",
        "max-pods",
        Kind::Int,
        false,
        set(put!(max_pods, count), |c| json!(c.max_pods)),
    ),
    field(
        "podsPerCore",
        "pods-per-core",
        Kind::Int,
        false,
        set(put!(pods_per_core, count), |c| json!(c.pods_per_core)),
    ),
    field(
        "podCIDR",
        "pod-cidr",
        Kind::Text,
        false,
        only("", "the cluster gives each node its range"),
    ),
    field(
        "contentType",
        "kube-api-content-type",
        Kind::Text,
        false,
        unmet(
            "application/vnd.kubernetes.protobuf",
            &["application/json"],
            "the kubelet chooses the form of what it asks",
        ),
    ),
    field(
        "kubeAPIQPS",
        "kube-api-qps",
        Kind::Int,
        true,
        rate!(api_rate, per_second),
    ),
    field(
        "kubeAPIBurst",
        "kube-api-burst",
        Kind::Int,
        false,
        rate!(api_rate, burst),
    ),
    field(
        "eventRecordQPS",
        "event-qps",
        Kind::Int,
        true,
        rate!(event_rate, per_second),
    ),
    field("eventBurst", "event-burst", Kind::Int, false, rate!(event_rate, burst)),
    field(
        "oomScoreAdj",
        "oom-score-adj",
        Kind::Int,
        true,
        unmet("-999", &[], GROUPS),
    ),
    field(
        "maxOpenFiles",
        "max-open-files",
        Kind::Int,
        false,
        unmet("1000000", &[], GROUPS),
    ),
    field(
        "failSwapOn",
        "fail-swap-on",
        Kind::Bool,
        true,
        set(put!(fail_swap_on, |v| Ok::<_, String>(truth(v))), |c| {
            json!(c.fail_swap_on)
        }),
    ),
    field(
        "failCgroupV1",
        "fail-cgroupv1",
        Kind::Bool,
        true,
        set(put!(fail_cgroup_v1, |v| Ok::<_, String>(truth(v))), |c| {
            json!(c.fail_cgroup_v1)
        }),
    ),
    field(
        "protectKernelDefaults",
        "protect-kernel-defaults",
        Kind::Bool,
        false,
        only("false", "the kernel's settings are made as they have to be"),
    ),
    field(
        "runOnce",
        "runonce",
        Kind::Bool,
        false,
        only("false", "upstream has given it up"),
    ),
    field(
        "shutdownGracePeriod",
        "",
        Kind::Duration,
        false,
        set(put!(shutdown_grace, none_or_a_second), |c| show::time(c.shutdown_grace)),
    ),
    field(
        "shutdownGracePeriodCriticalPods",
        "",
        Kind::Duration,
        false,
        set(put!(shutdown_grace_critical, none_or_a_second), |c| {
            show::time(c.shutdown_grace_critical)
        }),
    ),
    field(
        "shutdownGracePeriodByPodPriority",
        "",
        Kind::List,
        false,
        set(put!(shutdown_by_priority, reserved::periods), |c| {
            let period = |p: &Period| json!({"priority": p.priority, "shutdownGracePeriodSeconds": p.seconds});
            c.shutdown_by_priority.iter().map(period).collect()
        }),
    ),
    field(
        "featureGates",
        "feature-gates",
        Kind::Bools,
        false,
        set(reserved::gates, |c| match c.alpha_cpu_options {
            true => json!({"CPUManagerPolicyAlphaOptions": true}),
            false => json!({}),
        }),
    ),
];

/// A time that is nothing, or at least a second.
fn none_or_a_second(v: &Value) -> Result<Duration, String> {
    match time(v) {
        Ok(d) if d.is_zero() || d >= Duration::from_secs(1) => Ok(d),
        _ => Err("must be either zero or otherwise >= 1 sec".into()),
    }
}
