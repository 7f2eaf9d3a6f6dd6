//! The volumes of the pods of this node: made before a pod's sandbox, kept up to date, given back after its containers.
//!
//! A kind of volume is one [`Kind`], and this file knows the table of them and nothing else about any. What is on disk is
//! under `pods/<uid>`, so a restart finds it; what is known here can be rebuilt from the pod. A pod's volumes are made side
//! by side, and nothing here is held while one is.

mod atomic;
mod certificates;
mod claims;
mod counted;
mod csi;
mod empty_dir;
mod files;
mod host_path;
mod image;
pub mod kind;
mod local;
mod nfs;
mod operations;
mod ownership;
mod payload;
mod remains;
mod token;
mod tools;
mod trust;
mod usage;

pub(crate) use atomic::write as write_files;
pub use csi::{Csi, CsiDrivers};
pub use kind::{Ask, Bound, Failure, Group, Kind, Mounted, NodeView, Remains, Stats};
pub(crate) use ownership::apply as apply_ownership;
pub use tools::Tools;

use crate::host::Ownership;
use crate::pods;
use crate::resources::admit;
use futures::FutureExt;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use parking_lot::Mutex;
use prometheus::HistogramVec;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What a pod has, by the volume's name in the pod.
type Known = HashMap<String, BTreeMap<String, (Mounted, Option<Bound>)>>;

pub struct Volumes {
    pub tools: Arc<Tools>,
    kinds: Vec<Arc<dyn Kind>>,
    pub csi: Arc<Csi>,
    known: Arc<Mutex<Known>>,
    operations: operations::Operations,
    measured: usage::Measured,
    durations: HistogramVec,
}

/// Why a pod's volumes aren't all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// What is meant can't be told: the volume's name in the pod, and why.
    Unclear { volume: String, message: String },
    /// Something was tried and failed: the volume's name in the pod, its own, and what.
    Failed {
        volume: String,
        name: String,
        failure: Failure,
    },
}

impl Volumes {
    pub fn new(tools: Arc<Tools>, csi: Arc<Csi>, stop: CancellationToken, durations: HistogramVec) -> Self {
        Volumes {
            tools,
            kinds: vec![
                Arc::new(empty_dir::EmptyDir),
                files::Files::config_map().into(),
                files::Files::secret().into(),
                files::Files::downward_api().into(),
                files::Files::projected().into(),
                Arc::new(host_path::HostPath),
                Arc::new(image::Image),
                Arc::new(local::Local),
                Arc::new(nfs::Nfs),
                Arc::new(csi::CsiKind(csi.clone())),
            ],
            csi,
            known: Arc::default(),
            operations: operations::Operations::new(stop),
            measured: usage::Measured::default(),
            durations,
        }
    }

    fn kind(&self, name: &str) -> Option<&Arc<dyn Kind>> {
        self.kinds.iter().find(|k| k.name() == name)
    }

    /// Makes all volumes that the pod's containers use, and brings those there are up to date. Returns them by name, and
    /// when the next of them has to be looked after.
    pub async fn ensure(
        &self,
        pod: &Arc<Pod>,
        node: &Arc<NodeView>,
    ) -> Result<(BTreeMap<String, Mounted>, Option<Timestamp>), Vec<Problem>> {
        let (mounts, devices) = pods::used_volumes(pod);
        let all = pods::spec(pod).volumes.iter().flatten();
        let used = all.filter(|v| mounts.contains(&v.name) || devices.contains(&v.name));
        let results = join_all(used.map(|v| async {
            let as_device = devices.contains(&v.name);
            let as_files = mounts.contains(&v.name);
            self.one(pod, v, node, (as_files, as_device)).await
        }));
        let (mut next, mut problems): (Option<Timestamp>, _) = (None, Vec::new());
        for result in results.await {
            match result {
                Ok(at) => next = next.into_iter().chain(at).min(),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok((self.mounted(pods::uid(pod)), next))
        } else {
            Err(problems)
        }
    }

    async fn one(
        &self,
        pod: &Arc<Pod>,
        volume: &Volume,
        node: &Arc<NodeView>,
        used: (bool, bool),
    ) -> Result<Option<Timestamp>, Problem> {
        let uid = pods::uid(pod);
        let known = self.known.lock().get(uid).and_then(|p| p.get(&volume.name).cloned());
        let unclear = |message: String| Problem::Unclear {
            volume: volume.name.clone(),
            message,
        };
        let bound = match (&known, claims::named(pod, volume)) {
            (Some((_, bound)), _) => bound.clone(),
            (None, Some(named)) => {
                let bound = claims::resolve(&self.tools.rest, pod, &named).await.map_err(unclear)?;
                Some(bound)
            }
            (None, None) => None,
        };
        let ask = Ask {
            pod: pod.clone(),
            volume: volume.clone(),
            bound,
            node: node.clone(),
            leaving: self.operations.leaving(uid),
        };
        check_mode(&ask, used).map_err(unclear)?;
        let kind = self.kinds.iter().find(|k| k.serves(&ask)).cloned();
        let kind = kind.ok_or_else(|| unclear(unserved(&ask)))?;
        let failed = |failure: Failure| Problem::Failed {
            volume: volume.name.clone(),
            name: ask.name().to_owned(),
            failure,
        };
        let next = kind.prepare(&self.tools, &ask).await.map_err(failed)?;
        let mounted = match known {
            Some((mounted, _)) => mounted,
            None => {
                check_place(&ask).map_err(failed)?;
                self.mount(&kind, &ask).await.map_err(failed)?
            }
        };
        kind.refresh(&self.tools, &ask, &mounted).await.map_err(failed)?;
        Ok(next)
    }

    async fn mount(&self, kind: &Arc<dyn Kind>, ask: &Ask) -> Result<Mounted, Failure> {
        let begin = || {
            let (tools, kind, ask, known) = (self.tools.clone(), kind.clone(), ask.clone(), self.known.clone());
            let plugin = counted::plugin(kind.name(), Some(&ask.volume), ask.bound.as_ref());
            let operation = if ask.is_block() { "map_volume" } else { "volume_mount" };
            let work = counted::Work::begin(&self.durations, plugin, operation);
            async move {
                let made = async {
                    let mounted = kind.mount(&tools, &ask).await?;
                    give_to_group(&tools, &ask, &mounted).await?;
                    Ok::<_, Failure>(mounted)
                };
                let done = made.await;
                work.end(&done);
                let mounted = done?;
                let entry = (mounted.clone(), ask.bound.clone());
                let mut known = known.lock();
                let of_pod = known.entry(ask.uid().to_owned()).or_default();
                of_pod.insert(ask.volume.name.clone(), entry);
                Ok(mounted)
            }
            .boxed()
        };
        self.operations.join(ask.uid(), &ask.volume.name, begin).await
    }

    /// What a pod's volume of that name of its own is bound to, if it is a claim's.
    fn bound(&self, uid: &str, name: &str) -> Option<Bound> {
        let known = self.known.lock();
        let mut of_pod = known.get(uid)?.values();
        of_pod.find(|(mounted, _)| mounted.name == name)?.1.clone()
    }

    /// The volumes known of a pod.
    pub fn mounted(&self, uid: &str) -> BTreeMap<String, Mounted> {
        let known = self.known.lock();
        let of_pod = known.get(uid).into_iter().flatten();
        of_pod
            .map(|(name, (mounted, _))| (name.clone(), mounted.clone()))
            .collect()
    }

    /// Groups that volumes say they want their users to have, beyond those the pod names itself.
    pub fn groups(&self, pod: &Pod) -> Vec<i64> {
        const GROUP: &str = "pv.beta.kubernetes.io/gid";
        let context = pods::spec(pod).security_context.as_ref();
        let named = context
            .and_then(|c| c.supplemental_groups.as_deref())
            .unwrap_or_default();
        let known = self.known.lock();
        let bound = known.get(pods::uid(pod)).into_iter().flatten();
        let mut groups: Vec<i64> = bound
            .filter_map(|(_, (_, bound))| bound.as_ref()?.volume.metadata.annotations.as_ref()?.get(GROUP))
            .filter_map(|text| text.parse().ok())
            .filter(|gid| !named.contains(gid))
            .collect();
        groups.dedup();
        groups
    }

    /// What the volumes of a pod hold, by name; those that nobody counts are left out.
    pub async fn stats(&self, uid: &str) -> BTreeMap<String, (Mounted, Stats)> {
        let mounted = self.mounted(uid);
        let measured = join_all(mounted.into_iter().map(|(name, mounted)| async {
            let kind = self.kind(mounted.kind)?;
            let stats = self.measured.of(&self.tools, kind, uid, &name, &mounted).await?;
            Some((name, (mounted, stats)))
        }));
        measured.await.into_iter().flatten().collect()
    }

    /// Gives back everything that the pod has on this node: what was begun for it is waited for, each volume is unmounted by
    /// its kind, and then the pod's directory goes. What a hostPath or a claim leads to stays.
    pub async fn tear_down(&self, uid: &str) -> Result<(), String> {
        let tools = &self.tools;
        self.operations.settled(uid).await;
        tools.config_maps.set(uid, Default::default());
        tools.secrets.set(uid, Default::default());
        let (pod, sub_paths) = (tools.layout.pod(uid), tools.layout.sub_paths(uid));
        // Parts of volumes that are mounted elsewhere would keep the volumes in use.
        let released = tools.blocking(move |host| host.unmount_below(&sub_paths)).await;
        released.map_err(|e| format!("error cleaning subPath mounts: {e}"))?;
        let left = remains::find(&*tools.host, &tools.layout, uid).map_err(|e| format!("looking for volumes: {e}"))?;
        let given_back = join_all(left.iter().map(|(kind, remains)| async move {
            // Of a kind that is unknown here, what is mounted is unmounted with the directory.
            let Some(kind) = self.kind(kind) else { return Ok(()) };
            let bound = self.bound(uid, &remains.name);
            let plugin = counted::plugin(kind.name(), None, bound.as_ref());
            let operation = if remains.block {
                "unmap_volume"
            } else {
                "volume_unmount"
            };
            let work = counted::Work::begin(&self.durations, plugin, operation);
            let done = kind.unmount(tools, remains).await;
            work.end(&done);
            done.map_err(|e| format!("UnmountVolume.TearDown failed for volume \"{}\" : {e}", remains.name))
        }));
        let errors: Vec<String> = given_back.await.into_iter().filter_map(Result::err).collect();
        if !errors.is_empty() {
            return Err(errors.join("; "));
        }
        let removed = tools.blocking(move |host| host.remove_tree(&pod)).await;
        removed.map_err(|e| format!("removing the pod's volumes: {e}"))?;
        tools.tokens.forget(uid);
        tools.trust.forget(uid);
        tools.certificates.forget(uid);
        self.measured.forget(uid);
        self.operations.forget(uid);
        self.kinds.iter().for_each(|k| k.forget(uid));
        self.known.lock().remove(uid);
        Ok(())
    }
}

/// Why there is no kind for a volume.
fn unserved(ask: &Ask) -> String {
    let of_claim = ask.bound.as_ref().and_then(|b| b.volume.spec.as_ref());
    let (iscsi, fc) = match of_claim {
        Some(spec) => (spec.iscsi.is_some(), spec.fc.is_some()),
        None => (ask.volume.iscsi.is_some(), ask.volume.fc.is_some()),
    };
    match (iscsi, fc) {
        (true, _) => {
            "no volume plugin matched: iscsi volumes are not supported by this kubelet, use a CSI driver".into()
        }
        (_, true) => "no volume plugin matched: fc volumes are not supported by this kubelet, use a CSI driver".into(),
        _ => "no volume plugin matched".into(),
    }
}

/// A claim's volume is files or a device, and has to be used as what it is.
fn check_mode(ask: &Ask, (as_files, as_device): (bool, bool)) -> Result<(), String> {
    let wrong = |mode: &str, place: &str| {
        let name = &ask.volume.name;
        Err(format!(
            "volume {name} has volumeMode {mode}, but is specified in {place}"
        ))
    };
    match (ask.bound.is_some(), ask.is_block()) {
        (true, true) if as_files => wrong("Block", "volumeMounts"),
        (true, false) if as_device => wrong("Filesystem", "volumeDevices"),
        _ => Ok(()),
    }
}

/// A volume may be on some nodes only, and a pod that names its node itself has asked no scheduler.
fn check_place(ask: &Ask) -> Result<(), Failure> {
    let spec = ask.bound.as_ref().and_then(|b| b.volume.spec.as_ref());
    let required = spec.and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    match required {
        Some(selector) if !admit::selects(selector, &ask.node.labels, &ask.node.name) => {
            let (files, block) = (
                "MountVolume.NodeAffinity check failed",
                "MapVolume.NodeAffinity check failed",
            );
            let failure = Failure::step(ask.is_block(), files, block, "no matching NodeSelectorTerms".into());
            Err(Failure {
                reason: Some("FailedMount"),
                ..failure
            })
        }
        _ => Ok(()),
    }
}

/// The pod's group gets the files, where they are the pod's own; once, not again after a restart.
async fn give_to_group(tools: &Tools, ask: &Ask, mounted: &Mounted) -> Result<(), Failure> {
    let (Some(path), false, false) = (&mounted.path, mounted.block, mounted.group == Group::Never) else {
        return Ok(());
    };
    if tools.is_ready(ask.uid(), mounted.kind, &mounted.name) {
        return Ok(());
    }
    if let Some(group) = pods::fs_group(&ask.pod).filter(|_| !mounted.read_only) {
        let context = pods::spec(&ask.pod).security_context.as_ref();
        let policy = context.and_then(|s| s.fs_group_change_policy.as_deref());
        let ownership = Ownership {
            group,
            read_only: false,
            only_if_root_differs: mounted.group == Group::ByPolicy && policy == Some("OnRootMismatch"),
        };
        tools.give_to(&ask.pod, path, ownership).await?;
    }
    tools.set_ready(ask.uid(), mounted.kind, &mounted.name)?;
    Ok(())
}
