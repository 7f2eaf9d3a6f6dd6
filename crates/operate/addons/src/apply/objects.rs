//! Applies objects, and only those that need it: what the file says has changed, or somebody changed what is there.
//!
//! The server's answer is remembered. What differs from it later was changed by somebody else: it is applied again, which brings back our fields
//! and leaves the others. Who brings back what another controller brings back waits longer each time.

use super::Applier;
use super::content::{Content, Item};
use crate::addon::AddonStatus;
use crate::health::State;
use crate::inventory::{Entry, ObjectId};
use crate::live::{Live, digest};
use crate::{JSON, LABEL, MANAGER, REPLACE};
use keelson_client::{ApiObject, Error, EventType, Kind, Patch, delete_options, is_invalid, is_not_found};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For one request.
pub const WITHIN: Duration = Duration::from_secs(30);
/// Between two times that somebody else's change is taken back, at last.
const LONGEST: Duration = Duration::from_secs(300);
/// Quiet for so long, and it begins anew.
const OVER: Duration = Duration::from_secs(900);
/// From then on it is told.
const TOLD: u32 = 5;

/// What is known of an add-on's objects since this server leads.
pub type Memory = BTreeMap<ObjectId, Applied>;

#[derive(Clone)]
pub struct Applied {
    /// Of what was applied, and of what came of it.
    manifest: [u8; 16],
    print: [u8; 16],
    revision: u64,
    /// How often somebody else's change was taken back, and when last.
    taken_back: u32,
    at: Instant,
}

/// What to do with an object.
enum Need {
    Nothing,
    Apply,
    /// Not before this time is over.
    Hold(Duration),
}

fn need(before: Option<&Applied>, manifest: &[u8; 16], live: Option<Option<&Live>>, now: Instant) -> Need {
    let Some(before) = before.filter(|b| b.manifest == *manifest) else {
        return Need::Apply;
    };
    let Some(Some(live)) = live else {
        // It isn't there, or nobody knows.
        return if live.is_some() { Need::Apply } else { Need::Nothing };
    };
    let revision = revision(live);
    if live.print == before.print || revision < before.revision {
        return Need::Nothing;
    }
    let wait = Duration::from_secs(1 << before.taken_back.min(9)).min(LONGEST);
    let due = before.at + wait;
    match before.taken_back > 0 && now < due {
        true => Need::Hold(due - now),
        false => Need::Apply,
    }
}

fn revision(live: &Live) -> u64 {
    let revision = live.meta().resource_version.as_ref();
    revision.and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// What is sent: what the server itself writes is left out, so that objects can be put into files as they are shown.
fn body(addon: &str, item: &Item) -> Value {
    let mut value = item.value.clone();
    if let Value::Object(fields) = &mut value {
        fields.remove("status");
    }
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for own in [
            "managedFields",
            "creationTimestamp",
            "uid",
            "resourceVersion",
            "generation",
            "selfLink",
        ] {
            metadata.remove(own);
        }
        match item.id.namespace.as_str() {
            "" => metadata.remove("namespace"),
            namespace => metadata.insert("namespace".into(), namespace.into()),
        };
        let labels = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
        if !labels.is_object() {
            *labels = json!({});
        }
        labels[LABEL] = addon.into();
    }
    value
}

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
        memory.retain(|id, _| content.items.iter().any(|i| i.id == *id));
        for item in &content.items {
            let body = body(addon, item);
            let manifest = digest(&body);
            let live = self.followers.find(&item.resource, &item.id.namespace, &item.id.name);
            if let Some(other) = self.somebody_elses(addon, &item.id, live.as_ref()) {
                failed.push(format!("{} is {other}'s, whose file says it too", shown(&item.id)));
                status.objects.retain(|e| e.id() != item.id);
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
                    let noted = self.noted(addon, item, before, manifest, live, &now);
                    memory.insert(item.id.clone(), noted);
                    if let Some(entry) = status.objects.iter_mut().find(|e| e.id() == item.id) {
                        take(entry, &now);
                    }
                }
                Err(why) => {
                    memory.remove(&item.id);
                    if let Some(entry) = status
                        .objects
                        .iter_mut()
                        .find(|e| e.id() == item.id && e.uid.is_empty())
                    {
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

    fn noted(
        &self,
        addon: &str,
        item: &Item,
        before: Option<&Applied>,
        manifest: [u8; 16],
        live: Option<Option<Arc<Live>>>,
        now: &Live,
    ) -> Applied {
        let at = Instant::now();
        let was_changed = live
            .flatten()
            .is_some_and(|live| before.is_some_and(|b| b.print != live.print));
        let taken_back = match before {
            // Somebody changed what is ours, and it is as before.
            Some(before) if was_changed && before.manifest == manifest && now.print == before.print => {
                match at - before.at < OVER {
                    true => before.taken_back + 1,
                    false => 1,
                }
            }
            Some(before) if at - before.at < OVER => before.taken_back,
            _ => 0,
        };
        if taken_back > 0 && before.is_some_and(|b| b.taken_back < taken_back) {
            tracing::info!(
                addon,
                object = shown(&item.id),
                "fields that a file says were changed, and are as the file says again"
            );
            if taken_back == TOLD {
                let message = format!(
                    "{}: somebody changes again and again what the file says; it is brought back less and less often. Leave the field out of the file",
                    shown(&item.id)
                );
                if let Some(known) = self.known.store().get("", addon) {
                    let about = keelson_client::events::reference(&crate::Addon::RESOURCE, known.meta());
                    self.recorder
                        .event_for(&about, EventType::Warning, "Contested", message);
                }
            }
        }
        Applied {
            manifest,
            print: now.print,
            revision: revision(now),
            taken_back,
            at,
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
                self.replace(item).await.map_err(|e| why(&e))?;
                Err("it can't be changed as the file says, and is made anew".into())
            }
            Err(error) => Err(why(&error)),
        }
    }

    async fn replace(&self, item: &Item) -> keelson_client::Result<()> {
        let (namespace, name) = (item.id.namespace.as_str(), item.id.name.as_str());
        let live = self.rest.get_raw(&item.resource, namespace, name, "", JSON).await?;
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

/// What the server said. A refusal may repeat a value; of secrets it does not.
pub fn why(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
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
    use keelson_client::ResourceId;

    fn live(revision: &str, value: u8) -> Live {
        Live::of(&json!({"metadata": {"name": "a", "resourceVersion": revision}, "data": {"v": value}}))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_as_it_was_left_needs_nothing_and_contested_fields_less_and_less() {
        let (first, at) = (live("5", 1), Instant::now());
        let mut applied = Applied {
            manifest: [1; 16],
            print: first.print,
            revision: 5,
            taken_back: 0,
            at,
        };
        let shown = |need: Need| match need {
            Need::Nothing => "nothing".to_string(),
            Need::Apply => "apply".to_string(),
            Need::Hold(time) => format!("in {}", time.as_secs()),
        };
        let of = |applied: &Applied, live: Option<Option<&Live>>, now: Instant| {
            shown(need(Some(applied), &[1; 16], live, now))
        };
        assert_eq!(shown(need(None, &[1; 16], Some(None), at)), "apply");
        assert_eq!(shown(need(Some(&applied), &[2; 16], Some(Some(&first)), at)), "apply");
        assert_eq!(of(&applied, Some(Some(&first)), at), "nothing");
        assert_eq!(of(&applied, None, at), "nothing");
        assert_eq!(of(&applied, Some(None), at), "apply");
        assert_eq!(
            of(&applied, Some(Some(&live("4", 2))), at),
            "nothing",
            "older than what was applied"
        );
        assert_eq!(of(&applied, Some(Some(&live("6", 2))), at), "apply");
        applied.taken_back = 3;
        assert_eq!(of(&applied, Some(Some(&live("6", 2))), at), "in 8");
        assert_eq!(
            of(&applied, Some(Some(&live("6", 2))), at + Duration::from_secs(8)),
            "apply"
        );
        applied.taken_back = 40;
        assert_eq!(of(&applied, Some(Some(&live("6", 2))), at), "in 300");
    }

    #[test]
    fn what_the_server_writes_is_not_sent() {
        let item = Item {
            id: ObjectId {
                namespace: "n".into(),
                name: "a".into(),
                ..ObjectId::default()
            },
            resource: ResourceId::fixed("", "v1", "ConfigMap", "configmaps", true),
            value: json!({"apiVersion": "v1", "kind": "ConfigMap", "status": {}, "data": {"a": "b"},
                "metadata": {"name": "a", "uid": "u", "resourceVersion": "1", "managedFields": [], "creationTimestamp": null, "labels": {"x": "y"}}}),
        };
        let sent = body("web", &item);
        assert_eq!(
            sent,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
                "metadata": {"name": "a", "namespace": "n", "labels": {"x": "y", "keelson.dev/addon": "web"}}})
        );
    }
}
