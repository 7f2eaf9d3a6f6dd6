//! emptyDir volumes: a directory of the node's disk, or a file system in memory, for as long as the pod is on the node.

use super::Tools;
use super::kind::{Ask, Failure, Group, Kind, Mounted, Stats};
use crate::resources::quantity;
use k8s_openapi::api::core::v1::Pod;

pub struct EmptyDir;

pub const NAME: &str = "empty-dir";

#[tonic::async_trait]
impl Kind for EmptyDir {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serves(&self, ask: &Ask) -> bool {
        ask.volume.empty_dir.is_some()
    }

    async fn mount(&self, tools: &Tools, ask: &Ask) -> Result<Mounted, Failure> {
        let source = ask.volume.empty_dir.clone().unwrap_or_default();
        let path = tools.layout.volume(ask.uid(), NAME, ask.name());
        match source.medium.as_deref().unwrap_or_default() {
            "" => {
                // One that was ready is the pod's: it may have other modes by now.
                if !tools.is_ready(ask.uid(), NAME, ask.name()) {
                    tools.host.make_dir(&path, 0o777)?;
                }
            }
            "Memory" => {
                let own = source.size_limit.as_ref().map(quantity::value);
                tools.tmpfs(&path, memory_limit(&ask.pod, own))?;
            }
            medium => {
                let Some(page) = medium.strip_prefix("HugePages") else {
                    return Err(format!("storage medium \"{medium}\" is not supported").into());
                };
                let page = page_size(&ask.pod, page.strip_prefix('-'))?;
                if !tools.host.is_mounted(&path)? {
                    tools.host.make_dir(&path, 0o777)?;
                    tools.host.mount_huge_pages(&path, page)?;
                    tools.host.make_dir(&path, 0o777)?;
                }
            }
        }
        Ok(Mounted {
            group: Group::Always,
            relabel: true,
            ..Mounted::at(NAME, ask, path)
        })
    }

    async fn stats(&self, tools: &Tools, mounted: &Mounted) -> Result<Option<Stats>, String> {
        match &mounted.path {
            Some(path) => tools.counted(path).await,
            None => Ok(None),
        }
    }
}

/// A memory volume is bounded by its own limit and by what the pod may use.
fn memory_limit(pod: &Pod, own: Option<i64>) -> Option<u64> {
    let (_, pod_limit) = crate::resources::cgroup::ceilings(pod);
    [own, pod_limit]
        .into_iter()
        .flatten()
        .filter(|v| *v > 0)
        .min()
        .map(|v| v as u64)
}

/// The size of page that is meant, in bytes: the one named, which containers must have asked for, or the only one they
/// ask for.
fn page_size(pod: &Pod, named: Option<&str>) -> Result<u64, String> {
    let requests = crate::resources::pod::pod_requests(pod);
    let asked: Vec<&str> = requests.keys().filter_map(|k| k.strip_prefix("hugepages-")).collect();
    let bytes = |size: &str| {
        let q = k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.to_owned());
        quantity::value(&q) as u64
    };
    match (named, asked.as_slice()) {
        (Some(named), asked) if asked.iter().any(|a| bytes(a) == bytes(named)) => Ok(bytes(named)),
        (Some(named), _) => Err(format!(
            "medium HugePages-{named}: no container asks for huge pages of this size"
        )),
        (None, [one]) => Ok(bytes(one)),
        (None, []) => Err("medium HugePages: no container asks for huge pages".into()),
        (None, _) => Err("medium HugePages can't be used with huge pages of several sizes".into()),
    }
}
