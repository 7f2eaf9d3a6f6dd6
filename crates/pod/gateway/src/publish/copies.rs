//! Copies of the certificates that are shown: all of the cluster's secrets that nodes may read.

use super::absent;
use crate::NAMESPACE;
use crate::fronts::{MANAGED_BY, US, hash};
use crate::plan::Plan;
use crate::world::{AUTHORITY, COPY_OF};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{ApiObject, Informer, Kind, ObjectKey, Objects, Rest, delete_options};
use std::collections::{BTreeMap, BTreeSet};

/// While it isn't `known` what all Gateways show, nothing is taken away.
pub async fn write(rest: &Rest, plan: &Plan, known: bool, secrets: &Informer<Secret>) -> keelson_client::Result<()> {
    let objects: Objects<Secret> = Objects::new(rest);
    let mut names = BTreeSet::new();
    for key in &plan.certificates {
        let Some(source) = secrets.store().get_key(key) else {
            continue;
        };
        let wanted = copy(key, &source);
        names.insert(wanted.name().to_string());
        let same = |live: &Secret| live.data == wanted.data;
        if secrets
            .store()
            .get(NAMESPACE, wanted.name())
            .is_some_and(|live| same(&live))
        {
            continue;
        }
        let merge = |live: &mut Secret| {
            let differs = !same(live);
            live.data = wanted.data.clone();
            differs
        };
        objects.create_or_update(&wanted, merge).await?;
    }
    if !known {
        return Ok(());
    }
    for left in secrets.store().list_namespace(NAMESPACE) {
        let ours = left
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|a| a.contains_key(COPY_OF));
        if ours && !names.contains(left.name()) {
            absent(
                objects
                    .delete(NAMESPACE, left.name(), &delete_options(None, Some(left.uid()), None))
                    .await,
            )?;
        }
    }
    Ok(())
}

/// The same of the certificates of authorities by which backends are known.
pub async fn authorities(rest: &Rest, plan: &Plan, configs: &Informer<ConfigMap>) -> keelson_client::Result<()> {
    let objects: Objects<ConfigMap> = Objects::new(rest);
    let store = configs.store();
    let mut names = BTreeSet::new();
    for key in &plan.authorities {
        let Some(source) = store.get_key(key) else { continue };
        let mut data = source.data.clone().unwrap_or_default();
        data.retain(|name, _| name == AUTHORITY);
        let wanted = ConfigMap {
            metadata: of_copy("ca", key),
            data: Some(data),
            ..ConfigMap::default()
        };
        names.insert(wanted.name().to_string());
        let same = |live: &ConfigMap| live.data == wanted.data;
        if store.get(NAMESPACE, wanted.name()).is_some_and(|live| same(&live)) {
            continue;
        }
        let merge = |live: &mut ConfigMap| {
            let differs = !same(live);
            live.data = wanted.data.clone();
            differs
        };
        objects.create_or_update(&wanted, merge).await?;
    }
    for left in store.list_namespace(NAMESPACE) {
        let annotations = left.metadata.annotations.as_ref();
        if annotations.is_some_and(|a| a.contains_key(COPY_OF)) && !names.contains(left.name()) {
            let options = delete_options(None, Some(left.uid()), None);
            absent(objects.delete(NAMESPACE, left.name(), &options).await)?;
        }
    }
    Ok(())
}

/// Removes all of them, also those that nobody has told of yet.
pub async fn clear(rest: &Rest) -> keelson_client::Result<()> {
    clear_kind::<Secret>(rest).await?;
    clear_kind::<ConfigMap>(rest).await
}

async fn clear_kind<K: Kind>(rest: &Rest) -> keelson_client::Result<()> {
    let objects: Objects<K> = Objects::new(rest);
    for left in objects.list(NAMESPACE, &format!("{MANAGED_BY}={US}"), "").await? {
        let options = delete_options(None, Some(left.uid()), None);
        absent(objects.delete(NAMESPACE, left.name(), &options).await)?;
    }
    Ok(())
}

/// By a name that no node can take.
fn of_copy(kind: &str, key: &ObjectKey) -> ObjectMeta {
    ObjectMeta {
        name: Some(format!("{kind}-{}", &hash(key)[..32])),
        namespace: Some(NAMESPACE.into()),
        labels: Some(BTreeMap::from([(MANAGED_BY.into(), US.into())])),
        annotations: Some(BTreeMap::from([(COPY_OF.into(), key.to_string())])),
        ..ObjectMeta::default()
    }
}

/// The chain and its key, and nothing else that the secret has.
fn copy(key: &ObjectKey, source: &Secret) -> Secret {
    let mut data = source.data.clone().unwrap_or_default();
    data.retain(|name, _| name == "tls.crt" || name == "tls.key");
    Secret {
        metadata: of_copy("tls", key),
        type_: Some("kubernetes.io/tls".into()),
        data: Some(data),
        ..Secret::default()
    }
}
