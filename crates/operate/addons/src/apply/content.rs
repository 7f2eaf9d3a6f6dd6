//! From a file to what is to be applied: which resource each object is, in which order, and what can't be yet.

use super::{Applier, prune};
use crate::addon::{APPLIED, Addon, AddonStatus};
use crate::health::State;
use crate::inventory::{Entry, ObjectId};
use crate::manifest::{self, Manifest};
use crate::order::{circle, rank};
use crate::source::Source;
use keelson_client::{ApiObject, ObjectKey, Outcome, ResourceId};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An object that is to be applied.
pub struct Item {
    pub id: ObjectId,
    pub resource: ResourceId,
    pub value: Value,
}

/// What a file says, as far as the server knows such kinds.
#[derive(Default)]
pub struct Content {
    pub items: Vec<Item>,
    /// Objects of kinds that aren't served.
    pub missing: Vec<ObjectId>,
    pub missing_kinds: BTreeSet<String>,
}

impl Applier {
    /// Brings the cluster to what the file says. Changes `status`; who calls writes it.
    pub(super) async fn bring(
        &self,
        addon: &Addon,
        chosen: &Source,
        status: &mut AddonStatus,
    ) -> anyhow::Result<Outcome> {
        let name = addon.name();
        let unread = |why: &str| format!("{}: {why}; what was applied before stays", chosen.shown());
        let manifests = match chosen.content.text() {
            Err(why) => {
                status.set(APPLIED, "False", "Unreadable", &unread(&why));
                return self.only_look(name, status).await;
            }
            Ok(text) => manifest::read(&text),
        };
        let manifests = match manifests {
            Err(why) => {
                status.set(APPLIED, "False", "Invalid", &unread(&why));
                return self.only_look(name, status).await;
            }
            Ok(manifests) => manifests,
        };
        if let Some((reason, why)) = self.waits(name, &manifest::depends_on(&manifests)) {
            status.set(APPLIED, "False", reason, &why);
            return self.only_look(name, status).await;
        }
        let content = match self.resolve(manifests).await? {
            Ok(content) => content,
            Err(why) => {
                status.set(APPLIED, "False", "Invalid", &unread(&why));
                return self.only_look(name, status).await;
            }
        };
        self.apply(addon, chosen, content, status).await
    }

    async fn apply(
        &self,
        addon: &Addon,
        chosen: &Source,
        content: Content,
        status: &mut AddonStatus,
    ) -> anyhow::Result<Outcome> {
        let name = addon.name();
        let known = status.objects.len();
        if note(status, &content) {
            if is_too_much(status) {
                status.objects.truncate(known);
                let why = format!(
                    "{} objects are more than can be noted, with those of before ({known}): make several files of it",
                    content.items.len()
                );
                status.set(APPLIED, "False", "TooMuch", &why);
                return self.only_look(name, status).await;
            }
            // Before anything is there: who goes on after a crash has to know of it.
            let written = self.write(addon, status.clone()).await?;
            *status = written.unwrap_or_else(|| status.clone());
        }
        self.follow(name, status, &content).await;
        // Before: what comes of applying is newer than what is followed.
        self.look(status);
        let (failed, held) = self.apply_all(name, &content, status).await?;
        let mut left = prune::Left::default();
        if failed.is_empty() && content.missing.is_empty() {
            let said: BTreeSet<&ObjectId> = content.items.iter().map(|i| &i.id).collect();
            left = self.prune(name, status, |id| said.contains(id)).await?;
        }
        status.judge();
        let all = content.items.len() + content.missing.len();
        let outcome = if let Some(first) = failed.first() {
            status.set(
                APPLIED,
                "False",
                "Refused",
                &format!("{} of {all} objects can't be applied: {first}", failed.len()),
            );
            Outcome::Retry
        } else if !content.missing.is_empty() {
            let kinds: Vec<&str> = content.missing_kinds.iter().map(String::as_str).collect();
            let message = format!(
                "{} of {all} objects wait: there is no kind {}",
                content.missing.len(),
                kinds.join(", ")
            );
            status.set(APPLIED, "False", "Waiting", &message);
            Outcome::Retry
        } else if left.is_empty() {
            status.hash = Some(chosen.hash.clone());
            status.set(
                APPLIED,
                "True",
                "Applied",
                &format!("all {all} objects are as the file says"),
            );
            Outcome::Done
        } else {
            status.set(APPLIED, "False", "Pruning", &left.why());
            if left.failed.is_empty() {
                Outcome::Done
            } else {
                Outcome::Retry
            }
        };
        Ok(match (outcome, held) {
            (Outcome::Done, Some(time)) => Outcome::After(time),
            (outcome, _) => outcome,
        })
    }

    /// Nothing is applied; how what is there is, is told all the same.
    async fn only_look(&self, name: &str, status: &mut AddonStatus) -> anyhow::Result<Outcome> {
        self.follow(name, status, &Content::default()).await;
        self.look(status);
        status.judge();
        Ok(Outcome::Done)
    }

    pub(super) fn look(&self, status: &mut AddonStatus) {
        for entry in &mut status.objects {
            let live = self.followers.get(entry);
            match live {
                None => {}
                Some(None) if entry.uid.is_empty() => {
                    entry.state = State::NotFound;
                    if entry.message.is_empty() {
                        entry.message = "it isn't there yet".into();
                    }
                }
                Some(None) => {
                    entry.state = State::NotFound;
                    entry.message = "it isn't there".into();
                }
                Some(Some(live)) => {
                    entry.state = live.health.state;
                    entry.message = live.health.message.clone();
                }
            }
        }
    }

    /// Follows all kinds that have to do with it, and waits until they are known, for a while.
    pub(super) async fn follow(&self, name: &str, status: &AddonStatus, content: &Content) {
        let mut wanted: BTreeMap<ResourceId, BTreeSet<ObjectKey>> = BTreeMap::new();
        for item in &content.items {
            let key = ObjectKey::new(&item.id.namespace, &item.id.name);
            wanted.entry(item.resource.clone()).or_default().insert(key);
        }
        for entry in &status.objects {
            if let Ok(Some(resource)) = self.kinds.find(&entry.api_version(), &entry.kind).await {
                let key = ObjectKey::new(&entry.namespace, &entry.name);
                wanted.entry(resource).or_default().insert(key);
            }
        }
        self.followers.follow(name, wanted);
        let known = tokio::time::timeout(Duration::from_secs(10), self.followers.known(name)).await;
        if known.is_err() {
            tracing::debug!(addon = name, "not all kinds of an add-on can be followed yet");
        }
    }

    /// Why it isn't its turn.
    fn waits(&self, name: &str, needs: &[String]) -> Option<(&'static str, String)> {
        if needs.is_empty() {
            return None;
        }
        let all: BTreeMap<String, Vec<String>> = self.said.dependencies();
        if let Some(way) = circle(name, &all) {
            return Some((
                "DependencyCircle",
                format!("add-ons wait for each other: {}", way.join(" → ")),
            ));
        }
        let known = self.known.store();
        for needed in needs {
            match known.get("", needed) {
                None => {
                    return Some((
                        "Dependency",
                        format!("it waits for {needed}, and there is no such add-on"),
                    ));
                }
                Some(other) if !other.is_ready() || other.is_deleting() => {
                    return Some(("Dependency", format!("it waits for {needed} to be ready")));
                }
                Some(_) => {}
            }
        }
        None
    }

    /// `Err`: the file contradicts itself.
    async fn resolve(&self, manifests: Vec<Manifest>) -> keelson_client::Result<Result<Content, String>> {
        let mut content = Content::default();
        let mut seen = BTreeSet::new();
        for manifest in manifests {
            let mut id = ObjectId {
                group: manifest.group().into(),
                kind: manifest.kind.clone(),
                namespace: manifest.namespace.clone().unwrap_or_default(),
                name: manifest.name.clone(),
            };
            let shown = manifest.shown();
            match self.kinds.find(&manifest.api_version, &manifest.kind).await? {
                None => {
                    content
                        .missing_kinds
                        .insert(format!("{} in {}", manifest.kind, manifest.api_version));
                    content.missing.push(id);
                }
                Some(resource) => {
                    id.namespace = match (resource.namespaced, id.namespace.as_str()) {
                        (false, _) => String::new(),
                        (true, "") => "default".into(),
                        (true, given) => given.into(),
                    };
                    if !seen.insert(id.clone()) {
                        return Ok(Err(format!("it says {shown} twice")));
                    }
                    content.items.push(Item {
                        value: manifest.value,
                        id,
                        resource,
                    });
                }
            }
        }
        content.items.sort_by_key(|item| rank(&item.id.group, &item.id.kind));
        Ok(Ok(content))
    }
}

/// Adds to the inventory what isn't in it yet. Whether there was anything.
fn note(status: &mut AddonStatus, content: &Content) -> bool {
    let known: BTreeSet<ObjectId> = status.objects.iter().map(Entry::id).collect();
    let mut any = false;
    for item in &content.items {
        if !known.contains(&item.id) {
            any = true;
            status.objects.push(Entry {
                group: item.id.group.clone(),
                version: item.resource.version.to_string(),
                kind: item.id.kind.clone(),
                namespace: item.id.namespace.clone(),
                name: item.id.name.clone(),
                ..Entry::default()
            });
        }
    }
    // By what each is applied now: versions of kinds go.
    let versions: BTreeMap<&ObjectId, &str> = content
        .items
        .iter()
        .map(|item| (&item.id, &*item.resource.version))
        .collect();
    for entry in &mut status.objects {
        if let Some(version) = versions.get(&entry.id()) {
            entry.version = (*version).to_string();
        }
    }
    any
}

/// The API takes an object of a megabyte and a half.
const LARGEST: usize = 1 << 20;

/// Messages apart, which are cut where there are many.
fn is_too_much(status: &AddonStatus) -> bool {
    let each = |e: &Entry| e.group.len() + e.version.len() + e.kind.len() + e.namespace.len() + e.name.len() + 150;
    status.objects.iter().map(each).sum::<usize>() > LARGEST
}
