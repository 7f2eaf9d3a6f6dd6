//! A server as small as controllers can be tested against: objects in a map, watches, one revision for all.
//! It knows no kind but what a test tells it, validates nothing, and answers at once.

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use keelson_client::in_process;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc;

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Watcher {
    collection: String,
    namespace: Option<String>,
    sender: mpsc::UnboundedSender<String>,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// By collection (`pods`, `replicasets`), namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    watchers: Vec<Watcher>,
}

/// What a test does to each object written, for instance what the server's defaults would.
pub type Defaults = fn(&str, &mut Value);

#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    defaults: Defaults,
}

/// Where a request goes: collection, namespace, name, subresource.
struct Target {
    collection: String,
    namespace: String,
    name: String,
    sub: String,
}

fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    let (namespace, rest) = match rest {
        ["namespaces", ns, rest @ ..] if !rest.is_empty() => (*ns, rest),
        rest => ("", rest),
    };
    let part = |i: usize| rest.get(i).copied().unwrap_or_default().to_string();
    Target {
        collection: part(0),
        namespace: namespace.to_string(),
        name: part(1),
        sub: part(2),
    }
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

impl State {
    fn tell(&mut self, kind: &str, collection: &str, namespace: &str, object: &Value) {
        self.watchers.retain(|w| {
            let wanted = w.collection == collection && w.namespace.as_deref().is_none_or(|ns| ns == namespace);
            !wanted || w.sender.send(line(kind, object)).is_ok()
        });
    }

    fn put(&mut self, key: (String, String, String), mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let kind = if self.objects.contains_key(&key) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.tell(kind, &key.0, &key.1, &object);
        self.objects.insert(key, object.clone());
        object
    }

    fn remove(&mut self, key: &(String, String, String)) {
        if let Some(mut object) = self.objects.remove(key) {
            self.revision += 1;
            object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            self.tell("DELETED", &key.0, &key.1, &object);
        }
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(have) = into[list].as_array_mut() {
                have.retain(|v| !value.as_array().is_some_and(|gone| gone.contains(v)));
            }
        } else if value.is_null() {
            if let Some(object) = into.as_object_mut() {
                object.remove(key);
            }
        } else {
            merge(&mut into[key.as_str()], value);
        }
    }
}

impl Api {
    pub fn new(defaults: Defaults) -> Self {
        Api {
            state: Arc::default(),
            defaults,
        }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap_or_default();
                let query = parts.uri.query().unwrap_or_default();
                if query.contains("watch=true") {
                    return Ok::<_, Infallible>(Response::new(api.watch(parts.uri.path())));
                }
                let (code, value) = api.handle(&parts.method, parts.uri.path(), &body);
                let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
                *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
                Ok(response)
            }
        });
        in_process(service, "default", |body| body)
    }

    fn watch(&self, path: &str) -> Body {
        let Target {
            collection, namespace, ..
        } = target(path);
        let namespace = (!namespace.is_empty()).then_some(namespace);
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        let mut first = String::new();
        for ((c, ns, _), object) in &state.objects {
            if *c == collection && namespace.as_ref().is_none_or(|n| n == ns) {
                first += &line("ADDED", object);
            }
        }
        let end = json!({"metadata": {"resourceVersion": state.revision.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}});
        first += &line("BOOKMARK", &end);
        let _ = sender.send(first);
        state.watchers.push(Watcher {
            collection,
            namespace,
            sender,
        });
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver
                .recv()
                .await
                .map(|text| (Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(text))), receiver))
        });
        BodyExt::boxed_unsync(StreamBody::new(stream))
    }

    fn handle(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        let Target {
            collection,
            namespace,
            mut name,
            sub,
        } = target(path);
        let given: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut state = self.state.lock();
        if *method == Method::POST {
            let mut object = given;
            state.revision += 1;
            let number = state.revision;
            let meta = &mut object["metadata"];
            if let (None, Some(prefix)) = (meta["name"].as_str(), meta["generateName"].as_str()) {
                meta["name"] = json!(format!("{prefix}{number}"));
            }
            name = meta["name"].as_str().unwrap_or_default().to_string();
            meta["uid"] = json!(format!("uid-{number}"));
            meta["generation"] = json!(1);
            meta["creationTimestamp"] = json!(format!("2026-01-01T00:{:02}:{:02}Z", number / 60 % 60, number % 60));
            (self.defaults)(&collection, &mut object);
            let key = (collection, namespace, name);
            if state.objects.contains_key(&key) {
                return fail(409, "AlreadyExists");
            }
            return (201, state.put(key, object));
        }
        let key = (collection.clone(), namespace, name);
        let Some(old) = state.objects.get(&key).cloned() else {
            return fail(404, "NotFound");
        };
        let new = match *method {
            Method::GET => return (200, old),
            Method::DELETE => {
                let holds = old["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
                if holds {
                    let mut marked = old;
                    marked["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                    return (200, state.put(key, marked));
                }
                state.remove(&key);
                return (200, old);
            }
            Method::PATCH => {
                let mut new = old.clone();
                merge(&mut new, &given);
                new
            }
            _ if given["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] => {
                return fail(409, "Conflict");
            }
            _ => {
                let mut new = if sub == "status" { old.clone() } else { given.clone() };
                if sub == "status" {
                    new["metadata"] = given["metadata"].clone();
                }
                new["status"] = if sub == "status" {
                    given["status"].clone()
                } else {
                    old["status"].clone()
                };
                if new["spec"] != old["spec"] {
                    new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
                }
                new
            }
        };
        let ends = !new["metadata"]["deletionTimestamp"].is_null()
            && new["metadata"]["finalizers"].as_array().is_none_or(|f| f.is_empty());
        if ends {
            state.remove(&key);
            return (200, new);
        }
        (200, if new == old { old } else { state.put(key, new) })
    }

    pub fn create(&self, path: &str, object: Value) {
        let (code, answer) = self.handle(&Method::POST, path, object.to_string().as_bytes());
        assert_eq!(code, 201, "{answer}");
    }

    /// Changes an object as somebody else would.
    pub fn change(&self, collection: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state.lock();
        let key = (collection.to_string(), namespace.to_string(), name.to_string());
        let Some(mut object) = state.objects.get(&key).cloned() else {
            return;
        };
        let before = object["spec"].clone();
        change(&mut object);
        if object["spec"] != before {
            object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        state.put(key, object);
    }

    pub fn all(&self, collection: &str) -> Vec<Value> {
        let state = self.state.lock();
        state
            .objects
            .iter()
            .filter(|((c, _, _), _)| c == collection)
            .map(|(_, object)| object.clone())
            .collect()
    }
}

fn fail(code: u16, reason: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason}),
    )
}
