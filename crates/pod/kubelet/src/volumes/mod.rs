//! The volumes of the pods of this node: made before a pod's sandbox, kept up to date, removed after its containers.
//!
//! What is on disk is under `pods/<uid>/volumes`, so a restart finds it; what is known here can be rebuilt from the pod.

pub mod atomic;
pub mod certificates;
pub mod claims;
pub mod host_path;
pub mod ownership;
pub mod payload;
pub mod token;
pub mod trust;

use crate::act::fields::NodeFacts;
use crate::host::{Host, Layout, Ownership};
use crate::objects::Objects;
use crate::pods;
use crate::resources::quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ClusterTrustBundleProjection, ConfigMap, Pod, Secret, Volume};
use keelson_client::Rest;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A volume that is ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// `None` for an image volume: the runtime mounts it.
    pub path: Option<PathBuf>,
    pub read_only: bool,
    pub block: bool,
}

#[derive(Default)]
struct PodVolumes {
    mounted: BTreeMap<String, Mounted>,
    /// Hash of the files last written, by volume.
    written: HashMap<String, u64>,
}

pub struct Volumes {
    host: Arc<dyn Host>,
    layout: Layout,
    rest: Rest,
    pub tokens: token::Tokens,
    pub config_maps: Objects<ConfigMap>,
    pub secrets: Objects<Secret>,
    pub trust: trust::TrustBundles,
    pub certificates: certificates::PodCertificates,
    state: Mutex<HashMap<String, PodVolumes>>,
}

/// Why a volume isn't there: its name and what went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeError {
    pub volume: String,
    pub message: String,
}

impl Volumes {
    /// `wake` tells a pod's task that something its volumes show has changed.
    pub fn new(
        host: Arc<dyn Host>,
        layout: Layout,
        rest: Rest,
        wake: Arc<dyn Fn(&str) + Send + Sync>,
        stop: CancellationToken,
    ) -> Self {
        Volumes {
            host,
            layout,
            tokens: token::Tokens::new(rest.clone()),
            config_maps: Objects::new(rest.clone(), stop.clone(), wake.clone()),
            secrets: Objects::new(rest.clone(), stop.clone(), wake.clone()),
            trust: trust::TrustBundles::new(rest.clone(), stop.clone(), wake.clone()),
            certificates: certificates::PodCertificates::new(rest.clone(), stop, wake),
            rest,
            state: Mutex::default(),
        }
    }

    /// Makes all volumes of the pod, and brings the files of those there are up to date. Returns them by name, and when
    /// the next token has to be replaced.
    pub async fn ensure(
        &self,
        pod: &Pod,
        facts: &NodeFacts<'_>,
        asker: &certificates::Asker<'_>,
    ) -> Result<(BTreeMap<String, Mounted>, Option<Timestamp>), VolumeError> {
        let uid = pods::uid(pod);
        let mut refresh: Option<Timestamp> = None;
        for volume in pods::spec(pod).volumes.iter().flatten() {
            let fail = |message: String| VolumeError {
                volume: volume.name.clone(),
                message,
            };
            let token = self.tokens_for(pod, volume).await.map_err(fail)?;
            let certificate = self
                .certificates
                .ensure(pod, volume, asker, self.host.now())
                .await
                .map_err(fail)?;
            if volume
                .projected
                .iter()
                .flat_map(|p| p.sources.iter().flatten())
                .any(|s| s.cluster_trust_bundle.is_some())
            {
                self.trust.need(uid).await.map_err(fail)?;
            }
            refresh = refresh.into_iter().chain(token).chain(certificate).min();
            let known = self
                .state
                .lock()
                .get(uid)
                .is_some_and(|s| s.mounted.contains_key(&volume.name));
            if !known {
                let mounted = self.make(pod, volume).await.map_err(fail)?;
                self.state
                    .lock()
                    .entry(uid.into())
                    .or_default()
                    .mounted
                    .insert(volume.name.clone(), mounted);
            }
            self.write_files(pod, volume, facts, !known).map_err(fail)?;
            if !known {
                self.own(pod, volume).await.map_err(fail)?;
            }
        }
        let mounted = self
            .state
            .lock()
            .get(uid)
            .map(|s| s.mounted.clone())
            .unwrap_or_default();
        Ok((mounted, refresh))
    }

    async fn tokens_for(&self, pod: &Pod, volume: &Volume) -> Result<Option<Timestamp>, String> {
        let mut first: Option<Timestamp> = None;
        for p in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            let Some(t) = &p.service_account_token else { continue };
            let audience = t.audience.as_deref().unwrap_or_default();
            let seconds = t.expiration_seconds.unwrap_or(3600);
            let at = self.tokens.ensure(pod, audience, seconds, self.host.now()).await?;
            first = first.into_iter().chain([at]).min();
        }
        Ok(first)
    }

    fn write_files(&self, pod: &Pod, volume: &Volume, facts: &NodeFacts<'_>, fresh: bool) -> Result<(), String> {
        let sources = PodSources { volumes: self, pod };
        let facts = NodeFacts {
            host_ips: facts.host_ips,
            pod_ips: facts.pod_ips,
            allocatable: facts.allocatable,
        };
        let cx = payload::Context {
            pod,
            facts,
            sources: &sources,
        };
        let Some(files) = payload::build(volume, &cx)? else {
            return Ok(());
        };
        let mut hasher = DefaultHasher::new();
        for (name, f) in &files {
            (name, &f.data, f.mode, f.user).hash(&mut hasher);
        }
        let hash = hasher.finish();
        let uid = pods::uid(pod);
        let path = {
            let state = self.state.lock();
            let Some(pod) = state.get(uid) else { return Ok(()) };
            if !fresh && pod.written.get(&volume.name) == Some(&hash) {
                return Ok(());
            }
            pod.mounted.get(&volume.name).and_then(|m| m.path.clone())
        };
        let Some(path) = path else { return Ok(()) };
        self.host
            .write_payload(&path, &files, fs_group(pod))
            .map_err(|e| e.to_string())?;
        if let Some(state) = self.state.lock().get_mut(uid) {
            state.written.insert(volume.name.clone(), hash);
        }
        Ok(())
    }

    async fn make(&self, pod: &Pod, volume: &Volume) -> Result<Mounted, String> {
        let uid = pods::uid(pod);
        let io = |e: std::io::Error| e.to_string();
        if let Some(e) = &volume.empty_dir {
            let path = self.layout.volume(uid, "empty-dir", &volume.name);
            match e.medium.as_deref().unwrap_or_default() {
                "" => {
                    if self.host.kind(&path).map_err(io)?.is_none() {
                        self.host.make_dir(&path, 0o777).map_err(io)?;
                    }
                }
                "Memory" => self.tmpfs(
                    &path,
                    self.memory_limit(pod, e.size_limit.as_ref().map(quantity::value)),
                    0o1777,
                )?,
                other => return Err(format!("storage medium \"{other}\" is not supported")),
            }
            return Ok(Mounted {
                path: Some(path),
                read_only: false,
                block: false,
            });
        }
        let plugin = if volume.config_map.is_some() {
            Some(("configmap", false))
        } else if volume.secret.is_some() {
            Some(("secret", true))
        } else if volume.downward_api.is_some() {
            Some(("downward-api", true))
        } else if volume.projected.is_some() {
            Some(("projected", true))
        } else {
            None
        };
        if let Some((plugin, in_memory)) = plugin {
            let path = self.layout.volume(uid, plugin, &volume.name);
            if in_memory {
                self.tmpfs(&path, None, 0o1777)?;
            } else {
                self.host.make_dir(&path, 0o777).map_err(io)?;
            }
            return Ok(Mounted {
                path: Some(path),
                read_only: true,
                block: false,
            });
        }
        if let Some(h) = &volume.host_path {
            host_path::check(&*self.host, &h.path, h.type_.as_deref().unwrap_or_default())?;
            return Ok(Mounted {
                path: Some(h.path.clone().into()),
                read_only: false,
                block: false,
            });
        }
        if volume.image.is_some() {
            return Ok(Mounted {
                path: None,
                read_only: true,
                block: false,
            });
        }
        if let Some((claim, own, read_only)) = claims::claim_of(pod, volume) {
            let place = claims::resolve(&self.rest, pod, &claim, own).await?;
            host_path::check(&*self.host, &place.path, &place.check)?;
            let path = match self.host.kind(place.path.as_ref()).map_err(io)? {
                // The directory itself, not a link to it: ownership is of the directory.
                Some(_) => self.host.resolve(place.path.as_ref()).map_err(io)?,
                None if place.must_exist => return Err(format!("path \"{}\" does not exist", place.path)),
                None => place.path.into(),
            };
            return Ok(Mounted {
                path: Some(path),
                read_only,
                block: place.block,
            });
        }
        Err("no volume plugin matched".into())
    }

    /// A file system in memory, unless it is mounted already (by this kubelet before a restart).
    fn tmpfs(&self, path: &std::path::Path, size: Option<u64>, mode: u32) -> Result<(), String> {
        let io = |e: std::io::Error| e.to_string();
        if self.host.is_mounted(path).map_err(io)? {
            return Ok(());
        }
        self.host.make_dir(path, 0o777).map_err(io)?;
        self.host.mount_tmpfs(path, size).map_err(io)?;
        self.host.make_dir(path, mode).map_err(io)
    }

    /// A memory volume is bounded by its own limit and by what the pod may use.
    fn memory_limit(&self, pod: &Pod, own: Option<i64>) -> Option<u64> {
        let pod_limit = crate::resources::cgroup::pod_limits(pod, None).memory;
        [own, pod_limit]
            .into_iter()
            .flatten()
            .filter(|v| *v > 0)
            .min()
            .map(|v| v as u64)
    }

    /// The pod's group gets the volume, where volumes of this kind are the pod's own.
    async fn own(&self, pod: &Pod, volume: &Volume) -> Result<(), String> {
        let Some(group) = fs_group(pod) else { return Ok(()) };
        let claimed = volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
        if volume.empty_dir.is_none() && !claimed {
            return Ok(());
        }
        let mounted = self
            .state
            .lock()
            .get(pods::uid(pod))
            .and_then(|s| s.mounted.get(&volume.name).cloned());
        let Some(Mounted {
            path: Some(path),
            read_only: false,
            block: false,
        }) = mounted
        else {
            return Ok(());
        };
        let policy = pods::spec(pod)
            .security_context
            .as_ref()
            .and_then(|s| s.fs_group_change_policy.as_deref());
        let ownership = Ownership {
            group,
            read_only: false,
            only_if_root_differs: claimed && policy == Some("OnRootMismatch"),
        };
        // A large volume takes a while.
        let host = self.host.clone();
        let done = tokio::task::spawn_blocking(move || host.set_ownership(&path, ownership)).await;
        done.map_err(|e| e.to_string())?
            .map_err(|e| format!("applying fsGroup: {e}"))
    }

    /// The volumes known of a pod.
    pub fn mounted(&self, uid: &str) -> BTreeMap<String, Mounted> {
        self.state
            .lock()
            .get(uid)
            .map(|s| s.mounted.clone())
            .unwrap_or_default()
    }

    /// Removes everything the pod left on this node. What a hostPath or claim points to stays.
    pub fn tear_down(&self, uid: &str) -> Result<(), String> {
        self.config_maps.set(uid, Default::default());
        self.secrets.set(uid, Default::default());
        self.tokens.forget(uid);
        self.trust.forget(uid);
        self.certificates.forget(uid);
        self.host
            .remove_tree(&self.layout.pod(uid))
            .map_err(|e| format!("removing the pod's volumes: {e}"))?;
        self.state.lock().remove(uid);
        Ok(())
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    pods::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.fs_group)
        .map(|g| g as u32)
}

struct PodSources<'a> {
    volumes: &'a Volumes,
    pod: &'a Pod,
}

impl payload::Sources for PodSources<'_> {
    fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
        self.volumes.config_maps.get(pods::namespace(self.pod), name)
    }

    fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, String> {
        self.volumes.secrets.get(pods::namespace(self.pod), name)
    }

    fn token(&self, audience: &str, seconds: i64) -> Result<String, String> {
        self.volumes
            .tokens
            .known(self.pod, audience, seconds)
            .ok_or_else(|| "no token was fetched".into())
    }

    fn trust_bundle(&self, p: &ClusterTrustBundleProjection) -> Result<Option<String>, String> {
        self.volumes.trust.project(p)
    }

    fn certificate(&self, volume: &str, index: usize) -> Result<certificates::Bundle, String> {
        let found = self.volumes.certificates.bundle(self.pod, volume, index);
        found.ok_or_else(|| "credential bundle is not issued yet".into())
    }
}
