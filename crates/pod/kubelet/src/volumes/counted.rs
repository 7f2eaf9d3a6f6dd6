//! How long work on volumes takes, and how many there are, as upstream's plug-ins and its volume manager tell.

use super::{Bound, Volumes};
use crate::pods;
use k8s_openapi::api::core::v1::{Pod, Volume};
use prometheus::HistogramVec;
use std::collections::BTreeMap;
use tokio::time::Instant;

/// Of a volume whose plug-in isn't known: its claim hasn't been looked at yet.
const UNKNOWN: &str = "N/A";

/// A plug-in's name in full, with the driver's of a CSI volume.
pub(super) fn plugin(kind: &str, volume: Option<&Volume>, bound: Option<&Bound>) -> String {
    let claimed = bound
        .and_then(|b| b.volume.spec.as_ref()?.csi.as_ref())
        .map(|c| &c.driver);
    match claimed.or_else(|| Some(&volume?.csi.as_ref()?.driver)) {
        Some(driver) => format!("kubernetes.io/{kind}:{driver}"),
        None => format!("kubernetes.io/{kind}"),
    }
}

/// One work on a volume, from its beginning.
pub(super) struct Work {
    durations: HistogramVec,
    plugin: String,
    operation: &'static str,
    began: Instant,
}

impl Work {
    pub fn begin(durations: &HistogramVec, plugin: String, operation: &'static str) -> Work {
        Work {
            durations: durations.clone(),
            plugin,
            operation,
            began: Instant::now(),
        }
    }

    pub fn end<T, E>(self, done: &Result<T, E>) {
        let status = if done.is_ok() { "success" } else { "fail-unknown" };
        // Nothing is migrated here: there are no plug-ins of providers' own.
        let labels = [self.plugin.as_str(), self.operation, status, "false"];
        let durations = self.durations.with_label_values(&labels);
        durations.observe(self.began.elapsed().as_secs_f64());
    }
}

/// How many volumes, by plug-in.
pub type Counts = BTreeMap<String, u64>;

impl Volumes {
    /// Those that are there, and those that these pods want: a pod, and whether it is to stay.
    pub fn counts<'a>(&self, all: impl Iterator<Item = (&'a Pod, bool)>) -> (Counts, Counts) {
        let (mut actual, mut desired) = (Counts::new(), Counts::new());
        let known = self.known.lock();
        for (pod, stays) in all {
            let of_pod = known.get(pods::uid(pod));
            let (mounts, devices) = pods::used_volumes(pod);
            let volumes = pods::spec(pod).volumes.iter().flatten();
            for volume in volumes.filter(|v| mounts.contains(&v.name) || devices.contains(&v.name)) {
                let there = of_pod.and_then(|p| p.get(&volume.name));
                let name = there.map(|(mounted, bound)| plugin(mounted.kind, Some(volume), bound.as_ref()));
                if stays {
                    let name = name.clone().unwrap_or_else(|| UNKNOWN.into());
                    *desired.entry(name).or_default() += 1;
                }
                if let Some(name) = name {
                    *actual.entry(name).or_default() += 1;
                }
            }
        }
        (actual, desired)
    }
}
