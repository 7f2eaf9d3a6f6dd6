//! The plain documents: APIVersions, APIGroupList, APIGroup, APIResourceList.

use crate::aggregation::Services;
use keelson_api::{Str, Value, resources, value};
use keelson_registry::ResourceDef;
use keelson_registry::def::SubresourceDef;
use keelson_registry::table::Snapshot;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A group with its versions, the preferred one first.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: Str,
    pub versions: Vec<Str>,
}

/// What CRD groups get, as upstream registers them.
pub const CRD_GROUP_PRIORITY: i64 = 1000;
pub const CRD_VERSION_PRIORITY: i64 = 100;

/// Priorities of a group and version: of built-in ones from the facts, of custom ones upstream's constants.
pub fn local_priority(group: &str, version: &str) -> (i64, i64) {
    let facts = resources::groups().iter().find(|g| g.name == group);
    match facts.and_then(|g| {
        g.versions
            .iter()
            .find(|v| v.name == version)
            .map(|v| (g.priority, v.priority))
    }) {
        Some((group, version)) => (group.into(), version.into()),
        None => (CRD_GROUP_PRIORITY, CRD_VERSION_PRIORITY),
    }
}

/// All groups besides the core one: by falling priority, then name; versions by priority, then as versions sort.
pub fn groups(table: &Snapshot, services: &Services) -> Vec<Group> {
    let mut found: BTreeMap<Str, (i64, BTreeMap<Str, i64>)> = BTreeMap::new();
    let mut add = |group: &Str, version: &Str, (gp, vp): (i64, i64)| {
        let entry = found.entry(group.clone()).or_default();
        entry.0 = entry.0.max(gp);
        entry.1.entry(version.clone()).or_insert(vp);
    };
    for def in table.iter().filter(|d| !d.gvr.group.is_empty()) {
        add(
            &def.gvr.group,
            &def.gvr.version,
            local_priority(&def.gvr.group, &def.gvr.version),
        );
    }
    for s in services.remote() {
        add(&s.group, &s.version, (s.group_priority, s.version_priority));
    }
    let mut groups: Vec<(i64, Group)> = found
        .into_iter()
        .map(|(name, (priority, versions))| {
            let mut versions: Vec<(Str, i64)> = versions.into_iter().collect();
            versions.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| compare_versions(&b.0, &a.0)));
            (
                priority,
                Group {
                    name,
                    versions: versions.into_iter().map(|(v, _)| v).collect(),
                },
            )
        })
        .collect();
    groups.sort_by(|a, b| (Reverse(a.0), &a.1.name).cmp(&(Reverse(b.0), &b.1.name)));
    groups.into_iter().map(|(_, g)| g).collect()
}

/// Kubernetes' order of versions: stable over beta over alpha, then by numbers, then by text.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// Stability, major, minor: `v2beta1` is (1, 2, 1).
fn parse_version(v: &str) -> Option<(u8, u64, u64)> {
    let rest = v.strip_prefix('v')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..digits].parse().ok()?;
    let rest = &rest[digits..];
    match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
        _ if rest.is_empty() => Some((2, major, 0)),
        (Some(n), _) => Some((1, major, n.parse().ok()?)),
        (_, Some(n)) => Some((0, major, n.parse().ok()?)),
        _ => None,
    }
}

pub fn api_versions(host: String) -> Value {
    value!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": host}],
    })
}

pub fn group_list(groups: &[Group]) -> Value {
    let mut list = value!({"kind": "APIGroupList", "apiVersion": "v1"});
    list.set_at(&["groups"], groups.iter().map(group_fields).collect::<Vec<_>>());
    list
}

pub fn group(group: &Group) -> Value {
    let mut one = group_fields(group);
    one.set_at(&["kind"], "APIGroup");
    one.set_at(&["apiVersion"], "v1");
    one
}

fn group_fields(group: &Group) -> Value {
    let version = |v: &Str| value!({"groupVersion": format!("{}/{v}", group.name), "version": v.as_str()});
    let mut one = value!({"name": group.name.as_str()});
    one.set_at(&["versions"], group.versions.iter().map(version).collect::<Vec<_>>());
    if let Some(first) = group.versions.first() {
        one.set_at(&["preferredVersion"], version(first));
    }
    one
}

pub fn resource_list(table: &Snapshot, group: &str, version: &str) -> Value {
    let mut resources: Vec<(String, Value)> = Vec::new();
    for def in of_version(table, group, version) {
        resources.push((def.gvr.resource.to_string(), resource(def)));
        for sub in &def.subresources {
            resources.push((format!("{}/{}", def.gvr.resource, sub.name), subresource(def, sub)));
        }
    }
    resources.sort_by(|a, b| a.0.cmp(&b.0));
    let mut list = value!({"kind": "APIResourceList"});
    if !group.is_empty() {
        list.set_at(&["apiVersion"], "v1");
    }
    let group_version = if group.is_empty() {
        version.to_string()
    } else {
        format!("{group}/{version}")
    };
    list.set_at(&["groupVersion"], group_version);
    list.set_at(
        &["resources"],
        resources.into_iter().map(|(_, r)| r).collect::<Vec<_>>(),
    );
    list
}

pub fn of_version<'t>(
    table: &'t Snapshot,
    group: &'t str,
    version: &'t str,
) -> impl Iterator<Item = &'t std::sync::Arc<ResourceDef>> {
    table
        .iter()
        .filter(move |d| d.gvr.group == group && d.gvr.version == version)
}

pub fn strings(list: &[Str]) -> Value {
    Value::Array(list.iter().cloned().map(Value::String).collect())
}

pub fn sorted(list: &[Str]) -> Value {
    let mut list = list.to_vec();
    list.sort();
    strings(&list)
}

fn resource(def: &ResourceDef) -> Value {
    let mut r = value!({
        "name": def.gvr.resource.as_str(),
        "singularName": def.singular.as_str(),
        "namespaced": def.namespaced,
        "kind": def.kind.as_str(),
    });
    r.set_at(&["verbs"], sorted(&def.verbs));
    if !def.short_names.is_empty() {
        r.set_at(&["shortNames"], strings(&def.short_names));
    }
    if !def.categories.is_empty() {
        r.set_at(&["categories"], strings(&def.categories));
    }
    if !def.storage_version_hash.is_empty() {
        r.set_at(&["storageVersionHash"], def.storage_version_hash.clone());
    }
    r
}

fn subresource(def: &ResourceDef, sub: &SubresourceDef) -> Value {
    let mut r = value!({
        "name": format!("{}/{}", def.gvr.resource, sub.name),
        "singularName": "",
        "namespaced": def.namespaced,
        "kind": def.kind.as_str(),
    });
    if let Some(kind) = &sub.kind {
        r.set_at(&["kind"], kind.kind.clone());
        if kind.group != def.gvr.group || kind.version != def.gvr.version {
            r.set_at(&["group"], kind.group.clone());
            r.set_at(&["version"], kind.version.clone());
        }
    }
    r.set_at(&["verbs"], sorted(&sub.verbs));
    r
}
