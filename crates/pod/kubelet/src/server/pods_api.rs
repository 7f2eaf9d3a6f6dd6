//! The pods API: the pods of this node as the kubelet knows them, with statuses that the API server may not have yet, for programs
//! on the node, at a socket of the kubelet's. A pod is what `v1.Pod` is in protobuf.

use crate::kubelet::Kubelet;
use crate::pods;
use crate::status::manager::Change;
use bytes::Bytes;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_api::schema::builtin_type;
use keelson_devices::pods as api;
use keelson_devices::pods::EventType;
use keelson_devices::pods::pods_server::{Pods, PodsServer};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, SemaphorePermit, broadcast, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status};

/// How long an answer may take, and how many one connection may wait for.
const ANSWER: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 8;
/// Events on their way to a client. One that reads more slowly than pods change is cut off.
const QUEUE: usize = 16;
/// How many clients may watch.
const WATCHERS: usize = 64;
static PLACES: Semaphore = Semaphore::const_new(WATCHERS);

/// Whether the kubelet has heard of all its pods.
#[derive(Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Serves until the kubelet stops; before it is ready it refuses.
pub fn start(kl: &Arc<Kubelet>) -> Ready {
    let ready = Ready::default();
    let dir = kl.layout.root.join("pods-api");
    let listening = kl.host.make_dir(&dir, 0o750).and_then(|()| {
        let listener = kl.host.listen(&dir.join("pods-api.sock"))?;
        tokio::net::UnixListener::from_std(listener)
    });
    let listener = match listening {
        Ok(listener) => listener,
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return ready,
        Err(e) => {
            tracing::error!("the pods of this node can't be asked for: {e}");
            return ready;
        }
    };
    let (service, stop) = (Service(kl.clone(), ready.clone()), kl.stop.clone());
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .timeout(ANSWER)
            .concurrency_limit_per_connection(AT_ONCE)
            .add_service(PodsServer::new(service))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned());
        if let Err(e) = served.await {
            tracing::error!("the pods of this node can't be asked for any more: {e}");
        }
    });
    ready
}

struct Service(Arc<Kubelet>, Ready);

#[tonic::async_trait]
impl Pods for Service {
    type WatchPodsStream = ReceiverStream<Result<api::WatchPodsEvent, Status>>;

    async fn watch_pods(&self, _: Request<api::WatchPodsRequest>) -> Result<Response<Self::WatchPodsStream>, Status> {
        let place = self.is_ready().and_then(|()| {
            let full = |_| Status::resource_exhausted(format!("{WATCHERS} clients watch already"));
            PLACES.try_acquire().map_err(full)
        });
        let place = self.counted("watch", place)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        // Before anything is listed, so that nothing is missed.
        let watching = Watching {
            kl: self.0.clone(),
            changes: self.0.status.changes(),
            told: BTreeSet::new(),
            sender,
            _place: place,
        };
        tokio::spawn(watching.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_pods(&self, _: Request<api::ListPodsRequest>) -> Result<Response<api::ListPodsResponse>, Status> {
        let all = || -> Result<Vec<Bytes>, Status> {
            self.is_ready()?;
            let all = self.0.workers.all();
            all.iter().map(|h| encoded(&shown(&self.0, &h.pod()))).collect()
        };
        let pods = self.counted("list", all())?;
        Ok(Response::new(api::ListPodsResponse { pods }))
    }

    async fn get_pod(&self, request: Request<api::GetPodRequest>) -> Result<Response<api::GetPodResponse>, Status> {
        let uid = request.into_inner().pod_uid;
        let one = || -> Result<Bytes, Status> {
            self.is_ready()?;
            let handle = self.0.workers.get(&uid);
            let handle = handle.ok_or_else(|| Status::not_found(format!("pod with UID {uid} not found")))?;
            encoded(&shown(&self.0, &handle.pod()))
        };
        let pod = self.counted("get", one())?;
        Ok(Response::new(api::GetPodResponse { pod }))
    }
}

impl Service {
    fn is_ready(&self) -> Result<(), Status> {
        match self.1.0.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(Status::failed_precondition("Kubelet is initializing")),
        }
    }

    fn counted<T>(&self, method: &str, answer: Result<T, Status>) -> Result<T, Status> {
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        self.0.metrics.pods_api.asked(method, code);
        answer
    }
}

/// One client that is told what becomes of pods.
struct Watching {
    kl: Arc<Kubelet>,
    changes: broadcast::Receiver<Change>,
    /// The pods that it knows of.
    told: BTreeSet<String>,
    sender: mpsc::Sender<Result<api::WatchPodsEvent, Status>>,
    _place: SemaphorePermit<'static>,
}

/// The client has gone.
struct Gone;

impl Watching {
    async fn run(mut self) {
        for handle in self.kl.workers.all() {
            let pod = shown(&self.kl, &handle.pod());
            if self.tell(pod).await.is_err() {
                return;
            }
        }
        let mut done = self.send(EventType::InitialSyncComplete, Bytes::new()).await;
        while done.is_ok() {
            let changed = tokio::select! {
                () = self.kl.stop.cancelled() => return,
                () = self.sender.closed() => return,
                changed = self.changes.recv() => changed,
            };
            done = match changed {
                Ok(Change::Set(uid)) => match self.kl.workers.get(&uid) {
                    Some(handle) => self.tell(shown(&self.kl, &handle.pod())).await,
                    None => Ok(()),
                },
                Ok(Change::Forgotten(pod)) => self.tell_gone(&pod).await,
                Err(RecvError::Closed) => return,
                Err(RecvError::Lagged(missed)) => {
                    self.kl.metrics.pods_api.dropped.inc_by(missed);
                    let cut = Status::resource_exhausted("watch client channel closed");
                    // Whoever has read so little may not read this either.
                    let _ = self.sender.try_send(Err(cut));
                    return;
                }
            };
        }
    }

    async fn tell(&mut self, pod: Pod) -> Result<(), Gone> {
        let kind = match self.told.insert(pods::uid(&pod).to_owned()) {
            true => EventType::Added,
            false => EventType::Modified,
        };
        match encoded(&pod) {
            Ok(bytes) => self.send(kind, bytes).await,
            Err(status) => {
                let _ = self.sender.send(Err(status)).await;
                Err(Gone)
            }
        }
    }

    /// Name, namespace and UID of one that isn't here any more.
    async fn tell_gone(&mut self, pod: &Pod) -> Result<(), Gone> {
        if !self.told.remove(pods::uid(pod)) {
            return Ok(());
        }
        let least = Pod {
            metadata: ObjectMeta {
                name: pod.metadata.name.clone(),
                namespace: pod.metadata.namespace.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        match encoded(&least) {
            Ok(bytes) => self.send(EventType::Deleted, bytes).await,
            Err(_) => Err(Gone),
        }
    }

    async fn send(&self, kind: EventType, pod: Bytes) -> Result<(), Gone> {
        let event = api::WatchPodsEvent {
            r#type: kind as i32,
            pod,
        };
        self.sender.send(Ok(event)).await.map_err(|_| Gone)
    }
}

/// A pod with the status that the kubelet has for it.
fn shown(kl: &Kubelet, pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.status = Some(match kl.status.get(pods::uid(&pod)) {
        Some(status) => status,
        None => unverified(pod.status.take().unwrap_or_default()),
    });
    pod
}

/// What the API has of a pod that this kubelet hasn't looked at yet: nobody is told that it is ready.
fn unverified(mut status: PodStatus) -> PodStatus {
    status.phase.get_or_insert_with(|| "Pending".into());
    let ready = status.conditions.iter_mut().flatten();
    for condition in ready.filter(|c| c.type_ == "Ready" && c.status == "True") {
        condition.status = "False".into();
        condition.reason = Some("ContainersNotReady".into());
        condition.message = Some("Kubelet is initializing pod containers".into());
    }
    status
}

fn encoded(pod: &Pod) -> Result<Bytes, Status> {
    let failed = |e: &dyn std::fmt::Display| Status::internal(format!("failed to marshal pod: {e}"));
    let schema = builtin_type("io.k8s.api.core.v1.Pod").ok_or_else(|| failed(&"its type isn't known"))?;
    let value = keelson_api::Value::from(serde_json::to_value(pod).map_err(|e| failed(&e))?);
    let map = value.as_object().ok_or_else(|| failed(&"it is no object"))?;
    let bytes = keelson_api::codec::proto::encode_message(map, &schema).map_err(|e| failed(&e))?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_upstreams_message() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "status": {"phase": "Running"}}))
                .unwrap();
        let bytes = encoded(&pod).unwrap();
        let schema = builtin_type("io.k8s.api.core.v1.Pod").unwrap();
        let read = keelson_api::codec::proto::decode_message(&bytes, &schema).unwrap();
        let read = serde_json::Value::from(keelson_api::Value::Object(read));
        assert_eq!(
            (&read["metadata"]["name"], &read["status"]["phase"]),
            (&json!("p"), &json!("Running"))
        );
        // Field 1 is the metadata, in which field 1 is the name and field 5 the UID.
        assert_eq!(bytes[0], 0x0a);
        assert!(bytes.windows(3).any(|w| w == [0x0a, 1, b'p']) && bytes.windows(3).any(|w| w == [0x2a, 1, b'u']));
    }

    #[test]
    fn what_nobody_has_looked_at_is_not_ready() {
        let status: PodStatus = serde_json::from_value(json!({"conditions": [
            {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]}))
        .unwrap();
        let status = unverified(status);
        let all = status.conditions.unwrap();
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!((all[0].status.as_str(), all[1].status.as_str()), ("True", "False"));
        assert_eq!(all[1].reason.as_deref(), Some("ContainersNotReady"));
    }
}
