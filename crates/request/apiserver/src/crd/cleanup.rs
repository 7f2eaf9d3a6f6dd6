//! The end of a definition: its resources are deleted and waited for, then its finalizer goes.

use super::{CustomResources, names, text};
use keelson_api::{ApiError, Object, Str, Value};
use keelson_cache::WatchEvent;
use keelson_registry::options::{DeleteOptions, ListOptions};
use keelson_registry::{AdmitAll, Cx, ResourceDef, UserInfo};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(3600);

pub(super) async fn run(all: &Arc<CustomResources>, name: &Str) -> Result<(), ApiError> {
    let Some(crd) = all.crd(name) else { return Ok(()) };
    let mut crd = Object::clone(&crd);
    let now = keelson_registry::meta::now;
    let message = "CustomResource deletion is in progress";
    names::set_condition(
        &mut crd,
        "Terminating",
        "True",
        "InstanceDeletionInProgress",
        message,
        &now(),
    );
    let established = names::is_true(&crd, "Established");
    let (group, plural) = (
        text(&crd, &["spec", "group"]),
        text(&crd, &["status", "acceptedNames", "plural"]),
    );
    if established {
        all.write_status(&crd).await?;
        if let Some(def) = all.engine.table.by_resource(&group, &plural).filter(|d| d.custom) {
            remove_all(all, def).await?;
        }
    }
    // The latest, since the status was written meanwhile.
    let path = format!("{}/{name}", super::PATH);
    let Some(mut latest) = all.loopback.object(&path).await? else {
        return Ok(());
    };
    let (reason, message) = if established {
        ("InstanceDeletionCompleted", "removed all instances")
    } else {
        ("NeverEstablished", "resource was never established")
    };
    names::set_condition(&mut latest, "Terminating", "False", reason, message, &now());
    all.write_status(&latest).await?;
    let Some(mut latest) = all.loopback.object(&path).await? else {
        return Ok(());
    };
    let finalizers: Vec<Str> = latest
        .finalizers()
        .filter(|f| *f != keelson_registry::resources::crd::CLEANUP_FINALIZER)
        .map(Str::from)
        .collect();
    latest.set_finalizers(finalizers);
    match all
        .loopback
        .send(http::Method::PUT, &path, Some(&Value::Object(latest.0)))
        .await
    {
        Ok(_) => Ok(()),
        Err(e) if e.is(keelson_api::Reason::NotFound) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Deletes every resource and waits until none is left.
async fn remove_all(all: &CustomResources, def: Arc<ResourceDef>) -> Result<(), ApiError> {
    let user = Arc::new(UserInfo::api_server());
    let cx = Cx::new(def.clone(), user.clone(), "", "");
    let watching = ListOptions {
        send_initial_events: Some(true),
        allow_watch_bookmarks: true,
        ..ListOptions::default()
    };
    let mut watch = all.engine.watch(&cx, &watching, PATIENCE).await??;
    let mut left: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut complete = false;
    while !(complete && left.is_empty()) {
        let Some(event) = watch.next().await else {
            return Err(ApiError::internal("the watch of the resources ended"));
        };
        match event.map_err(|e| ApiError::internal(format!("watching the resources: {e}")))? {
            WatchEvent::Added(entry) => {
                left.insert(entry.key().to_vec());
                let one = Cx::new(def.clone(), user.clone(), entry.namespace(), entry.name());
                match all.engine.delete(&one, &AdmitAll, &DeleteOptions::default()).await {
                    Ok(_) => {}
                    Err(e) if e.is(keelson_api::Reason::NotFound) => {}
                    Err(e) => return Err(e),
                }
            }
            WatchEvent::Modified(_) => {}
            WatchEvent::Deleted(entry) => drop(left.remove(entry.key().as_ref())),
            WatchEvent::Bookmark { .. } => complete = true,
        }
    }
    Ok(())
}
