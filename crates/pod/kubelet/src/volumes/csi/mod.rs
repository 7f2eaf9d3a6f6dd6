//! Volumes of CSI drivers: attached if the driver wants that, staged once on the node, published to each pod, and all of it
//! undone in the opposite order. The driver does the work behind its socket; what it was asked for is written down first, in
//! upstream's files, so that it can be undone by a kubelet that knows nothing else.
//!
//! A driver is asked again until it says how it went: what failed for certain is at an end, what ended otherwise may still go
//! on. Nothing is ever deleted here but files of the kubelet's own and directories that are empty.

mod attach;
mod block;
mod data;
mod devices;
mod drivers;
mod expand;
mod limits;
mod node_info;
mod paths;
mod publish;
mod register;
mod source;

use super::Tools;
use super::kind::{Ask, Failure, Group, Kind, Mounted, Remains, Stats};
use crate::host::FsStats;
use attach::Attachments;
use data::VolumeData;
use drivers::{Drivers, capabilities, in_time};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::NodeStatus;
use keelson_csi::v1::node_service_capability::rpc::Type as Capability;
use keelson_csi::v1::{self as csi, volume_usage::Unit};
use node_info::NodeInfo;
use parking_lot::Mutex;
pub use register::Drivers as CsiDrivers;
use source::Source;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How often a claim is looked at for a new size, and a volume is published again whose driver wants that: each time that
/// upstream's kubelet comes by.
const AGAIN: SignedDuration = SignedDuration::from_secs(90);

pub struct Csi {
    tools: Arc<Tools>,
    node: String,
    /// Another name of the kubelet's directory.
    known_as: Option<PathBuf>,
    drivers: Arc<Drivers>,
    attachments: Attachments,
    nodes: NodeInfo,
    devices: devices::Devices,
    /// When each volume was last looked at, by pod and name.
    looked: Mutex<HashMap<(String, String), Timestamp>>,
    sizes: expand::Sizes,
}

impl Csi {
    /// `known_as` is what drivers may call the kubelet's directory, `tell` has the node's status written.
    pub fn new(
        tools: Arc<Tools>,
        node: String,
        known_as: Option<PathBuf>,
        tell: Box<dyn Fn() + Send + Sync>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let drivers = Arc::new(Drivers::new(tools.rest.clone(), stop, tools.wake.clone()));
        let csi = Csi {
            attachments: Attachments::new(drivers.clone(), tell),
            nodes: NodeInfo::new(tools.rest.clone(), node.clone()),
            devices: devices::Devices::default(),
            looked: Mutex::default(),
            sizes: expand::Sizes::default(),
            drivers,
            known_as,
            node,
            tools,
        };
        if let Err(e) = csi.restore() {
            tracing::error!("which volumes are in use can't be read; until the next start none is given up: {e}");
            csi.attachments.keep_all();
        }
        Arc::new(csi)
    }

    /// Makes sure that the node has the object that says which drivers it has.
    pub async fn initialize(&self) -> Result<(), String> {
        self.nodes.initialize().await
    }

    /// What was in use when this kubelet started still is, until its pods are seen to have gone.
    fn restore(&self) -> std::io::Result<()> {
        for (uid, data) in devices::of_pods(&*self.tools.host, &self.tools.layout)? {
            if data.is_persistent() {
                self.attachments.hold(&data.driver, &data.handle, &uid);
            }
        }
        for data in devices::of_node(&*self.tools.host, &self.tools.layout)? {
            self.attachments.set_staged(&data.driver, &data.handle, true);
        }
        Ok(())
    }

    pub fn in_use(&self) -> Vec<String> {
        self.attachments.in_use()
    }

    /// The node's status as it stands in the API now.
    pub fn see(&self, status: &NodeStatus) {
        self.attachments.see(status);
    }

    /// A path of the kubelet's in the words of a driver: it said itself where its socket is, and by that how it calls the
    /// kubelet's directory.
    fn told(&self, driver: &str, path: &Path) -> String {
        let registered = self.drivers.get(driver);
        let as_known = self
            .known_as
            .as_ref()
            .filter(|k| registered.is_some_and(|r| r.endpoint.starts_with(k)));
        let told = as_known.and_then(|known| Some(known.join(path.strip_prefix(&self.tools.layout.root).ok()?)));
        told.as_deref().unwrap_or(path).to_string_lossy().into_owned()
    }

    fn data(&self, ask: &Ask, source: &Source) -> VolumeData {
        VolumeData {
            attachment: paths::attachment(&source.handle, &source.driver, &self.node),
            driver: source.driver.clone(),
            node: self.node.clone(),
            name: ask.name().to_owned(),
            handle: source.handle.clone(),
            lifecycle: if source.inline { "Ephemeral" } else { "Persistent" }.into(),
            unpublished: String::new(),
        }
    }

    fn due(&self, ask: &Ask) -> bool {
        let key = (ask.uid().to_owned(), ask.name().to_owned());
        let now = self.tools.host.now();
        let looked = self.looked.lock();
        looked.get(&key).is_none_or(|at| now.duration_since(*at) >= AGAIN)
    }

    fn look(&self, ask: &Ask) {
        let key = (ask.uid().to_owned(), ask.name().to_owned());
        self.looked.lock().insert(key, self.tools.host.now());
    }

    /// Gives back what was staged and nobody uses any more: left by a kubelet that was killed in between, or by a pod that
    /// ended before its volume was there. What can't be given back stays in use.
    pub(super) async fn sweep(&self, driver: &str) -> Result<(), String> {
        let mut errors = Vec::new();
        let unused = devices::unused(&*self.tools.host, &self.tools.layout, driver);
        for left in unused.map_err(|e| format!("volumes of {driver}: {e}"))? {
            if let Err(e) = self.unstage(&left.driver, &left.handle, "", true).await {
                errors.push(format!("volume {} of {driver}: {e}", left.handle));
            }
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors.join("; ")),
        }
    }
}

/// The table's entry.
pub struct CsiKind(pub Arc<Csi>);

#[tonic::async_trait]
impl Kind for CsiKind {
    fn name(&self) -> &'static str {
        paths::NAME
    }

    fn serves(&self, ask: &Ask) -> bool {
        source::of(ask).is_some()
    }

    async fn prepare(&self, tools: &Tools, ask: &Ask) -> Result<Option<Timestamp>, Failure> {
        // Sizes change and tokens grow old without anybody telling this node.
        let csi = &self.0;
        let driver = source::of(ask).map(|s| s.driver).unwrap_or_default();
        let again = csi
            .drivers
            .object(&driver)
            .await?
            .is_some_and(|d| d.spec.requires_republish == Some(true));
        Ok((again || ask.bound.is_some()).then(|| tools.host.now() + AGAIN))
    }

    async fn mount(&self, _: &Tools, ask: &Ask) -> Result<Mounted, Failure> {
        let csi = &self.0;
        let Some(source) = source::of(ask) else {
            return Err(Failure::set_up("volume source not found in volume.Spec"));
        };
        let mounted = if source.block {
            csi.map(ask, &source).await?
        } else {
            csi.set_up(ask, &source).await?
        };
        // First: what is known of a volume's size is kept for those that somebody looks at.
        csi.look(ask);
        csi.expand_at_mount(ask, &source, &mounted).await?;
        Ok(mounted)
    }

    async fn refresh(&self, _: &Tools, ask: &Ask, mounted: &Mounted) -> Result<(), Failure> {
        let csi = &self.0;
        let (Some(source), true) = (source::of(ask), csi.due(ask)) else {
            return Ok(());
        };
        csi.look(ask);
        let object = csi.drivers.object(&source.driver).await?;
        if !source.block && object.as_ref().is_some_and(|d| d.spec.requires_republish == Some(true)) {
            // The pod goes on with what it has.
            if let Err(e) = csi.publish(ask, &source, object.as_deref(), false).await {
                let message = format!("{} for volume {:?} : {}", e.step, ask.name(), e.message);
                csi.tools.warn(&ask.pod, e.reason.unwrap_or("FailedMount"), message);
            }
        }
        csi.expand_in_use(ask, &source, mounted).await;
        Ok(())
    }

    async fn unmount(&self, _: &Tools, remains: &Remains) -> Result<(), String> {
        let csi = &self.0;
        if remains.block {
            csi.unmap(remains).await
        } else {
            csi.tear_down(remains).await
        }
    }

    fn forget(&self, uid: &str) {
        let mut looked = self.0.looked.lock();
        looked.retain(|k, _| k.0 != uid);
        self.0.sizes.retain(|name| looked.keys().any(|k| k.1 == name));
        drop(looked);
        self.0.attachments.release(uid);
    }

    async fn stats(&self, tools: &Tools, mounted: &Mounted) -> Result<Option<Stats>, String> {
        let csi = &self.0;
        let Some(path) = &mounted.path else { return Ok(None) };
        let data = match mounted.block {
            true => VolumeData::load(&*tools.host, &paths::block_data(&tools.layout, &mounted.name)),
            false => VolumeData::load(&*tools.host, path.parent().unwrap_or(path)),
        };
        let Some(data) = data.map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let Some(registered) = csi.drivers.get(&data.driver) else {
            return Ok(None);
        };
        let driver = registered.driver;
        let rpc = |e: tonic::Status| crate::rpc_text(&e);
        if !source::can(&capabilities(&driver).await.map_err(rpc)?, Capability::GetVolumeStats) {
            return Ok(None);
        }
        let request = csi::NodeGetVolumeStatsRequest {
            volume_path: csi.told(&data.driver, path),
            volume_id: data.handle,
            ..Default::default()
        };
        let answer = in_time(driver.node().node_get_volume_stats(request))
            .await
            .map_err(rpc)?;
        Ok(Some(stats(&answer)))
    }
}

fn stats(answer: &csi::NodeGetVolumeStatsResponse) -> Stats {
    let mut stats = Stats::default();
    let positive = |v: i64| u64::try_from(v).unwrap_or(0);
    for usage in &answer.usage {
        let (total, free, used) = (positive(usage.total), positive(usage.available), positive(usage.used));
        match usage.unit() {
            Unit::Bytes => {
                stats.fs = FsStats {
                    capacity: total,
                    free,
                    available: free,
                    ..stats.fs
                };
                stats.used = used;
            }
            Unit::Inodes => {
                (stats.fs.inodes, stats.fs.inodes_free) = (total, free);
                stats.inodes_used = used;
            }
            Unit::Unknown => {}
        }
    }
    stats
}

/// Who gives the files of a published volume to the pod's group.
fn group(takes: bool) -> Group {
    if takes { Group::ByPolicy } else { Group::Never }
}
