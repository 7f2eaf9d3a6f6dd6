//! The objects that rules look at. A picture knows what it doesn't know: what was not asked for, or not allowed to be read,
//! is [`Lookup::Unknown`], never missing.

use crate::object::Fields;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::labels::{self, Labels};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lookup<'a> {
    Found(&'a Value),
    Missing,
    Unknown,
}

impl<'a> Lookup<'a> {
    pub fn found(self) -> Option<&'a Value> {
        match self {
            Lookup::Found(value) => Some(value),
            _ => None,
        }
    }
    pub fn is_missing(self) -> bool {
        self == Lookup::Missing
    }
}

/// What a picture should hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// All of a kind, in a namespace or (empty) everywhere.
    All(&'static str, String),
    One(&'static str, String, String),
    /// The last lines of a container's log: pod's namespace, pod, container; of the run before.
    Log(String, String, String, bool),
}

#[derive(Clone, Debug)]
pub struct Picture {
    /// By kind, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    /// Everything that exists is in it: for tests and exports.
    is_whole: bool,
    asked: BTreeSet<Need>,
    logs: BTreeMap<(String, String, String), String>,
    pub now: Timestamp,
}

impl Picture {
    pub fn new(now: Timestamp) -> Picture {
        Picture {
            objects: BTreeMap::new(),
            is_whole: false,
            asked: BTreeSet::new(),
            logs: BTreeMap::new(),
            now,
        }
    }

    /// A picture of all there is.
    pub fn whole(now: Timestamp, objects: impl IntoIterator<Item = Value>) -> Picture {
        let mut picture = Picture::new(now);
        picture.is_whole = true;
        objects.into_iter().for_each(|o| picture.add(o));
        picture
    }

    pub fn add(&mut self, object: Value) {
        let key = (object.namespace().to_string(), object.name().to_string());
        self.objects
            .entry(object.kind().to_string())
            .or_default()
            .insert(key, object);
    }

    /// Takes all of a kind out.
    pub fn take(&mut self, kind: &str) -> Vec<Value> {
        self.objects
            .remove(kind)
            .into_iter()
            .flat_map(BTreeMap::into_values)
            .collect()
    }

    pub fn add_log(&mut self, namespace: &str, pod: &str, container: &str, text: String) {
        self.logs.insert((namespace.into(), pod.into(), container.into()), text);
    }

    /// A need has been looked for, and what there is has been added.
    pub fn answered(&mut self, need: Need) {
        self.asked.insert(need);
    }

    pub fn has_asked(&self, need: &Need) -> bool {
        self.is_whole || self.asked.contains(need) || matches!(need, Need::One(kind, ns, _) if self.knows(kind, ns))
    }

    /// Whether all of a kind in a namespace (empty: everywhere) are here.
    pub fn knows(&self, kind: &str, namespace: &str) -> bool {
        let is_it = |need: &Need| matches!(need, Need::All(k, ns) if *k == kind && (ns.is_empty() || ns == namespace));
        self.is_whole || self.asked.iter().any(is_it)
    }

    pub fn find(&self, kind: &'static str, namespace: &str, name: &str) -> Lookup<'_> {
        let key = (namespace.to_string(), name.to_string());
        match self.objects.get(kind).and_then(|of_kind| of_kind.get(&key)) {
            Some(object) => Lookup::Found(object),
            None if self.has_asked(&Need::One(kind, namespace.into(), name.into())) => Lookup::Missing,
            None => Lookup::Unknown,
        }
    }

    /// Those of a kind that are known, in a namespace or (empty) everywhere.
    pub fn all(&self, kind: &str, namespace: &str) -> impl Iterator<Item = &Value> + use<'_> {
        let namespace = namespace.to_string();
        let of_kind = self.objects.get(kind).into_iter().flat_map(BTreeMap::values);
        of_kind.filter(move |o| namespace.is_empty() || o.namespace() == namespace)
    }

    pub fn controlled_by(&self, kind: &str, owner: &Value) -> Vec<&Value> {
        let all = self.all(kind, owner.namespace());
        all.filter(|o| o.is_controlled_by(owner.uid())).collect()
    }

    pub fn log(&self, namespace: &str, pod: &str, container: &str) -> Option<&str> {
        let key = (namespace.to_string(), pod.to_string(), container.to_string());
        self.logs.get(&key).map(String::as_str)
    }

    /// What was said of an object, the newest first. An event of another object that had the name doesn't count.
    pub fn events(&self, of: &Value) -> Vec<&Value> {
        let of_it = |e: &&Value| {
            let about = |field: &str| e.text(&format!("/involvedObject/{field}"));
            about("kind") == of.kind()
                && about("name") == of.name()
                && about("namespace") == of.namespace()
                && (about("uid").is_empty() || of.uid().is_empty() || about("uid") == of.uid())
        };
        let mut events: Vec<&Value> = self.all("Event", "").filter(of_it).collect();
        events.sort_by_key(|e| std::cmp::Reverse(self.when(e)));
        events
    }

    /// The newest event with one of these reasons.
    pub fn event(&self, of: &Value, reasons: &[&str]) -> Option<&Value> {
        let events = self.events(of);
        events.into_iter().find(|e| reasons.contains(&e.text("/reason")))
    }

    fn when(&self, event: &Value) -> Option<Timestamp> {
        let fields = [
            "/series/lastObservedTime",
            "/lastTimestamp",
            "/eventTime",
            "/metadata/creationTimestamp",
        ];
        fields.iter().find_map(|f| event.text(f).parse().ok())
    }

    /// How long ago something was; `None` where it isn't said.
    pub fn since(&self, time: &str) -> Option<SignedDuration> {
        time.parse::<Timestamp>().ok().map(|t| self.now.duration_since(t))
    }

    pub fn age_of(&self, event: &Value) -> Option<SignedDuration> {
        self.when(event).map(|t| self.now.duration_since(t))
    }
}

pub fn labels_of(object: &Value) -> Labels {
    let pairs = object.pairs("/metadata/labels").into_iter();
    pairs.map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// A LabelSelector of an object; `None` where there is none, or it can't be read.
pub fn selector(object: &Value, path: &str) -> Option<LabelSelector> {
    serde_json::from_value(object.pointer(path)?.clone()).ok()
}

pub fn selects(selector: &LabelSelector, object: &Value) -> bool {
    labels::matches(Some(selector), Some(&labels_of(object)))
}
