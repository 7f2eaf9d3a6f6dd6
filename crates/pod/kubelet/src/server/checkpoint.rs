//! A running container's state as an archive in the kubelet's directory: the runtime makes it, if it can. Refusals are in
//! upstream's words.

use super::routes::{Query, find};
use crate::kubelet::Kubelet;
use crate::observe::State;
use crate::pods;
use http::StatusCode;
use keelson_cri::{Waits, v1 as cri};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Nobody waits longer for one.
const LONGEST: i64 = 24 * 60 * 60;

/// What a request for one is answered: where it is, or why there is none.
pub type Answer = Result<String, (StatusCode, String)>;

/// Has the runtime make one.
pub(super) async fn serve(kl: &Arc<Kubelet>, ns: &str, pod: &str, container: &str, query: &Query) -> super::Reply {
    // Of several times the last counts.
    let timeout = query
        .iter()
        .rev()
        .find(|(k, _)| k == "timeout")
        .map(|(_, v)| v.as_str());
    match make(kl, ns, pod, container, timeout).await {
        Ok(location) => super::json(&serde_json::json!({"items": [location]})),
        Err((status, why)) => super::text(status, why),
    }
}

pub async fn make(kl: &Arc<Kubelet>, ns: &str, pod: &str, container: &str, timeout: Option<&str>) -> Answer {
    let missing = |why: String| (StatusCode::NOT_FOUND, why);
    let handle = find(kl, ns, pod).map_err(|_| missing("pod does not exist".into()))?;
    if pods::find_container(&handle.pod(), container).is_none() {
        return Err(missing(format!("container {container} does not exist")));
    }
    let timeout = match timeout.map(str::parse::<i64>) {
        None => 0,
        Some(Ok(seconds)) => seconds.min(LONGEST),
        Some(Err(_)) => return Err(missing("cannot parse value of timeout parameter".into())),
    };
    let failed = |why: String| {
        let why = format!("checkpointing of {ns}/{pod}/{container} failed ({why})");
        (StatusCode::INTERNAL_SERVER_ERROR, why)
    };
    if timeout < 0 {
        return Err(failed(
            "CheckpointContainer requires the timeout value to be > 0".into(),
        ));
    }
    let observed = crate::act::start::observe(kl, &handle.uid, &mut HashMap::new()).await;
    let observed = observed.map_err(|e| failed(crate::rpc_text(&e)))?;
    let running = observed.find(container).filter(|v| v.state == State::Running);
    let container_id = running.map(|v| v.id.clone());
    let container_id = container_id.ok_or_else(|| failed(format!("container {container} not found")))?;
    let dir = kl.layout.root.join("checkpoints");
    kl.host
        .make_dir(&dir, 0o700)
        .map_err(|e| failed(format!("making {}: {e}", dir.display())))?;
    let time = kl.host.now().strftime("%Y-%m-%dT%H:%M:%SZ");
    let name = format!("checkpoint-{pod}_{ns}-{container}-{time}.tar");
    let location = dir.join(name).to_string_lossy().into_owned();
    // Less than for any other call isn't left to it.
    let usual = kl.cfg.runtime_request_timeout;
    let wanted = Duration::from_secs(timeout.unsigned_abs()).max(usual);
    let mut request = tonic::Request::new(cri::CheckpointContainerRequest {
        container_id,
        location: location.clone(),
        timeout: wanted.as_secs() as i64,
    });
    request.extensions_mut().insert(Waits(wanted - usual));
    match kl.cri.runtime.clone().checkpoint_container(request).await {
        Ok(_) => Ok(location),
        Err(e) => Err(failed(crate::rpc_text(&e))),
    }
}
