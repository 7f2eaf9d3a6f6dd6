//! Takes away what no file says any more: in the order opposite to that in which it came, each when what came after it is gone.
//!
//! Only the object that was applied: one that was made anew since, by somebody else, has another uid, and one that never was applied isn't managed
//! by us, whatever somebody wrote into an inventory. What another file says now goes over to it.
//! A definition of a kind of which there are objects left, of others, stays: they would go with it.

use super::Applier;
use super::objects::{WITHIN, why};
use super::said::Others;
use crate::addon::AddonStatus;
use crate::inventory::{Entry, ObjectId, stale};
use crate::order::rank;
use crate::{JSON, MANAGER, PRUNE};
use keelson_client::{ApiObject, EventType, Kind, ResourceId, delete_options, is_conflict, is_not_found};
use serde_json::Value;

#[derive(Debug, Default)]
pub struct Left {
    /// On their way out.
    pub going: Vec<String>,
    /// Couldn't be deleted.
    pub failed: Vec<String>,
}

impl Left {
    pub fn is_empty(&self) -> bool {
        self.going.is_empty() && self.failed.is_empty()
    }
    pub fn why(&self) -> String {
        let (count, all) = match self.failed.is_empty() {
            false => ("can't be deleted", &self.failed),
            true => ("are to go first", &self.going),
        };
        match all.as_slice() {
            [one] => format!("{count}: {one}"),
            many => format!(
                "{} objects {count}: {}",
                many.len(),
                many.first().map_or("", String::as_str)
            ),
        }
    }
}

enum Fate {
    Gone,
    /// It stays, and is no longer ours.
    Released(String),
    /// It stays although it should go.
    Kept(String),
    Going(String),
}

impl Applier {
    /// What is taken away leaves the inventory.
    pub(super) async fn prune(
        &self,
        addon: &str,
        status: &mut AddonStatus,
        said: impl Fn(&ObjectId) -> bool,
    ) -> anyhow::Result<Left> {
        let all: Vec<Entry> = stale(&status.objects, said).into_iter().cloned().collect();
        let mut left = Left::default();
        if all.is_empty() {
            return Ok(left);
        }
        let others = self.said.others(addon);
        let mut at = None;
        for entry in all {
            let rank = rank(&entry.group, &entry.kind);
            if at.is_some_and(|at| at != rank) && !left.is_empty() {
                // Those of lower rank have to outlive these.
                return Ok(left);
            }
            at = Some(rank);
            match self.take_away(&others, &entry).await {
                Ok(Fate::Going(how)) => left.going.push(format!("{} ({how})", entry.shown())),
                Ok(fate) => {
                    self.tell_fate(addon, &entry, &fate);
                    let id = entry.id();
                    status.objects.retain(|e| !e.is(&id));
                }
                Err(error) => left.failed.push(format!("{}: {}", entry.shown(), why(&error))),
            }
        }
        Ok(left)
    }

    fn tell_fate(&self, addon: &str, entry: &Entry, fate: &Fate) {
        let object = entry.shown();
        match fate {
            Fate::Released(why) => tracing::info!(addon, object, why, "an object that no file says any more stays"),
            Fate::Kept(why) => {
                tracing::warn!(addon, object, why, "an object that no file says any more stays");
                if let Some(known) = self.known.store().get("", addon) {
                    let about = keelson_client::events::reference(&crate::Addon::RESOURCE, known.meta());
                    let message = format!("{object} stays: {why}");
                    self.recorder.event_for(&about, EventType::Warning, "Kept", message);
                }
            }
            Fate::Gone | Fate::Going(_) => {
                tracing::info!(addon, object, "an object that no file says any more is gone")
            }
        }
    }

    async fn take_away(&self, others: &Others, entry: &Entry) -> keelson_client::Result<Fate> {
        if let Some(other) = others.who(&entry.id()) {
            return Ok(Fate::Released(format!("{other} says it")));
        }
        let resource = match self.kinds.find(&entry.api_version(), &entry.kind).await? {
            None => self.kinds.any(&entry.group, &entry.kind).await?,
            found => found,
        };
        // Without its kind there are no objects of it.
        let Some(resource) = resource else {
            return Ok(Fate::Gone);
        };
        let Some(live) = self.read(&resource, entry).await? else {
            return Ok(Fate::Gone);
        };
        if live["metadata"]["annotations"][PRUNE] == "false" {
            return Ok(Fate::Released(format!("{PRUNE} is false")));
        }
        let uid = live["metadata"]["uid"].as_str().unwrap_or_default();
        if !entry.uid.is_empty() && entry.uid != uid {
            return Ok(Fate::Released("it is another object of this name".into()));
        }
        if !is_managed(&live) {
            return Ok(Fate::Released("it isn't one that was applied here".into()));
        }
        if live["metadata"]["deletionTimestamp"].is_string() {
            return Ok(Fate::Going(crate::health::of(&live).message));
        }
        if resource == ResourceId::DEFINITIONS
            && let Some(kept) = self.in_use(&live).await?
        {
            return Ok(Fate::Kept(kept));
        }
        let options = delete_options(Some("Background"), Some(uid), None);
        let deleted = self.rest.delete_raw(&resource, &entry.namespace, &entry.name, &options);
        match tokio::time::timeout(WITHIN, deleted).await {
            Ok(Err(error)) if is_not_found(&error) || is_conflict(&error) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) => {}
            Err(_) => return Ok(Fate::Going("the API server didn't answer in time".into())),
        }
        match self.read(&resource, entry).await? {
            Some(live) if live["metadata"]["uid"] == uid => Ok(Fate::Going(crate::health::of(&live).message)),
            _ => Ok(Fate::Gone),
        }
    }

    async fn read(&self, resource: &ResourceId, entry: &Entry) -> keelson_client::Result<Option<Value>> {
        match self
            .rest
            .get_raw(resource, &entry.namespace, &entry.name, "", JSON)
            .await
        {
            Err(error) if is_not_found(&error) => Ok(None),
            found => serde_json::from_slice(&found?)
                .map(Some)
                .map_err(keelson_client::Error::SerdeError),
        }
    }

    /// Why a definition stays.
    async fn in_use(&self, definition: &Value) -> keelson_client::Result<Option<String>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let versions = definition["spec"]["versions"].as_array();
        let served = versions.into_iter().flatten().find(|v| v["served"] == true);
        let Some(version) = served.map(|v| text(&v["name"])) else {
            return Ok(None);
        };
        let (group, plural) = (
            text(&definition["spec"]["group"]),
            text(&definition["spec"]["names"]["plural"]),
        );
        let list = match self
            .rest
            .get(&format!("/apis/{group}/{version}/{plural}?limit=1"), JSON)
            .await
        {
            Err(error) if is_not_found(&error) => return Ok(None),
            list => list?,
        };
        let list: Value = serde_json::from_slice(&list).map_err(keelson_client::Error::SerdeError)?;
        let first = list["items"].as_array().and_then(|items| items.first());
        Ok(first.map(|one| {
            let name = text(&one["metadata"]["name"]);
            format!("there are {plural} left, which would go with it ({name}): delete it by hand when they may")
        }))
    }
}

fn is_managed(live: &Value) -> bool {
    let managers = live["metadata"]["managedFields"].as_array();
    managers
        .into_iter()
        .flatten()
        .any(|m| m["manager"] == MANAGER && m["operation"] == "Apply")
}
