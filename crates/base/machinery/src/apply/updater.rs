//! The rules of ownership.

use super::fieldpath::{Path, Set};
use super::managed::{ManagerId, VersionedSet};
use super::manager::Converter;
use super::typed::{self, Comparison, TypedErrors};
use keelson_api::{SchemaRef, Str, Value};
use std::collections::BTreeMap;

pub type Managers = BTreeMap<ManagerId, VersionedSet>;

/// A field that someone else owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: ManagerId,
    pub path: Path,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateError {
    Conflicts(Vec<Conflict>),
    /// The objects don't fit their type.
    Typed(String),
}

impl From<TypedErrors> for UpdateError {
    fn from(e: TypedErrors) -> Self {
        UpdateError::Typed(e.to_string())
    }
}

/// The object's type in the version of the request, how to reach other versions, and fields that the endpoint resets.
pub struct Updater<'a> {
    pub schema: &'a SchemaRef,
    pub api_version: &'a str,
    pub converter: Option<&'a dyn Converter>,
    /// Fields that writes through this endpoint don't own.
    pub reset_fields: &'a Set,
}

type Res<T> = Result<T, UpdateError>;

impl Updater<'_> {
    /// The value and type in a version; `None` when the version is no longer served.
    fn convert(&self, v: &Value, from: &str, to: &str) -> Res<Option<(Value, SchemaRef)>> {
        if from == to && to == self.api_version {
            return Ok(Some((v.clone(), self.schema.clone())));
        }
        match self.converter {
            None => Ok(None),
            Some(c) => c.convert(v, to).map_err(UpdateError::Typed),
        }
    }

    fn compare_in(&self, old: &Value, new: &Value, version: &str) -> Res<Option<Comparison>> {
        let (Some((old, schema)), Some((new, _))) = (
            self.convert(old, self.api_version, version)?,
            self.convert(new, self.api_version, version)?,
        ) else {
            return Ok(None);
        };
        Ok(Some(typed::compare(&old, &new, &schema)?.exclude(self.reset_fields)))
    }

    /// Takes changed fields from everyone but `who`; without force, others' ownership of them is a conflict.
    fn settle(
        &self,
        old: &Value,
        new: &Value,
        managers: &mut Managers,
        who: &ManagerId,
        force: bool,
    ) -> Res<Comparison> {
        let own = typed::compare(old, new, self.schema)?.exclude(self.reset_fields);
        let mut versions: BTreeMap<Str, Option<Comparison>> = BTreeMap::new();
        let mut conflicts: Vec<(ManagerId, Set)> = Vec::new();
        let mut removed: Vec<(ManagerId, Set)> = Vec::new();
        let mut obsolete = Vec::new();
        for (id, set) in managers.iter().filter(|(id, _)| *id != who) {
            let is_ours = set.api_version == self.api_version;
            if !is_ours && !versions.contains_key(&set.api_version) {
                versions.insert(set.api_version.clone(), self.compare_in(old, new, &set.api_version)?);
            }
            let of_other = versions.get(&set.api_version).and_then(Option::as_ref);
            let Some(c) = of_other.or(is_ours.then_some(&own)) else {
                obsolete.push(id.clone());
                continue;
            };
            let taken = set.set.intersection(&c.modified.union(&c.added));
            if !taken.is_empty() {
                conflicts.push((id.clone(), taken));
            }
            if !c.removed.is_empty() {
                removed.push((id.clone(), c.removed.clone()));
            }
        }
        if !force && !conflicts.is_empty() {
            let all = conflicts.into_iter().flat_map(|(manager, set)| {
                set.paths().into_iter().map(move |path| Conflict {
                    manager: manager.clone(),
                    path,
                })
            });
            return Err(UpdateError::Conflicts(all.collect()));
        }
        obsolete.iter().for_each(|id| drop(managers.remove(id)));
        for (id, set) in conflicts.iter().chain(&removed) {
            if let Some(m) = managers.get_mut(id) {
                m.set = m.set.difference(set);
            }
        }
        managers.retain(|_, m| !m.set.is_empty());
        Ok(own)
    }

    /// Field sets written under an older form of the type, brought in line with it.
    fn reconcile(&self, live: &Value, managers: &mut Managers) -> Res<()> {
        let mut schemas: BTreeMap<Str, Option<SchemaRef>> = BTreeMap::new();
        schemas.insert(self.api_version.into(), Some(self.schema.clone()));
        let mut kept = Managers::new();
        for (id, mut m) in std::mem::take(managers) {
            if !schemas.contains_key(&m.api_version) {
                let schema = self.convert(live, self.api_version, &m.api_version)?.map(|(_, s)| s);
                schemas.insert(m.api_version.clone(), schema);
            }
            let Some(Some(schema)) = schemas.get(&m.api_version) else {
                continue;
            };
            if let Some(set) = typed::reconcile(&m.set, schema) {
                m.set = set;
            }
            kept.insert(id, m);
        }
        *managers = kept;
        Ok(())
    }

    /// After any write but apply: `who` owns what changed.
    pub fn update(&self, live: &Value, new: &Value, managers: &mut Managers, who: &ManagerId) -> Res<()> {
        self.reconcile(live, managers)?;
        let c = self.settle(live, new, managers, who, true)?;
        let before = managers.remove(who).map(|m| m.set).unwrap_or_default();
        let set = before.difference(&c.removed).union(&c.modified).union(&c.added);
        let set = set.recursive_difference(self.reset_fields);
        if !set.is_empty() {
            managers.insert(
                who.clone(),
                VersionedSet {
                    set,
                    api_version: self.api_version.into(),
                    applied: false,
                },
            );
        }
        Ok(())
    }

    /// Applies `config`. `Ok(None)`: the object stays as it is (ownership may still change).
    pub fn apply(
        &self,
        live: &Value,
        config: &Value,
        managers: &mut Managers,
        who: &ManagerId,
        force: bool,
    ) -> Res<Option<Value>> {
        self.reconcile(live, managers)?;
        let merged = typed::merge(live, config, self.schema)
            .map_err(|e| UpdateError::Typed(format!("failed to merge config: {e}")))?;
        let set = typed::to_field_set(config, self.schema).recursive_difference(self.reset_fields);
        let applied = VersionedSet {
            set,
            api_version: self.api_version.into(),
            applied: true,
        };
        // Who applies again whatever they applied last leaves nothing out.
        let last = managers.get(who);
        let is_whole =
            self.converter.is_none() && last.is_some_and(|last| last.set.difference(&applied.set).is_empty());
        let last = managers.insert(who.clone(), applied);
        let new = if is_whole {
            merged
        } else {
            self.prune(merged, managers, last)?
        };
        self.settle(live, &new, managers, who, force)?;
        Ok((!super::fieldpath::equal_values(live, &new)).then_some(new))
    }

    /// Removes what the applier applied last time, doesn't apply now, and no one else claims.
    fn prune(&self, merged: Value, managers: &Managers, last: Option<VersionedSet>) -> Res<Value> {
        let Some(last) = last.filter(|l| !l.set.is_empty()) else {
            return Ok(merged);
        };
        let version = last.api_version.as_str();
        let Some((in_version, schema)) = self.convert(&merged, self.api_version, version)? else {
            return Ok(merged);
        };
        let pruned = typed::remove(&in_version, &typed::ensure_named_fields(&last.set, &schema), &schema);
        let pruned = self.add_back_owned(&in_version, pruned, version, managers)?;
        let pruned = add_back_dangling(&in_version, &pruned, &last.set, &schema);
        if version == self.api_version {
            return Ok(pruned);
        }
        Ok(match self.converter {
            Some(c) => c
                .convert(&pruned, self.api_version)
                .map_err(UpdateError::Typed)?
                .map_or(pruned, |(v, _)| v),
            None => pruned,
        })
    }

    fn add_back_owned(&self, merged: &Value, pruned: Value, version: &str, managers: &Managers) -> Res<Value> {
        let mut at_version: BTreeMap<&str, Set> = BTreeMap::new();
        for m in managers.values() {
            let set = at_version.entry(&m.api_version).or_default();
            *set = set.union(&m.set);
        }
        let (mut merged, mut pruned, mut current) = (merged.clone(), pruned, Str::from(version));
        // The version at hand first: what is pruned may be needed to convert.
        let first = at_version.remove_entry(version);
        for (to, owned) in first.into_iter().chain(at_version) {
            let schema = if *to == *current && to == self.api_version {
                self.schema.clone()
            } else {
                let Some(c) = self.converter else { continue };
                let Some((m, s)) = c.convert(&merged, to).map_err(UpdateError::Typed)? else {
                    continue;
                };
                let Some((p, _)) = c.convert(&pruned, to).map_err(UpdateError::Typed)? else {
                    continue;
                };
                (merged, pruned, current) = (m, p, to.into());
                s
            };
            let named = |set: &Set| typed::ensure_named_fields(set, &schema);
            let have = named(&typed::to_field_set(&merged, &schema));
            let kept = named(&typed::to_field_set(&pruned, &schema)).union(&named(&owned));
            pruned = typed::remove(&merged, &have.difference(&kept), &schema);
        }
        if *current != *version
            && let Some(c) = self.converter
            && let Some((p, _)) = c.convert(&pruned, version).map_err(UpdateError::Typed)?
        {
            pruned = p;
        }
        Ok(pruned)
    }
}

/// Only what the applier itself owned may go: everything else comes back.
fn add_back_dangling(merged: &Value, pruned: &Value, last: &Set, schema: &SchemaRef) -> Value {
    let named = |set: &Set| typed::ensure_named_fields(set, schema);
    let kept = named(&typed::to_field_set(pruned, schema));
    let have = named(&typed::to_field_set(merged, schema));
    typed::remove(merged, &have.difference(&kept).intersection(&named(last)), schema)
}
