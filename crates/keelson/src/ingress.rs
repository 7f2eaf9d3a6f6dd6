//! Requests from outside: the namespace where they come in, the classes, and the definitions of the Gateway API if they are asked for.

use crate::config::{Component, Config};
use crate::definitions;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IngressClass, IngressClassSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    ApiObject, Kind, Objects, Patch, ResourceId, Rest, delete_options, is_already_exists, is_not_found,
};
use keelson_controllers::snapshot_definitions::{MANAGED_BY, US};
use keelson_gateway::{
    GATEWAY_CLASS, GATEWAY_CONTROLLER, INGRESS_CLASS, INGRESS_CONTROLLER, NAMESPACE, definitions as gateway_api, fronts,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const CLASSES: ResourceId = ResourceId::fixed(
    "gateway.networking.k8s.io",
    "v1",
    "GatewayClass",
    "gatewayclasses",
    false,
);
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How often, and how many times, a class is tried to be made whose definition isn't in force yet.
const AGAIN: Duration = Duration::from_millis(200);
const TIMES: u32 = 50;

/// A class that is there stays as it is, but for ours being the default one beside another.
pub async fn apply(rest: &Rest, config: &Config) -> anyhow::Result<()> {
    let classes = Objects::<IngressClass>::new(rest);
    if !config.runs(Component::Ingress) {
        return withdraw(rest, &classes).await;
    }
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(NAMESPACE.into()),
            labels: Some(BTreeMap::from([(MANAGED_BY.into(), US.into())])),
            ..Default::default()
        },
        ..Default::default()
    };
    existing(Objects::<Namespace>::new(rest).create(&namespace).await)?;
    let all = classes.list("", "", "").await?;
    let other = all.iter().any(|c| c.name() != INGRESS_CLASS && is_default(c));
    match all.iter().find(|c| c.name() == INGRESS_CLASS) {
        None => existing(classes.create(&class(!other)).await)?,
        Some(ours) if other && is_default(ours) => {
            tracing::info!("another class of Ingresses is the default one: {INGRESS_CLASS} is so no longer");
            let body = json!({"metadata": {"annotations": {DEFAULT: "false"}}});
            classes.patch("", INGRESS_CLASS, Patch::Merge(&body)).await?;
        }
        Some(_) => {}
    }
    // The cluster runs without it, and Ingresses are served.
    if config.gateway_api
        && let Err(error) = define(rest).await
    {
        tracing::warn!(
            error = format!("{error:#}"),
            "the Gateway API isn't there as it was asked for"
        );
    }
    Ok(())
}

fn existing<T>(created: keelson_client::Result<T>) -> keelson_client::Result<()> {
    match created {
        Err(error) if !is_already_exists(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_default(class: &IngressClass) -> bool {
    let annotations = class.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(DEFAULT)).is_some_and(|v| v == "true")
}

fn class(default: bool) -> IngressClass {
    IngressClass {
        metadata: ObjectMeta {
            name: Some(INGRESS_CLASS.into()),
            annotations: default.then(|| BTreeMap::from([(DEFAULT.into(), "true".into())])),
            ..Default::default()
        },
        spec: Some(IngressClassSpec {
            controller: Some(INGRESS_CONTROLLER.into()),
            ..Default::default()
        }),
    }
}

/// Nobody would serve the class any more, and what was to lead to us would lead nowhere.
async fn withdraw(rest: &Rest, classes: &Objects<IngressClass>) -> anyhow::Result<()> {
    let controller = |c: &IngressClass| c.spec.as_ref().and_then(|s| s.controller.clone());
    let ours = classes.find("", INGRESS_CLASS).await?;
    if ours.is_some_and(|c| controller(&c).as_deref() == Some(INGRESS_CONTROLLER)) {
        deleted(
            classes
                .delete("", INGRESS_CLASS, &delete_options(None, None, None))
                .await,
        )?;
    }
    // The namespace stays: one that is ending can't be used again at once.
    remove::<Service>(rest).await?;
    remove::<EndpointSlice>(rest).await?;
    remove::<Secret>(rest).await?;
    remove::<ConfigMap>(rest).await
}

fn deleted(result: keelson_client::Result<()>) -> keelson_client::Result<()> {
    match result {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

async fn remove<K: Kind>(rest: &Rest) -> anyhow::Result<()> {
    let objects = Objects::<K>::new(rest);
    let ours = format!("{}={}", fronts::MANAGED_BY, fronts::US);
    for left in objects.list(NAMESPACE, &ours, "").await? {
        deleted(
            objects
                .delete(NAMESPACE, left.name(), &delete_options(None, None, None))
                .await,
        )?;
    }
    Ok(())
}

/// Writes the definitions of the Gateway API, and the class.
async fn define(rest: &Rest) -> anyhow::Result<()> {
    for mut definition in gateway_api::all()? {
        definition["metadata"]["labels"] = json!({MANAGED_BY: US});
        definitions::write(rest, &definition).await?;
    }
    let class = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": GATEWAY_CLASS}, "spec": {"controllerName": GATEWAY_CONTROLLER}});
    for _ in 0..TIMES {
        match rest.create_raw(&CLASSES, "", class.to_string().into_bytes()).await {
            Err(error) if is_not_found(&error) => tokio::time::sleep(AGAIN).await,
            created => return Ok(existing(created)?),
        }
    }
    anyhow::bail!("its kinds aren't served although they are defined: no class {GATEWAY_CLASS} was made")
}
