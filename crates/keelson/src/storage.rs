//! Storage of the node's own disk: the driver and its provisioner on this machine, and the objects by which claims come to it.
//!
//! Runs on every node, of servers and agents alike. Each node's provisioner has a name of its own, and may write that node's volumes and the
//! claims that are to get one of them, no others.

use crate::config::{Component, Config};
use crate::supervise::Supervisor;
use anyhow::Context;
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, StorageClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_apiserver::UserInfo;
use keelson_client::{ApiObject, ClientFactory, Objects, Rest, delete_options, is_already_exists, is_not_found};
use keelson_local::driver::NAME;
use keelson_local::pool::Pool;
use keelson_local::{provision, serve};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The class of claims that don't say which they want.
const CLASS: &str = "local";
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// Where volumes are.
fn pool_dir(config: &Config) -> PathBuf {
    config.data_dir.join("volumes")
}

/// This machine's volumes, if it has any.
pub fn pool(config: &Config) -> anyhow::Result<Option<Arc<Pool>>> {
    let runs = config.runs(Component::Storage) && config.runs(Component::Agent);
    let open = || Pool::open(&pool_dir(config)).context("the volumes on this machine");
    Ok(runs.then(open).transpose()?.map(Arc::new))
}

/// Driver, registration at the kubelet, and provisioner.
pub fn start(
    components: &mut Supervisor,
    config: &Config,
    clients: &dyn ClientFactory,
    pool: Option<Arc<Pool>>,
) -> anyhow::Result<()> {
    let Some(pool) = pool else { return Ok(()) };
    let kubelet = config.data_dir.join("kubelet");
    let (socket, node) = (serve::socket(&kubelet), config.node_name.clone());
    let at = socket.clone();
    components.spawn("storage-driver", move |stop| {
        let (pool, node, socket) = (pool.clone(), node.clone(), at.clone());
        async move { serve::driver(pool, &node, &socket, stop).await }
    });
    components.spawn("storage-registration", move |stop| {
        let kubelet = kubelet.clone();
        async move { serve::registration(&kubelet, stop).await }
    });
    let settings = provision::Settings {
        socket,
        node: config.node_name.clone(),
        namespace: "kube-system".into(),
        snapshots: config.runs(Component::Snapshots),
    };
    let client = clients.client(&UserInfo::local_storage_of(&config.node_name));
    components.spawn("storage-provisioner", move |stop| {
        provision::run(client.clone(), settings.clone(), stop)
    });
    Ok(())
}

/// The driver's object, and a class. A class that is there stays as it is, and another default one is left the only one.
pub async fn apply(rest: &Rest, config: &Config) -> anyhow::Result<()> {
    let classes = Objects::<StorageClass>::new(rest);
    if !config.runs(Component::Storage) {
        return withdraw(rest, &classes).await;
    }
    let driver = driver();
    Objects::<CSIDriver>::new(rest)
        .create_or_update(&driver, |live| {
            let same = live.spec == driver.spec;
            live.spec = driver.spec.clone();
            !same
        })
        .await?;
    let all = classes.list("", "", "").await?;
    if all.iter().any(|c| c.name() == CLASS) {
        return Ok(());
    }
    let is_default = |c: &StorageClass| {
        let annotations = c.metadata.annotations.iter().flatten();
        annotations
            .into_iter()
            .any(|(name, value)| (name == DEFAULT || name == DEFAULT_BETA) && value == "true")
    };
    match classes.create(&class(!all.iter().any(is_default))).await {
        Err(error) if !is_already_exists(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Nobody would make volumes of the class any more. Volumes that are there stay.
async fn withdraw(rest: &Rest, classes: &Objects<StorageClass>) -> anyhow::Result<()> {
    let gone = |result: keelson_client::Result<()>| match result {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    };
    if classes.find("", CLASS).await?.is_some_and(|c| c.provisioner == NAME) {
        gone(classes.delete("", CLASS, &delete_options(None, None, None)).await)?;
    }
    let drivers = Objects::<CSIDriver>::new(rest);
    gone(drivers.delete("", NAME, &delete_options(None, None, None)).await)?;
    Ok(())
}

fn class(default: bool) -> StorageClass {
    StorageClass {
        metadata: ObjectMeta {
            name: Some(CLASS.into()),
            annotations: default.then(|| BTreeMap::from([(DEFAULT.into(), "true".into())])),
            ..Default::default()
        },
        provisioner: NAME.into(),
        reclaim_policy: Some("Delete".into()),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        allow_volume_expansion: Some(true),
        ..Default::default()
    }
}

fn driver() -> CSIDriver {
    CSIDriver {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            ..Default::default()
        },
        spec: CSIDriverSpec {
            attach_required: Some(false),
            pod_info_on_mount: Some(false),
            storage_capacity: Some(true),
            fs_group_policy: Some("File".into()),
            requires_republish: Some(false),
            se_linux_mount: Some(false),
            volume_lifecycle_modes: Some(vec!["Persistent".into()]),
            ..Default::default()
        },
    }
}
