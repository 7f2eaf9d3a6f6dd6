//! What resources the server has, each in its preferred version: for those who work on all kinds alike.
//!
//! Groups that can't be discovered (an aggregated server that is away) are named, never taken for absent.

use crate::kind::ResourceId;
use crate::rest::{Error, JSON, Rest, Result};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeSet;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    pub id: ResourceId,
    pub verbs: Vec<String>,
}

impl Discovered {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub found: Vec<Discovered>,
    /// Group versions that could not be discovered, and why.
    pub failed: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Document {
    kind: String,
    #[serde(default)]
    items: Vec<GroupDocument>,
    #[serde(default)]
    groups: Vec<PlainGroup>,
    #[serde(default)]
    versions: Vec<String>,
}

#[derive(Deserialize)]
struct GroupDocument {
    #[serde(default)]
    metadata: Name,
    #[serde(default)]
    versions: Vec<VersionDocument>,
}

#[derive(Default, Deserialize)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct VersionDocument {
    version: String,
    #[serde(default)]
    resources: Vec<ResourceDocument>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
struct ResourceDocument {
    resource: String,
    #[serde(rename = "responseKind")]
    response_kind: Option<Kind>,
    scope: String,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct PlainGroup {
    name: String,
    versions: Vec<PlainVersion>,
    #[serde(rename = "preferredVersion")]
    preferred: Option<PlainVersion>,
}

#[derive(Clone, Deserialize)]
struct PlainVersion {
    version: String,
}

#[derive(Deserialize)]
struct PlainResources {
    #[serde(default)]
    resources: Vec<PlainResource>,
}

#[derive(Deserialize)]
struct PlainResource {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

/// All resources, each once, in the version its group prefers.
pub async fn preferred_resources(rest: &Rest) -> Result<Resources> {
    let mut all = Resources::default();
    for root in ["/api", "/apis"] {
        let body = rest.get(root, AGGREGATED).await?;
        let document: Document = serde_json::from_slice(&body).map_err(Error::SerdeError)?;
        if document.kind == "APIGroupDiscoveryList" {
            read_aggregated(document, &mut all);
        } else {
            read_plain(rest, document, &mut all).await?;
        }
    }
    Ok(all)
}

fn read_aggregated(document: Document, all: &mut Resources) {
    for group in document.items {
        let mut seen = BTreeSet::new();
        for version in group.versions {
            let gv = join(&group.metadata.name, &version.version);
            if version.freshness == "Stale" {
                all.failed
                    .push((gv.clone(), format!("stale GroupVersion discovery: {gv}")));
            }
            for resource in version.resources {
                let kind = resource.response_kind.map(|k| k.kind).unwrap_or_default();
                if seen.insert(resource.resource.clone()) {
                    let namespaced = resource.scope == "Namespaced";
                    all.add(
                        &group.metadata.name,
                        &version.version,
                        kind,
                        resource.resource,
                        namespaced,
                        resource.verbs,
                    );
                }
            }
        }
    }
}

async fn read_plain(rest: &Rest, document: Document, all: &mut Resources) -> Result<()> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    if !document.versions.is_empty() {
        groups.push((String::new(), document.versions));
    }
    for group in document.groups {
        let mut versions: Vec<String> = group.versions.into_iter().map(|v| v.version).collect();
        if let Some(preferred) = group.preferred {
            versions.sort_by_key(|v| *v != preferred.version);
        }
        groups.push((group.name, versions));
    }
    for (group, versions) in groups {
        let mut seen = BTreeSet::new();
        for version in versions {
            let root = if group.is_empty() {
                format!("/api/{version}")
            } else {
                format!("/apis/{group}/{version}")
            };
            let body = match rest.get(&root, JSON).await {
                Ok(body) => body,
                Err(error @ Error::Api(_)) => {
                    all.failed.push((join(&group, &version), error.to_string()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let list: PlainResources = serde_json::from_slice(&body).map_err(Error::SerdeError)?;
            for resource in list.resources {
                if !resource.name.contains('/') && seen.insert(resource.name.clone()) {
                    all.add(
                        &group,
                        &version,
                        resource.kind,
                        resource.name,
                        resource.namespaced,
                        resource.verbs,
                    );
                }
            }
        }
    }
    Ok(())
}

impl Resources {
    fn add(&mut self, group: &str, version: &str, kind: String, plural: String, namespaced: bool, verbs: Vec<String>) {
        let id = ResourceId {
            group: Cow::Owned(group.to_string()),
            version: Cow::Owned(version.to_string()),
            kind: Cow::Owned(kind),
            plural: Cow::Owned(plural),
            namespaced,
        };
        self.found.push(Discovered { id, verbs });
    }
}

fn join(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_string()
    } else {
        format!("{group}/{version}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_of_a_resource_counts_and_stale_groups_are_named() {
        let text = r#"{"kind":"APIGroupDiscoveryList","items":[{"metadata":{"name":"g.io"},"versions":[
            {"version":"v1","freshness":"Current","resources":[{"resource":"as","responseKind":{"kind":"A"},"scope":"Namespaced","verbs":["list","delete"]}]},
            {"version":"v1beta1","freshness":"Stale","resources":[{"resource":"as","responseKind":{"kind":"A"},"scope":"Namespaced","verbs":[]},
             {"resource":"bs","responseKind":{"kind":"B"},"scope":"Cluster","verbs":["get"]}]}]}]}"#;
        let document: Document = serde_json::from_str(text).expect("valid");
        let mut all = Resources::default();
        read_aggregated(document, &mut all);
        let names: Vec<String> = all.found.iter().map(|r| r.id.to_string()).collect();
        assert_eq!(names, ["g.io/v1/as", "g.io/v1beta1/bs"]);
        assert!(all.found[0].can("delete") && all.found[0].id.namespaced && !all.found[1].id.namespaced);
        assert_eq!(all.failed.len(), 1);
    }
}
