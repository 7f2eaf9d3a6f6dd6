//! What kubelets and the controller of volumes would do, the same way every time: a deleted pod goes, unless `play/ending: slow`; a claim that
//! a node was chosen for gets a volume, unless `play/provision: "no"`; a volume that was promised to a claim becomes its own, unless `play/bind: "no"`.
//! Pods named `new-…` begin when they have a node, each a minute after the one before.

use crate::controllers::api::Api;
use crate::controllers::player::{path, text};
use crate::controllers::seen::Seen;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::collections::HashSet;
use tokio::sync::broadcast::error::RecvError;

const WHO: &str = "player";
const MERGE: &str = "application/merge-patch+json";

/// Answers what comes, until it is dropped.
pub async fn play(api: Api, seen: Seen) -> Result<()> {
    let mut news = seen.news();
    // What was done, by uid.
    let mut done: HashSet<String> = HashSet::new();
    let mut begun = 0;
    loop {
        match news.recv().await {
            Ok(object) => {
                if needs(&object) && done.insert(text(&object, "/metadata/uid").to_string()) {
                    answer(&api, &object).await?;
                }
                if begins(&object) {
                    begun += 1;
                    let at = format!("2026-02-01T{:02}:{:02}:00Z", begun / 60 % 24, begun % 60);
                    let status = json!({"status": {"phase": "Running", "startTime": at}});
                    ask(&api, "PATCH", &format!("{}/status", path(&object)), &status).await?;
                }
                seen.answered();
            }
            Err(RecvError::Lagged(n)) => anyhow::bail!("{n} objects went by unseen"),
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

fn needs(object: &Value) -> bool {
    let play = |what: &str| text(object, &format!("/metadata/annotations/play~1{what}"));
    match text(object, "/kind") {
        "Pod" => object.pointer("/metadata/deletionTimestamp").is_some() && play("ending") != "slow",
        "PersistentVolumeClaim" => {
            let chosen = text(object, "/metadata/annotations/volume.kubernetes.io~1selected-node");
            !chosen.is_empty() && text(object, "/spec/volumeName").is_empty() && play("provision") != "no"
        }
        "PersistentVolume" => {
            // Without an uid it is the driver's, who says its phase himself.
            let promised = !text(object, "/spec/claimRef/uid").is_empty();
            promised && text(object, "/status/phase") != "Bound" && play("bind") != "no"
        }
        _ => false,
    }
}

fn begins(object: &Value) -> bool {
    text(object, "/kind") == "Pod"
        && text(object, "/metadata/name").starts_with("new-")
        && !text(object, "/spec/nodeName").is_empty()
        && object.pointer("/status/startTime").is_none()
}

async fn answer(api: &Api, object: &Value) -> Result<()> {
    match text(object, "/kind") {
        "Pod" => {
            let now = json!({"gracePeriodSeconds": 0});
            ask(api, "DELETE", &path(object), &now).await
        }
        "PersistentVolumeClaim" => provision(api, object).await,
        _ => bind(api, object).await,
    }
}

async fn provision(api: &Api, claim: &Value) -> Result<()> {
    let meta = |key: &str| claim["metadata"][key].clone();
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("made-{}", text(claim, "/metadata/name"))},
        "spec": {"capacity": claim["spec"]["resources"]["requests"], "accessModes": claim["spec"]["accessModes"],
            "storageClassName": claim["spec"]["storageClassName"], "hostPath": {"path": "/made"},
            "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": meta("namespace"), "name": meta("name"), "uid": meta("uid")}}});
    ask(api, "POST", "/api/v1/persistentvolumes", &volume).await
}

async fn bind(api: &Api, volume: &Value) -> Result<()> {
    let name = text(volume, "/metadata/name");
    let claim = format!(
        "/api/v1/namespaces/{}/persistentvolumeclaims/{}",
        text(volume, "/spec/claimRef/namespace"),
        text(volume, "/spec/claimRef/name")
    );
    let bound = json!({"status": {"phase": "Bound"}});
    ask(
        api,
        "PATCH",
        &format!("/api/v1/persistentvolumes/{name}/status"),
        &bound,
    )
    .await?;
    let marks = json!({"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"});
    let takes = json!({"metadata": {"annotations": marks}, "spec": {"volumeName": name}});
    ask(api, "PATCH", &claim, &takes).await?;
    ask(api, "PATCH", &format!("{claim}/status"), &bound).await
}

/// What is gone meanwhile needs nothing.
async fn ask(api: &Api, method: &str, path: &str, body: &Value) -> Result<()> {
    let form = if method == "PATCH" { MERGE } else { "" };
    let (code, answer) = api.ask(method, path, form, Some(body), WHO).await?;
    ensure!(code < 400 || matches!(code, 404 | 409), "{method} {path}: {answer}");
    Ok(())
}
