//! Custom resources: definitions become rows of the resource table, and their statuses say so.
//!
//! One task follows the definitions. A definition whose names are free is served before its `Established` condition is
//! written, so that whoever waits for the condition finds the resource there. A definition being deleted takes its
//! resources along: they are deleted, waited for, and then the finalizer goes.
//!
//! Decoding, validation and storage of custom resources are the registry's, driven by the rows.

mod cleanup;
pub mod columns;
mod convert;
mod names;
mod rows;
mod strategy;

use crate::admission::Lookup;
use crate::live::Sink;
use crate::openapi::OpenApi;
use crate::serve::Loopback;
use keelson_api::{ApiError, Object, Reason, Str, Value};
use keelson_registry::{Engine, ResourceDef};
use names::Taken;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Where definitions are followed.
pub const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const RETRY: Duration = Duration::from_secs(1);

/// What the follower has seen and the task still has to look at: bounded by the number of definitions.
#[derive(Default)]
struct Seen {
    crds: BTreeMap<Str, Arc<Object>>,
    dirty: BTreeSet<Str>,
}

/// What a definition is served as.
#[derive(Clone, PartialEq)]
struct Installed {
    group: Str,
    plural: Str,
    /// What the rows were made from.
    basis: Value,
    terminating: bool,
}

pub struct CustomResources {
    engine: Arc<Engine>,
    lookup: Arc<Lookup>,
    loopback: Loopback,
    openapi: OpenApi,
    seen: Mutex<Seen>,
    wake: Notify,
    installed: Mutex<BTreeMap<Str, Installed>>,
    /// Definitions whose resources are being removed.
    cleaning: Mutex<BTreeSet<Str>>,
}

impl CustomResources {
    /// `is_alone`: no webhooks are asked for conversions.
    pub fn new(engine: Arc<Engine>, loopback: Loopback, openapi: OpenApi, is_alone: bool) -> Arc<CustomResources> {
        Arc::new(CustomResources {
            lookup: Arc::new(Lookup::new(engine.clone()).alone(is_alone)),
            engine,
            loopback,
            openapi,
            seen: Mutex::default(),
            wake: Notify::new(),
            installed: Mutex::default(),
            cleaning: Mutex::default(),
        })
    }

    /// What the followed definitions go to.
    pub fn sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(CrdSink(self.clone()))
    }

    fn see(&self, f: impl FnOnce(&mut Seen)) {
        f(&mut self.seen.lock());
        self.wake.notify_one();
    }

    fn crd(&self, name: &str) -> Option<Arc<Object>> {
        self.seen.lock().crds.get(name).cloned()
    }

    /// Works until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = self.seen.lock().dirty.pop_first();
            let Some(name) = next else {
                tokio::select! {
                    () = self.wake.notified() => continue,
                    () = stop.cancelled() => return,
                }
            };
            if let Err(e) = self.reconcile(&name, &stop).await {
                tracing::warn!(%name, "a definition could not be brought up to date, trying again: {e}");
                self.again(name, RETRY);
            }
        }
    }

    fn again(self: &Arc<Self>, name: Str, after: Duration) {
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            this.see(|s| {
                s.dirty.insert(name);
            });
        });
    }

    async fn reconcile(self: &Arc<Self>, name: &Str, stop: &CancellationToken) -> Result<(), ApiError> {
        let Some(crd) = self.crd(name) else {
            self.uninstall(name);
            return Ok(());
        };
        let group = text(&crd, &["spec", "group"]);
        let planned = names::plan(&crd, &self.taken(&group, name), &keelson_registry::meta::now());
        if names::is_true(&planned, "Established") {
            self.install(name, &planned);
        }
        if planned != *crd {
            self.write_status(&planned).await?;
        }
        let finalizer = keelson_registry::resources::crd::CLEANUP_FINALIZER;
        if crd.deletion_timestamp().is_some()
            && crd.finalizers().any(|f| f == finalizer)
            && self.cleaning.lock().insert(name.clone())
        {
            self.clean(name.clone(), stop.clone());
        }
        Ok(())
    }

    /// The names that other definitions of the group hold.
    fn taken(&self, group: &str, except: &str) -> Taken {
        let mut taken = Taken::default();
        let seen = self.seen.lock();
        let others = seen
            .crds
            .iter()
            .filter(|(n, c)| *n != except && text(c, &["spec", "group"]) == group);
        others.for_each(|(_, c)| taken.add(c));
        taken
    }

    fn install(&self, name: &Str, crd: &Object) {
        let basis = Value::Array(vec![
            crd.get("spec").cloned().unwrap_or_default(),
            crd.at(&["status", "acceptedNames"]).cloned().unwrap_or_default(),
        ]);
        let new = Installed {
            group: text(crd, &["spec", "group"]).into(),
            plural: text(crd, &["status", "acceptedNames", "plural"]).into(),
            basis,
            terminating: crd.deletion_timestamp().is_some(),
        };
        let mut installed = self.installed.lock();
        if installed.get(name) == Some(&new) {
            return;
        }
        let mut rows = rows::of(crd, &self.lookup);
        let before = installed.get(name);
        // That a definition is going changes nothing of what is stored: watches see its resources go, and then end.
        let same = before.is_some_and(|old| old.basis == new.basis);
        if same {
            self.keep_storage(&mut rows);
        }
        self.engine.table.replace(&new.group, &new.plural, rows);
        // What the cache keeps of each entry follows the definition: with a changed one it starts anew, and so do
        // watches. The rows change first: whoever makes the next cache makes it by them.
        if before.is_some() && !same {
            self.engine
                .drop_cache(&format!("/registry/{}/{}", new.group, new.plural));
        }
        self.openapi.publish(name, rows::described(crd));
        installed.insert(name.clone(), new);
    }

    /// Lets rows store as the ones they replace do.
    fn keep_storage(&self, rows: &mut [ResourceDef]) {
        for row in rows {
            let gvr = &row.gvr;
            if let Some(old) = self.engine.table.get(&gvr.group, &gvr.version, &gvr.resource) {
                row.storage.clone_from(&old.storage);
                row.view.clone_from(&old.view);
            }
        }
    }

    /// Takes a definition's rows away; its names are free for others.
    fn uninstall(&self, name: &Str) {
        let Some(old) = self.installed.lock().remove(name) else {
            return;
        };
        self.engine.table.replace(&old.group, &old.plural, Vec::new());
        self.openapi.publish(name, Vec::new());
        self.engine
            .drop_cache(&format!("/registry/{}/{}", old.group, old.plural));
        self.see(|s| {
            let waiting: Vec<Str> = s
                .crds
                .iter()
                .filter(|(_, c)| text(c, &["spec", "group"]) == old.group && !names::is_true(c, "NamesAccepted"))
                .map(|(n, _)| n.clone())
                .collect();
            s.dirty.extend(waiting);
        });
    }

    /// Writes a status; that somebody was faster or the object is gone is no failure, since either is seen.
    async fn write_status(&self, crd: &Object) -> Result<(), ApiError> {
        let path = format!("{PATH}/{}/status", crd.name());
        match self
            .loopback
            .send(http::Method::PUT, &path, Some(&Value::Object(crd.0.clone())))
            .await
        {
            Ok(_) => Ok(()),
            Err(e) if e.is(Reason::Conflict) || e.is(Reason::NotFound) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn clean(self: &Arc<Self>, name: Str, stop: CancellationToken) {
        let this = self.clone();
        tokio::spawn(async move {
            let result = tokio::select! {
                r = cleanup::run(&this, &name) => r,
                () = stop.cancelled() => return,
            };
            this.cleaning.lock().remove(&name);
            if let Err(e) = result {
                tracing::warn!(%name, "removing the resources of a definition failed, trying again: {e}");
                this.again(name, RETRY);
            }
        });
    }
}

fn text(o: &Object, path: &[&str]) -> String {
    o.at(path).and_then(Value::as_str).unwrap_or_default().to_string()
}

struct CrdSink(Arc<CustomResources>);

impl CrdSink {
    /// What is established is served at once, whoever established it.
    fn serve(&self, o: &Object) {
        if names::is_true(o, "Established") {
            self.0.install(&o.name().into(), o);
        }
    }
}

impl Sink for CrdSink {
    fn replace(&self, objects: Vec<Object>) {
        objects.iter().for_each(|o| self.serve(o));
        self.0.see(|s| {
            let old = std::mem::take(&mut s.crds);
            s.dirty.extend(old.into_keys());
            for o in objects {
                let name = Str::from(o.name());
                s.dirty.insert(name.clone());
                s.crds.insert(name, Arc::new(o));
            }
        });
    }
    fn set(&self, object: Object) {
        self.serve(&object);
        self.0.see(|s| {
            let name = Str::from(object.name());
            s.dirty.insert(name.clone());
            s.crds.insert(name, Arc::new(object));
        });
    }
    fn delete(&self, object: Object) {
        self.0.see(|s| {
            s.crds.remove(object.name());
            s.dirty.insert(object.name().into());
        });
    }
}
