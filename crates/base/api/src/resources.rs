//! Which groups, versions and resources are served by default, as upstream's discovery documents say.
//!
//! Only facts: names, verbs, subresources, order and priorities. What a resource does is the registry's business.

use crate::GroupVersionKind;
use std::sync::OnceLock;

/// A built-in API group; the core group has the empty name.
#[derive(Clone, Debug)]
pub struct GroupFacts {
    pub name: &'static str,
    /// `groupPriorityMinimum` of its APIServices.
    pub priority: u32,
    /// In order of preference; the first is the preferred one.
    pub versions: Vec<VersionFacts>,
}

#[derive(Clone, Debug)]
pub struct VersionFacts {
    pub name: &'static str,
    /// `versionPriority` of its APIService.
    pub priority: u32,
    /// Sorted by name.
    pub resources: Vec<ResourceFacts>,
}

#[derive(Clone, Debug)]
pub struct ResourceFacts {
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub short_names: Vec<&'static str>,
    pub categories: Vec<&'static str>,
    pub verbs: Vec<&'static str>,
    /// `storageVersionHash` of upstream's discovery; empty for what isn't stored.
    pub storage_version_hash: &'static str,
    pub subresources: Vec<SubresourceFacts>,
}

#[derive(Clone, Debug)]
pub struct SubresourceFacts {
    pub name: &'static str,
    /// Of the body: of another group than the resource's for `scale`, `eviction`, `token`.
    pub kind: GroupVersionKind,
    /// The kind stands in another group or version, and discovery says so.
    pub foreign_kind: bool,
    pub verbs: Vec<&'static str>,
}

impl ResourceFacts {
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::new(self.group, self.version, self.kind)
    }
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
    pub fn subresource(&self, name: &str) -> Option<&SubresourceFacts> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// The groups served by default, in the order of upstream's discovery, the core group first.
pub fn groups() -> &'static [GroupFacts] {
    static GROUPS: OnceLock<Vec<GroupFacts>> = OnceLock::new();
    GROUPS.get_or_init(|| parse(include_str!("../schema/resources.txt")))
}

/// Every resource of every group and version.
pub fn all() -> impl Iterator<Item = &'static ResourceFacts> {
    groups().iter().flat_map(|g| &g.versions).flat_map(|v| &v.resources)
}

pub fn find(group: &str, version: &str, resource: &str) -> Option<&'static ResourceFacts> {
    groups()
        .iter()
        .find(|g| g.name == group)?
        .versions
        .iter()
        .find(|v| v.name == version)?
        .resources
        .iter()
        .find(|r| r.resource == resource)
}

/// The words of a line after its fixed ones.
#[derive(Default)]
struct Extras {
    gv: Option<&'static str>,
    short: Vec<&'static str>,
    categories: Vec<&'static str>,
    verbs: Vec<&'static str>,
    hash: &'static str,
}

fn extras(words: std::str::SplitAsciiWhitespace<'static>) -> Extras {
    let mut out = Extras::default();
    for (key, value) in words.filter_map(|w| w.split_once('=')) {
        let list = || value.split(',').collect();
        match key {
            "gv" => out.gv = Some(value),
            "short" => out.short = list(),
            "categories" => out.categories = list(),
            "verbs" => out.verbs = list(),
            "hash" => out.hash = value,
            _ => {}
        }
    }
    out
}

/// Reads the committed text. It is ours and tested to parse whole, so a line that doesn't fit is passed over.
fn parse(text: &'static str) -> Vec<GroupFacts> {
    let mut groups: Vec<GroupFacts> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let mut next = || words.next().unwrap_or_default();
        match next() {
            "group" => {
                let (name, priority) = (next().trim_matches('"'), next());
                groups.push(GroupFacts {
                    name,
                    priority: priority.parse().unwrap_or(0),
                    versions: Vec::new(),
                });
            }
            "version" => {
                let (name, priority) = (next(), next());
                let version = VersionFacts {
                    name,
                    priority: priority.parse().unwrap_or(0),
                    resources: Vec::new(),
                };
                groups
                    .last_mut()
                    .into_iter()
                    .for_each(|g| g.versions.push(version.clone()));
            }
            "resource" => {
                let (resource, singular, kind, namespaced) = (next(), next(), next(), next() == "namespaced");
                let more = extras(words);
                let Some(group) = groups.last_mut() else { continue };
                let group_name = group.name;
                let Some(version) = group.versions.last_mut() else {
                    continue;
                };
                version.resources.push(ResourceFacts {
                    group: group_name,
                    version: version.name,
                    resource,
                    singular,
                    kind,
                    namespaced,
                    short_names: more.short,
                    categories: more.categories,
                    verbs: more.verbs,
                    storage_version_hash: more.hash,
                    subresources: Vec::new(),
                });
            }
            "sub" => {
                let (name, kind) = (next(), next());
                let more = extras(words);
                let resource = groups
                    .last_mut()
                    .and_then(|g| g.versions.last_mut())
                    .and_then(|v| v.resources.last_mut());
                let Some(resource) = resource else { continue };
                let kind = match more.gv.map(crate::GroupVersion::parse) {
                    Some(gv) => GroupVersionKind {
                        group: gv.group,
                        version: gv.version,
                        kind: kind.into(),
                    },
                    None => GroupVersionKind::new(resource.group, resource.version, kind),
                };
                let foreign_kind = more.gv.is_some();
                resource.subresources.push(SubresourceFacts {
                    name,
                    kind,
                    foreign_kind,
                    verbs: more.verbs,
                });
            }
            _ => {}
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        let text = include_str!("../schema/resources.txt");
        let count = |word: &str| text.lines().filter(|l| l.trim_start().starts_with(word)).count();
        assert_eq!(groups().len(), count("group "));
        assert_eq!(all().count(), count("resource "));
        assert_eq!(all().map(|r| r.subresources.len()).sum::<usize>(), count("sub "));
        assert!(all().all(|r| !r.kind.is_empty() && !r.verbs.is_empty() && !r.singular.is_empty()));
    }

    #[test]
    fn deployments_are_as_upstream_has_them() {
        let d = find("apps", "v1", "deployments").unwrap();
        assert!(d.namespaced && d.has_verb("deletecollection"));
        assert_eq!(
            (d.short_names.as_slice(), d.categories.as_slice()),
            (&["deploy"][..], &["all"][..])
        );
        let scale = d.subresource("scale").unwrap();
        assert_eq!(
            (scale.kind.to_string().as_str(), scale.foreign_kind),
            ("autoscaling/v1, Kind=Scale", true)
        );
        assert_eq!(
            find("autoscaling", "v2", "horizontalpodautoscalers").unwrap().kind,
            "HorizontalPodAutoscaler"
        );
        assert_eq!(
            groups().iter().find(|g| g.name == "autoscaling").unwrap().versions[0].name,
            "v2"
        );
    }
}
