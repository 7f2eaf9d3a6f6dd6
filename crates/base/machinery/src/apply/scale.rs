//! Ownership of `replicas` across the scale subresource: the resource's entries as Scale's, and back.

use super::fieldpath::{Path, Set};
use super::managed::{Managed, VersionedSet};
use keelson_api::{Str, Value};

const SCALE_VERSION: &str = "autoscaling/v1";

/// Where the replicas stand in each version of the resource; `None` for a version without scale.
pub type ReplicasPaths<'a> = &'a dyn Fn(&str) -> Option<Option<Path>>;

fn in_scale() -> Path {
    Path::fields(&["spec", "replicas"])
}

/// The entries of a Scale made from the resource's.
pub fn to_scale(parent: Option<&Value>, paths: ReplicasPaths) -> Result<Option<Value>, String> {
    let managed = Managed::decode(parent)?;
    let mut out = Managed::default();
    for (id, set) in &managed.fields {
        let Some(Some(path)) = paths(&set.api_version) else {
            continue;
        };
        if set.set.has(&path.0) {
            let set = VersionedSet {
                set: Set::from_paths([in_scale()]),
                api_version: SCALE_VERSION.into(),
                applied: set.applied,
            };
            out.fields.insert(id.clone(), set);
            if let Some(t) = managed.times.get(id) {
                out.times.insert(id.clone(), t.clone());
            }
        }
    }
    Ok(out.encode())
}

/// The resource's entries after a write through scale left `scale` as the Scale's.
pub fn to_parent(
    parent: Option<&Value>,
    scale: Option<&Value>,
    api_version: &str,
    paths: ReplicasPaths,
) -> Result<Option<Value>, String> {
    let before = Managed::decode(parent)?;
    let mut scale = Managed::decode(scale)?;
    let mut out = Managed::default();
    let mut keep = |id: &super::managed::ManagerId, set: VersionedSet, time: Option<&Str>| {
        out.fields.insert(id.clone(), set);
        if let Some(t) = time {
            out.times.insert(id.clone(), t.clone());
        }
    };
    for (id, set) in &before.fields {
        let Some(path) = paths(&set.api_version) else { continue };
        let time = before.times.get(id);
        let Some(path) = path.filter(|p| set.set.has(&p.0)) else {
            keep(id, set.clone(), time);
            continue;
        };
        if scale.fields.remove(id).is_some() {
            keep(id, set.clone(), time);
        } else {
            // Someone took the replicas through scale.
            let left = set.set.difference(&Set::from_paths([path]));
            if !left.is_empty() {
                keep(
                    id,
                    VersionedSet {
                        set: left,
                        ..set.clone()
                    },
                    time,
                );
            }
        }
    }
    for (id, set) in &scale.fields {
        if !set.set.has(&in_scale().0) {
            continue;
        }
        let Some(Some(path)) = paths(api_version) else { continue };
        let taken = VersionedSet {
            set: Set::from_paths([path]),
            api_version: api_version.into(),
            applied: set.applied,
        };
        keep(id, taken, scale.times.get(id));
    }
    Ok(out.encode())
}
