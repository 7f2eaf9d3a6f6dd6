//! The APIServices that name a service, what their servers told of their resources, and those servers that run within this
//! process: they are asked directly, whatever the cluster has under their service's name.

use crate::live::Sink;
use crate::serve::Handle;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{Object, Str, Value, value};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// An APIService behind which another server stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    pub name: Str,
    pub group: Str,
    pub version: Str,
    pub group_priority: i64,
    pub version_priority: i64,
    pub namespace: Str,
    pub service: Str,
    pub port: i64,
    pub ca_pem: String,
    pub insecure: bool,
    pub available: bool,
}

#[derive(Default)]
struct Tables {
    remote: BTreeMap<(Str, Str), Arc<Remote>>,
    /// By group and version: the version's entry in aggregated discovery.
    discovery: BTreeMap<(Str, Str), Value>,
    generation: u64,
}

#[derive(Default)]
pub struct Services {
    tables: RwLock<Tables>,
    /// By namespace and name of the service.
    here: RwLock<BTreeMap<(Str, Str), Arc<dyn Handle>>>,
    changed: watch::Sender<u64>,
}

impl Services {
    pub fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let tables = self.tables.read();
        if tables.remote.is_empty() {
            return None;
        }
        tables.remote.get(&(Str::from(group), Str::from(version))).cloned()
    }
    /// The server behind a service runs here.
    pub fn run_here(&self, namespace: &str, service: &str, server: Arc<dyn Handle>) {
        self.here.write().insert((namespace.into(), service.into()), server);
        self.change(|_| ());
    }
    pub fn here(&self, remote: &Remote) -> Option<Arc<dyn Handle>> {
        let key = (remote.namespace.clone(), remote.service.clone());
        self.here.read().get(&key).cloned()
    }
    pub fn remote(&self) -> Vec<Arc<Remote>> {
        self.tables.read().remote.values().cloned().collect()
    }
    /// Grows with every change.
    pub fn generation(&self) -> u64 {
        self.tables.read().generation
    }
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
    /// What a version's server told of itself; a stale entry when it wasn't reached.
    pub fn discovery(&self, group: &str, version: &str) -> Value {
        let found = self
            .tables
            .read()
            .discovery
            .get(&(group.into(), version.into()))
            .cloned();
        found.unwrap_or_else(|| value!({"version": version, "freshness": "Stale"}))
    }
    pub fn set_discovery(&self, group: &str, version: &str, entry: Option<Value>) {
        self.change(|t| {
            let key = (group.into(), version.into());
            match entry {
                Some(entry) => t.discovery.insert(key, entry).is_none(),
                None => t.discovery.remove(&key).is_some(),
            };
        });
    }

    fn change(&self, f: impl FnOnce(&mut Tables)) {
        let generation = {
            let mut tables = self.tables.write();
            f(&mut tables);
            tables.generation += 1;
            tables.generation
        };
        self.changed.send_replace(generation);
    }

    pub fn sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(ServiceSink(self.clone()))
    }
}

struct ServiceSink(Arc<Services>);

fn read(o: &Object) -> Option<Remote> {
    let spec = o.obj("spec")?;
    let service = spec.obj("service")?;
    let text = |key: &str| Str::from(spec.str(key).unwrap_or_default());
    let ca = spec
        .str("caBundle")
        .and_then(|b| STANDARD.decode(b).ok())
        .unwrap_or_default();
    let conditions = o.at(&["status", "conditions"]).and_then(Value::as_array);
    let available = conditions.into_iter().flatten().any(|c| {
        c.get("type").and_then(Value::as_str) == Some("Available")
            && c.get("status").and_then(Value::as_str) == Some("True")
    });
    Some(Remote {
        name: o.name().into(),
        group: text("group"),
        version: text("version"),
        group_priority: spec.int("groupPriorityMinimum").unwrap_or(0),
        version_priority: spec.int("versionPriority").unwrap_or(0),
        namespace: service.str("namespace").unwrap_or_default().into(),
        service: service.str("name").unwrap_or_default().into(),
        port: service.int("port").unwrap_or(443),
        ca_pem: String::from_utf8(ca).unwrap_or_default(),
        insecure: spec.bool("insecureSkipTLSVerify").unwrap_or(false),
        available,
    })
}

impl Sink for ServiceSink {
    fn replace(&self, objects: Vec<Object>) {
        let remote: BTreeMap<_, _> = objects
            .iter()
            .filter_map(read)
            .map(|r| ((r.group.clone(), r.version.clone()), Arc::new(r)))
            .collect();
        if remote != self.0.tables.read().remote {
            self.0.change(|t| {
                t.discovery.retain(|k, _| remote.contains_key(k));
                t.remote = remote;
            });
        }
    }
    fn set(&self, object: Object) {
        let Some(remote) = read(&object) else {
            return self.delete(object);
        };
        let key = (remote.group.clone(), remote.version.clone());
        if self.0.tables.read().remote.get(&key).is_none_or(|r| **r != remote) {
            self.0.change(|t| drop(t.remote.insert(key, Arc::new(remote))));
        }
    }
    fn delete(&self, object: Object) {
        let found = self
            .0
            .tables
            .read()
            .remote
            .iter()
            .find(|(_, r)| r.name == object.name())
            .map(|(k, _)| k.clone());
        if let Some(key) = found {
            self.0.change(|t| {
                t.remote.remove(&key);
                t.discovery.remove(&key);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_services_elsewhere_are_remote() {
        let services = Arc::new(Services::default());
        let sink = services.sink();
        let object = |v: Value| Object::try_from(v).unwrap();
        sink.set(object(
            value!({"metadata": {"name": "v1.apps"}, "spec": {"group": "apps", "version": "v1"}}),
        ));
        assert_eq!(services.generation(), 0);
        let mut remote = value!({"metadata": {"name": "v1.x.io"}, "spec": {
            "group": "x.io", "version": "v1", "service": {"namespace": "n", "name": "s"}, "groupPriorityMinimum": 5,
        }, "status": {"conditions": [{"type": "Available", "status": "False"}]}});
        sink.set(object(remote.clone()));
        let found = services.find("x.io", "v1").unwrap();
        assert_eq!((found.port, found.available), (443, false));
        remote.set_at(
            &["status", "conditions"],
            vec![value!({"type": "Available", "status": "True"})],
        );
        sink.set(object(remote.clone()));
        assert!(services.find("x.io", "v1").unwrap().available);
        sink.delete(object(remote));
        assert!(services.find("x.io", "v1").is_none());
    }
}
