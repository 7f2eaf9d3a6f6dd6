//! Updates that leave most ownership as it is: what they don't touch stays as it is written, and is never read. And creations, where there
//! is none yet.

use super::fieldpath::Set;
use super::managed::MAX_UPDATE_MANAGERS;
use super::manager::{FieldManager, STRIPPED};
use super::typed;
use super::written::{covers, touches};
use keelson_api::{Map, Value};
use std::borrow::Cow;

/// An entry as it stands, or as it becomes.
struct Entry<'a> {
    written: Cow<'a, Map>,
    is_own: bool,
}

impl<'a> Entry<'a> {
    /// An entry in the form that we write, of the request's version and in line with its type.
    fn read(entry: &'a Value, of: &FieldManager, manager: &str) -> Option<Entry<'a>> {
        let map = entry.as_object()?;
        let is_known = map.iter().all(|(key, v)| match key.as_str() {
            "fieldsV1" => matches!(v, Value::Object(_)),
            "apiVersion" | "fieldsType" | "manager" | "operation" | "subresource" | "time" => {
                v.as_str().is_some_and(|text| !text.is_empty())
            }
            _ => false,
        });
        let operation = map.str("operation")?;
        let is_ours = map.str("apiVersion") == Some(of.api_version) && map.str("fieldsType") == Some("FieldsV1");
        let is_sound = is_known
            && is_ours
            && matches!(operation, "Apply" | "Update")
            && typed::is_settled(map.obj("fieldsV1")?, of.schema);
        let is_own =
            operation == "Update" && text(map, "manager") == manager && text(map, "subresource") == of.subresource;
        is_sound.then_some(Entry {
            written: Cow::Borrowed(map),
            is_own,
        })
    }

    fn applies(&self) -> bool {
        self.written.str("operation") == Some("Apply")
    }
    fn fields(&self) -> Option<&Map> {
        self.written.obj("fieldsV1")
    }
    /// Appliers first, then by time, name and subresource: as [`Managed::encode`](super::managed::Managed::encode) has them.
    fn order(&self) -> (bool, &str, &str, &str) {
        let map = &self.written;
        (
            !self.applies(),
            text(map, "time"),
            text(map, "manager"),
            text(map, "subresource"),
        )
    }
    fn id(&self) -> (bool, &str, &str) {
        let map = &self.written;
        (self.applies(), text(map, "manager"), text(map, "subresource"))
    }
}

fn text<'a>(map: &'a Map, key: &str) -> &'a str {
    map.str(key).unwrap_or_default()
}

impl FieldManager<'_> {
    /// The entries of a new object that came with none: whoever makes it owns what it says.
    pub(super) fn first_written(&self, new: &Value, manager: &str) -> Option<Value> {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        let zero = self.empty_object();
        let owned = match typed::first(&zero, new, self.schema, self.reset_fields, &STRIPPED) {
            Some(owned) => owned,
            None => self.first_compared(&zero, new)?,
        };
        let first = |owned| self.first_entry(owned, manager).written.into_owned();
        (!owned.is_empty()).then(|| vec![Value::Object(first(owned))].into())
    }

    /// The same by comparing.
    pub(super) fn first_compared(&self, zero: &Value, new: &Value) -> Option<Map> {
        let compared = typed::compare(zero, new, self.schema).ok()?;
        let compared = compared.exclude(self.reset_fields);
        let taken = compared.modified.joined(compared.added).without(&STRIPPED);
        Some(taken.to_map(false))
    }

    /// The entries after an update by `manager`. `None`: they have to be read.
    pub(super) fn update_written(
        &self,
        entries: &[Value],
        live: &Value,
        new: &Value,
        manager: &str,
    ) -> Option<Vec<Value>> {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        let read = entries.iter().map(|entry| Entry::read(entry, self, manager));
        let mut entries: Vec<Entry> = read.collect::<Option<_>>()?;
        let updaters = entries.iter().filter(|e| !e.applies() && !e.is_own).count();
        let is_twice = |(i, e): (usize, &Entry)| entries[..i].iter().any(|other| other.id() == e.id());
        if entries.is_empty() || updaters >= MAX_UPDATE_MANAGERS || entries.iter().enumerate().any(is_twice) {
            return None;
        }
        let compared = typed::compare(live, new, self.schema).ok()?;
        let compared = compared.exclude(self.reset_fields);
        let changed = compared.modified.joined(compared.added);
        let (gone, taken) = (compared.removed, changed.difference(&STRIPPED));
        let stripped = changed.intersection(&STRIPPED);
        let mut left = Vec::with_capacity(entries.len() + 1);
        let has_own = entries.iter().any(|e| e.is_own);
        for mut entry in entries.drain(..) {
            let fields = entry.fields()?;
            let stays = match entry.is_own {
                true => !touches(fields, &gone) && !touches(fields, &stripped) && covers(fields, &taken),
                false => !touches(fields, &gone) && !touches(fields, &changed),
            };
            if !stays {
                let set = Set::from_map(fields).ok()?.difference(&changed).difference(&gone);
                let set = if entry.is_own { taken.union(&set) } else { set };
                if set.is_empty() {
                    continue;
                }
                entry.written.to_mut().insert("fieldsV1", set.to_value());
            }
            if entry.is_own && !taken.is_empty() && text(&entry.written, "time") != self.now {
                entry.written.to_mut().insert("time", self.now);
            }
            left.push(entry);
        }
        if !has_own && !taken.is_empty() {
            left.push(self.first_entry(taken.to_map(false), manager));
        }
        left.sort_by(|a, b| a.order().cmp(&b.order()));
        Some(left.into_iter().map(|e| e.written.into_owned().into()).collect())
    }

    fn first_entry<'a>(&self, taken: Map, manager: &str) -> Entry<'a> {
        let mut map = Map::with_capacity(7);
        map.push("apiVersion", self.api_version);
        map.push("fieldsType", "FieldsV1");
        map.push("fieldsV1", taken);
        map.push("manager", manager);
        map.push("operation", "Update");
        if !self.subresource.is_empty() {
            map.push("subresource", self.subresource);
        }
        map.push("time", self.now);
        Entry {
            written: Cow::Owned(map),
            is_own: true,
        }
    }
}

#[cfg(test)]
mod tests;
