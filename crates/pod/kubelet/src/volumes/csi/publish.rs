//! Volumes of files for a pod: attached, staged and published, and back.

use super::super::kind::{Ask, Failure, Mounted, Remains};
use super::data::VolumeData;
use super::drivers::{capabilities, in_time};
use super::source::{self, Source};
use super::{Csi, attach, devices, group, paths};
use crate::pods;
use k8s_openapi::api::core::v1::{Secret, SecretReference};
use k8s_openapi::api::storage::v1::CSIDriver;
use keelson_client::Objects;
use keelson_csi::Driver;
use keelson_csi::v1 as csi;
use keelson_csi::v1::node_service_capability::rpc::Type as Capability;
use serde_json::{Map, json};
use std::collections::HashMap;
use std::io::ErrorKind;

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// A volume ready to be published: where it is staged, and how it was attached.
pub struct Ready {
    pub driver: Driver,
    pub able: source::Capabilities,
    pub staged: Option<std::path::PathBuf>,
    pub attached: HashMap<String, String>,
}

impl Csi {
    /// Brings the volume to this node and stages it. It counts as the pod's from here on. One that isn't `fresh` has been
    /// staged, and stays so.
    pub async fn ready(
        &self,
        ask: &Ask,
        source: &Source,
        object: Option<&CSIDriver>,
        fresh: bool,
    ) -> Result<Ready, Failure> {
        let device = |m: String| match source.inline {
            true => Failure::set_up(m),
            false => Failure::step(
                source.block,
                "MountVolume.MountDevice failed",
                "MapVolume.SetUpDevice failed",
                m,
            ),
        };
        let mut attached = HashMap::new();
        if !source.inline {
            self.attachments.hold(&source.driver, &source.handle, ask.uid());
            if source::needs_attach(object.map(|d| &d.spec)) {
                let (files, block) = ("MountVolume.WaitForAttach failed", "MapVolume.WaitForAttach failed");
                let wait = |m| Failure::step(source.block, files, block, m);
                if fresh {
                    self.attachments.wait(source, &ask.leaving).await?;
                }
                attached = attach::context(&self.tools.rest, source, &self.node)
                    .await
                    .map_err(wait)?;
            }
        }
        let missing = |e: String| {
            device(match (source.inline, source.block) {
                (true, _) => format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {e}"),
                (_, true) => format!("kubernetes.io/csi: blockMapper.SetUpDevice failed to get CSI client: {e}"),
                _ => format!("kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: {e}"),
            })
        };
        let driver = self.drivers.wanted(&source.driver, ask.uid()).map_err(missing)?;
        let able = capabilities(&driver).await.map_err(|e| device(crate::rpc_text(&e)))?;
        source.check_lifecycle(object).map_err(|e| {
            Failure::set_up(format!(
                "kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: {e}"
            ))
        })?;
        let staged = match (source.inline, fresh) {
            (true, _) => None,
            (false, false) => self.staged(ask, source, &able),
            (false, true) => {
                let _held = self.devices.lock(&source.driver, &source.handle).await;
                // What may be staged is known as the pod's beforehand: to a kubelet after this one, and to whoever looks whether
                // the volume is used.
                self.note_stage(ask, source)?;
                self.stage(ask, source, &driver, &able, &attached).await?
            }
        };
        Ok(Ready {
            driver,
            able,
            staged,
            attached,
        })
    }

    /// Writes down that the pod is about to have the volume, unless it is known to have it.
    fn note_stage(&self, ask: &Ask, source: &Source) -> Result<(), Failure> {
        let host = &*self.tools.host;
        let dir = paths::of_pod(&self.tools.layout, ask.uid(), ask.name());
        if source.block {
            return self.note(ask, source);
        }
        let failed = |e: std::io::Error| {
            let message = format!("kubernetes.io/csi: attacher.MountDevice failed to save volume info data: {e}");
            Failure::step(false, "MountVolume.MountDevice failed", "", message)
        };
        match VolumeData::load(host, &dir) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            // Damaged data of a volume that the pod has say that it has one.
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                if host.is_mounted(&paths::published(&dir)).map_err(failed)? {
                    return Err(failed(e));
                }
            }
            Err(e) => return Err(failed(e)),
        }
        let data = VolumeData {
            unpublished: "true".into(),
            ..self.data(ask, source)
        };
        data.save(host, &dir).map_err(failed)
    }

    /// Writes down that the pod has the volume.
    fn note(&self, ask: &Ask, source: &Source) -> Result<(), Failure> {
        let (host, layout) = (&*self.tools.host, &self.tools.layout);
        let data = self.data(ask, source);
        let fail = |e: std::io::Error| {
            Failure::set_up(format!(
                "kubernetes.io/csi: mounter.SetUpAt failed to save volume info data: {e}"
            ))
        };
        if source.block {
            data.save(host, &paths::block_data(layout, ask.name())).map_err(fail)?;
            let link = paths::block_link(layout, ask.uid(), ask.name());
            let target = paths::block_published(layout, ask.name(), ask.uid());
            host.link(&target, &link).map_err(fail)
        } else {
            data.save(host, &paths::of_pod(layout, ask.uid(), ask.name()))
                .map_err(fail)
        }
    }

    pub async fn set_up(&self, ask: &Ask, source: &Source) -> Result<Mounted, Failure> {
        // What is left of this if it ends halfway is found by the directory.
        let dir = paths::of_pod(&self.tools.layout, ask.uid(), ask.name());
        self.tools.host.make_dir(&dir, 0o750)?;
        let object = self.drivers.object(&source.driver).await?;
        let able = self.publish(ask, source, object.as_deref(), true).await?;
        Ok(Mounted {
            read_only: source.read_only,
            group: group(source.takes_group(&able, object.as_deref())),
            relabel: !source.read_only,
            ..Mounted::at(paths::NAME, ask, paths::published(&dir))
        })
    }

    /// Publishes the volume to the pod, as often as the driver wants it.
    pub async fn publish(
        &self,
        ask: &Ask,
        source: &Source,
        object: Option<&CSIDriver>,
        fresh: bool,
    ) -> Result<source::Capabilities, Failure> {
        let ready = self.ready(ask, source, object, fresh).await?;
        let mut secrets = self
            .secrets(source.publish_secret.as_ref(), "NodePublishSecretRef")
            .await?;
        let mut context = source.context(ask, object);
        if let Some(tokens) = self.tokens(ask, object).await? {
            let into_secrets = object.and_then(|d| d.spec.service_account_token_in_secrets) == Some(true);
            let into = if into_secrets { &mut secrets } else { &mut context };
            into.insert(TOKENS.into(), tokens);
        }
        if fresh {
            self.note(ask, source)?;
        }
        let target = paths::published(&paths::of_pod(&self.tools.layout, ask.uid(), ask.name()));
        let request = csi::NodePublishVolumeRequest {
            volume_id: source.handle.clone(),
            publish_context: ready.attached,
            staging_target_path: ready.staged.map(|p| self.told(&source.driver, &p)).unwrap_or_default(),
            target_path: self.told(&source.driver, &target),
            volume_capability: Some(source.capability(&ready.able, pods::fs_group(&ask.pod))),
            readonly: source.read_only,
            secrets,
            volume_context: context,
        };
        let published = in_time(ready.driver.node().node_publish_volume(request)).await;
        published.map_err(|e| Failure::set_up(crate::rpc_text(&e)))?;
        Ok(ready.able)
    }

    pub async fn tear_down(&self, remains: &Remains) -> Result<(), String> {
        let host = &*self.tools.host;
        let data = match VolumeData::load(host, &remains.dir) {
            // Damaged, and nothing is there that it could be needed for: whatever nobody has is given back.
            Err(e)
                if e.kind() == ErrorKind::InvalidData
                    && matches!(host.is_mounted(&paths::published(&remains.dir)), Ok(false)) =>
            {
                tracing::error!(
                    volume = remains.name,
                    "what is known of a volume that isn't mounted can't be read: {e}"
                );
                for driver in devices::drivers(host, &self.tools.layout).map_err(|e| e.to_string())? {
                    // Whatever can't be given back stays in use, and is no matter of this pod's.
                    if let Err(e) = self.sweep(&driver).await {
                        tracing::warn!("{e}");
                    }
                }
                return Ok(());
            }
            other => other.map_err(|e| e.to_string())?,
        };
        // It never came so far as to be staged.
        let Some(data) = data else { return Ok(()) };
        if data.is_published() {
            self.unpublish(&data, remains).await?;
        }
        if data.is_persistent() {
            self.unstage(&data.driver, &data.handle, &remains.uid, false).await?;
        }
        let clean = |e: std::io::Error| {
            format!(
                "kubernetes.io/csi: Unmounter.TearDownAt failed to clean mount dir [{}]: {e}",
                remains.dir.display()
            )
        };
        VolumeData::remove(host, &remains.dir).map_err(clean)
    }

    async fn unpublish(&self, data: &VolumeData, remains: &Remains) -> Result<(), String> {
        let host = &*self.tools.host;
        let driver = self.drivers.wanted(&data.driver, &remains.uid);
        let driver =
            driver.map_err(|e| format!("kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI client: {e}"))?;
        let target = paths::published(&remains.dir);
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: data.handle.clone(),
            target_path: self.told(&data.driver, &target),
        };
        in_time(driver.node().node_unpublish_volume(request))
            .await
            .map_err(|e| {
                format!(
                    "kubernetes.io/csi: Unmounter.TearDownAt failed: {}",
                    crate::rpc_text(&e)
                )
            })?;
        // Drivers remove it; some forget. Never while the kernel says that it is mounted.
        if host.is_mounted(&target).map_err(|e| e.to_string())? {
            return Err(format!(
                "{} is still mounted after the driver has unpublished it",
                target.display()
            ));
        }
        let clean = |e: std::io::Error| {
            format!(
                "kubernetes.io/csi: Unmounter.TearDownAt failed to clean mount dir [{}]: {e}",
                target.display()
            )
        };
        host.remove_dir(&target).map_err(clean)
    }

    /// The content of a secret that a driver is to be given. It is read each time, and kept nowhere.
    pub async fn secrets(
        &self,
        reference: Option<&SecretReference>,
        what: &str,
    ) -> Result<HashMap<String, String>, String> {
        let Some(reference) = reference else {
            return Ok(HashMap::new());
        };
        let name = reference.name.as_deref().unwrap_or_default();
        let namespace = reference.namespace.as_deref().unwrap_or_default();
        let found = Objects::<Secret>::new(&self.tools.rest).get(namespace, name).await.map_err(|e| {
            let e = crate::error_text(&e);
            format!(
                "fetching {what} {namespace}/{name} failed: kubernetes.io/csi: failed to find the secret {name} in the \
                 namespace {namespace} with error: {e}"
            )
        })?;
        let data = found.data.unwrap_or_default().into_iter();
        Ok(data
            .map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned()))
            .collect())
    }

    /// Tokens of the pod's account for those that the driver names, as it reads them.
    async fn tokens(&self, ask: &Ask, object: Option<&CSIDriver>) -> Result<Option<String>, String> {
        let wanted = object.and_then(|d| d.spec.token_requests.clone()).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut all = Map::new();
        for request in &wanted {
            let seconds = request.expiration_seconds.unwrap_or(3600);
            let now = self.tools.host.now();
            self.tools
                .tokens
                .ensure(&ask.pod, &request.audience, seconds, now)
                .await?;
            let Some((token, expires)) = self.tools.tokens.known_until(&ask.pod, &request.audience, seconds) else {
                continue;
            };
            let expires = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            all.insert(
                request.audience.clone(),
                json!({"token": token, "expirationTimestamp": expires}),
            );
        }
        serde_json::to_string(&all).map(Some).map_err(|e| e.to_string())
    }

    /// Whether the driver grows volumes on the node.
    pub async fn grows(&self, driver: &Driver) -> Result<bool, String> {
        let able = capabilities(driver).await.map_err(|e| crate::rpc_text(&e))?;
        Ok(source::can(&able, Capability::ExpandVolume))
    }
}
