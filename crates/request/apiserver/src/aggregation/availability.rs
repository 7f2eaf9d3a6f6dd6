//! Whether extension servers can be reached: asked for when something changes, and again at upstream's intervals while
//! there are any.

use super::{Remote, target};
use crate::connect::forward;
use crate::discovery::parse_group_list;
use crate::health::Hook;
use crate::request::{Body, Response, UserInfo};
use crate::serve::Loopback;
use crate::state::ServerState;
use http::Method;
use keelson_api::{ApiResult, Object, Reason, Value, value};
use std::sync::Weak;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When a server is asked again: seldom while it can be reached; soon, then less and less, while it can't.
const SOON: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(5);

/// Watches over all extension servers until `stop`.
pub async fn run(server: Weak<ServerState>, stop: CancellationToken) {
    let Some(mut changes) = server.upgrade().map(|s| s.services.subscribe()) else {
        return;
    };
    let Some(sync) = server.upgrade().map(|s| s.sync.clone()) else {
        return;
    };
    tokio::select! {
        () = sync.wait_for(&[super::SERVICES_PATH]) => {}
        () = stop.cancelled() => return,
    }
    let mut pause = SOON;
    loop {
        changes.mark_unchanged();
        let Some(state) = server.upgrade() else { return };
        let remote = state.services.remote();
        let mut all_up = true;
        for service in &remote {
            all_up &= check(&state, service).await;
        }
        state.hooks.done(&[Hook::RemoteAvailability, Hook::ServiceDiscovery]);
        drop(state);
        pause = if all_up { SELDOM } else { pause };
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                pause = SOON;
            }
            () = tokio::time::sleep(pause), if !remote.is_empty() => pause = (pause * 2).min(SELDOM),
            () = stop.cancelled() => return,
        }
    }
}

/// Asks one server for its resources and writes down how that went.
async fn check(server: &ServerState, service: &Remote) -> bool {
    let condition = match discover(server, service).await {
        Ok(entry) => {
            if server.services.discovery(&service.group, &service.version) != entry {
                server
                    .services
                    .set_discovery(&service.group, &service.version, Some(entry));
            }
            ("True".to_string(), "Passed", "all checks passed".to_string())
        }
        Err((reason, message)) => ("False".to_string(), reason, message),
    };
    let up = condition.0 == "True";
    if service.available && !up {
        server.metrics.unavailable(&service.name, condition.1);
    }
    if let Err(e) = write(
        &server.loopback,
        &service.name,
        (&condition.0, condition.1, &condition.2),
    )
    .await
        && !e.is(Reason::NotFound)
    {
        tracing::warn!("writing the availability of {} failed: {e}", service.name);
    }
    up
}

async fn discover(server: &ServerState, service: &Remote) -> Result<Value, (&'static str, String)> {
    let path = format!("/apis/{}/{}", service.group, service.version);
    if let Some(here) = server.services.here(service) {
        let request = http::Request::get(&path).body(Body::empty());
        let request = request.map_err(|e| ("FailedDiscoveryCheck", e.to_string()))?;
        return listed(service, here.handle(request).await)
            .await
            .map_err(|why| ("FailedDiscoveryCheck", why));
    }
    let target = target(server, service).await.map_err(|e| {
        let reason = if e.message.contains("not found") {
            "ServiceNotFound"
        } else {
            "MissingEndpoints"
        };
        (reason, e.message)
    })?;
    let failed = |why: String| {
        // The service, not the endpoint that was asked: a text that changed each time would be written each time.
        let url = format!(
            "https://{}:{}/apis/{}/{}",
            target.host, service.port, service.group, service.version
        );
        (
            "FailedDiscoveryCheck",
            format!("failing or missing response from {url}: {why}"),
        )
    };
    let mut request = http::Request::get("/")
        .body(Body::empty())
        .map_err(|e| failed(e.to_string()))?;
    request
        .headers_mut()
        .insert(http::header::ACCEPT, http::HeaderValue::from_static("application/json"));
    let user = UserInfo::new("system:kube-aggregator", &["system:masters"]);
    super::set_identity(request.headers_mut(), &user).map_err(&failed)?;
    let asked = tokio::time::timeout(PATIENCE, forward(&target, &path, request, None, None)).await;
    let answer = asked
        .map_err(|_| failed("context deadline exceeded".into()))?
        .map_err(|e| failed(format!("{e:#}")))?;
    listed(service, answer).await.map_err(failed)
}

/// The resources that a server told of.
async fn listed(service: &Remote, answer: Response) -> Result<Value, String> {
    let status = answer.status();
    let bytes = answer
        .into_body()
        .collect(16 * 1024 * 1024)
        .await
        .map_err(|e| e.message)?;
    if !status.is_success() {
        return Err(format!("bad status from {}: {status}", service.name));
    }
    let list: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    Ok(parse_group_list(&service.version, &list))
}

/// Writes the condition `Available`; writes nothing when it stands already.
pub async fn write(loopback: &Loopback, name: &str, (status, reason, message): (&str, &str, &str)) -> ApiResult<()> {
    let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}");
    for _ in 0..5 {
        let Some(mut object) = loopback.object(&path).await? else {
            return Ok(());
        };
        if !set_condition(&mut object, status, reason, message) {
            return Ok(());
        }
        match loopback
            .send(Method::PUT, &format!("{path}/status"), Some(&object.into()))
            .await
        {
            Err(e) if e.is(Reason::Conflict) => {}
            other => return other.map(drop),
        }
    }
    Ok(())
}

/// False when nothing changed.
fn set_condition(object: &mut Object, status: &str, reason: &str, message: &str) -> bool {
    let conditions = object
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let text = |c: &Value, key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let old = conditions.iter().find(|c| text(c, "type") == "Available");
    if old.is_some_and(|c| text(c, "status") == status && text(c, "reason") == reason && text(c, "message") == message)
    {
        return false;
    }
    let since = old
        .filter(|c| text(c, "status") == status)
        .map(|c| text(c, "lastTransitionTime"))
        .filter(|t| !t.is_empty())
        .unwrap_or_else(|| keelson_registry::meta::now().to_string());
    let condition = value!({
        "type": "Available", "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    let mut all: Vec<Value> = conditions
        .into_iter()
        .filter(|c| text(c, "type") != "Available")
        .collect();
    all.push(condition);
    object.set_at(&["status", "conditions"], all);
    true
}
