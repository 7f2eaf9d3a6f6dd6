//! A definition as rows of the resource table.

use super::convert::{Renamed, Webhook};
use super::strategy::CustomStrategy;
use super::{columns, names};
use crate::admission::Lookup;
use crate::openapi::CustomKind;
use crate::webhook::ClientConfig;
use keelson_api::{
    GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource, Map, Object, SchemaRef, Str, Value, builtin,
};
use keelson_machinery::cel::rules::Rules;
use keelson_machinery::structural::Structural;
use keelson_machinery::structural::convert::to_schema;
use keelson_registry::convert::Converter;
use keelson_registry::def::{ResourceDef, ScalePaths, Selectable, StorageCodec, StorageDef, SubresourceDef, View};
use sha2::{Digest, Sha256};
use std::sync::Arc;

const VERBS: [&str; 8] = [
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "create",
    "update",
    "watch",
];

struct Version<'a> {
    name: &'a str,
    spec: &'a Value,
    schema: SchemaRef,
}

fn strings(v: Option<&Vec<Value>>) -> Vec<Str> {
    v.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Str::from)
        .collect()
}

fn parse_schema(version: &Value, preserve: bool) -> Structural {
    let mut s = match version.at(&["schema", "openAPIV3Schema"]) {
        Some(v) => Structural::parse(v),
        None => Structural {
            ty: "object".into(),
            preserve_unknown: true,
            ..Structural::default()
        },
    };
    s.preserve_unknown |= preserve;
    s.source = version.at(&["schema", "openAPIV3Schema"]).map(|v| Arc::new(v.clone()));
    s
}

/// The rows of a definition whose names are accepted: one for each served version.
pub fn of(crd: &Object, lookup: &Arc<Lookup>) -> Vec<ResourceDef> {
    let empty = Map::new();
    let spec = crd.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let accepted = crd
        .at(&["status", "acceptedNames"])
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let group = spec.str("group").unwrap_or_default();
    let text = |key: &str| Str::from(accepted.str(key).unwrap_or_default());
    let (kind, plural) = (text("kind"), text("plural"));
    let preserve = spec.bool("preserveUnknownFields").unwrap_or(false);
    let versions: Vec<Version> = spec
        .arr("versions")
        .into_iter()
        .flatten()
        .map(|v| Version {
            name: v.get("name").and_then(Value::as_str).unwrap_or_default(),
            spec: v,
            schema: to_schema(parse_schema(v, preserve)),
        })
        .collect();
    let Some(stored) = versions
        .iter()
        .find(|v| v.spec.get("storage").and_then(Value::as_bool) == Some(true))
    else {
        return Vec::new();
    };
    // Attributes of an entry are counted through, so that all versions share one list.
    let mut selectable: Vec<Str> = versions.iter().flat_map(|v| selectable_of(v.spec)).collect();
    selectable.sort();
    selectable.dedup();
    let namespaced = spec.str("scope") == Some("Namespaced");
    let storage = Arc::new(StorageDef {
        prefix: format!("/registry/{group}/{plural}").into(),
        namespaced,
        version: GroupVersionKind::new(group, stored.name, &kind),
        codec: StorageCodec::Json,
        schema: stored.schema.clone(),
        selectable: Selectable::Paths(selectable),
        resource: GroupResource {
            group: group.into(),
            resource: plural.clone(),
        },
        view: None,
    });
    let (converter, asks) = converter(spec, group, &kind, lookup);
    let siblings: Vec<(GroupVersion, SchemaRef)> = versions
        .iter()
        .map(|v| (GroupVersion::new(group, v.name), v.schema.clone()))
        .collect();
    let terminating = crd.deletion_timestamp().is_some() || names::is_true(crd, "Terminating");
    versions
        .iter()
        .filter(|v| v.spec.get("served").and_then(Value::as_bool) == Some(true))
        .map(|v| {
            let status = v.spec.at(&["subresources", "status"]).is_some();
            let gv = GroupVersion::new(group, v.name);
            let selectable = selectable_of(v.spec);
            // Where versions differ in their fields, what is stored says nothing to this one's selectors.
            let view = (asks && !selectable.is_empty()).then(|| {
                Arc::new(StorageDef {
                    selectable: Selectable::Paths(selectable.clone()),
                    view: Some(View {
                        api_version: gv.to_string().into(),
                        converter: converter.clone(),
                    }),
                    ..StorageDef::clone(&storage)
                })
            });
            ResourceDef {
                gvr: GroupVersionResource::new(group, v.name, &plural),
                kind: kind.clone(),
                list_kind: text("listKind"),
                singular: text("singular"),
                short_names: strings(accepted.arr("shortNames")),
                categories: strings(accepted.arr("categories")),
                namespaced,
                verbs: VERBS.iter().map(|v| Str::const_new(v)).collect(),
                schema: v.schema.clone(),
                storage: Some(storage.clone()),
                view,
                selectable,
                subresources: subresources(v.spec),
                strategy: Arc::new(CustomStrategy {
                    status,
                    rules: Rules::new(&parse_schema(v.spec, preserve), true),
                    terminating,
                }),
                // Stored objects may be in any version, also where one is served.
                converter: Some(converter.clone()),
                siblings: siblings.clone(),
                columns: columns::of(v.spec),
                custom: true,
                frozen: terminating,
                deprecation: deprecation(v, group, &kind),
                storage_version_hash: version_hash(group, stored.name, &kind),
            }
        })
        .collect()
}

/// What OpenAPI says of the served versions.
pub fn described(crd: &Object) -> Vec<CustomKind> {
    let accepted = |key: &str| {
        Str::from(
            crd.at(&["status", "acceptedNames", key])
                .and_then(Value::as_str)
                .unwrap_or_default(),
        )
    };
    let spec = |key: &str| crd.at(&["spec", key]).and_then(Value::as_str).unwrap_or_default();
    let versions = crd
        .at(&["spec", "versions"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    versions
        .filter(|v| v.get("served").and_then(Value::as_bool) == Some(true))
        .map(|v| CustomKind {
            group: spec("group").into(),
            version: v.get("name").and_then(Value::as_str).unwrap_or_default().into(),
            kind: accepted("kind"),
            list_kind: accepted("listKind"),
            plural: accepted("plural"),
            namespaced: spec("scope") == "Namespaced",
            has_status: v.at(&["subresources", "status"]).is_some(),
            has_scale: v.at(&["subresources", "scale"]).is_some(),
            selectable: selectable_of(v),
            schema: v.at(&["schema", "openAPIV3Schema"]).cloned(),
            verbs: VERBS.iter().map(|v| Str::const_new(v)).collect(),
        })
        .collect()
}

fn selectable_of(version: &Value) -> Vec<Str> {
    let list = version.get("selectableFields").and_then(Value::as_array);
    let paths = list.into_iter().flatten().filter_map(|f| f.get("jsonPath")?.as_str());
    paths.map(|p| Str::from(p.strip_prefix('.').unwrap_or(p))).collect()
}

/// What converts, and whether it changes more than the version's name.
fn converter(spec: &Map, group: &str, kind: &str, lookup: &Arc<Lookup>) -> (Arc<dyn Converter>, bool) {
    let webhook = spec
        .obj("conversion")
        .filter(|c| c.str("strategy") == Some("Webhook"))
        .and_then(|c| c.obj("webhook"));
    let Some(w) = webhook else {
        return (Arc::new(Renamed), false);
    };
    let known = |v: &&Str| matches!(v.as_str(), "v1" | "v1beta1");
    let review = strings(w.arr("conversionReviewVersions"))
        .iter()
        .find(known)
        .map_or("v1", |v| v.as_str())
        .to_string();
    let converter = Webhook {
        lookup: lookup.clone(),
        config: ClientConfig::parse(w.obj("clientConfig")),
        review,
        of: format!("{group}/, Kind={kind}"),
    };
    (Arc::new(converter), true)
}

fn subresources(version: &Value) -> Vec<SubresourceDef> {
    let verbs = || ["get", "patch", "update"].iter().map(|v| Str::const_new(v)).collect();
    let mut out = Vec::new();
    if version.at(&["subresources", "status"]).is_some() {
        out.push(SubresourceDef {
            name: "status".into(),
            verbs: verbs(),
            ..SubresourceDef::default()
        });
    }
    if let Some(scale) = version.at(&["subresources", "scale"]) {
        let kind = GroupVersionKind::new("autoscaling", "v1", "Scale");
        let path = |key: &str| {
            let text = scale.get(key).and_then(Value::as_str).unwrap_or_default();
            text.split('.')
                .filter(|s| !s.is_empty())
                .map(Str::from)
                .collect::<Vec<_>>()
        };
        let selector = path("labelSelectorPath");
        out.push(SubresourceDef {
            name: "scale".into(),
            schema: builtin::builtin_kind(&kind),
            kind: Some(kind),
            verbs: verbs(),
            scale: Some(ScalePaths {
                spec_replicas: path("specReplicasPath"),
                status_replicas: path("statusReplicasPath"),
                selector: (!selector.is_empty()).then_some(selector),
            }),
        });
    }
    out
}

fn deprecation(v: &Version, group: &str, kind: &str) -> Option<Str> {
    if v.spec.get("deprecated").and_then(Value::as_bool) != Some(true) {
        return None;
    }
    Some(match v.spec.get("deprecationWarning").and_then(Value::as_str) {
        Some(text) => text.into(),
        None => format!("{group}/{} {kind} is deprecated", v.name).into(),
    })
}

/// Discovery's hash of group, version and kind, as upstream computes it.
fn version_hash(group: &str, version: &str, kind: &str) -> Str {
    use base64::Engine as _;
    let sum = Sha256::digest(format!("{group}/{version}/{kind}").as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&sum[..8]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;
    use keelson_registry::{Engine, ResourceTable};
    use keelson_store::memory::Memory;

    fn lookup() -> Arc<Lookup> {
        let table = Arc::new(ResourceTable::new(keelson_registry::resources::rows()));
        Arc::new(Lookup::new(Arc::new(Engine::new(table, Memory::new()))))
    }

    #[test]
    fn served_versions_become_rows() {
        let crd = Object::try_from(value!({"spec": {"group": "x.io", "scope": "Namespaced", "versions": [
            {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {
                "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
             "selectableFields": [{"jsonPath": ".spec.color"}],
             "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}}},
            {"name": "v0", "served": false, "storage": false}]},
            "status": {"acceptedNames": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList", "shortNames": ["tb"]}}}))
        .unwrap();
        let rows = of(&crd, &lookup());
        assert_eq!(rows.len(), 1);
        let r = &rows[0];
        assert_eq!(
            (r.gvr.resource.as_str(), r.kind.as_str(), r.namespaced, r.custom),
            ("tabs", "Tab", true, true)
        );
        assert_eq!(r.storage.as_ref().unwrap().prefix, "/registry/x.io/tabs");
        assert_eq!(r.storage.as_ref().unwrap().field_index("spec.color"), Some(0));
        assert_eq!(
            r.subresources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["status", "scale"]
        );
        assert_eq!(r.siblings.len(), 2);
    }
}
