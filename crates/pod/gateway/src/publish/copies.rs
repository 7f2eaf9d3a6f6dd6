//! Copies of the certificates that are shown: all of the cluster's secrets that nodes may read.

use super::absent;
use crate::NAMESPACE;
use crate::fronts::{MANAGED_BY, US, hash};
use crate::plan::Plan;
use crate::world::COPY_OF;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{ApiObject, Informer, ObjectKey, Objects, Rest, delete_options};
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

/// Removes all of them, also those that nobody has told of yet.
pub async fn clear(rest: &Rest) -> keelson_client::Result<()> {
    let objects: Objects<Secret> = Objects::new(rest);
    for left in objects.list(NAMESPACE, &format!("{MANAGED_BY}={US}"), "").await? {
        absent(
            objects
                .delete(NAMESPACE, left.name(), &delete_options(None, Some(left.uid()), None))
                .await,
        )?;
    }
    Ok(())
}

/// The chain and its key, and nothing else that the secret has.
fn copy(key: &ObjectKey, source: &Secret) -> Secret {
    let mut data = source.data.clone().unwrap_or_default();
    data.retain(|name, _| name == "tls.crt" || name == "tls.key");
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("tls-{}", &hash(key)[..32])),
            namespace: Some(NAMESPACE.into()),
            labels: Some(BTreeMap::from([(MANAGED_BY.into(), US.into())])),
            annotations: Some(BTreeMap::from([(COPY_OF.into(), key.to_string())])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(data),
        ..Secret::default()
    }
}
