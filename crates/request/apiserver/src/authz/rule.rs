//! A rule of a role: what it allows, whether rules cover others, and how upstream writes them.

use super::Attributes;
use keelson_api::{Map, Str, Value};
use std::collections::BTreeMap;

/// `rbac.authorization.k8s.io/v1 PolicyRule`
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub verbs: Vec<Str>,
    pub api_groups: Vec<Str>,
    pub resources: Vec<Str>,
    pub resource_names: Vec<Str>,
    pub non_resource_urls: Vec<Str>,
}

impl Rule {
    pub fn from_value(v: &Value) -> Self {
        let list = |key: &str| -> Vec<Str> {
            v.get(key)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Str::from)
                .collect()
        };
        Rule {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }
    /// The rules of a Role or ClusterRole.
    pub fn list_of(role: &Map) -> Vec<Rule> {
        role.arr("rules").into_iter().flatten().map(Rule::from_value).collect()
    }

    pub fn to_value(&self) -> Value {
        let mut m = Map::new();
        for (key, list) in [
            ("apiGroups", &self.api_groups),
            ("nonResourceURLs", &self.non_resource_urls),
            ("resourceNames", &self.resource_names),
            ("resources", &self.resources),
            ("verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                m.insert(key, list.iter().cloned().map(Value::String).collect::<Vec<_>>());
            }
        }
        m.into()
    }

    pub fn allows(&self, a: &Attributes) -> bool {
        if !any(&self.verbs, &a.verb) {
            return false;
        }
        if a.is_resource_request {
            any(&self.api_groups, &a.api_group) && self.matches_resource(a) && self.matches_name(&a.name)
        } else {
            self.non_resource_urls.iter().any(|url| url_covers(url, &a.path))
        }
    }
    fn matches_resource(&self, a: &Attributes) -> bool {
        self.resources.iter().any(|r| {
            if r == "*" {
                return true;
            }
            match r.split_once('/') {
                None => a.subresource.is_empty() && r == a.resource,
                Some(("*", sub)) => !a.subresource.is_empty() && sub == a.subresource,
                Some((resource, sub)) => resource == a.resource && sub == a.subresource,
            }
        })
    }
    fn matches_name(&self, name: &str) -> bool {
        self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == name)
    }

    /// The rule as upstream's message writes it.
    pub fn compact(&self) -> String {
        let mut parts = Vec::new();
        for (label, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                let quoted: Vec<String> = list.iter().map(|s| format!("{:?}", s.as_str())).collect();
                parts.push(format!("{label}:[{}]", quoted.join(" ")));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }

    /// Rules of one verb, group, resource and name each: what coverage is decided on.
    fn broken_down(&self) -> Vec<Rule> {
        let mut out = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                out.push(Rule {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Rule::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let one = Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(one);
                    } else {
                        out.extend(self.resource_names.iter().map(|n| Rule {
                            resource_names: vec![n.clone()],
                            ..one.clone()
                        }));
                    }
                }
            }
        }
        out
    }

    /// Whether this rule allows all that a broken-down one does.
    fn covers_one(&self, one: &Rule) -> bool {
        let groups = has_all(&self.api_groups, &one.api_groups);
        let resources = has_all(&self.resources, &one.resources)
            || one.resources.iter().all(|r| {
                self.resources.iter().any(|own| own == r)
                    || r.split_once('/').is_some_and(|(_, sub)| {
                        self.resources
                            .iter()
                            .any(|own| own.strip_prefix("*/").is_some_and(|s| s == sub))
                    })
            });
        let urls = has_all(&self.non_resource_urls, &one.non_resource_urls)
            || one
                .non_resource_urls
                .iter()
                .all(|u| self.non_resource_urls.iter().any(|own| url_covers(own, u)));
        let names = if one.resource_names.is_empty() {
            self.resource_names.is_empty()
        } else {
            self.resource_names.is_empty() || one.resource_names.iter().all(|n| self.resource_names.contains(n))
        };
        any_of(&self.verbs, &one.verbs) && groups && resources && names && urls
    }
}

fn any(list: &[Str], wanted: &str) -> bool {
    list.iter().any(|v| v == "*" || v == wanted)
}
fn has_all(own: &[Str], wanted: &[Str]) -> bool {
    own.iter().any(|v| v == "*") || wanted.iter().all(|w| own.contains(w))
}
fn any_of(own: &[Str], wanted: &[Str]) -> bool {
    has_all(own, wanted)
}
fn url_covers(own: &str, wanted: &str) -> bool {
    own == "*"
        || own == wanted
        || own
            .strip_suffix('*')
            .is_some_and(|prefix| wanted.starts_with(prefix.trim_end_matches('*')))
}

/// The parts of `wanted` that `owned` doesn't allow.
pub fn missing(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::broken_down)
        .filter(|one| !owned.iter().any(|rule| rule.covers_one(one)))
        .collect()
}

/// Joins the verbs of rules that agree in all else.
pub fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut merged: BTreeMap<(Vec<Str>, Vec<Str>, Vec<Str>, Vec<Str>), Vec<Str>> = BTreeMap::new();
    for r in rules {
        let verbs = merged
            .entry((r.api_groups, r.resources, r.resource_names, r.non_resource_urls))
            .or_default();
        for v in r.verbs {
            if !verbs.contains(&v) {
                verbs.push(v);
            }
        }
    }
    merged
        .into_iter()
        .map(
            |((api_groups, resources, resource_names, non_resource_urls), verbs)| Rule {
                verbs,
                api_groups,
                resources,
                resource_names,
                non_resource_urls,
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str], urls: &[&str]) -> Rule {
        let s = |l: &[&str]| l.iter().map(|s| Str::from(*s)).collect();
        Rule {
            verbs: s(verbs),
            api_groups: s(groups),
            resources: s(resources),
            resource_names: s(names),
            non_resource_urls: s(urls),
        }
    }
    fn ask(verb: &str, group: &str, resource: &str, sub: &str, name: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            api_group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            name: name.into(),
            is_resource_request: true,
            ..Attributes::default()
        }
    }

    #[test]
    fn rules_allow_as_upstream_has_it() {
        let r = rule(&["get"], &[""], &["pods", "*/scale", "services/status"], &[], &[]);
        assert!(r.allows(&ask("get", "", "pods", "", "x")));
        assert!(!r.allows(&ask("get", "", "pods", "log", "x")));
        assert!(r.allows(&ask("get", "", "anything", "scale", "x")));
        assert!(r.allows(&ask("get", "", "services", "status", "x")));
        assert!(!r.allows(&ask("list", "", "pods", "", "")));
        assert!(!r.allows(&ask("get", "apps", "pods", "", "")));
        let named = rule(&["*"], &["*"], &["*"], &["a"], &[]);
        assert!(named.allows(&ask("get", "", "pods", "log", "a")) && !named.allows(&ask("list", "", "pods", "", "")));
        let url = rule(&["get"], &[], &[], &[], &["/healthz/*"]);
        let path = |p: &str| Attributes {
            verb: "get".into(),
            path: p.into(),
            ..Attributes::default()
        };
        assert!(url.allows(&path("/healthz/etcd")) && !url.allows(&path("/healthz")));
    }

    #[test]
    fn what_is_missing_is_named_compactly() {
        let owned = [rule(&["get", "list"], &[""], &["pods"], &[], &[])];
        let wanted = [rule(&["get", "create", "delete"], &[""], &["pods"], &[], &[])];
        let lacking = compact(missing(&owned, &wanted));
        let text: Vec<String> = lacking.iter().map(Rule::compact).collect();
        assert_eq!(
            text,
            [r#"{APIGroups:[""], Resources:["pods"], Verbs:["create" "delete"]}"#]
        );
        assert!(missing(&[rule(&["*"], &["*"], &["*"], &[], &[])], &wanted).is_empty());
        assert!(!missing(&[rule(&["*"], &["*"], &["*"], &["x"], &[])], &wanted).is_empty());
    }
}
