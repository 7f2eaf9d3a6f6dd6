//! Applies objects, and only those that need it: what the file says has changed, or somebody changed what is there.
//!
//! The server's answer is remembered. What differs from it later was changed by somebody else: it is applied again, which brings back our fields
//! and leaves the others. Who brings back what another controller brings back waits longer each time.

use super::Applier;
use super::content::{Content, Item};
use crate::addon::AddonStatus;
use crate::drift::{Applied, Need, need, to_send};
use crate::health::State;
use crate::inventory::{Entry, ObjectId};
use crate::live::{Live, digest};
use crate::{JSON, MANAGER, REPLACE};
use keelson_client::{ApiObject, Error, EventType, Kind, Patch, ResourceId, delete_options, is_invalid, is_not_found};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For one request.
pub const WITHIN: Duration = Duration::from_secs(30);
/// What is known of an add-on's objects since this server leads.
pub type Memory = BTreeMap<ObjectId, Applied>;

/// From then on somebody else's changes are told.
const TOLD: u32 = 5;

impl Applier {
    /// In their order. What is refused is told, and keeps nothing else from being applied. The second: when something waits until then.
    pub(super) async fn apply_all(
        &self,
        addon: &str,
        content: &Content,
        status: &mut AddonStatus,
    ) -> anyhow::Result<(Vec<String>, Option<Duration>)> {
        let mut failed = Vec::new();
        let mut held: Option<Duration> = None;
        let mut memory = self.memory.lock().get(addon).cloned().unwrap_or_default();
        let said: BTreeSet<&ObjectId> = content.items.iter().map(|i| &i.id).collect();
        memory.retain(|id, _| said.contains(id));
        for item in &content.items {
            let body = to_send(addon, &item.id, &item.value);
            let manifest = digest(&body);
            let live = self.followers.find(&item.resource, &item.id.namespace, &item.id.name);
            if let Some(other) = self.somebody_elses(addon, &item.id, live.as_ref()) {
                failed.push(format!("{} is {other}'s, whose file says it too", shown(&item.id)));
                status.objects.retain(|e| !e.is(&item.id));
                continue;
            }
            let before = memory.get(&item.id);
            let applied = match need(before, &manifest, live.as_ref().map(|l| l.as_deref()), Instant::now()) {
                Need::Nothing => continue,
                Need::Hold(time) => {
                    held = Some(held.map_or(time, |h| h.min(time)));
                    continue;
                }
                Need::Apply => self.send(item, &body).await,
            };
            match applied {
                Ok(now) => {
                    let was = live.as_ref().and_then(|l| l.as_deref());
                    let noted = Applied::after(before, manifest, was, &now, Instant::now());
                    if before.is_some_and(|b| b.taken_back < noted.taken_back) {
                        self.contested(addon, &item.id, noted.taken_back);
                    }
                    memory.insert(item.id.clone(), noted);
                    if let Some(entry) = status.objects.iter_mut().find(|e| e.is(&item.id)) {
                        take(entry, &now);
                    }
                }
                Err(why) => {
                    memory.remove(&item.id);
                    if let Some(entry) = status.objects.iter_mut().find(|e| e.is(&item.id) && e.uid.is_empty()) {
                        entry.state = State::NotFound;
                        entry.message = why.clone();
                    }
                    failed.push(format!("{}: {why}", shown(&item.id)));
                }
            }
        }
        self.memory.lock().insert(addon.to_string(), memory);
        Ok((failed, held))
    }

    /// The add-on that has it by its label, and whose file says it.
    fn somebody_elses(&self, addon: &str, id: &ObjectId, live: Option<&Option<Arc<Live>>>) -> Option<String> {
        let other = live?.as_ref()?.addon()?;
        (other != addon && self.said.says(other, id)).then(|| other.clone())
    }

    /// Somebody changes what a file says, and it was brought back once more.
    fn contested(&self, addon: &str, id: &ObjectId, times: u32) {
        tracing::info!(
            addon,
            object = shown(id),
            "fields that a file says were changed, and are as the file says again"
        );
        if times != TOLD {
            return;
        }
        let message = format!(
            "{}: somebody changes again and again what the file says; it is brought back less and less often. Leave the field out of the file",
            shown(id)
        );
        if let Some(known) = self.known.store().get("", addon) {
            let about = keelson_client::events::reference(&crate::Addon::RESOURCE, known.meta());
            self.recorder
                .event_for(&about, EventType::Warning, "Contested", message);
        }
    }

    async fn send(&self, item: &Item, body: &Value) -> Result<Live, String> {
        let patch = Patch::Apply {
            body,
            manager: MANAGER,
            force: true,
        };
        let sent = self
            .rest
            .patch_raw(&item.resource, &item.id.namespace, &item.id.name, "", &patch);
        let answer = match tokio::time::timeout(WITHIN, sent).await {
            Err(_) => return Err("the API server didn't answer in time".into()),
            Ok(answer) => answer,
        };
        match answer {
            Ok(object) => {
                let value: Value = serde_json::from_slice(&object).map_err(|e| e.to_string())?;
                Ok(Live::of(&value))
            }
            Err(error) if is_invalid(&error) && body["metadata"]["annotations"][REPLACE] == "true" => {
                match self.replace(item, body).await {
                    Ok(()) => Err("it can't be changed as the file says, and is made anew".into()),
                    Err(none) if is_not_found(&none) => Err(refusal(&item.id, &error)),
                    Err(error) => Err(refusal(&item.id, &error)),
                }
            }
            Err(error) => Err(refusal(&item.id, &error)),
        }
    }

    async fn replace(&self, item: &Item, body: &Value) -> keelson_client::Result<()> {
        let (namespace, name) = (item.id.namespace.as_str(), item.id.name.as_str());
        let live = self.rest.get_raw(&item.resource, namespace, name, "", JSON).await?;
        // What is wrong in itself wouldn't come again: it is tried first, under another name and without effect.
        let mut other = body.clone();
        if let Some(metadata) = other["metadata"].as_object_mut() {
            metadata.remove("name");
            metadata.insert("generateName".into(), format!("{name}-").into());
        }
        let trial = ResourceId {
            plural: format!("{}?dryRun=All", item.resource.plural).into(),
            ..item.resource.clone()
        };
        match self
            .rest
            .create_raw(&trial, namespace, other.to_string().into_bytes())
            .await
        {
            Err(error) if is_invalid(&error) => return Err(error),
            _ => {}
        }
        let live: Value = serde_json::from_slice(&live).map_err(Error::SerdeError)?;
        let options = delete_options(Some("Background"), live["metadata"]["uid"].as_str(), None);
        match self.rest.delete_raw(&item.resource, namespace, name, &options).await {
            Err(error) if !is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

fn take(entry: &mut Entry, live: &Live) {
    entry.uid = live.uid().to_string();
    entry.state = live.health.state;
    entry.message = live.health.message.clone();
}

/// What the server said.
pub fn why(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A refusal may repeat a value; what is told of a Secret must not: events and add-ons are read by more people.
fn refusal(id: &ObjectId, error: &Error) -> String {
    match (id.group.as_str(), id.kind.as_str()) {
        ("", "Secret") => without_values(&why(error)),
        _ => why(error),
    }
}

/// `expected string, got …`, and `Invalid value: …`.
fn without_values(message: &str) -> String {
    let line = |line: &str| {
        let ends = [", got ", "Invalid value: "];
        match ends
            .iter()
            .filter_map(|end| line.find(end).map(|at| at + end.len()))
            .min()
        {
            Some(at) => format!("{}(a value)", &line[..at]),
            None => line.to_string(),
        }
    };
    message.lines().map(line).collect::<Vec<_>>().join("\n")
}

pub fn shown(id: &ObjectId) -> String {
    match id.namespace.as_str() {
        "" => format!("{}/{}", id.kind, id.name),
        namespace => format!("{}/{} in {namespace}", id.kind, id.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_secret_has_no_value_of_it() {
        let said = "errors:\n  .stringData.pin: expected string, got &value.valueUnstructured{Value:271828}\n  data[a]: Invalid value: \"271828\": no";
        let told = without_values(said);
        assert!(
            told.contains(".stringData.pin: expected string") && told.contains("data[a]"),
            "{told}"
        );
        assert!(!told.contains("271828"), "{told}");
        assert_eq!(without_values("no such namespace"), "no such namespace");
    }
}
