//! Aggregated discovery: everything in one document, with what extension servers told of themselves.

use super::plain::{Group, of_version, sorted, strings};
use crate::aggregation::Services;
use http::{HeaderMap, header};
use keelson_api::{Str, Value, value};
use keelson_registry::ResourceDef;
use keelson_registry::table::Snapshot;

/// There is one since 1.37 gave up `v2beta1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavor {
    V2,
}

impl Flavor {
    /// The flavour a client prefers to the plain documents.
    pub fn wanted(headers: &HeaderMap) -> Option<Flavor> {
        let accept = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .collect::<Vec<_>>()
            .join(",");
        for offer in accept.split(',') {
            let mut parts = offer.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let parameters: Vec<&str> = parts.collect();
            if parameters.contains(&"g=apidiscovery.k8s.io") && parameters.contains(&"as=APIGroupDiscoveryList") {
                if parameters.contains(&"v=v2") {
                    return Some(Flavor::V2);
                }
            } else if matches!(
                kind,
                "application/json" | "application/vnd.kubernetes.protobuf" | "*/*" | "application/*"
            ) {
                return None;
            }
        }
        None
    }
    pub fn version(self) -> &'static str {
        match self {
            Flavor::V2 => "v2",
        }
    }
    pub fn content_type(self) -> &'static str {
        match self {
            Flavor::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        }
    }
}

/// `/api`
pub fn core(flavor: Flavor, table: &Snapshot) -> Value {
    let mut group = value!({"metadata": {}});
    group.set_at(&["versions"], vec![version(table, "", "v1")]);
    list(flavor, vec![group])
}

/// `/apis`
pub fn named(flavor: Flavor, table: &Snapshot, services: &Services, groups: &[Group]) -> Value {
    let items = groups.iter().map(|g| {
        let mut group = value!({"metadata": {"name": g.name.as_str()}});
        let versions = g.versions.iter().map(|v| {
            if table.has_group_version(&g.name, v) {
                version(table, &g.name, v)
            } else {
                services.discovery(&g.name, v)
            }
        });
        group.set_at(&["versions"], versions.collect::<Vec<_>>());
        group
    });
    list(flavor, items.collect())
}

fn list(flavor: Flavor, items: Vec<Value>) -> Value {
    let mut list = value!({"kind": "APIGroupDiscoveryList", "metadata": {}});
    list.set_at(&["apiVersion"], format!("apidiscovery.k8s.io/{}", flavor.version()));
    list.set_at(&["items"], items);
    list
}

fn version(table: &Snapshot, group: &str, version: &str) -> Value {
    let mut v = value!({"version": version, "freshness": "Current"});
    v.set_at(
        &["resources"],
        of_version(table, group, version)
            .map(|d| resource(d))
            .collect::<Vec<_>>(),
    );
    v
}

fn response_kind(group: &str, version: &str, kind: &str) -> Value {
    value!({"group": group, "version": version, "kind": kind})
}

fn resource(def: &ResourceDef) -> Value {
    let mut r = value!({
        "resource": def.gvr.resource.as_str(),
        "scope": if def.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular.as_str(),
    });
    // Group and version are left empty where they are the document's own, as upstream leaves them.
    r.set_at(&["responseKind"], response_kind("", "", &def.kind));
    r.set_at(&["verbs"], sorted(&def.verbs));
    let optional: [(&str, &[Str]); 2] = [("shortNames", &def.short_names), ("categories", &def.categories)];
    for (key, names) in optional {
        if !names.is_empty() {
            r.set_at(&[key], strings(names));
        }
    }
    if !def.subresources.is_empty() {
        let mut subs: Vec<_> = def.subresources.iter().collect();
        subs.sort_by(|a, b| a.name.cmp(&b.name));
        let subs = subs.into_iter().map(|sub| {
            let kind = match &sub.kind {
                Some(k) if k.group != def.gvr.group || k.version != def.gvr.version => {
                    response_kind(&k.group, &k.version, &k.kind)
                }
                Some(k) => response_kind("", "", &k.kind),
                None => response_kind("", "", &def.kind),
            };
            let mut s = value!({"subresource": sub.name.as_str()});
            s.set_at(&["responseKind"], kind);
            s.set_at(&["verbs"], sorted(&sub.verbs));
            s
        });
        r.set_at(&["subresources"], subs.collect::<Vec<_>>());
    }
    r
}

/// The entry of a version, made from the plain resource list of an extension server that knows no other.
pub fn parse_group_list(version: &str, list: &Value) -> Value {
    let mut out: Vec<Value> = Vec::new();
    let items: Vec<&Value> = list
        .get("resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    for item in items.iter().filter(|i| !text(i, "name").contains('/')) {
        let name = text(item, "name");
        let mut r = value!({
            "resource": name,
            "scope": if item.get("namespaced").and_then(Value::as_bool) == Some(true) { "Namespaced" } else { "Cluster" },
            "singularResource": text(item, "singularName"),
        });
        r.set_at(
            &["responseKind"],
            response_kind(&text(item, "group"), &text(item, "version"), &text(item, "kind")),
        );
        for key in ["verbs", "shortNames", "categories"] {
            if let Some(v) = item.get(key) {
                r.set_at(&[key], v.clone());
            }
        }
        let prefix = format!("{name}/");
        let subs: Vec<Value> = items
            .iter()
            .filter_map(|i| {
                let full = text(i, "name");
                let mut s = value!({"subresource": full.strip_prefix(&prefix)?});
                s.set_at(
                    &["responseKind"],
                    response_kind(&text(i, "group"), &text(i, "version"), &text(i, "kind")),
                );
                s.set_at(&["verbs"], i.get("verbs").cloned().unwrap_or_default());
                Some(s)
            })
            .collect();
        if !subs.is_empty() {
            r.set_at(&["subresources"], subs);
        }
        out.push(r);
    }
    let mut v = value!({"version": version, "freshness": "Current"});
    v.set_at(&["resources"], out);
    v
}
