//! ServiceAccount: every pod has one, and gets its token as a projected volume.

mod mountable;

use super::{Phase, Plugin, Review, references, unaskable};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Object, Value, value};
use keelson_registry::Operation;
use keelson_registry::meta::generate_name;
use mountable::Part;
use std::time::Duration;

const DEFAULT: &str = "default";
const MIRROR: &str = "kubernetes.io/config.mirror";
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// Tokens that pods hold: a second more than an hour tells them from asked-for ones.
const TOKEN_SECONDS: i64 = 3607;
/// The controller makes the default account soon after the namespace.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);

pub struct ServiceAccount;

async fn account(review: &Review<'_>, name: &str) -> ApiResult<Object> {
    let namespace = &review.cx.namespace;
    let attempts = if name == DEFAULT { ATTEMPTS } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        if let Some(found) = review.lookup.cached("", "serviceaccounts", namespace, name).await? {
            return Ok(found);
        }
    }
    Err(ApiError::not_found("", "serviceaccount", name))
}

async fn account_of(review: &Review<'_>, pod: &Object) -> ApiResult<Object> {
    let name = pod.str_at(&["spec", "serviceAccountName"]).unwrap_or_default();
    let found = match unaskable(name) {
        Some(why) => Err(why),
        None => account(review, name).await.map_err(|e| e.to_string()),
    };
    found.map_err(|why| {
        let namespace = &review.cx.namespace;
        let text = format!("error looking up service account {namespace}/{name}: {why}");
        review.forbidden(Some(pod), text)
    })
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new.filter(|_| review.is("", "pods") && review.op == Operation::Create) else {
            return Ok(());
        };
        if pod.annotation(MIRROR).is_some() {
            return check_mirror(review, pod);
        }
        if pod
            .str_at(&["spec", "serviceAccountName"])
            .unwrap_or_default()
            .is_empty()
        {
            pod.set_at(&["spec", "serviceAccountName"], DEFAULT);
            pod.set_at(&["spec", "serviceAccount"], DEFAULT);
        }
        let account = account_of(review, pod).await?;
        let wants = |o: &Object, path: &[&str]| o.at(path).and_then(Value::as_bool);
        let automount = wants(pod, &["spec", "automountServiceAccountToken"])
            .or_else(|| wants(&account, &["automountServiceAccountToken"]))
            .unwrap_or(true);
        if automount {
            mount_token(pod);
        }
        let has_pull_secrets = pod
            .at(&["spec", "imagePullSecrets"])
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty());
        if let Some(secrets) = account
            .arr("imagePullSecrets")
            .filter(|s| !has_pull_secrets && !s.is_empty())
        {
            pod.set_at(&["spec", "imagePullSecrets"], secrets.clone());
        }
        Ok(())
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new else { return Ok(()) };
        if review.is_sub("", "pods", "ephemeralcontainers") && review.op == Operation::Update {
            return check_secrets(review, pod, Part::Ephemeral).await;
        }
        if !review.is("", "pods") || review.op != Operation::Create {
            return Ok(());
        }
        if pod.annotation(MIRROR).is_some() {
            return check_mirror(review, pod);
        }
        check_secrets(review, pod, Part::Pod).await
    }
}

/// Every pod has an account, which may say what secrets it refers to.
async fn check_secrets(review: &Review<'_>, pod: &Object, part: Part) -> ApiResult<()> {
    if pod
        .str_at(&["spec", "serviceAccountName"])
        .unwrap_or_default()
        .is_empty()
    {
        let namespace = &review.cx.namespace;
        let why = format!("no service account specified for pod {namespace}/{}", pod.name());
        return Err(review.forbidden(Some(pod), why));
    }
    let account = account_of(review, pod).await?;
    mountable::check(&account, pod, part).map_err(|why| review.forbidden(Some(pod), why))
}

/// Mirror pods show what a node runs by itself: they can't have what only the API grants.
fn check_mirror(review: &Review<'_>, pod: &Object) -> ApiResult<()> {
    let refuse = |why: &str| Err(review.forbidden(Some(pod), why));
    if !pod
        .str_at(&["spec", "serviceAccountName"])
        .unwrap_or_default()
        .is_empty()
    {
        return refuse("a mirror pod may not reference service accounts");
    }
    let volumes = pod.at(&["spec", "volumes"]).and_then(Value::as_array);
    let secret_volume = volumes.into_iter().flatten().any(|v| v.get("secret").is_some());
    if secret_volume || !references::secrets(pod).is_empty() {
        return refuse("a mirror pod may not reference secrets");
    }
    for volume in volumes.into_iter().flatten() {
        let sources = volume.at(&["projected", "sources"]).and_then(Value::as_array);
        if sources
            .into_iter()
            .flatten()
            .any(|s| s.get("serviceAccountToken").is_some())
        {
            return refuse("a mirror pod may not use ServiceAccountToken volume projections");
        }
    }
    Ok(())
}

/// Mounts the account's token where nothing else is mounted.
fn mount_token(pod: &mut Object) {
    let volumes = pod.at(&["spec", "volumes"]).and_then(Value::as_array);
    let existing = volumes
        .into_iter()
        .flatten()
        .filter_map(|v| v.get("name").and_then(Value::as_str))
        .find(|n| n.starts_with(VOLUME))
        .map(String::from);
    let name = existing.clone().unwrap_or_else(|| generate_name(VOLUME));
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let Some(Value::Array(containers)) = pod.at_mut(&["spec", list]) else {
            continue;
        };
        for c in containers.iter_mut().filter_map(Value::as_object_mut) {
            let mounts = c.entry_or_insert_with("volumeMounts", || Vec::new().into());
            if !matches!(mounts, Value::Array(_)) {
                *mounts = Vec::new().into();
            }
            let Value::Array(mounts) = mounts else { continue };
            if !mounts
                .iter()
                .any(|m| m.get("mountPath").and_then(Value::as_str) == Some(MOUNT))
            {
                mounts.push(value!({"mountPath": MOUNT, "name": name, "readOnly": true}));
                needed = true;
            }
            if mounts.is_empty() {
                c.remove("volumeMounts");
            }
        }
    }
    if !needed || existing.is_some() {
        return;
    }
    let mut volumes = pod
        .at(&["spec", "volumes"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    volumes.push(value!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
                {"downwardAPI": {"items": [{"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}, "path": "namespace"}]}},
            ],
        },
    }));
    pod.set_at(&["spec", "volumes"], volumes);
}
