//! Pulling images, and removing those that nobody needs.

use super::super::show;
use super::*;

pub(super) const FIELDS: &[Field] = &[
    field(
        "registryPullQPS",
        "registry-qps",
        Kind::Int,
        true,
        rate!(pull_rate, per_second),
    ),
    field(
        "registryBurst",
        "registry-burst",
        Kind::Int,
        false,
        rate!(pull_rate, burst),
    ),
    field(
        "imagePullCredentialsVerificationPolicy",
        "",
        Kind::Text,
        false,
        // Read together with its list.
        set(|_, _| Ok(()), |c| json!(c.image_pull_verification.name())),
    ),
    field(
        "preloadedImagesVerificationAllowlist",
        "",
        Kind::Texts,
        false,
        set(|_, _| Ok(()), |_| Value::Null),
    ),
    field(
        "serializeImagePulls",
        "serialize-image-pulls",
        Kind::Bool,
        true,
        set(
            |c, v| {
                c.serialize_pulls = Some(truth(v));
                Ok(())
            },
            |c| json!(c.serialize_pulls.unwrap_or(false)),
        ),
    ),
    field(
        "maxParallelImagePulls",
        "",
        Kind::Int,
        true,
        set(
            |c, v| {
                let most = int(v, 1, 1024).map_err(|_| "must be a positive number".to_owned())?;
                c.parallel_pulls = Some(most as usize);
                Ok(())
            },
            |c| json!(c.parallel_pulls),
        ),
    ),
    field(
        "imageMinimumGCAge",
        "minimum-image-ttl-duration",
        Kind::Duration,
        false,
        set(put!(image_min_age, time), |c| show::time(c.image_min_age)),
    ),
    field(
        "imageMaximumGCAge",
        "",
        Kind::Duration,
        false,
        set(put!(image_max_age, time), |c| show::time(c.image_max_age)),
    ),
    field(
        "imageGCHighThresholdPercent",
        "image-gc-high-threshold",
        Kind::Int,
        true,
        set(put!(image_gc_high_percent, percent), |c| json!(c.image_gc_high_percent)),
    ),
    field(
        "imageGCLowThresholdPercent",
        "image-gc-low-threshold",
        Kind::Int,
        true,
        set(put!(image_gc_low_percent, percent), |c| json!(c.image_gc_low_percent)),
    ),
];
