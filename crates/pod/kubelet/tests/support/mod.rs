//! An API server just large enough for a kubelet: objects in a map, watches, and the few rules the kubelet relies on.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use keelson_kubelet::fake::FakeRuntime;
use keelson_kubelet::host::fake::FakeHost;
use keelson_kubelet::kubelet::Kubelet;
use keelson_kubelet::managers::machine::Nodes;
use keelson_kubelet::{Config, Host, build, run_built};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

type Reply = Response<UnsyncBoxBody<Bytes, std::convert::Infallible>>;

struct State {
    objects: BTreeMap<String, Value>,
    revision: u64,
}

#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(String, &'static str, Value)>,
}

fn status(code: u16, reason: &str, message: &str) -> Reply {
    reply(
        code,
        &json!({"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}),
    )
}

fn reply(code: u16, value: &Value) -> Reply {
    let mut r = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *r.status_mut() = StatusCode::from_u16(code).unwrap();
    r
}

/// As much of strategic merge as the kubelet's patches use.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        let merge_key = match key.as_str() {
            "conditions" | "addresses" => Some("type"),
            "podIPs" | "hostIPs" => Some("ip"),
            _ => None,
        };
        match (value, merge_key) {
            (Value::Null, _) => {
                target.as_object_mut().unwrap().remove(key);
            }
            (Value::Array(items), Some(id)) => {
                let mut list = target[key].as_array().cloned().unwrap_or_default();
                for item in items {
                    match item["$patch"].as_str() {
                        Some("replace") => list.clear(),
                        Some("delete") => list.retain(|o| o[id] != item[id]),
                        _ => match list.iter_mut().find(|o| o[id] == item[id]) {
                            Some(old) => merge(old, item),
                            None => list.push(item.clone()),
                        },
                    }
                }
                target[key] = list.into();
            }
            (Value::Object(_), _) => merge(&mut target[key], value),
            _ => target[key] = value.clone(),
        }
    }
}

fn selects(fields: &str, object: &Value) -> bool {
    fields.split(',').filter(|f| !f.is_empty()).all(|f| {
        let (path, want) = f.split_once('=').unwrap();
        let found = path.split('.').fold(object, |v, p| &v[p]);
        found.as_str().unwrap_or_default() == want
    })
}

impl Api {
    pub fn new() -> Self {
        Api {
            state: Arc::new(Mutex::new(State {
                objects: BTreeMap::new(),
                revision: 1,
            })),
            events: broadcast::Sender::new(65536),
        }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.handle(request).await) }
        });
        keelson_client::in_process(service, "default", |b| b)
    }

    fn put(&self, path: &str, mut object: Value, kind: &'static str) -> Value {
        let mut state = self.state.lock();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        if kind == "DELETED" {
            state.objects.remove(path);
        } else {
            state.objects.insert(path.to_owned(), object.clone());
        }
        let _ = self.events.send((path.to_owned(), kind, object.clone()));
        object
    }

    pub fn create(&self, collection: &str, mut object: Value) -> Value {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let n = self.state.lock().revision;
        let meta = &mut object["metadata"];
        meta["uid"] = format!("uid-{name}-{n}").into();
        meta["generation"] = 1.into();
        meta["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        self.put(&format!("{collection}/{name}"), object, "ADDED")
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    pub fn list(&self, collection: &str) -> Vec<Value> {
        let prefix = format!("{collection}/");
        let state = self.state.lock();
        state
            .objects
            .iter()
            .filter(|(k, _)| k.starts_with(&prefix))
            .map(|(_, v)| v.clone())
            .collect()
    }

    /// Changes an object as its owner would: the generation grows when the specification does.
    pub fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.get(path).unwrap();
        let before = object["spec"].clone();
        change(&mut object);
        if object["spec"] != before {
            object["metadata"]["generation"] = (object["metadata"]["generation"].as_i64().unwrap() + 1).into();
        }
        self.put(path, object, "MODIFIED");
    }

    /// Asks for a pod's graceful deletion.
    pub fn delete_pod(&self, path: &str, grace: i64) {
        self.change(path, |p| {
            p["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z".into();
            p["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        });
    }

    async fn handle(&self, request: Request<Body>) -> Reply {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| {
                (
                    k.to_owned(),
                    percent_encoding::percent_decode_str(v).decode_utf8_lossy().into_owned(),
                )
            })
            .collect();
        let value = || serde_json::from_slice::<Value>(&body).unwrap_or_default();
        let path = parts
            .uri
            .path()
            .trim_start_matches("/api/v1/")
            .trim_start_matches("/apis/")
            .to_owned();
        let segments: Vec<&str> = path.split('/').collect();
        let collection = is_collection(&segments);
        match parts.method {
            Method::GET if collection => self.watch(&path, &query),
            Method::GET => match self.get(&path) {
                Some(o) => reply(200, &o),
                None => status(404, "NotFound", &format!("{path} not found")),
            },
            Method::POST if path.ends_with("/token") => reply(
                201,
                &json!({"status": {"token": "t0ken", "expirationTimestamp": "2036-01-01T00:00:00Z"}}),
            ),
            Method::POST => {
                let object = value();
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if self.get(&format!("{path}/{name}")).is_some() {
                    return status(409, "AlreadyExists", "it exists");
                }
                reply(201, &self.create(&path, object))
            }
            Method::PUT => reply(200, &self.put(&path, value(), "MODIFIED")),
            Method::PATCH => {
                let target = path.trim_end_matches("/status");
                let Some(mut object) = self.get(target) else {
                    return status(404, "NotFound", "gone");
                };
                merge(&mut object, &value());
                reply(200, &self.put(target, object, "MODIFIED"))
            }
            Method::DELETE if collection => {
                let fields = query.get("fieldSelector").cloned().unwrap_or_default();
                let all = self.list(&path).into_iter().filter(|o| selects(&fields, o));
                for object in all {
                    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                    self.put(&format!("{path}/{name}"), object, "DELETED");
                }
                reply(200, &json!({"kind": "Status", "status": "Success"}))
            }
            Method::DELETE => {
                let Some(object) = self.get(&path) else {
                    return status(404, "NotFound", "gone");
                };
                let wanted = value();
                let uid = &wanted["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return status(409, "Conflict", "another uid");
                }
                assert_eq!(wanted["gracePeriodSeconds"], 0, "the kubelet deletes for good only");
                reply(200, &self.put(&path, object, "DELETED"))
            }
            _ => status(405, "MethodNotAllowed", "no"),
        }
    }

    fn watch(&self, path: &str, query: &BTreeMap<String, String>) -> Reply {
        let fields = query.get("fieldSelector").cloned().unwrap_or_default();
        let state = self.state.lock();
        let mut receiver = self.events.subscribe();
        let revision = state.revision;
        let prefix = format!("{path}/");
        let plural = path.rsplit('/').next().unwrap().to_owned();
        // A list of all namespaces selects by the last part but one.
        let within = move |key: &str| {
            key.starts_with(&prefix)
                || key.rsplit('/').nth(1) == Some(plural.as_str()) && !prefix.contains("namespaces/")
        };
        let now: Vec<Value> = state
            .objects
            .iter()
            .filter(|(k, v)| within(k) && selects(&fields, v))
            .map(|(_, v)| v.clone())
            .collect();
        drop(state);
        if query.get("watch").is_none_or(|w| w != "1" && w != "true") {
            return reply(
                200,
                &json!({"metadata": {"resourceVersion": revision.to_string()}, "items": now}),
            );
        }
        let initial = query.get("sendInitialEvents").is_some_and(|v| v == "true");
        let mut first: Vec<Value> = Vec::new();
        if initial {
            first.extend(now.into_iter().map(|o| json!({"type": "ADDED", "object": o})));
            first.push(
                json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": revision.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"}}}}),
            );
        }
        let live = async_stream(move |sender| async move {
            while let Ok((key, kind, object)) = receiver.recv().await {
                if within(&key) && selects(&fields, &object) {
                    let _ = sender.send(json!({"type": kind, "object": object})).await;
                }
            }
        });
        let lines = futures::stream::iter(first)
            .chain(live)
            .map(|v| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(format!("{v}\n")))));
        Response::new(StreamBody::new(lines).boxed_unsync())
    }
}

fn is_collection(s: &[&str]) -> bool {
    // `namespaces/x/pods`, `pods`, `group/version/…` with or without a namespace.
    let rest = if s[0].contains('.') { &s[2..] } else { s };
    match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest.len() == 1,
        other => other.len() == 1,
    }
}

fn async_stream<F, Fut>(work: F) -> tokio_stream::wrappers::ReceiverStream<Value>
where
    F: FnOnce(tokio::sync::mpsc::Sender<Value>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(1024);
    tokio::spawn(work(sender));
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

/// One node over one API.
pub struct Node {
    pub api: Api,
    pub runtime: FakeRuntime,
    pub host: Arc<FakeHost>,
    root: PathBuf,
    /// Another name of the kubelet's directory.
    pub known_as: Option<PathBuf>,
    /// What its settings have that others don't.
    settings: fn(&mut Config),
    /// What runs since the last start.
    kubelet: Arc<Mutex<Option<Arc<Kubelet>>>>,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

pub fn epoch() -> jiff::Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

impl Node {
    pub async fn start() -> Self {
        Self::start_in(Path::new("/var/lib/kubelet")).await
    }

    /// With another directory for the kubelet.
    pub async fn start_in(root: &Path) -> Self {
        Self::start_as(root, |_| ()).await
    }

    pub async fn start_with(settings: fn(&mut Config)) -> Self {
        Self::start_as(Path::new("/var/lib/kubelet"), settings).await
    }

    /// On a machine of these nodes of memory.
    pub async fn start_on(nodes: Nodes, settings: fn(&mut Config)) -> Self {
        let mut machine = FakeHost::small("n1", epoch()).machine().unwrap();
        machine.cpus = nodes.layout().cpus as i64;
        let host = FakeHost::new(machine, epoch());
        host.set_memory_nodes(nodes);
        Self::start_over(host, Path::new("/var/lib/kubelet"), settings).await
    }

    async fn start_as(root: &Path, settings: fn(&mut Config)) -> Self {
        Self::start_over(FakeHost::small("n1", epoch()), root, settings).await
    }

    async fn start_over(host: FakeHost, root: &Path, settings: fn(&mut Config)) -> Self {
        let api = Api::new();
        api.create(
            "namespaces/default/services",
            json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}}),
        );
        let mut node = Node {
            api,
            runtime: FakeRuntime::new(epoch(), "10.244.0"),
            host: Arc::new(host),
            root: root.to_owned(),
            known_as: None,
            settings,
            kubelet: Arc::default(),
            stop: CancellationToken::new(),
            task: None,
        };
        if root != Path::new("/var/lib/kubelet") {
            // A directory of its own is a real one.
            node.host.serve_sockets();
        }
        node.launch();
        node.until("the node is registered", |n| n.api.get("nodes/n1")).await;
        node
    }

    fn launch(&mut self) {
        let mut cfg = Config {
            node_name: "n1".into(),
            node_ips: vec!["192.168.0.1".into()],
            root_dir: self.root.clone(),
            known_as: self.known_as.clone(),
            cluster_dns: vec!["10.96.0.10".into()],
            listen: None,
            ..Config::default()
        };
        (self.settings)(&mut cfg);
        self.stop = CancellationToken::new();
        let building = build(
            self.host.clone(),
            self.api.client(),
            self.runtime.clients(),
            cfg,
            self.stop.clone(),
        );
        let place = self.kubelet.clone();
        self.task = Some(tokio::spawn(async move {
            let built = building.await?;
            *place.lock() = Some(built.clone());
            run_built(built).await
        }));
    }

    /// The kubelet that runs here.
    pub fn kubelet(&self) -> Arc<Kubelet> {
        self.kubelet.lock().clone().unwrap()
    }

    pub async fn halt(&mut self) {
        self.stop.cancel();
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    pub fn resume(&mut self) {
        self.launch();
    }

    pub fn pod(&self, spec: Value) -> String {
        self.pod_with(json!({"name": "p"}), spec)
    }

    pub fn pod_with(&self, mut metadata: Value, mut spec: Value) -> String {
        metadata["namespace"] = "default".into();
        let name = metadata["name"].as_str().unwrap().to_owned();
        spec["nodeName"] = "n1".into();
        for (key, value) in [
            ("restartPolicy", json!("Always")),
            ("terminationGracePeriodSeconds", json!(30)),
            ("enableServiceLinks", json!(true)),
            ("dnsPolicy", json!("ClusterFirst")),
        ] {
            if spec[key].is_null() {
                spec[key] = value;
            }
        }
        for list in ["containers", "initContainers"] {
            for c in spec[list].as_array_mut().into_iter().flatten() {
                if c["image"].is_null() {
                    c["image"] = "busybox:1".into();
                }
                c["imagePullPolicy"] = "IfNotPresent".into();
            }
        }
        self.api.create(
            "namespaces/default/pods",
            json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}),
        );
        format!("namespaces/default/pods/{name}")
    }

    /// Waits, in virtual time, until `look` finds something.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&Node) -> Option<T>) -> T {
        for _ in 0..20_000 {
            if let Some(found) = look(self) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let pods: Vec<Value> = self
            .api
            .list("namespaces/default/pods")
            .into_iter()
            .map(|p| p["status"].clone())
            .collect();
        panic!(
            "waited in vain until {what}; pods: {pods:#?}; events: {:#?}",
            self.events()
        );
    }

    pub async fn phase(&self, path: &str, phase: &str) -> Value {
        self.until(&format!("{path} is {phase}"), |n| {
            n.api.get(path).filter(|p| p["status"]["phase"] == phase)
        })
        .await
    }

    pub async fn ready(&self, path: &str) -> Value {
        self.until(&format!("{path} is ready"), |n| {
            n.api.get(path).filter(|p| condition(p, "Ready") == "True")
        })
        .await
    }

    pub async fn gone(&self, path: &str) {
        self.until(&format!("{path} is gone"), |n| n.api.get(path).is_none().then_some(()))
            .await;
    }

    /// Reasons and messages of events so far.
    pub fn events(&self) -> Vec<(String, String)> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        self.api
            .list("namespaces/default/events")
            .iter()
            .map(|e| (text(&e["reason"]), text(&e["message"])))
            .collect()
    }
}

pub fn condition(pod: &Value, kind: &str) -> String {
    let list = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.iter()
        .find(|c| c["type"] == kind)
        .map_or(String::new(), |c| c["status"].as_str().unwrap().to_owned())
}
