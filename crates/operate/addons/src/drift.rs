//! Whether an object has to be applied, from what is known of the last time and how it is now. Pure.

use crate::LABEL;
use crate::inventory::ObjectId;
use crate::live::Live;
use keelson_client::ApiObject;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Between two times that somebody else's change is taken back, at last.
const LONGEST: Duration = Duration::from_secs(300);
/// Quiet for so long, and it begins anew.
const OVER: Duration = Duration::from_secs(900);

/// What is known of an object that was applied.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Of what was sent, and of what came of it.
    pub manifest: [u8; 16],
    pub print: [u8; 16],
    pub revision: u64,
    /// How often somebody else's change was taken back, and when last.
    pub taken_back: u32,
    pub at: Instant,
}

#[derive(Debug, PartialEq)]
pub enum Need {
    Nothing,
    Apply,
    /// Not before this time is over.
    Hold(Duration),
}

/// `live`: `None`, nobody knows; `Some(None)`, it isn't there.
pub fn need(before: Option<&Applied>, manifest: &[u8; 16], live: Option<Option<&Live>>, now: Instant) -> Need {
    let Some(before) = before.filter(|b| b.manifest == *manifest) else {
        return Need::Apply;
    };
    let Some(Some(live)) = live else {
        return if live.is_some() { Need::Apply } else { Need::Nothing };
    };
    if live.print == before.print || revision(live) < before.revision {
        return Need::Nothing;
    }
    let wait = Duration::from_secs(1 << before.taken_back.min(9)).min(LONGEST);
    let due = before.at + wait;
    match before.taken_back > 0 && now < due {
        true => Need::Hold(due - now),
        false => Need::Apply,
    }
}

impl Applied {
    /// After it was applied: `live` is how it was before, `answer` how it is.
    pub fn after(
        before: Option<&Applied>,
        manifest: [u8; 16],
        live: Option<&Live>,
        answer: &Live,
        now: Instant,
    ) -> Applied {
        let was_changed = live.is_some_and(|live| before.is_some_and(|b| b.print != live.print));
        let taken_back = match before.filter(|b| now - b.at < OVER) {
            // Somebody changed what is ours, and it is as before.
            Some(b) if was_changed && b.manifest == manifest && answer.print == b.print => b.taken_back + 1,
            Some(b) => b.taken_back,
            None => 0,
        };
        Applied {
            manifest,
            print: answer.print,
            revision: revision(answer),
            taken_back,
            at: now,
        }
    }
}

fn revision(live: &Live) -> u64 {
    let revision = live.meta().resource_version.as_ref();
    revision.and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// What is sent: what the server itself writes is left out, so that objects can be put into files as they are shown.
pub fn to_send(addon: &str, id: &ObjectId, said: &Value) -> Value {
    let mut value = said.clone();
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
        match id.namespace.as_str() {
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
