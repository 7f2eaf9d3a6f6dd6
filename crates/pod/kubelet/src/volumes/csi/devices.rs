//! Volumes staged on the node, each for all of its pods. Who uses one is told by the pods' directories alone, so it is the
//! same before and after a restart. Staging and unstaging a volume never go on at the same time.

use super::super::kind::{Ask, Failure};
use super::data::VolumeData;
use super::drivers::{capabilities, in_time};
use super::source::{self, Capabilities, Source};
use super::{Csi, paths};
use crate::host::{Host, Layout};
use keelson_csi::v1::node_service_capability::rpc::Type as Capability;
use keelson_csi::{Driver, ended, v1 as csi};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// One lock a volume, for as long as somebody holds it.
#[derive(Default)]
pub struct Devices(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Devices {
    fn lock_of(&self, driver: &str, handle: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.0.lock();
        all.retain(|_, lock| Arc::strong_count(lock) > 1);
        all.entry(paths::unique_name(driver, handle)).or_default().clone()
    }

    pub async fn lock(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        self.lock_of(driver, handle).lock_owned().await
    }

    /// `None` while somebody else is at it.
    pub fn try_lock(&self, driver: &str, handle: &str) -> Option<OwnedMutexGuard<()>> {
        self.lock_of(driver, handle).try_lock_owned().ok()
    }
}

/// The data of all volumes that pods have on disk, with the pod's uid. What can't be read is an error: whoever isn't seen here
/// loses the volume.
pub fn of_pods(host: &dyn Host, layout: &Layout) -> io::Result<Vec<(String, VolumeData)>> {
    let mut found = Vec::new();
    for uid in names(host, &layout.pods())? {
        let files = layout.volume(&uid, paths::NAME, "");
        for name in names(host, &files)? {
            let dir = paths::of_pod(layout, &uid, &name);
            let data = load(host, &dir, &paths::published(&dir))?;
            found.extend(data.map(|d| (uid.clone(), d)));
        }
        let links = paths::block_link(layout, &uid, "");
        for name in names(host, &links)? {
            let dir = paths::block_data(layout, &name);
            let data = load(host, &dir, &paths::block_published(layout, &name, &uid))?;
            found.extend(data.map(|d| (uid.clone(), d)));
        }
    }
    Ok(found)
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What is in a directory, which need not be there.
fn names(host: &dyn Host, dir: &Path) -> io::Result<Vec<String>> {
    match host.list_dir(dir) {
        Err(e) if is_absent(&e) => Ok(Vec::new()),
        other => other.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display()))),
    }
}

/// Damaged data of a volume that isn't mounted are as none; of any other they are an error.
fn load(host: &dyn Host, dir: &Path, mounted: &Path) -> io::Result<Option<VolumeData>> {
    match VolumeData::load(host, dir) {
        Err(e) if e.kind() == io::ErrorKind::InvalidData && !host.is_mounted(mounted)? => {
            tracing::error!("what is known of a volume that isn't mounted can't be read: {e}");
            Ok(None)
        }
        other => other,
    }
}

/// Volumes of a driver that are staged, or may be.
fn of_driver(host: &dyn Host, layout: &Layout, driver: &str) -> io::Result<Vec<VolumeData>> {
    let dir = paths::root(layout).join(driver);
    let mut found = Vec::new();
    for name in names(host, &dir)? {
        let device = dir.join(name);
        found.extend(load(host, &device, &paths::staged(&device))?);
    }
    Ok(found)
}

/// Names of drivers that have, or had, volumes staged.
pub fn drivers(host: &dyn Host, layout: &Layout) -> io::Result<Vec<String>> {
    let mut all = names(host, &paths::root(layout))?;
    all.retain(|d| d != "volumeDevices");
    Ok(all)
}

/// All volumes that are staged on the node, or may be.
pub fn of_node(host: &dyn Host, layout: &Layout) -> io::Result<Vec<VolumeData>> {
    let mut found = Vec::new();
    for driver in drivers(host, layout)? {
        found.extend(of_driver(host, layout, &driver)?);
    }
    Ok(found)
}

/// Volumes of a driver that are staged and that no pod has.
pub fn unused(host: &dyn Host, layout: &Layout, driver: &str) -> io::Result<Vec<VolumeData>> {
    let used = of_pods(host, layout)?;
    let mut all = of_driver(host, layout, driver)?;
    all.retain(|d| !used.iter().any(|(_, u)| u.driver == d.driver && u.handle == d.handle));
    Ok(all)
}

impl Csi {
    /// Where a volume is staged, if its driver does that.
    pub fn staged(&self, ask: &Ask, source: &Source, capabilities: &Capabilities) -> Option<PathBuf> {
        let layout = &self.tools.layout;
        source::can(capabilities, Capability::StageUnstageVolume).then(|| match source.block {
            true => paths::block_staged(layout, ask.name()),
            false => paths::staged(&paths::device(layout, &source.driver, &source.handle)),
        })
    }

    /// Stages a volume, if its driver does that. Returns where.
    pub async fn stage(
        &self,
        ask: &Ask,
        source: &Source,
        driver: &Driver,
        capabilities: &Capabilities,
        attached: &HashMap<String, String>,
    ) -> Result<Option<PathBuf>, Failure> {
        let fail = |m: String| {
            Failure::step(
                source.block,
                "MountVolume.MountDevice failed",
                "MapVolume.SetUpDevice failed",
                m,
            )
        };
        let Some(path) = self.staged(ask, source, capabilities) else {
            return Ok(None);
        };
        let (host, layout) = (&*self.tools.host, &self.tools.layout);
        let secrets = self
            .secrets(source.stage_secret.as_ref(), "NodeStageSecretRef")
            .await
            .map_err(fail)?;
        let device = paths::device(layout, &source.driver, &source.handle);
        let io = |e: std::io::Error| {
            fail(format!(
                "kubernetes.io/csi: attacher.MountDevice failed to create dir {:?}:  {e}",
                path.display()
            ))
        };
        if !source.block {
            let data = VolumeData {
                driver: source.driver.clone(),
                handle: source.handle.clone(),
                ..VolumeData::default()
            };
            self.attachments.set_staged(&source.driver, &source.handle, true);
            data.save(host, &device).map_err(io)?;
        }
        // Whatever is mounted there is the driver's: its mode is not ours to change.
        if host.kind(&path).map_err(io)?.is_none() {
            host.make_dir(&path, 0o750).map_err(io)?;
        }
        let request = csi::NodeStageVolumeRequest {
            volume_id: source.handle.clone(),
            publish_context: attached.clone(),
            staging_target_path: self.told(&source.driver, &path),
            volume_capability: Some(source.capability(capabilities, crate::pods::fs_group(&ask.pod))),
            secrets,
            volume_context: source.attributes.clone(),
        };
        if let Err(e) = in_time(driver.node().node_stage_volume(request)).await {
            if ended(&e)
                && !source.block
                // Unknown is as staged.
                && matches!(self.is_staged_for(ask, source), Ok(false))
                && let Err(e) = self.forget_device(&source.driver, &source.handle)
            {
                tracing::warn!(volume = source.handle, "what was to be staged can't be removed: {e}");
            }
            return Err(fail(crate::rpc_text(&e)));
        }
        Ok(Some(path))
    }

    /// Whether the volume was staged before, for another pod or for this one: then it still is, whatever became of staging it again.
    fn is_staged_for(&self, ask: &Ask, source: &Source) -> io::Result<bool> {
        let all = of_pods(&*self.tools.host, &self.tools.layout)?;
        Ok(all.iter().any(|(uid, d)| {
            let is_it = d.driver == source.driver && d.handle == source.handle;
            is_it && (uid != ask.uid() || d.is_published())
        }))
    }

    /// Unstages a volume that no pod but `except` has. `only_idle` leaves one alone that somebody is at.
    pub async fn unstage(&self, driver: &str, handle: &str, except: &str, only_idle: bool) -> Result<(), String> {
        let _held = match only_idle {
            true => match self.devices.try_lock(driver, handle) {
                Some(held) => held,
                None => return Ok(()),
            },
            false => self.devices.lock(driver, handle).await,
        };
        let (host, layout) = (&*self.tools.host, &self.tools.layout);
        let others = of_pods(host, layout).map_err(|e| e.to_string())?;
        if others
            .iter()
            .any(|(uid, d)| uid != except && d.driver == driver && d.handle == handle)
        {
            return Ok(());
        }
        let device = paths::device(layout, driver, handle);
        let known = VolumeData::load(host, &device).map_err(|e| e.to_string())?;
        if known.is_none() {
            self.attachments.set_staged(driver, handle, false);
            return Ok(());
        }
        let client = self.drivers.wanted(driver, except);
        let client = client.map_err(|e| {
            format!("kubernetes.io/csi: attacher.UnmountDevice failed to create newCsiDriverClient: {e}")
        })?;
        let able = capabilities(&client).await.map_err(|e| {
            let e = crate::rpc_text(&e);
            format!("kubernetes.io/csi: attacher.UnmountDevice failed to check whether STAGE_UNSTAGE_VOLUME set: {e}")
        })?;
        if source::can(&able, Capability::StageUnstageVolume) {
            let request = csi::NodeUnstageVolumeRequest {
                volume_id: handle.to_owned(),
                staging_target_path: self.told(driver, &paths::staged(&device)),
            };
            in_time(client.node().node_unstage_volume(request)).await.map_err(|e| {
                format!(
                    "kubernetes.io/csi: attacher.UnmountDevice failed: {}",
                    crate::rpc_text(&e)
                )
            })?;
        }
        self.forget_device(driver, handle).map_err(|e| {
            format!(
                "kubernetes.io/csi: failed to clean up global mount {}: {e}",
                device.display()
            )
        })
    }

    /// Removes what was kept of a staged volume, unless it is mounted still.
    fn forget_device(&self, driver: &str, handle: &str) -> std::io::Result<()> {
        let (host, device) = (&*self.tools.host, paths::device(&self.tools.layout, driver, handle));
        let staged = paths::staged(&device);
        if host.is_mounted(&staged)? {
            return Ok(());
        }
        host.remove_dir(&staged)?;
        VolumeData::remove(host, &device)?;
        self.attachments.set_staged(driver, handle, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    #[test]
    fn what_cannot_be_read_is_not_taken_for_absent() {
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        let layout = Layout {
            root: "/kubelet".into(),
            logs: "/logs".into(),
        };
        let data = |handle: &str| VolumeData {
            driver: "d.test".into(),
            handle: handle.into(),
            ..VolumeData::default()
        };
        assert_eq!(unused(&host, &layout, "d.test").unwrap(), [], "nothing is there yet");
        for handle in ["used", "left"] {
            let device = paths::device(&layout, "d.test", handle);
            data(handle).save(&host, &device).unwrap();
        }
        let of_pod = paths::of_pod(&layout, "uid", "data");
        data("used").save(&host, &of_pod).unwrap();
        assert_eq!(unused(&host, &layout, "d.test").unwrap(), [data("left")]);

        let root = paths::root(&layout);
        let dirs = [
            layout.pods(),
            layout.volume("uid", paths::NAME, ""),
            root.clone(),
            root.join("d.test"),
        ];
        for dir in dirs {
            host.spoil(&dir, true);
            let all = of_node(&host, &layout).and(unused(&host, &layout, "d.test"));
            assert!(all.is_err(), "{}", dir.display());
            host.spoil(&dir, false);
        }
        // Damaged: as none where nothing is mounted, unknown where something is.
        host.write(&of_pod.join(paths::DATA), b"{", 0o600).unwrap();
        assert_eq!(of_pods(&host, &layout).unwrap(), []);
        host.mount(&paths::published(&of_pod));
        assert!(of_pods(&host, &layout).is_err());
    }
}
