//! `metadata.managedFields`: its entries in and out, and the limits on them.

use super::fieldpath::Set;
use crate::go;
use keelson_api::{Map, Str, Value};
use std::collections::BTreeMap;

/// The most entries of updaters that an object keeps; the oldest are merged.
pub const MAX_UPDATE_MANAGERS: usize = 10;
const BUCKET: &str = "ancient-changes";

/// Who an entry belongs to. Appliers are one manager whatever the version they last applied in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerId {
    pub manager: Str,
    pub apply: bool,
    /// Empty for appliers.
    pub api_version: Str,
    pub subresource: Str,
}

/// The fields of a manager, in the version they are named in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedSet {
    pub set: Set,
    pub api_version: Str,
    pub applied: bool,
}

/// All entries of an object, with their times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    pub fields: BTreeMap<ManagerId, VersionedSet>,
    pub times: BTreeMap<ManagerId, Str>,
}

impl ManagerId {
    pub fn new(manager: &str, apply: bool, api_version: &str, subresource: &str) -> ManagerId {
        ManagerId {
            manager: manager.into(),
            apply,
            api_version: if apply { Str::default() } else { api_version.into() },
            subresource: subresource.into(),
        }
    }
    /// As conflict messages name the manager.
    pub fn describe(&self) -> String {
        let mut out = go::go_quote(&self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {}", go::go_quote(&self.subresource)));
        }
        if !self.apply {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
    /// As upstream orders managers in messages: by the JSON of the identifier.
    pub(super) fn sort_key(&self) -> String {
        let mut m = String::from("{");
        let mut add = |k: &str, v: &str| {
            if !v.is_empty() {
                let comma = if m.len() > 1 { "," } else { "" };
                m.push_str(&format!(
                    "{comma}\"{k}\":{}",
                    serde_json::to_string(v).unwrap_or_default()
                ));
            }
        };
        add("manager", &self.manager);
        add("operation", if self.apply { "Apply" } else { "Update" });
        add("apiVersion", &self.api_version);
        add("subresource", &self.subresource);
        m.push('}');
        m
    }
}

impl Managed {
    /// Reads the entries; the message says what is wrong with them.
    pub fn decode(entries: Option<&Value>) -> Result<Managed, String> {
        let mut out = Managed::default();
        for (i, entry) in entries.and_then(Value::as_array).into_iter().flatten().enumerate() {
            let empty = Map::new();
            let m = entry.as_object().unwrap_or(&empty);
            let text = |key: &str| m.str(key).unwrap_or_default();
            let apply = match text("operation") {
                "Apply" => true,
                "Update" => false,
                _ => return Err("operation must be `Apply` or `Update`".into()),
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => {
                    return Err(format!(
                        "invalid fieldsType {} in managed fields entry {i}",
                        go::go_quote(other)
                    ));
                }
            }
            let id = ManagerId::new(text("manager"), apply, api_version, text("subresource"));
            let set = Set::from_value(m.get("fieldsV1").unwrap_or(&Value::Null))
                .map_err(|e| format!("error decoding versioned set: error decoding set: {e}"))?;
            if let Some(time) = m.str("time") {
                out.times.insert(id.clone(), time.into());
            }
            out.fields.insert(
                id,
                VersionedSet {
                    set,
                    api_version: api_version.into(),
                    applied: apply,
                },
            );
        }
        Ok(out)
    }

    /// The entries in upstream's order: appliers first, then by time, name, version.
    pub fn encode(&self) -> Option<Value> {
        if self.fields.is_empty() {
            return None;
        }
        let mut entries: Vec<(&ManagerId, &VersionedSet, &str)> = self
            .fields
            .iter()
            .map(|(id, set)| (id, set, self.times.get(id).map(Str::as_str).unwrap_or_default()))
            .collect();
        entries.sort_by(|(p, ps, pt), (q, qs, qt)| {
            let key = |id: &ManagerId, s: &VersionedSet| (!(id.apply || s.applied), id.manager.clone());
            let (pk, qk) = (key(p, ps), key(q, qs));
            pk.0.cmp(&qk.0)
                .then_with(|| pt.cmp(qt))
                .then_with(|| pk.1.cmp(&qk.1))
                .then_with(|| ps.api_version.cmp(&qs.api_version))
                .then_with(|| p.subresource.cmp(&q.subresource))
        });
        let list = entries.into_iter().map(|(id, set, time)| {
            let mut m = Map::new();
            m.push("apiVersion", set.api_version.clone());
            m.push("fieldsType", "FieldsV1");
            m.push("fieldsV1", set.set.to_value());
            if !id.manager.is_empty() {
                m.push("manager", id.manager.clone());
            }
            m.push("operation", if id.apply || set.applied { "Apply" } else { "Update" });
            if !id.subresource.is_empty() {
                m.push("subresource", id.subresource.clone());
            }
            if !time.is_empty() {
                m.push("time", time);
            }
            Value::Object(m)
        });
        Some(Value::Array(list.collect()))
    }

    /// Writes the entries into an object's metadata.
    pub fn write_to(&self, object: &mut Value) {
        match self.encode() {
            Some(v) => object.set_at(&["metadata", "managedFields"], v),
            None => {
                object.remove_at(&["metadata", "managedFields"]);
            }
        }
    }

    /// Merges the oldest updaters, version by version, until no more than the limit are left.
    pub fn cap(&mut self, max: usize) {
        let mut updaters: Vec<(Str, String, ManagerId)> = self
            .fields
            .iter()
            .filter(|(_, s)| !s.applied)
            .map(|(id, _)| {
                (
                    self.times.get(id).cloned().unwrap_or_default(),
                    id.sort_key(),
                    id.clone(),
                )
            })
            .collect();
        let mut count = updaters.len();
        if count <= max {
            return;
        }
        updaters.sort();
        let mut first_of: BTreeMap<Str, ManagerId> = BTreeMap::new();
        for (time, _, id) in updaters {
            if count <= max {
                break;
            }
            let Some(version) = self.fields.get(&id).map(|s| s.api_version.clone()) else {
                continue;
            };
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, id);
                continue;
            };
            let bucket = ManagerId::new(BUCKET, false, &version, "");
            if !self.fields.contains_key(&bucket)
                && let Some(s) = self.fields.remove(first)
            {
                self.fields.insert(bucket.clone(), s);
            }
            let Some(taken) = self.fields.remove(&id) else { continue };
            if let Some(b) = self.fields.get_mut(&bucket) {
                b.set = taken.set.union(&b.set);
            }
            count -= 1;
            self.times.insert(bucket, time);
        }
    }
}

/// Whether the request asks to forget all managers: an empty list, or one empty entry.
pub fn is_reset(entries: Option<&Value>) -> bool {
    match entries {
        Some(Value::Array(a)) => match a.as_slice() {
            [] => true,
            [one] => one.as_object().is_some_and(|m| m.is_empty()),
            _ => false,
        },
        _ => false,
    }
}
