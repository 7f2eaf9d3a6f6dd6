//! What upstream's sidecars (external-provisioner, external-resizer, external-snapshotter) do for a driver, for the driver behind a socket on this node:
//! each node makes, enlarges and removes the volumes that belong to it, and tells the scheduler how much room it has.
//!
//! Names, annotations, finalizers, conditions and events are the sidecars': kubectl, the scheduler and the kubelet see no difference.
//! The driver is known by CSI alone. What isn't done is refused by an event: secrets of classes; what is filled by others (populators) is left to
//! them.

mod capacity;
mod claims;
mod request;
mod resize;
mod snapshots;
mod source;
mod volumes;

use anyhow::Context;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use keelson_client::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use keelson_client::{ApiObject, Controller, Informer, Informers, Kind, ObjectKey, Objects, Recorder, Rest};
use keelson_csi::Driver;
use keelson_csi::v1::controller_service_capability::{Type as Capability, rpc::Type as Can};
use keelson_csi::v1::{self as csi};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long a driver has for a call. Copies take as long as they take: a call that was cut off is made again, and finds the work done.
const CALL: Duration = Duration::from_secs(60);
/// How often a driver that doesn't answer yet is asked who it is.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Claims and volumes that fail come again at the latest after this time.
const LONGEST_DELAY: Duration = Duration::from_secs(300);
const AGENT: &str = "keelson-local-storage";

#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the driver.
    pub socket: PathBuf,
    pub node: String,
    /// Where the objects are kept that tell how much room there is.
    pub namespace: String,
    /// The cluster has snapshots.
    pub snapshots: bool,
}

/// The driver, as it describes itself.
struct Facts {
    name: String,
    node: String,
    /// Where its volumes are: labels of nodes.
    segments: BTreeMap<String, String>,
    can: BTreeSet<i32>,
}

impl Facts {
    async fn ask(driver: &Driver, node: &str) -> Result<Self, Status> {
        let info = driver.identity().get_plugin_info(csi::GetPluginInfoRequest {}).await?;
        let own = driver
            .node()
            .node_get_info(csi::NodeGetInfoRequest {})
            .await?
            .into_inner();
        let can = csi::ControllerGetCapabilitiesRequest {};
        let can = driver.controller().controller_get_capabilities(can).await?.into_inner();
        let rpc = |c: csi::ControllerServiceCapability| match c.r#type? {
            Capability::Rpc(rpc) => Some(rpc.r#type),
        };
        Ok(Facts {
            name: info.into_inner().name,
            node: node.into(),
            segments: own
                .accessible_topology
                .map(|t| t.segments.into_iter().collect())
                .unwrap_or_default(),
            can: can.capabilities.into_iter().filter_map(rpc).collect(),
        })
    }

    fn can(&self, what: Can) -> bool {
        self.can.contains(&i32::from(what))
    }

    fn topology(&self) -> csi::Topology {
        csi::Topology {
            segments: self.segments.clone().into_iter().collect(),
        }
    }

    /// Whether a volume is this driver's and of this node.
    fn owns(&self, volume: &PersistentVolume) -> bool {
        let Some(spec) = &volume.spec else { return false };
        let terms = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
        let here = terms.is_some_and(|r| {
            r.node_selector_terms.iter().any(|term| {
                let wants = term.match_expressions.iter().flatten();
                wants.into_iter().all(|e| {
                    let mine = self.segments.get(&e.key);
                    e.operator == "In" && mine.is_some_and(|m| e.values.iter().flatten().any(|v| v == m))
                })
            })
        });
        here && spec.csi.as_ref().is_some_and(|c| c.driver == self.name)
    }
}

/// What all parts work with.
struct Shared {
    facts: Facts,
    driver: Driver,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    claim_objects: Objects<PersistentVolumeClaim>,
    snapshot_objects: Objects<VolumeSnapshot>,
    content_objects: Objects<VolumeSnapshotContent>,
    volume_objects: Objects<PersistentVolume>,
    recorder: Recorder,
    /// Room was taken or given back.
    changed: Notify,
}

/// Runs until `stop`.
pub async fn run(client: kube::Client, settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let driver = Driver::at(&settings.socket, CALL);
    let facts = loop {
        match Facts::ask(&driver, &settings.node).await {
            Ok(facts) => break facts,
            Err(error) => tracing::debug!(%error, "the storage driver doesn't answer yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    };
    anyhow::ensure!(
        !facts.segments.is_empty(),
        "the driver {} doesn't say where its volumes are",
        facts.name
    );
    let rest = Rest::new(client, AGENT);
    let informers = Informers::new(rest.clone(), stop.clone());
    let component = format!("{}_{}", facts.name, facts.node);
    let shared = Arc::new(Shared {
        driver,
        claims: informers.get(),
        volumes: informers.get(),
        classes: informers.get(),
        claim_objects: Objects::new(&rest),
        snapshot_objects: Objects::new(&rest),
        content_objects: Objects::new(&rest),
        volume_objects: Objects::new(&rest),
        recorder: Recorder::start(&rest, &component, &settings.node, &stop),
        changed: Notify::new(),
        facts,
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(of_claims(&shared).run(Arc::new(claims::Claims::new(shared.clone())), stop.clone()));
    tasks.spawn(of_volumes(&shared).run(Arc::new(volumes::Volumes(shared.clone())), stop.clone()));
    if shared.facts.can(Can::CreateDeleteSnapshot) && settings.snapshots {
        tasks.spawn(snapshots::run(shared.clone(), rest.clone(), stop.clone()));
    }
    tasks.spawn(capacity::publish(shared, rest, settings.namespace, stop.clone()));
    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the provisioner ended badly")?;
    }
    Ok(())
}

fn of_claims(shared: &Arc<Shared>) -> Controller {
    let controller = Controller::new("local-claims")
        .input(&shared.claims)
        .input(&shared.volumes)
        .input(&shared.classes)
        .output(PersistentVolume::RESOURCE)
        .output(PersistentVolumeClaim::RESOURCE)
        .longest_delay(LONGEST_DELAY);
    let queue = controller.queue();
    shared.claims.on_change({
        let queue = queue.clone();
        move |change| queue.add(change.object().key())
    });
    shared.volumes.on_change(move |change| {
        let reference = change.object().spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if let Some((ns, name)) = reference.and_then(|r| Some((r.namespace.clone()?, r.name.clone()?))) {
            queue.add(ObjectKey::new(ns, name));
        }
    });
    controller
}

fn of_volumes(shared: &Arc<Shared>) -> Controller {
    let controller = Controller::new("local-volumes")
        .input(&shared.volumes)
        .output(PersistentVolume::RESOURCE)
        .longest_delay(LONGEST_DELAY);
    let queue = controller.queue();
    shared.volumes.on_change(move |change| queue.add(change.object().key()));
    controller
}

fn annotation<'a>(object: &'a impl ApiObject, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// As gRPC's own library for Go writes a failure, which is what people know from events.
fn told(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}
