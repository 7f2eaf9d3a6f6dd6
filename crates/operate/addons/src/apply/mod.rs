//! Makes objects of what servers' files say, one server for all of them.
//!
//! A file is one key, so that an ill one holds up no other. What comes of it stands in its [`Addon`]: written down before anything is applied,
//! so that whoever goes on knows what there may be.

mod content;
mod followers;
mod objects;

pub(crate) use objects::why;
mod prune;
mod said;
mod status;

use crate::addon::{APPLIED, Addon, AddonSpec, AddonStatus, CONFLICT, DEFINITION, FINALIZER, Told};
use crate::choose::{Choice, choose};
use crate::kinds::Kinds;
use crate::{MANAGER, PRUNE};
use async_trait::async_trait;
use content::Content;
use followers::Followers;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, PartialObject, Patch,
    Reconcile, Recorder, ResourceId, Rest, WorkQueue, delete_options, is_already_exists, is_not_found,
};
use objects::Memory;
use parking_lot::Mutex;
use said::Said;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// After a source changed: others that change with it come first.
const TOGETHER: Duration = Duration::from_secs(1);
/// What is refused is tried again after so long at the latest.
const LONGEST: Duration = Duration::from_secs(300);
const WORKERS: usize = 4;
/// What nobody says any more was perhaps taken away by somebody else than its server, which says it again.
const MISSED: Duration = Duration::from_secs(5);

pub struct Applier {
    rest: Rest,
    addons: Objects<Addon>,
    known: Informer<Addon>,
    said: Said,
    kinds: Arc<Kinds>,
    followers: Followers,
    recorder: Recorder,
    queue: Arc<WorkQueue<ObjectKey>>,
    memory: Mutex<BTreeMap<String, Memory>>,
    /// Whose files aren't applied as a whole.
    unsettled: Arc<Mutex<BTreeSet<String>>>,
    /// Which nobody says any more, and since when.
    missed: Mutex<BTreeMap<String, Instant>>,
}

/// Applies until `stop`. The kind of add-ons has to be there.
pub async fn run(rest: &Rest, sources: Informer<Secret>, stop: &CancellationToken) -> anyhow::Result<()> {
    let end = stop.child_token();
    let (stop, _ends) = (&end, end.clone().drop_guard());
    let known: Informer<Addon> = Informer::start(rest, InformerOptions::default(), stop);
    let definitions = Informer::<PartialObject>::metadata(
        rest,
        ResourceId::DEFINITIONS,
        keelson_client::informer::strip_managed_fields,
        stop,
    );
    let controller = Controller::new("addons")
        .input(&sources)
        .input(&known)
        .input(&definitions)
        .output(Addon::RESOURCE)
        .workers(WORKERS)
        .longest_delay(LONGEST);
    let queue = controller.queue();
    let unsettled: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let kinds = Arc::new(Kinds::new(rest.clone()));
    let told = queue.clone();
    sources.on_change(move |change| {
        for secret in change.old().into_iter().chain([change.object()]) {
            if let Some(addon) = crate::source::addon_of(secret) {
                told.add_after(ObjectKey::cluster(addon), TOGETHER);
            }
        }
    });
    let (told, others) = (queue.clone(), unsettled.clone());
    let all_unsettled = move || {
        for name in others.lock().iter() {
            told.add(ObjectKey::cluster(name));
        }
    };
    let (told, wake) = (queue.clone(), all_unsettled.clone());
    known.on_change(move |change| {
        let addon = change.object();
        let was_ready = change.old().is_some_and(|old| old.is_ready());
        if change.is_deleted() || addon.is_deleting() || change.old().is_none() {
            told.add(addon.key());
        }
        if change.is_deleted() || addon.is_ready() != was_ready {
            wake();
        }
    });
    let (of_kinds, wake) = (kinds.clone(), all_unsettled);
    let lost = Arc::new(Notify::new());
    let note = lost.clone();
    definitions.on_change(move |change| {
        if change.is_deleted() && change.object().name() == DEFINITION {
            note.notify_one();
        }
        of_kinds.forget();
        wake();
    });
    let applier = Applier {
        rest: rest.clone(),
        addons: Objects::new(rest),
        said: Said::new(sources, known.clone()),
        known,
        kinds,
        followers: Followers::new(rest.clone(), queue.clone(), stop.clone()),
        recorder: Recorder::start(rest, MANAGER, "", stop),
        queue,
        memory: Mutex::default(),
        unsettled,
        missed: Mutex::default(),
    };
    tokio::select! {
        () = controller.run(Arc::new(applier), stop.clone()) => Ok(()),
        // Whoever begins anew defines it first.
        () = lost.notified() => anyhow::bail!("somebody deleted the kind of add-ons"),
    }
}

#[async_trait]
impl Reconcile for Applier {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let name = key.name.as_str();
        let sources = self.said.sources(name);
        let addon = self.addons.find("", name).await?;
        let before = addon.as_ref().and_then(|a| a.status.as_ref()?.source.clone());
        let choice = choose(&sources, before.as_deref());
        if choice.is_some() {
            self.missed.lock().remove(name);
        } else if addon.as_ref().is_some_and(|a| !a.is_deleting())
            && let Some(time) = self.misses(name)
        {
            return Ok(Outcome::After(time));
        }
        let (addon, choice) = match (addon, choice) {
            (None, None) => {
                self.forget(name);
                return Ok(Outcome::Done);
            }
            (Some(addon), choice) if choice.is_none() || addon.is_deleting() => return self.remove(addon).await,
            (addon, Some(choice)) => (addon, choice),
            (Some(_), None) => return Ok(Outcome::Done),
        };
        let addon = match addon {
            Some(addon) => self.held(addon).await?,
            None => self.create(name, &choice.chosen.path).await?,
        };
        let mut status = addon.status.clone().unwrap_or_default();
        tell_sources(&mut status, &choice, &sources);
        let outcome = self.bring(&addon, choice.chosen, &mut status).await;
        if let Err(error) = &outcome {
            status.set(APPLIED, "False", "Failed", &format!("{error:#}; will retry"));
        }
        self.settle(name, &status);
        self.write(&addon, status).await?;
        outcome
    }
}

fn tell_sources(status: &mut AddonStatus, choice: &Choice, sources: &[crate::source::Source]) {
    status.source = Some(choice.chosen.shown());
    status.sources = sources
        .iter()
        .map(|s| Told {
            server: s.server.clone(),
            file: s.file.clone(),
            hash: s.hash.clone(),
        })
        .collect();
    if choice.other.is_empty() {
        status.unset(CONFLICT);
        return;
    }
    let other: Vec<String> = choice.other.iter().map(|s| s.shown()).collect();
    let message = format!(
        "{} is in force while it is there; another content isn't applied: {}",
        choice.chosen.shown(),
        other.join(", ")
    );
    status.set(CONFLICT, "True", "FilesDiffer", &message);
}

impl Applier {
    async fn create(&self, name: &str, path: &str) -> anyhow::Result<Addon> {
        let addon = Addon {
            metadata: ObjectMeta {
                name: Some(name.into()),
                finalizers: Some(vec![FINALIZER.into()]),
                ..ObjectMeta::default()
            },
            spec: AddonSpec { path: path.into() },
            status: None,
        };
        match self.addons.create(&addon).await {
            Err(error) if is_already_exists(&error) => Ok(self.addons.get("", name).await?),
            made => Ok(made?),
        }
    }

    /// It can't go without its objects.
    async fn held(&self, addon: Addon) -> anyhow::Result<Addon> {
        let mut all = addon.metadata.finalizers.clone().unwrap_or_default();
        if all.iter().any(|f| f == FINALIZER) {
            return Ok(addon);
        }
        all.push(FINALIZER.into());
        self.finalizers(&addon, all).await
    }

    async fn finalizers(&self, addon: &Addon, all: Vec<String>) -> anyhow::Result<Addon> {
        let body = json!({"metadata": {"finalizers": all, "resourceVersion": addon.metadata.resource_version}});
        Ok(self.addons.patch("", addon.name(), Patch::Merge(&body)).await?)
    }

    /// How long it is still waited for a file.
    fn misses(&self, name: &str) -> Option<Duration> {
        let now = Instant::now();
        let since = *self.missed.lock().entry(name.to_string()).or_insert(now);
        MISSED.checked_sub(now - since).filter(|time| !time.is_zero())
    }

    fn forget(&self, name: &str) {
        self.memory.lock().remove(name);
        self.unsettled.lock().remove(name);
        self.missed.lock().remove(name);
        self.followers.follow(name, BTreeMap::new());
    }

    fn settle(&self, name: &str, status: &AddonStatus) {
        let settled = status
            .conditions
            .iter()
            .any(|c| c.type_ == APPLIED && c.status == "True");
        let mut unsettled = self.unsettled.lock();
        match settled {
            true => unsettled.remove(name),
            false => unsettled.insert(name.to_string()),
        };
    }

    /// No file says it any more, or somebody deleted it: its objects go, then it does.
    async fn remove(&self, addon: Addon) -> anyhow::Result<Outcome> {
        let name = addon.name();
        if !addon.is_deleting() {
            let options = delete_options(None, Some(addon.uid()), None);
            match self.addons.delete("", name, &options).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let mut status = addon.status.clone().unwrap_or_default();
        let annotations = addon.metadata.annotations.as_ref();
        let keeps = annotations.and_then(|a| a.get(PRUNE)).is_some_and(|v| v == "false");
        self.follow(name, &status, &Content::default()).await;
        let left = match keeps {
            true => Ok(prune::Left::default()),
            false => self.prune(name, &mut status, |_| false).await,
        };
        let why = match &left {
            Ok(left) if left.is_empty() => {
                let all = addon.metadata.finalizers.clone().unwrap_or_default();
                let others = all.into_iter().filter(|f| f != FINALIZER).collect();
                // As it was read: what changed since is looked at again.
                let now = self.addons.find("", name).await?;
                if let Some(now) = now.filter(|now| now.uid() == addon.uid()) {
                    match self.finalizers(&now, others).await {
                        Err(error) if error.downcast_ref().is_some_and(is_not_found) => {}
                        done => drop(done?),
                    }
                }
                tracing::info!(addon = name, "an add-on is gone");
                self.forget(name);
                // A file of this name may have come meanwhile.
                self.queue.add_after(ObjectKey::cluster(name), TOGETHER);
                return Ok(Outcome::Done);
            }
            Ok(left) => left.why(),
            Err(error) => format!("{error:#}; will retry"),
        };
        status.set(APPLIED, "False", "Removing", &why);
        self.write(&addon, status).await?;
        match left {
            Ok(left) if left.failed.is_empty() => Ok(Outcome::Done),
            Ok(_) => Ok(Outcome::Retry),
            Err(error) => Err(error),
        }
    }
}
