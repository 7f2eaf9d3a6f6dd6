//! Snapshots of volumes: the definitions of their kinds, and a class for volumes of the node's own disk.

use crate::config::{Component, Config};
use crate::definitions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::snapshots::{GROUP, VolumeSnapshotClass};
use keelson_client::{ApiObject, Objects, Rest, is_already_exists, is_not_found};
use keelson_controllers::snapshot_definitions::all;
use keelson_local::driver::NAME;
use std::collections::BTreeMap;
use std::time::Duration;

const CLASS: &str = "local";
const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";
/// How often, and how many times, a class is tried to be made whose definition isn't in force yet.
const AGAIN: Duration = Duration::from_millis(200);
const TIMES: u32 = 50;

/// Writes the definitions, and the class.
pub async fn apply(rest: &Rest, config: &Config) {
    if !config.runs(Component::Snapshots) {
        return;
    }
    for definition in all() {
        // The cluster runs without it.
        if let Err(error) = definitions::write(rest, &definition).await {
            tracing::warn!(error = format!("{error:#}"), "a kind of snapshots isn't defined");
            return;
        }
    }
    // As it does without this one: definitions that somebody else brought may serve another version.
    if config.runs(Component::Storage)
        && let Err(error) = class(rest).await
    {
        tracing::warn!(
            error = format!("{error:#}"),
            "there is no class of snapshots of local volumes"
        );
    }
}

/// One that is there stays as it is.
async fn class(rest: &Rest) -> anyhow::Result<()> {
    let class = VolumeSnapshotClass {
        metadata: ObjectMeta {
            name: Some(CLASS.into()),
            annotations: Some(BTreeMap::from([(DEFAULT.into(), "true".into())])),
            ..Default::default()
        },
        driver: NAME.into(),
        deletion_policy: "Delete".into(),
        ..Default::default()
    };
    let classes = Objects::<VolumeSnapshotClass>::new(rest);
    for _ in 0..TIMES {
        match classes.create(&class).await {
            Err(error) if is_not_found(&error) => tokio::time::sleep(AGAIN).await,
            Err(error) if !is_already_exists(&error) => return Err(error.into()),
            _ => return Ok(()),
        }
    }
    anyhow::bail!(
        "the kinds of {GROUP} aren't served although they are defined: no class {} was made",
        class.name()
    )
}
