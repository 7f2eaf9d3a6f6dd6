//! APIServices of what is served here: one a group version, made and removed as resources come and go.

use crate::discovery::local_priority;
use crate::health::{Hook, Hooks};
use crate::serve::Loopback;
use http::Method;
use keelson_api::{ApiResult, Object, Reason, Str, Value, resources, value};
use keelson_registry::ResourceTable;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the APIServices current until `stop`.
pub async fn run(table: Arc<ResourceTable>, loopback: Loopback, stop: CancellationToken, hooks: &Hooks) {
    let mut changes = table.subscribe();
    loop {
        changes.mark_unchanged();
        let wanted = wanted(&table);
        let failed = reconcile(&wanted, &loopback).await.err();
        if let Some(e) = &failed {
            tracing::warn!("registering APIServices failed, trying again: {e}");
        } else {
            hooks.done(&[
                Hook::LocalAvailability,
                Hook::Autoregistration,
                Hook::AutoregisterCompletion,
            ]);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed.is_some() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The group of APIServices themselves has none: it is what the others stand behind.
fn wanted(table: &ResourceTable) -> BTreeSet<(Str, Str)> {
    table
        .snapshot()
        .iter()
        .filter(|d| d.gvr.group != "apiregistration.k8s.io")
        .map(|d| (d.gvr.group.clone(), d.gvr.version.clone()))
        .collect()
}

fn name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

/// One pass: what is missing is made, what is no longer served is removed.
async fn reconcile(wanted: &BTreeSet<(Str, Str)>, loopback: &Loopback) -> ApiResult<()> {
    let list = loopback.send(Method::GET, PATH, None).await?;
    let present: Vec<Object> = list
        .arr("items")
        .into_iter()
        .flatten()
        .cloned()
        .filter_map(|v| Object::try_from(v).ok())
        .collect();
    for (group, version) in wanted {
        let name = name(group, version);
        if let Some(found) = present.iter().find(|o| o.name() == name) {
            if found.at(&["spec", "service"]).is_some() || is_available(found) {
                continue;
            }
            set_available(loopback, found.clone()).await?;
            continue;
        }
        let object = service(group, version, &name);
        match loopback.send(Method::POST, PATH, Some(&object)).await {
            Ok(made) => set_available(loopback, made).await?,
            Err(e) if e.is(Reason::AlreadyExists) => {}
            Err(e) => return Err(e),
        }
    }
    for found in present {
        let spec = |key: &str| Str::from(found.str_at(&["spec", key]).unwrap_or_default());
        let ours = found.labels().is_some_and(|l| l.contains_key(AUTOMANAGED));
        if ours && !wanted.contains(&(spec("group"), spec("version"))) {
            match loopback
                .send(Method::DELETE, &format!("{PATH}/{}", found.name()), None)
                .await
            {
                Err(e) if !e.is(Reason::NotFound) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

fn service(group: &str, version: &str, name: &str) -> Value {
    let built_in = resources::groups().iter().any(|g| g.name == group);
    let (group_priority, version_priority) = local_priority(group, version);
    value!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": name, "labels": {AUTOMANAGED: if built_in { "onstart" } else { "true" }}},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": group_priority,
            "versionPriority": version_priority,
        },
    })
}

fn is_available(object: &Object) -> bool {
    let conditions = object.at(&["status", "conditions"]).and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| {
        c.get("type").and_then(Value::as_str) == Some("Available")
            && c.get("status").and_then(Value::as_str) == Some("True")
    })
}

async fn set_available(loopback: &Loopback, object: Object) -> ApiResult<()> {
    let condition = ("True", "Local", "Local APIServices are always available");
    super::availability::write(loopback, object.name(), condition).await
}
