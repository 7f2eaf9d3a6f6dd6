//! The condition `Dangling` of FlowSchemas: whether the priority level they name exists.

use super::FlowControl;
use crate::serve::Loopback;
use http::Method;
use keelson_api::{ApiResult, Object, Reason, Str, Value, value};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const RETRY: Duration = Duration::from_secs(1);
const PATH: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";

/// Keeps the conditions current until `stop`.
pub async fn run(flow: Arc<FlowControl>, loopback: Loopback, stop: CancellationToken) {
    let mut changes = flow.changes();
    loop {
        changes.mark_unchanged();
        let mut failed = false;
        for (schema, level, dangling) in flow.undecided() {
            if let Err(e) = write(&loopback, &schema, &level, dangling).await {
                tracing::debug!("writing the status of the flow schema {schema} failed, trying again: {e}");
                failed = true;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn write(loopback: &Loopback, schema: &Str, level: &Str, dangling: bool) -> ApiResult<()> {
    let path = format!("{PATH}/{schema}");
    let Some(mut object) = loopback.object(&path).await? else {
        return Ok(());
    };
    set(&mut object, level, dangling);
    match loopback
        .send(Method::PUT, &format!("{path}/status"), Some(&object.into()))
        .await
    {
        Err(e) if !e.is(Reason::NotFound) => Err(e),
        _ => Ok(()),
    }
}

fn set(object: &mut Object, level: &str, dangling: bool) {
    let head = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = if dangling {
        ("True", "NotFound", format!("{head} but there is no such object"))
    } else {
        ("False", "Found", format!("{head} and it exists"))
    };
    let now = keelson_registry::meta::now();
    let condition = value!({
        "type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
    });
    let mut all = object
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    all.retain(|c| c.get("type").and_then(Value::as_str) != Some("Dangling"));
    all.push(condition);
    object.set_at(&["status", "conditions"], all);
}

/// What the condition says, if it stands.
pub fn dangling(object: &Object) -> Option<bool> {
    let conditions = object.at(&["status", "conditions"]).and_then(Value::as_array);
    let found = conditions
        .into_iter()
        .flatten()
        .find(|c| c.get("type").and_then(Value::as_str) == Some("Dangling"));
    found.map(|c| c.get("status").and_then(Value::as_str) == Some("True"))
}
