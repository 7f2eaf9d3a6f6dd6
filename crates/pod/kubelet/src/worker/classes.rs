//! The cgroups of classes of pods: what pods of a class carry together.

use super::Workers;
use crate::kubelet::Kubelet;
use crate::resources::cgroup::{self, CgroupLimits};
use crate::resources::memory_qos::{Classes, Files};
use crate::resources::{pod as amounts, qos, quantity};

impl Workers {
    /// All burstable pods together weigh as much as they ask for; of memory is kept for all pods what is kept for each.
    pub(super) fn set_classes(&self, kl: &Kubelet) {
        let active = self.active("");
        let burstable = active.iter().filter(|p| qos::class(p) == qos::Qos::Burstable);
        let milli = burstable
            .map(|p| quantity::milli_of(Some(&amounts::pod_requests(p)), "cpu"))
            .sum();
        let kept = (kl.cfg.memory_tiers && kl.limited.memory_qos)
            .then(|| Classes::of(active.iter().map(|p| &**p)))
            .inspect(|sums| {
                kl.metrics.memory_min.set(sums.guaranteed as f64);
                kl.metrics.memory_low.set(sums.burstable as f64);
            });
        let of = |files: fn(Classes) -> Files| kept.map(files).unwrap_or_default();
        let burstable = CgroupLimits {
            cpu_shares: Some(cgroup::shares(milli)),
            unified: of(Classes::burstable),
            ..Default::default()
        };
        // From above: a group keeps no more than what is kept for the one above it.
        if kept.is_some() {
            set(kl, qos::Qos::Guaranteed, of(Classes::root).into());
        }
        set(kl, qos::Qos::Burstable, burstable);
    }

    /// What other settings kept of memory is given back.
    pub(crate) fn reset_classes(kl: &Kubelet) {
        if kl.limited.memory_qos && !kl.cfg.memory_tiers {
            let none = Classes::default();
            set(kl, qos::Qos::Guaranteed, none.root().into());
            set(kl, qos::Qos::Burstable, none.burstable().into());
        }
    }
}

impl From<Files> for CgroupLimits {
    fn from(unified: Files) -> Self {
        CgroupLimits {
            unified,
            ..CgroupLimits::default()
        }
    }
}

fn set(kl: &Kubelet, class: qos::Qos, limits: CgroupLimits) {
    let path = cgroup::qos_path(&kl.cfg.cgroup_root, class);
    match kl.host.update_cgroup(&path, &limits) {
        Err(e) if e.kind() != std::io::ErrorKind::Unsupported => {
            tracing::warn!("what pods of a class get together can't be set in {path}: {e}");
        }
        _ => {}
    }
}
