//! Volumes that a pod has as a device, without a file system of the kubelet's asking.
//!
//! The driver puts the device at a path of the pod's own beside the pods' directories; the pod's directory has a link to it,
//! by which it is given to containers and by which a later kubelet finds it.

use super::super::kind::{Ask, Failure, Mounted, Remains};
use super::data::VolumeData;
use super::drivers::{capabilities, in_time};
use super::source::{self, Source};
use super::{Csi, devices, paths};
use keelson_csi::v1 as csi;
use keelson_csi::v1::node_service_capability::rpc::Type as Capability;

impl Csi {
    pub async fn map(&self, ask: &Ask, source: &Source) -> Result<Mounted, Failure> {
        let (host, layout) = (&*self.tools.host, &self.tools.layout);
        let object = self.drivers.object(&source.driver).await?;
        let ready = self.ready(ask, source, object.as_deref(), true).await?;
        let fail = |m: String| Failure::step(true, "", "MapVolume.MapPodDevice failed", m);
        let secrets = self
            .secrets(source.publish_secret.as_ref(), "NodePublishSecretRef")
            .await
            .map_err(fail)?;
        let target = paths::block_published(layout, ask.name(), ask.uid());
        if let Some(dir) = target.parent() {
            host.make_dir(dir, 0o750).map_err(|e| {
                fail(format!(
                    "kubernetes.io/csi: blockMapper.publishVolumeForBlock failed to create dir {}:  {e}",
                    dir.display()
                ))
            })?;
        }
        let request = csi::NodePublishVolumeRequest {
            volume_id: source.handle.clone(),
            publish_context: ready.attached,
            // Said even if nothing was staged, as upstream does.
            staging_target_path: self.told(&source.driver, &paths::block_staged(layout, ask.name())),
            target_path: self.told(&source.driver, &target),
            volume_capability: Some(source.capability(&ready.able, None)),
            readonly: source.read_only,
            secrets,
            volume_context: source.context(ask, object.as_deref()),
        };
        let published = in_time(ready.driver.node().node_publish_volume(request)).await;
        published.map_err(|e| fail(crate::rpc_text(&e)))?;
        Ok(Mounted {
            read_only: source.read_only,
            block: true,
            ..Mounted::at(paths::NAME, ask, paths::block_link(layout, ask.uid(), ask.name()))
        })
    }

    pub async fn unmap(&self, remains: &Remains) -> Result<(), String> {
        let (host, layout) = (&*self.tools.host, &self.tools.layout);
        let text = |e: std::io::Error| e.to_string();
        let Some(data) = VolumeData::load(host, &paths::block_data(layout, &remains.name)).map_err(text)? else {
            return host.remove_file(&remains.dir).map_err(text);
        };
        let driver = self.drivers.wanted(&data.driver, &remains.uid);
        let driver = driver
            .map_err(|e| format!("kubernetes.io/csi: blockMapper.UnmapPodDevice failed to get CSI client: {e}"))?;
        let target = paths::block_published(layout, &remains.name, &remains.uid);
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: data.handle.clone(),
            target_path: self.told(&data.driver, &target),
        };
        in_time(driver.node().node_unpublish_volume(request))
            .await
            .map_err(|e| {
                let e = crate::rpc_text(&e);
                format!("kubernetes.io/csi: blockMapper.unpublishVolumeForBlock failed: {e}")
            })?;
        let _held = self.devices.lock(&data.driver, &data.handle).await;
        let all = devices::of_pods(host, layout).map_err(text)?;
        let others = all
            .iter()
            .any(|(uid, d)| *uid != remains.uid && d.driver == data.driver && d.handle == data.handle);
        if !others {
            self.release_block(&remains.name, &data, &driver).await?;
        }
        host.remove_file(&remains.dir).map_err(text)
    }

    /// Unstages a block volume, and removes what was kept of it.
    async fn release_block(&self, name: &str, data: &VolumeData, driver: &keelson_csi::Driver) -> Result<(), String> {
        let (host, layout) = (&*self.tools.host, &self.tools.layout);
        let staged = paths::block_staged(layout, name);
        let able = capabilities(driver).await.map_err(|e| {
            let e = crate::rpc_text(&e);
            format!("kubernetes.io/csi: blockMapper.unstageVolumeForBlock failed to check STAGE_UNSTAGE_VOLUME capability: {e}")
        })?;
        let text = |e: std::io::Error| e.to_string();
        let there = host.kind(&staged).map_err(text)?.is_some();
        if there && source::can(&able, Capability::StageUnstageVolume) {
            let request = csi::NodeUnstageVolumeRequest {
                volume_id: data.handle.clone(),
                staging_target_path: self.told(&data.driver, &staged),
            };
            in_time(driver.node().node_unstage_volume(request)).await.map_err(|e| {
                let e = crate::rpc_text(&e);
                format!("kubernetes.io/csi: blockMapper.unstageVolumeForBlock failed: {e}")
            })?;
        }
        // What a driver kept in there goes; what is mounted there does not.
        if host.is_mounted(&staged).map_err(text)? {
            return Err(format!(
                "{} is still mounted after the driver has unstaged it",
                staged.display()
            ));
        }
        if there {
            host.remove_tree(&staged).map_err(text)?;
        }
        host.remove_dir(&paths::block_published_dir(layout, name))
            .map_err(text)?;
        VolumeData::remove(host, &paths::block_data(layout, name)).map_err(text)?;
        host.remove_dir(&paths::block_dir(layout, name)).map_err(text)
    }
}
