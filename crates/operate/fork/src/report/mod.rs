//! What became of a copy: from two pictures of it, before and after something was tried.

mod changes;
mod held;
mod pods;
mod text;

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// All objects, by resource (`deployments.apps`), namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Picture(BTreeMap<Key, Value>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Key {
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.namespace.is_empty() {
            true => write!(f, "{} {}", self.resource, self.name),
            false => write!(f, "{} {}/{}", self.resource, self.namespace, self.name),
        }
    }
}

impl Picture {
    pub fn add(&mut self, resource: &str, object: Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = Key {
            resource: resource.to_owned(),
            namespace: text("namespace"),
            name: text("name"),
        };
        self.0.insert(key, object);
    }

    fn get(&self, key: &Key) -> Option<&Value> {
        self.0.get(key)
    }

    fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        let (resource, namespace, name) = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.get(&Key {
            resource,
            namespace,
            name,
        })
    }

    fn of<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        self.0.iter().filter(move |(key, _)| key.resource == resource)
    }
}

/// What is told of a try.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub changes: Vec<Change>,
    /// How many objects that others make (a deployment's replica sets) changed, by resource.
    pub kept: BTreeMap<String, usize>,
    pub workloads: Vec<Workload>,
    /// Pods that stay on nodes that were closed to pods.
    pub stays: Vec<Stay>,
    /// Budgets that allow no disruption any more.
    pub budgets: Vec<String>,
    /// What controllers were refused, or complained of.
    pub warnings: Vec<Warning>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    Create,
    Change,
    Delete,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub what: What,
    #[serde(flatten)]
    pub object: Key,
    /// Which fields differ; of a secret not how.
    pub fields: Vec<String>,
}

/// Pods of one owner that come, go or wait.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// `deployment shop/web`; a pod of nobody's is its own.
    pub owner: String,
    pub pods: Vec<Pod>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub name: String,
    /// On which node it was; `None`: there was none of this name, or it was on none.
    pub before: Option<String>,
    /// On which node it is; `None`: it is gone, or waits.
    pub after: Option<String>,
    pub is_gone: bool,
    /// Why it waits for a node.
    pub waits: Option<String>,
    /// What it names and isn't there: it wouldn't start.
    pub missing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stay {
    pub node: String,
    pub pod: String,
    /// Budgets that allow no disruption of it.
    pub budgets: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Warning {
    pub about: String,
    pub reason: String,
    pub message: String,
}

pub fn report(before: &Picture, after: &Picture) -> Report {
    let (changes, kept) = changes::changes(before, after);
    Report {
        changes,
        kept,
        workloads: pods::workloads(before, after),
        stays: held::stays(before, after),
        budgets: held::budgets(before, after),
        warnings: held::warnings(before, after),
    }
}

/// The owner that keeps an object.
fn controller(object: &Value) -> Option<&Value> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(path).and_then(Value::as_array).into_iter().flatten()
}
