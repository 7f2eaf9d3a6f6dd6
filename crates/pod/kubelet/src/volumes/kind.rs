//! What the kubelet knows of a kind of volume. Everything else about a kind is known to its own file alone; which kinds
//! there are stands in the table of [`super::Volumes`].

use super::Tools;
use crate::act::fields::NodeFacts;
use crate::host::FsStats;
use crate::pods;
use crate::resources::quantity::ResourceList;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The node and the pod's addresses as they are at one moment.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    pub allocatable: ResourceList,
}

impl NodeView {
    pub fn facts(&self) -> NodeFacts<'_> {
        NodeFacts {
            host_ips: &self.host_ips,
            pod_ips: &self.pod_ips,
            allocatable: &self.allocatable,
        }
    }
}

/// A claim and the volume it is bound to.
#[derive(Clone, Debug)]
pub struct Bound {
    pub claim: PersistentVolumeClaim,
    pub volume: PersistentVolume,
    /// The pod asks for no more than reading.
    pub read_only: bool,
}

/// A volume as a pod asks for it.
#[derive(Clone, Debug)]
pub struct Ask {
    pub pod: Arc<Pod>,
    pub volume: Volume,
    pub bound: Option<Bound>,
    pub node: Arc<NodeView>,
    /// Fires when the pod leaves the node.
    pub leaving: CancellationToken,
}

impl Ask {
    /// The name on disk and in messages: of a claim's volume its own.
    pub fn name(&self) -> &str {
        let bound = self.bound.as_ref().and_then(|b| b.volume.metadata.name.as_deref());
        bound.unwrap_or(&self.volume.name)
    }

    pub fn uid(&self) -> &str {
        pods::uid(&self.pod)
    }

    pub fn is_block(&self) -> bool {
        let spec = self.bound.as_ref().and_then(|b| b.volume.spec.as_ref());
        spec.and_then(|s| s.volume_mode.as_deref()) == Some("Block")
    }
}

/// Whether the pod's `fsGroup` is given the volume's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Group {
    /// The files are somebody else's: the host's, or nobody's to change.
    #[default]
    Never,
    /// All of them, when the volume is first there for the pod.
    Always,
    /// As the pod's `fsGroupChangePolicy` says.
    ByPolicy,
}

/// A volume that is ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// `None` for an image volume: the runtime mounts it.
    pub path: Option<PathBuf>,
    pub read_only: bool,
    pub block: bool,
    pub group: Group,
    /// The files are the pod's, so that they get its label for SELinux.
    pub relabel: bool,
    /// The plug-in's name, and the volume's on disk.
    pub kind: &'static str,
    pub name: String,
    /// The claim, if the volume is one's.
    pub claim: Option<String>,
}

impl Mounted {
    pub fn at(kind: &'static str, ask: &Ask, path: PathBuf) -> Mounted {
        Mounted {
            path: Some(path),
            read_only: false,
            block: false,
            group: Group::Never,
            relabel: false,
            kind,
            name: ask.name().to_owned(),
            claim: ask.bound.as_ref().and_then(|b| b.claim.metadata.name.clone()),
        }
    }

    pub fn read_only(self) -> Mounted {
        Mounted {
            read_only: true,
            ..self
        }
    }
}

/// What a kubelet before this one, or this one, has left of a volume on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    pub uid: String,
    pub name: String,
    /// The volume's own directory in the pod's.
    pub dir: PathBuf,
    pub block: bool,
}

/// Why a volume isn't there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The event's reason; `None` if it is nothing to tell the pod's owner, because others do.
    pub reason: Option<&'static str>,
    /// That something failed, in upstream's words.
    pub step: &'static str,
    pub message: String,
}

impl Failure {
    /// Setting the volume up for the pod failed: what most failures are.
    pub fn set_up(message: impl Into<String>) -> Failure {
        Failure::step(false, "MountVolume.SetUp failed", "", message.into())
    }

    /// A step failed that upstream calls otherwise for block volumes than for those of files.
    pub fn step(block: bool, of_files: &'static str, of_block: &'static str, message: String) -> Failure {
        let (reason, step) = match block {
            true => ("FailedMapVolume", of_block),
            false => ("FailedMount", of_files),
        };
        Failure {
            reason: Some(reason),
            step,
            message,
        }
    }

    /// A failure that is tried again without a word.
    pub fn quiet(step: &'static str) -> Failure {
        Failure {
            reason: None,
            step,
            message: String::new(),
        }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::set_up(message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::set_up(error.to_string())
    }
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub fs: FsStats,
    pub used: u64,
    pub inodes_used: u64,
}

/// One kind of volume. All of it may be called again after it succeeded, after it failed and after a restart of the kubelet
/// that knows nothing any more: what is there already is found, not made twice.
#[tonic::async_trait]
pub trait Kind: Send + Sync {
    /// The plug-in's name without `kubernetes.io/`: volumes of this kind are below `kubernetes.io~<name>`.
    fn name(&self) -> &'static str;

    fn serves(&self, ask: &Ask) -> bool;

    /// Gets ready what the volume shows and only others can give (tokens, certificates), before it is mounted and at each
    /// later look. Returns when that has to be done again.
    async fn prepare(&self, _: &Tools, _: &Ask) -> Result<Option<Timestamp>, Failure> {
        Ok(None)
    }

    /// Makes the volume for the pod. Goes on even if whoever wanted it has gone; `unmount` comes only when it has ended.
    async fn mount(&self, tools: &Tools, ask: &Ask) -> Result<Mounted, Failure>;

    /// Brings up to date what a mounted volume shows.
    async fn refresh(&self, _: &Tools, _: &Ask, _: &Mounted) -> Result<(), Failure> {
        Ok(())
    }

    /// Gives back what `mount` made, by what is on disk alone. Afterwards nothing of it is mounted; files that are the pod's
    /// own may be left, the pod's directory is removed after all its volumes.
    async fn unmount(&self, _: &Tools, _: &Remains) -> Result<(), String> {
        Ok(())
    }

    /// The pod has nothing of this kind on the node any more.
    fn forget(&self, _uid: &str) {}

    /// What it holds; `None` where nobody counts.
    async fn stats(&self, _: &Tools, _: &Mounted) -> Result<Option<Stats>, String> {
        Ok(None)
    }
}
