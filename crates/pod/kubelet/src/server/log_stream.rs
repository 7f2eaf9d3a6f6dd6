//! Serves a container's log to the kubelet's clients: which instance is meant, and what they want of it. Reading is [`super::follow`]'s.

use super::follow::{self, Life};
use super::logs::Options;
use super::routes::{Query, first, flag};
use super::{Reply, text};
use crate::gc::attic::Gone;
use crate::kubelet::Kubelet;
use crate::pods;
use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::PodStatus;
use keelson_cri::v1 as cri;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Chunks on their way to a slow client.
const QUEUE: usize = 8;

fn options(q: &Query, now: jiff::Timestamp) -> Result<Options, String> {
    let number = |name: &str| -> Result<Option<i64>, String> {
        match first(q, name).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(v) => v.parse().map(Some).map_err(|_| format!("invalid {name}: {v}")),
        }
    };
    let since = match (number("sinceSeconds")?, first(q, "sinceTime").filter(|v| !v.is_empty())) {
        (Some(s), _) => now.checked_sub(jiff::SignedDuration::from_secs(s)).ok(),
        (None, Some(t)) => Some(t.parse().map_err(|_| format!("invalid sinceTime: {t}"))?),
        (None, None) => None,
    };
    let stdout_only = match first(q, "stream") {
        Some("Stdout") => Some(true),
        Some("Stderr") => Some(false),
        _ => None,
    };
    Ok(Options {
        follow: flag(q, "follow"),
        timestamps: flag(q, "timestamps"),
        since,
        tail: number("tailLines")?.map(|n| n.max(0) as usize),
        limit: number("limitBytes")?.map(|n| n.max(0) as usize),
        stdout_only,
    })
}

/// The instance whose log is meant, without the runtime's prefix.
fn container_id(status: &PodStatus, pod: &str, container: &str, previous: bool) -> Result<String, String> {
    let s = pods::any_status(status, container)
        .ok_or_else(|| format!("container \"{container}\" in pod \"{pod}\" is not available"))?;
    let bare = |id: &str| id.split_once("://").map_or(id, |(_, id)| id).to_owned();
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state
            .as_ref()
            .and_then(|s| s.terminated.as_ref()?.container_id.clone())
            .filter(|id| !id.is_empty())
    };
    let last = ended(&s.last_state);
    if previous {
        return last
            .map(|id| bare(&id))
            .ok_or_else(|| format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"));
    }
    let state = s.state.clone().unwrap_or_default();
    if state.running.is_some() {
        return Ok(bare(s.container_id.as_deref().unwrap_or_default()));
    }
    if let Some(id) = ended(&s.state).or(last) {
        return Ok(bare(&id));
    }
    if state.terminated.is_some() {
        return Err(format!("container \"{container}\" in pod \"{pod}\" is terminated"));
    }
    let reason = state.waiting.and_then(|w| w.reason).unwrap_or_default();
    let why = match reason.as_str() {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    Err(format!(
        "container \"{container}\" in pod \"{pod}\" is waiting to start: {why}"
    ))
}

pub(super) async fn serve(kl: &Arc<Kubelet>, ns: &str, pod: &str, container: &str, q: &Query) -> Reply {
    let options = match options(q, kl.host.now()) {
        Ok(o) => o,
        Err(e) => return text(StatusCode::BAD_REQUEST, e),
    };
    let handle = match super::routes::find(kl, ns, pod) {
        Ok(h) => h,
        Err(reply) => return reply,
    };
    let object = handle.pod();
    if pods::find_container(&object, container).is_none() {
        return text(
            StatusCode::NOT_FOUND,
            format!("container \"{container}\" not found in pod \"{pod}\""),
        );
    }
    let status = kl
        .status
        .get(&handle.uid)
        .unwrap_or_else(|| pods::status(&object).clone());
    let id = match container_id(&status, pod, container, flag(q, "previous")) {
        Ok(id) => id,
        Err(e) => return text(StatusCode::BAD_REQUEST, e),
    };
    let request = cri::ContainerStatusRequest {
        container_id: id.clone(),
        verbose: false,
    };
    let path = match kl.cri.runtime.clone().container_status(request).await {
        Ok(answer) => answer.into_inner().status.map(|s| s.log_path).unwrap_or_default(),
        Err(e) => {
            return text(
                StatusCode::BAD_REQUEST,
                format!("unable to retrieve container logs for {id}: {}", crate::rpc_text(&e)),
            );
        }
    };
    stream(kl, id, path.into(), options)
}

/// The log of a pod that is gone, as long as the attic has it. It grows no more.
pub(super) fn deleted(kl: &Arc<Kubelet>, pod: &Gone, container: &str, q: &Query) -> Reply {
    let options = match options(q, kl.host.now()) {
        Ok(o) => Options { follow: false, ..o },
        Err(e) => return text(StatusCode::BAD_REQUEST, e),
    };
    let found = match &kl.cfg.attic {
        Some(attic) => attic.find(&*kl.host, pod, container, flag(q, "previous")),
        None => return text(StatusCode::NOT_FOUND, "this node keeps no logs of pods that are gone"),
    };
    match found {
        Ok(Some(path)) => stream(kl, String::new(), path, options),
        Ok(None) => text(
            StatusCode::NOT_FOUND,
            format!(
                "container \"{container}\" of pod \"{}\" has no log here, or none any more",
                pod.name
            ),
        ),
        Err(e) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the logs of pods that are gone: {e}"),
        ),
    }
}

fn stream(kl: &Arc<Kubelet>, id: String, path: PathBuf, options: Options) -> Reply {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut life = OnNode {
        kl: kl.clone(),
        id,
        events: kl.runtime_events.subscribe(),
    };
    tokio::spawn(async move {
        if let Err(e) = follow::read(&path, options, &mut life, &sender).await {
            let message = format!("failed to try resolving symlinks in path \"{}\": {e}\n", path.display());
            // A client that has gone needs no message.
            let _ = sender.send(Bytes::from(message)).await;
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let frames = stream.map(|bytes| Ok::<_, std::io::Error>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

/// A container of this node, as the runtime and its events tell of it.
struct OnNode {
    kl: Arc<Kubelet>,
    id: String,
    events: watch::Receiver<u64>,
}

impl Life for OnNode {
    async fn runs(&mut self) -> bool {
        follow::runs(&self.kl.cri, &self.id).await
    }

    async fn changed(&mut self) -> bool {
        tokio::select! {
            () = self.kl.stop.cancelled() => false,
            changed = self.events.changed() => changed.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_right_instance_is_chosen() {
        let status = |state: serde_json::Value, last: serde_json::Value| -> PodStatus {
            serde_json::from_value(
                json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                "restartCount": 1, "containerID": "r://now", "state": state, "lastState": last}]}),
            )
            .unwrap()
        };
        let last = json!({"terminated": {"exitCode": 1, "containerID": "r://before"}});
        let running = status(json!({"running": {}}), last.clone());
        assert_eq!(container_id(&running, "p", "c", false).unwrap(), "now");
        assert_eq!(container_id(&running, "p", "c", true).unwrap(), "before");
        let waiting = status(json!({"waiting": {"reason": "CrashLoopBackOff"}}), last);
        assert_eq!(container_id(&waiting, "p", "c", false).unwrap(), "before");
        let fresh = status(json!({"waiting": {"reason": "ContainerCreating"}}), json!({}));
        assert_eq!(
            container_id(&fresh, "p", "c", false).unwrap_err(),
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
        );
        assert!(
            container_id(&fresh, "p", "c", true)
                .unwrap_err()
                .contains("previous terminated container")
        );
    }
}
