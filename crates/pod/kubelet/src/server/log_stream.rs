//! Serves a container's log, to its present end or as it grows. Growth, rotation and the container's end are told by the
//! kernel and the runtime; nothing is asked again and again.

use super::logs::{Options, Writer, tail_start};
use super::routes::{Query, first, flag};
use super::{Reply, text};
use crate::gc::attic::Gone;
use crate::kubelet::Kubelet;
use crate::pods;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::PodStatus;
use keelson_cri::v1 as cri;
use notify::{RecursiveMode, Watcher};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Chunks on their way to a slow client.
const QUEUE: usize = 8;
/// A line can't be longer than the runtime writes them.
const MAX_LINE: usize = 1 << 20;

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
    let kl = kl.clone();
    tokio::spawn(async move {
        if let Err(e) = send(&kl, &id, &path, options, &sender).await {
            let message = format!("failed to try resolving symlinks in path \"{}\": {e}\n", path.display());
            // A client that has gone needs no message.
            let _ = sender.send(Ok(Frame::data(Bytes::from(message)))).await;
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

type Sender = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

async fn send(kl: &Kubelet, id: &str, path: &Path, options: Options, sender: &Sender) -> std::io::Result<()> {
    // Watched before it is read, so that nothing is written unseen in between.
    let grown = Arc::new(Notify::new());
    let _watcher = if options.follow {
        Some(watch(path, grown.clone())?)
    } else {
        None
    };
    let mut events = kl.runtime_events.subscribe();
    let (mut file, length) = open(path, options.tail)?;
    let follow = options.follow;
    // Without following, the log is what it was when it was asked for.
    let mut left = if follow { u64::MAX } else { length };
    let mut writer = Writer::new(options);
    let mut line = Vec::new();
    let mut ended = !follow || !runs(kl, id).await;
    loop {
        let (mut chunk, rest) = read_chunk(file, line).await?;
        (file, line) = rest;
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= chunk.len() as u64;
        if chunk.is_empty() {
            if follow && rotated(&file, path) {
                file = std::fs::File::open(path)?;
                continue;
            }
            if ended {
                // A last line without its end is still a line.
                let mut out = Vec::new();
                writer.push(&line, &mut out);
                forward(sender, out).await;
                return Ok(());
            }
            tokio::select! {
                () = sender.closed() => return Ok(()),
                () = kl.stop.cancelled() => return Ok(()),
                () = grown.notified() => {}
                changed = events.changed() => {
                    // Once more is read after the end: the last lines may have come just before it.
                    ended = changed.is_err() || !runs(kl, id).await;
                }
            }
            continue;
        }
        let mut out = Vec::with_capacity(chunk.len());
        for part in chunk.split_inclusive(|b| *b == b'\n') {
            line.extend_from_slice(part);
            if line.last() == Some(&b'\n') {
                line.pop();
                writer.push(&line, &mut out);
                line.clear();
            } else if line.len() > MAX_LINE {
                line.clear();
            }
        }
        if !forward(sender, out).await || writer.full() {
            return Ok(());
        }
    }
}

/// False when the client has gone.
async fn forward(sender: &Sender, out: Vec<u8>) -> bool {
    out.is_empty() || sender.send(Ok(Frame::data(out.into()))).await.is_ok()
}

async fn read_chunk(mut file: std::fs::File, line: Vec<u8>) -> std::io::Result<(Vec<u8>, (std::fs::File, Vec<u8>))> {
    let read = tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; CHUNK];
        let n = file.read(&mut chunk)?;
        chunk.truncate(n);
        Ok::<_, std::io::Error>((chunk, file))
    });
    let (chunk, file) = read.await.map_err(std::io::Error::other)??;
    Ok((chunk, (file, line)))
}

/// Opened at its beginning, or where its last lines begin; with the bytes there are from there on.
fn open(path: &Path, tail: Option<usize>) -> std::io::Result<(std::fs::File, u64)> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut left = length;
    if let Some(lines) = tail {
        let mut window = (64u64 << 10).min(length);
        loop {
            file.seek(SeekFrom::Start(length - window))?;
            let mut data = Vec::with_capacity(window as usize);
            Read::by_ref(&mut file).take(window).read_to_end(&mut data)?;
            let start = tail_start(&data, lines);
            if start > 0 || window == length {
                left = window - start as u64;
                file.seek(SeekFrom::Start(length - left))?;
                break;
            }
            window = (window * 4).min(length);
        }
    }
    Ok((file, left))
}

/// Another file has the log's name now.
fn rotated(file: &std::fs::File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => a.ino() != b.ino() || a.dev() != b.dev(),
        _ => false,
    }
}

async fn runs(kl: &Kubelet, id: &str) -> bool {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    match kl.cri.runtime.clone().container_status(request).await {
        Ok(a) => a
            .into_inner()
            .status
            .is_some_and(|s| s.state == cri::ContainerState::ContainerRunning as i32),
        // Only the runtime's word that it is gone ends the log.
        Err(e) => e.code() != tonic::Code::NotFound,
    }
}

/// Tells of changes in the log's directory: a rotated log is another file there.
fn watch(path: &Path, grown: Arc<Notify>) -> std::io::Result<notify::RecommendedWatcher> {
    let dir: PathBuf = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !matches!(&event, Ok(e) if e.kind.is_access()) {
            grown.notify_one();
        }
    })
    .map_err(std::io::Error::other)?;
    watcher
        .watch(&dir, RecursiveMode::NonRecursive)
        .map_err(std::io::Error::other)?;
    Ok(watcher)
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

    #[test]
    fn a_log_is_opened_where_its_last_lines_begin() {
        let path = std::env::temp_dir().join(format!("keelson-log-{}", std::process::id()));
        let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        let mut rest = String::new();
        let (mut file, left) = open(&path, Some(2)).unwrap();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), left), ("line 19998\nline 19999\n", 22));
        std::fs::remove_file(&path).unwrap();
    }
}
