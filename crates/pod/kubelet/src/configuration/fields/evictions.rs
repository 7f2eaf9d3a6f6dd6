//! When pods are ended to keep the machine alive. Read together, see [`super::super::evictions`]: a soft threshold needs a time.

use super::super::show;
use super::*;

pub(super) const FIELDS: &[Field] = &[
    field(
        "evictionHard",
        "eviction-hard",
        Kind::Map('<'),
        true,
        set(
            |_, _| Ok(()),
            |c| json!(crate::eviction::threshold::show(&c.eviction.hard)),
        ),
    ),
    field(
        "evictionSoft",
        "eviction-soft",
        Kind::Map('<'),
        false,
        set(|_, _| Ok(()), show::soft),
    ),
    field(
        "evictionSoftGracePeriod",
        "eviction-soft-grace-period",
        Kind::Map('='),
        false,
        set(|_, _| Ok(()), show::soft_grace),
    ),
    field(
        "evictionPressureTransitionPeriod",
        "eviction-pressure-transition-period",
        Kind::Duration,
        false,
        set(
            |c, v| {
                c.eviction.transition = time(v)?;
                Ok(())
            },
            |c| show::time(c.eviction.transition),
        ),
    ),
    field(
        "evictionMaxPodGracePeriod",
        "eviction-max-pod-grace-period",
        Kind::Int,
        false,
        set(
            |c, v| {
                c.eviction.max_pod_grace = int(v, i64::MIN, i64::MAX)?.max(0);
                Ok(())
            },
            |c| json!(c.eviction.max_pod_grace),
        ),
    ),
    field(
        "evictionMinimumReclaim",
        "eviction-minimum-reclaim",
        Kind::Map('='),
        false,
        set(
            |_, _| Ok(()),
            |c| json!(crate::eviction::threshold::show(&c.eviction.reclaim)),
        ),
    ),
    field(
        "mergeDefaultEvictionSettings",
        "",
        Kind::Bool,
        true,
        set(|_, _| Ok(()), |_| json!(false)),
    ),
    field(
        "kernelMemcgNotification",
        "kernel-memcg-notification",
        Kind::Bool,
        false,
        only("false", "memory is looked at by the clock"),
    ),
];
