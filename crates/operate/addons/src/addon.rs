//! The kind `Addon`: what is known of one file, under one name in the whole cluster.

use crate::health::State;
use crate::inventory::Entry;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use serde::{Deserialize, Serialize};

pub const GROUP: &str = "keelson.dev";
pub const VERSION: &str = "v1";
pub const DEFINITION: &str = "addons.keelson.dev";
/// An add-on is gone when its objects are.
pub const FINALIZER: &str = "keelson.dev/addon";

pub const APPLIED: &str = "Applied";
pub const READY: &str = "Ready";
pub const CONFLICT: &str = "Conflict";

/// What the messages of all objects may have together.
const MESSAGES: usize = 256 << 10;

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Addon {
    pub metadata: ObjectMeta,
    pub spec: AddonSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<AddonStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddonSpec {
    /// The file, from the directory on.
    pub path: String,
}

/// Written as a whole: what isn't there is null.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddonStatus {
    /// Whose file is in force: `server:/path`.
    pub source: Option<String>,
    /// Of what is in force, once all of it has been applied.
    pub hash: Option<String>,
    /// How many objects are ready, of how many.
    pub ready: Option<String>,
    /// All servers' files.
    pub sources: Vec<Told>,
    /// What was applied, and how it is.
    pub objects: Vec<Entry>,
    pub conditions: Vec<Condition>,
}

/// What a server says of its file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    pub server: String,
    pub file: String,
    pub hash: String,
}

keelson_client::custom_kinds! {
    Addon, GROUP, VERSION, "Addon", "addons", false;
}

impl Addon {
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.as_ref()?.conditions.iter().find(|c| c.type_ == kind)
    }
    pub fn is(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.status == "True")
    }
    /// All that its file says is applied and well.
    pub fn is_ready(&self) -> bool {
        self.is(APPLIED) && self.is(READY)
    }
    pub fn objects(&self) -> &[Entry] {
        self.status.as_ref().map_or(&[], |s| &s.objects)
    }
}

impl AddonStatus {
    /// Sets a condition; its time changes with its status only.
    pub fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let before = self.conditions.iter().position(|c| c.type_ == kind);
        let same = before
            .and_then(|at| self.conditions.get(at))
            .filter(|c| c.status == status);
        let since = same.map_or_else(|| Time(keelson_clock::now()), |c| c.last_transition_time.clone());
        let condition = Condition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: crate::health::short(message),
            last_transition_time: since,
            observed_generation: None,
        };
        match before.and_then(|at| self.conditions.get_mut(at)) {
            Some(there) => *there = condition,
            None => self.conditions.push(condition),
        }
    }

    /// As much as an object may have: of many objects each has less to say.
    pub fn fit(&mut self) {
        let all: usize = self.objects.iter().map(|o| o.message.len()).sum();
        if all > MESSAGES {
            let each = MESSAGES / self.objects.len().max(1);
            for object in &mut self.objects {
                object.message = crate::health::cut(&object.message, each);
            }
        }
    }

    pub fn unset(&mut self, kind: &str) {
        self.conditions.retain(|c| c.type_ != kind);
    }

    /// Tells how the objects are, all together.
    pub fn judge(&mut self) {
        let count = self.objects.len();
        let ready = self.objects.iter().filter(|o| o.state == State::Current).count();
        self.ready = Some(format!("{ready}/{count}"));
        let first = |state: State| self.objects.iter().find(|o| o.state == state);
        let told = |entry: &Entry| format!("{}: {}", entry.shown(), entry.message);
        let (status, reason, message) = if let Some(ill) = first(State::Failed) {
            ("False", "Failed", told(ill))
        } else if let Some(not) = self.objects.iter().find(|o| o.state != State::Current) {
            ("False", "InProgress", told(not))
        } else {
            ("True", "Ready", format!("all {count} objects are ready"))
        };
        self.set(READY, status, reason, &message);
    }
}
