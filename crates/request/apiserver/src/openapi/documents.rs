//! The documents, assembled: one of version 3 for each group version, one of version 2 for everything.
//!
//! Documents are kept compressed. The version 2 document is kept in pieces, each a gzip member of its own: members may be
//! joined, so that a change of one custom resource doesn't write four megabytes anew.

use super::custom::CustomKind;
use super::describe::Descriptions;
use super::paths::{Paths, Resource, Sub};
use super::schemas::{Builder, Kinds};
use crate::version;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use keelson_api::builtin::{builtin, builtin_kind, builtin_type};
use keelson_api::{GroupVersionKind, Map, TypeId, Value, value};
use keelson_machinery::structural::publish::Document;
use keelson_registry::ResourceDef;
use keelson_registry::table::Snapshot;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing into memory can't fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default().into()
}

/// The type of a built-in row, and those of its list and subresources.
fn types_of(def: &ResourceDef) -> Vec<(TypeId, GroupVersionKind)> {
    let mut out = vec![(def.schema.ty, def.gvk())];
    let list = GroupVersionKind {
        kind: def.list_kind.clone(),
        ..def.gvk()
    };
    out.extend(builtin_kind(&list).map(|s| (s.ty, list)));
    for sub in &def.subresources {
        if let (Some(kind), Some(schema)) = (&sub.kind, &sub.schema) {
            out.push((schema.ty, kind.clone()));
        }
    }
    out
}

fn meta_types() -> Vec<(TypeId, GroupVersionKind)> {
    ["DeleteOptions", "Status", "WatchEvent", "APIResourceList"]
        .iter()
        .filter_map(|kind| {
            Some((
                builtin_type(&format!("{META}.{kind}"))?.ty,
                GroupVersionKind::new("", "v1", kind),
            ))
        })
        .collect()
}

fn kinds(table: &Snapshot) -> Kinds {
    let mut kinds = Kinds::new();
    for (id, gvk) in table
        .iter()
        .filter(|d| !d.custom)
        .flat_map(|d| types_of(d))
        .chain(meta_types())
    {
        let of_type = kinds.entry(id).or_default();
        let entry = (gvk.group.to_string(), gvk.version.to_string(), gvk.kind.to_string());
        if !of_type.contains(&entry) {
            of_type.push(entry);
        }
    }
    kinds
}

fn model(id: TypeId) -> String {
    builtin().get(id).name.to_string()
}

/// The operations of a built-in row.
fn resource(def: &ResourceDef) -> Resource<'_> {
    let list = GroupVersionKind {
        kind: def.list_kind.clone(),
        ..def.gvk()
    };
    Resource {
        group: &def.gvr.group,
        version: &def.gvr.version,
        plural: &def.gvr.resource,
        kind: &def.kind,
        namespaced: def.namespaced,
        verbs: &def.verbs,
        model: model(def.schema.ty),
        list_model: builtin_kind(&list).map(|s| model(s.ty)).unwrap_or_default(),
        subresources: def
            .subresources
            .iter()
            .filter(|s| s.schema.is_some() || s.kind.is_none())
            .map(|s| Sub {
                name: s.name.clone(),
                gvk: s.kind.clone().unwrap_or_else(|| def.gvk()),
                model: model(s.schema.as_ref().map_or(def.schema.ty, |s| s.ty)),
                verbs: s.verbs.clone(),
            })
            .collect(),
    }
}

/// The version 3 document of a group version.
pub fn v3(table: &Snapshot, custom: &[Arc<CustomKind>], group: &str, version: &str) -> Vec<u8> {
    let rows: Vec<&Arc<ResourceDef>> = table
        .iter()
        .filter(|d| !d.custom && d.gvr.group == group && d.gvr.version == version)
        .collect();
    let custom: Vec<&Arc<CustomKind>> = custom
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    let descriptions = Descriptions::gather();
    let kinds = kinds(table);
    let builder = Builder {
        schema: builtin(),
        descriptions: &descriptions,
        kinds: &kinds,
        document: Document::V3,
    };
    let mut roots: Vec<TypeId> = rows.iter().flat_map(|d| types_of(d)).map(|(id, _)| id).collect();
    roots.extend(meta_types().into_iter().map(|(id, _)| id));
    if !custom.is_empty() {
        roots.extend(
            ["ObjectMeta", "ListMeta"]
                .iter()
                .filter_map(|k| Some(builtin_type(&format!("{META}.{k}"))?.ty)),
        );
    }
    let mut schemas = builder.closure(roots);
    let mut paths: BTreeMap<String, Value> = BTreeMap::new();
    for def in rows {
        paths.extend(
            Paths {
                document: Document::V3,
                custom: false,
            }
            .of(&resource(def)),
        );
    }
    for kind in custom {
        schemas.extend(kind.definitions(Document::V3));
        paths.extend(
            Paths {
                document: Document::V3,
                custom: true,
            }
            .of(&kind.resource()),
        );
    }
    let mut doc = value!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": version::GIT_VERSION}});
    doc.set_at(&["paths"], paths.into_iter().collect::<Map>());
    doc.set_at(&["components", "schemas"], schemas.into_iter().collect::<Map>());
    doc.set_at(
        &["components", "securitySchemes", "BearerToken"],
        value!({"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}),
    );
    serde_json::to_vec(&doc).unwrap_or_default()
}

/// The built-in part of the version 2 document: the inside of its paths and of its definitions.
pub struct BuiltIn {
    pub paths: Bytes,
    pub definitions: Bytes,
}

impl BuiltIn {
    pub fn build(table: &Snapshot) -> Self {
        let descriptions = Descriptions::gather();
        let kinds = kinds(table);
        let builder = Builder {
            schema: builtin(),
            descriptions: &descriptions,
            kinds: &kinds,
            document: Document::V2,
        };
        let rows: Vec<&Arc<ResourceDef>> = table.iter().filter(|d| !d.custom).collect();
        let roots = rows
            .iter()
            .flat_map(|d| types_of(d))
            .chain(meta_types())
            .map(|(id, _)| id);
        let definitions = builder.closure(roots);
        let mut paths: BTreeMap<String, Value> = BTreeMap::new();
        for def in rows {
            paths.extend(
                Paths {
                    document: Document::V2,
                    custom: false,
                }
                .of(&resource(def)),
            );
        }
        BuiltIn {
            paths: gzip(&inside(&paths)),
            definitions: gzip(&inside(&definitions)),
        }
    }
}

/// The members of a JSON object, without its braces.
fn inside(members: &BTreeMap<String, Value>) -> Vec<u8> {
    let bytes = serde_json::to_vec(members).unwrap_or_default();
    bytes.get(1..bytes.len().saturating_sub(1)).unwrap_or_default().to_vec()
}

/// The whole version 2 document, compressed.
pub fn v2(built_in: &BuiltIn, custom: &[Arc<CustomKind>]) -> Bytes {
    let mut paths = BTreeMap::new();
    let mut definitions = BTreeMap::new();
    for kind in custom {
        paths.extend(
            Paths {
                document: Document::V2,
                custom: true,
            }
            .of(&kind.resource()),
        );
        definitions.extend(kind.definitions(Document::V2));
    }
    let more = |members: &BTreeMap<String, Value>| {
        let mut bytes = inside(members);
        if !bytes.is_empty() {
            bytes.insert(0, b',');
        }
        bytes
    };
    let head = format!(
        r#"{{"swagger":"2.0","info":{{"title":"Kubernetes","version":"{}"}},"paths":{{"#,
        version::GIT_VERSION
    );
    let mut middle = more(&paths);
    middle.extend_from_slice(br#"},"definitions":{"#);
    let mut tail = more(&definitions);
    tail.extend_from_slice(br#"},"securityDefinitions":{"BearerToken":{"description":"Bearer Token authentication","in":"header","name":"authorization","type":"apiKey"}},"security":[{"BearerToken":[]}]}"#);
    let parts = [
        gzip(head.as_bytes()),
        built_in.paths.clone(),
        gzip(&middle),
        built_in.definitions.clone(),
        gzip(&tail),
    ];
    parts.concat().into()
}
