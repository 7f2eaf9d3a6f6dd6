//! All objects of a server as watches show them, by the scenario that they belong to.

use crate::controllers::api::{Api, Resource};
use crate::controllers::scenario::prefixes;
use anyhow::Result;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Not followed: who leads, and what controllers don't make.
const LEFT_OUT: &[&str] = &[
    "Lease",
    "FlowSchema",
    "PriorityLevelConfiguration",
    "APIService",
    "LeaseCandidate",
];

/// What a scenario's objects were and are.
#[derive(Clone, Default)]
pub struct Of {
    /// By version, kind, namespace and name.
    pub objects: BTreeMap<(String, String, String, String), Value>,
    /// All that were ever seen, as they were last, in the order in which they came, by uid.
    pub ever: Vec<Value>,
    /// Pods of StatefulSets as they came and went.
    pub order: Vec<String>,
    pub changed: Option<Instant>,
}

/// Whose objects are.
pub enum Whose {
    /// One scenario's of these, by names.
    Of(HashSet<String>),
    /// All this one's.
    All(String),
}

#[derive(Clone)]
pub struct Seen {
    all: Arc<Mutex<HashMap<String, Of>>>,
    whose: Arc<Whose>,
    /// Kinds of which each object that came or changed is told.
    told: &'static [&'static str],
    news: broadcast::Sender<Value>,
    /// How many of them the player hasn't answered.
    open: Arc<AtomicUsize>,
}

impl Seen {
    /// Follows everything until the set is dropped.
    pub fn start(api: &Api, whose: Whose, told: &'static [&'static str], tasks: &mut JoinSet<Result<()>>) -> Seen {
        let seen = Seen {
            all: Arc::default(),
            whose: Arc::new(whose),
            told,
            news: broadcast::Sender::new(1 << 16),
            open: Arc::default(),
        };
        for resource in api.resources.values() {
            let twice = resource.version.starts_with("events.k8s.io/");
            if twice || LEFT_OUT.contains(&resource.kind.as_str()) {
                continue;
            }
            let (seen, api, resource) = (seen.clone(), api.clone(), resource.clone());
            tasks.spawn(async move {
                api.follow(&resource, |sort, object| seen.take(&resource, sort, object))
                    .await
            });
        }
        seen
    }

    pub fn answered(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    pub fn all_answered(&self) -> bool {
        self.open.load(Ordering::SeqCst) == 0
    }

    pub fn news(&self) -> broadcast::Receiver<Value> {
        self.news.subscribe()
    }

    fn take(&self, resource: &Resource, sort: &str, object: Value) {
        if self.told.contains(&resource.kind.as_str()) && sort != "DELETED" {
            // Nobody listens before there are players.
            let heard = self.news.send(object.clone()).unwrap_or(0);
            self.open.fetch_add(heard, Ordering::SeqCst);
        }
        let Some(scenario) = self.scenario(resource, &object) else {
            return;
        };
        let mut all = self.all.lock();
        let of = all.entry(scenario).or_default();
        of.take(resource, sort, object);
    }

    /// Whose it is.
    fn scenario(&self, resource: &Resource, object: &Value) -> Option<String> {
        let names = match &*self.whose {
            Whose::Of(names) => names,
            Whose::All(name) => return Some(name.clone()),
        };
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).filter(|t| !t.is_empty());
        let outside = text("/spec/claimRef/namespace").or(text("/spec/source/persistentVolumeName"));
        let told = text("/involvedObject/name").filter(|_| text("/involvedObject/namespace").is_none());
        let of = match resource.namespaced {
            true => told.or(text("/metadata/namespace")),
            false => outside.or(text("/metadata/name")),
        }?;
        prefixes(of).find(|p| names.contains(*p)).map(str::to_string)
    }

    pub fn of(&self, scenario: &str) -> Of {
        self.all.lock().get(scenario).cloned().unwrap_or_default()
    }

    pub fn changed(&self, scenario: &str) -> Option<Instant> {
        self.all.lock().get(scenario).and_then(|of| of.changed)
    }

    pub fn object(&self, scenario: &str, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        let namespace = if resource.namespaced { namespace } else { "" };
        let key = (
            resource.version.clone(),
            resource.kind.clone(),
            namespace.into(),
            name.into(),
        );
        self.all
            .lock()
            .get(scenario)
            .and_then(|of| of.objects.get(&key).cloned())
    }

    /// Drops what is no longer asked for.
    pub fn forget(&self, scenario: &str) {
        self.all.lock().remove(scenario);
    }
}

impl Of {
    fn take(&mut self, resource: &Resource, sort: &str, object: Value) {
        let text = |at: &str| {
            object
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string()
        };
        let key = (
            resource.version.clone(),
            resource.kind.clone(),
            text("/metadata/namespace"),
            text("/metadata/name"),
        );
        let before = self.objects.get(&key);
        if resource.kind == "Pod" && text("/metadata/ownerReferences/0/kind") == "StatefulSet" {
            let ends = |o: &Value| o.pointer("/metadata/deletionTimestamp").is_some();
            let what = match before {
                None => "made",
                Some(_) if sort == "DELETED" => "gone",
                Some(before) if ends(&object) && !ends(before) => "ended",
                Some(_) => "",
            };
            if !what.is_empty() {
                self.order.push(format!("{what} {}", key.3));
            }
        }
        // A node's own word is no news.
        if resource.kind != "Node" || before.is_none_or(|b| told(b) != told(&object)) || sort == "DELETED" {
            self.changed = Some(Instant::now());
        }
        let uid = text("/metadata/uid");
        match self.ever.iter_mut().find(|o| o["metadata"]["uid"] == uid.as_str()) {
            Some(known) => *known = object.clone(),
            None => self.ever.push(object.clone()),
        }
        match sort {
            "DELETED" => self.objects.remove(&key),
            _ => self.objects.insert(key, object),
        };
    }
}

/// A node without its heartbeats.
fn told(node: &Value) -> Value {
    let mut node = node.clone();
    for condition in node
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        condition["lastHeartbeatTime"].take();
    }
    node["metadata"]["resourceVersion"].take();
    node["metadata"]["managedFields"].take();
    node
}
