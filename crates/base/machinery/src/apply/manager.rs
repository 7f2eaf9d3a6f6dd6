//! What the engine calls on every write: [`FieldManager::update`] and [`FieldManager::apply`].

use super::fieldpath::{Path, PathElement, Set};
use super::managed::{MAX_UPDATE_MANAGERS, Managed, ManagerId, is_reset};
use super::typed;
use super::updater::{Conflict, UpdateError, Updater};
use crate::canonical;
use keelson_api::status::Details;
use keelson_api::{ApiError, ApiResult, Cause, Map, Reason, SchemaRef, Str, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The most bytes that an object's annotations may have together.
const MAX_ANNOTATIONS: usize = 256 << 10;
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Reaches the other versions in which managers name their fields.
pub trait Converter {
    /// The object in `api_version` and its type there; `None` when that version isn't served.
    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<(Value, SchemaRef)>, String>;
}

/// Tracks who owns what in the objects of one endpoint.
pub struct FieldManager<'a> {
    pub schema: &'a SchemaRef,
    /// `apps/v1`
    pub api_version: &'a str,
    pub kind: &'a str,
    /// Empty for the resource itself; `status`, `scale`, …
    pub subresource: &'a str,
    /// Fields that this endpoint resets, so that writers don't come to own them.
    pub reset_fields: &'a Set,
    pub converter: Option<&'a dyn Converter>,
    /// RFC 3339, whole seconds.
    pub now: &'a str,
}

/// Fields that are never owned.
pub(super) static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// The manager of a request: `fieldManager`, else the program's name from the user agent.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_string();
    }
    let mut out = String::new();
    for c in user_agent
        .split('/')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
    {
        if out.len() + c.len_utf8() > 128 {
            break;
        }
        out.push(c);
    }
    out
}

fn entries(object: &Value) -> Option<&Value> {
    object.at(&["metadata", "managedFields"])
}

fn without_entries(object: &Value) -> Value {
    let mut v = object.clone();
    v.remove_at(&["metadata", "managedFields"]);
    v
}

impl FieldManager<'_> {
    fn updater(&self) -> Updater<'_> {
        Updater {
            schema: self.schema,
            api_version: self.api_version,
            converter: self.converter,
            reset_fields: self.reset_fields,
        }
    }

    fn id(&self, manager: &str, apply: bool) -> ManagerId {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        ManagerId::new(manager, apply, self.api_version, self.subresource)
    }

    pub(super) fn empty_object(&self) -> Value {
        let mut v = canonical::fill_zero(self.schema);
        v.set_at(&["apiVersion"], self.api_version);
        v.set_at(&["kind"], self.kind);
        v
    }

    /// After a create, update or patch: `new` with its managed fields. `live` is null for a create.
    ///
    /// Never fails: when ownership can't be computed, the live object's entries are kept. Entries that the update doesn't touch
    /// stay as they are written, if they are written as we do.
    pub fn update(&self, live: &Value, mut new: Value, manager: &str) -> Value {
        let asked = new.remove_at(&["metadata", "managedFields"]);
        let says_none = || asked.is_none() || is_reset(asked.as_ref()) || !self.subresource.is_empty();
        if live.is_null() && says_none() {
            if let Some(first) = self.first_written(&new, manager) {
                new.set_at(&["metadata", "managedFields"], first);
            }
            return new;
        }
        let said = match &asked {
            asked if self.subresource.is_empty() && is_reset(asked.as_ref()) => None,
            Some(Value::Array(asked)) if self.subresource.is_empty() => Some(asked),
            _ => entries(live).and_then(Value::as_array),
        };
        let left = said
            .filter(|_| !live.is_null())
            .and_then(|said| self.update_written(said, &without_entries(live), &new, manager));
        match left {
            Some(left) if left.is_empty() => new,
            Some(left) => {
                new.set_at(&["metadata", "managedFields"], left);
                new
            }
            None => self.update_read(live, new, asked.as_ref(), manager),
        }
    }

    /// The same by reading all entries and writing them anew. `asked`: those that came with `new`.
    pub(super) fn update_read(&self, live: &Value, mut new: Value, asked: Option<&Value>, manager: &str) -> Value {
        let from_live = || Managed::decode(entries(live)).unwrap_or_default();
        let mut managed = if !self.subresource.is_empty() {
            from_live()
        } else if is_reset(asked) {
            Managed::default()
        } else {
            match Managed::decode(asked) {
                Ok(m) if !m.fields.is_empty() => m,
                _ => from_live(),
            }
        };
        let empty;
        let live_or_empty = if live.is_null() {
            empty = self.empty_object();
            &empty
        } else {
            live
        };
        match self.track(live_or_empty, &new, &mut managed, manager, live.is_null()) {
            Ok(()) => managed.write_to(&mut new),
            Err(_) => {
                if let Some(kept) = entries(live) {
                    new.set_at(&["metadata", "managedFields"], kept.clone());
                }
            }
        }
        new
    }

    fn track(
        &self,
        live: &Value,
        new: &Value,
        managed: &mut Managed,
        manager: &str,
        creating: bool,
    ) -> Result<(), UpdateError> {
        if managed.fields.is_empty() && !creating && live.at(&["metadata", "uid"]).is_some() {
            // An object nobody's fields were ever tracked of: tracking starts with the first apply.
            return Ok(());
        }
        self.record(&without_entries(live), new, managed, manager)?;
        managed.cap(MAX_UPDATE_MANAGERS);
        Ok(())
    }

    /// One update by `manager`: what it takes is added to what it had.
    fn record(&self, live: &Value, new: &Value, managed: &mut Managed, manager: &str) -> Result<(), UpdateError> {
        let id = self.id(manager, false);
        // Computed under a name of its own, so that the time moves only when something was taken.
        let own = ManagerId::new("current-operation", false, "", "");
        self.updater().update(live, new, &mut managed.fields, &own)?;
        strip(managed, &own);
        if let Some(mut taken) = managed.fields.remove(&own) {
            if let Some(before) = managed.fields.get(&id) {
                taken.set = taken.set.union(&before.set);
            }
            managed.fields.insert(id.clone(), taken);
            managed.times.insert(id, self.now.into());
        }
        Ok(())
    }

    /// Server-side apply of `config` onto `live` (null: nothing there yet). The result isn't canonical nor defaulted.
    pub fn apply(&self, live: &Value, config: &Value, manager: &str, force: bool) -> ApiResult<Value> {
        let gvk = |v: &Value| {
            let text = |key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
            (text("apiVersion"), text("kind"))
        };
        let (api_version, kind) = gvk(config);
        if api_version != self.api_version || kind != self.kind {
            return Err(ApiError::bad_request(format!(
                "invalid object type: {}, Kind={kind}",
                group_and_version(&api_version)
            )));
        }
        if entries(config).is_some_and(|e| !e.is_null()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        typed::validate(config, self.schema, false).map_err(|e| {
            let name = |key: &str| {
                config
                    .at(&["metadata", key])
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            other_error(format!(
                "failed to create typed patch object ({}/{}; {}, Kind={kind}): {e}",
                name("namespace"),
                name("name"),
                group_and_version(&api_version)
            ))
        })?;
        let base = if live.is_null() {
            self.empty_object()
        } else {
            without_entries(live)
        };
        let managed =
            Managed::decode(entries(live)).map_err(|e| other_error(format!("failed to decode managed fields: {e}")))?;
        let result = match self.apply_once(&base, config, managed.clone(), manager, force) {
            Err(UpdateError::Conflicts(conflicts)) if manager == "kubectl" => {
                self.apply_over_last_applied(&base, config, managed, manager, conflicts)
            }
            other => other,
        };
        let (mut object, managed) = result.map_err(|e| match e {
            UpdateError::Conflicts(c) => conflict_error(c),
            UpdateError::Typed(e) => other_error(e),
        })?;
        if manager == "kubectl" {
            refresh_last_applied(&mut object, config);
        }
        managed.write_to(&mut object);
        Ok(object)
    }

    fn apply_once(
        &self,
        live: &Value,
        config: &Value,
        mut managed: Managed,
        manager: &str,
        force: bool,
    ) -> Result<(Value, Managed), UpdateError> {
        if managed.fields.is_empty() {
            // What stood there before anyone applied belongs to a manager of its own.
            self.record(&self.empty_object(), live, &mut managed, BEFORE_FIRST_APPLY)?;
            managed.cap(MAX_UPDATE_MANAGERS);
        }
        let id = self.id(manager, true);
        let new = self.updater().apply(live, config, &mut managed.fields, &id, force)?;
        strip(&mut managed, &id);
        match new {
            Some(new) => {
                managed.times.insert(id, self.now.into());
                Ok((new, managed))
            }
            None => Ok((live.clone(), managed)),
        }
    }

    /// kubectl's upgrade from client-side apply: fields that its annotation says it applied are no conflict.
    fn apply_over_last_applied(
        &self,
        live: &Value,
        config: &Value,
        managed: Managed,
        manager: &str,
        conflicts: Vec<Conflict>,
    ) -> Result<(Value, Managed), UpdateError> {
        let Some(allowed) = self.last_applied_fields(live) else {
            return Err(UpdateError::Conflicts(conflicts));
        };
        let left: Vec<Conflict> = conflicts.into_iter().filter(|c| !allowed.has(&c.path.0)).collect();
        if !left.is_empty() {
            return Err(UpdateError::Conflicts(left));
        }
        self.apply_once(live, config, managed, manager, true)
    }

    fn last_applied_fields(&self, live: &Value) -> Option<Set> {
        let text = live.at(&["metadata", "annotations", LAST_APPLIED])?.as_str()?;
        let last: Value = serde_json::from_str(text).ok()?;
        if last.get("apiVersion").and_then(Value::as_str) != Some(self.api_version) {
            return None;
        }
        typed::validate(&last, self.schema, false).ok()?;
        let c = typed::compare(&last, live, self.schema).ok()?;
        let set = typed::to_field_set(&last, self.schema);
        Some(set.difference(&c.modified).difference(&c.added).difference(&c.removed))
    }
}

fn strip(managed: &mut Managed, id: &ManagerId) {
    if let Some(m) = managed.fields.get_mut(id) {
        m.set = m.set.difference(&STRIPPED);
        if m.set.is_empty() {
            managed.fields.remove(id);
        }
    }
}

fn other_error(message: impl Into<String>) -> ApiError {
    ApiError::new(Reason::Unknown, message)
}

fn conflict_error(mut conflicts: Vec<Conflict>) -> ApiError {
    conflicts.sort_by_cached_key(|c| c.manager.sort_key());
    let causes = conflicts
        .iter()
        .map(|c| {
            let message = format!("conflict with {}", c.manager.describe());
            Cause::new("FieldManagerConflict", c.path.to_string(), message)
        })
        .collect();
    let message = match conflicts.as_slice() {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager.describe(),
            one.path
        ),
        many => {
            let mut by_manager: BTreeMap<String, (String, Vec<&Path>)> = BTreeMap::new();
            for c in many {
                let entry = by_manager.entry(c.manager.sort_key());
                entry
                    .or_insert_with(|| (c.manager.describe(), Vec::new()))
                    .1
                    .push(&c.path);
            }
            let mut lines = Vec::new();
            for (manager, paths) in by_manager.values() {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(paths.iter().map(|p| format!("- {p}")));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    ApiError::new(Reason::Conflict, message).with_details(Details {
        causes,
        ..Details::default()
    })
}

/// As Go prints both, of which the core's group is empty.
fn group_and_version(api_version: &str) -> String {
    match api_version.contains('/') {
        true => api_version.to_string(),
        false => format!("/{api_version}"),
    }
}

/// Keeps kubectl's client-side annotation in step with what was applied, where it exists.
fn refresh_last_applied(object: &mut Value, config: &Value) {
    let has = object
        .at(&["metadata", "annotations", LAST_APPLIED])
        .and_then(Value::as_str)
        .is_some_and(|s| !s.is_empty());
    if !has {
        return;
    }
    let mut applied = config.clone();
    applied.remove_at(&["metadata", "annotations", LAST_APPLIED]);
    if applied
        .at(&["metadata", "annotations"])
        .and_then(Value::as_object)
        .is_some_and(Map::is_empty)
    {
        applied.remove_at(&["metadata", "annotations"]);
    }
    let Ok(mut text) = serde_json::to_string(&applied) else {
        return;
    };
    text.push('\n');
    let Some(annotations) = object
        .at_mut(&["metadata", "annotations"])
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    annotations.insert(LAST_APPLIED, text);
    let size: usize = annotations
        .iter()
        .map(|(k, v)| k.len() + v.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_ANNOTATIONS {
        annotations.remove(LAST_APPLIED);
    }
}

/// Takes the old times back when nothing but times changed, so that a write that changes nothing stays one.
pub fn ignore_timestamps(old: &Value, new: &mut Value) {
    let (Some(Value::Array(old_entries)), Some(Value::Array(new_entries))) = (entries(old), entries(new)) else {
        return;
    };
    if old_entries.len() != new_entries.len() || old_entries == new_entries {
        return;
    }
    let timeless = |v: &Value| {
        let mut m = v.as_object().cloned().unwrap_or_default();
        m.remove("time");
        m
    };
    let same = old_entries
        .iter()
        .zip(new_entries)
        .all(|(a, b)| timeless(a) == timeless(b));
    if !same || without_entries(old) != without_entries(new) {
        return;
    }
    let kept = old_entries.clone();
    new.set_at(&["metadata", "managedFields"], kept);
}

/// The path of a field of an object, for callers that build sets by hand.
pub fn field_path(names: &[&str]) -> Vec<PathElement> {
    names.iter().map(|n| PathElement::Field(Str::from(*n))).collect()
}
