//! A FlowSchema: which requests it takes, and to which flow each belongs.

use crate::request::{RequestInfo, UserInfo};
use keelson_api::{Map, Object, Str, Value};
use std::hash::{DefaultHasher, Hash, Hasher};

#[derive(Debug)]
pub struct FlowSchema {
    pub name: Str,
    pub uid: Str,
    pub level: Str,
    /// What the condition `Dangling` says, if it stands.
    pub dangling: Option<bool>,
    by: Distinguisher,
    rules: Vec<Rule>,
}

#[derive(Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    User(Str),
    Group(Str),
    ServiceAccount(Str, Str),
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<Str>,
    groups: Vec<Str>,
    resources: Vec<Str>,
    namespaces: Vec<Str>,
    cluster_scope: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Vec<Str>,
    paths: Vec<Str>,
}

pub fn precedence(o: &Object) -> i64 {
    o.at(&["spec", "matchingPrecedence"])
        .and_then(Value::as_i64)
        .unwrap_or(1000)
}

impl FlowSchema {
    pub fn read(o: &Object) -> Self {
        let spec = o.obj("spec").cloned().unwrap_or_default();
        FlowSchema {
            name: o.name().into(),
            uid: o.uid().into(),
            level: o
                .str_at(&["spec", "priorityLevelConfiguration", "name"])
                .unwrap_or_default()
                .into(),
            dangling: super::status::dangling(o),
            by: match o.str_at(&["spec", "distinguisherMethod", "type"]) {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: maps(&spec, "rules").map(Rule::read).collect(),
        }
    }
    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules
            .iter()
            .any(|r| r.subjects.iter().any(|s| s.is(user)) && r.matches(info))
    }
    /// A number that requests of one flow share.
    pub fn flow(&self, user: &UserInfo, info: &RequestInfo) -> u64 {
        let mut hash = DefaultHasher::new();
        self.name.hash(&mut hash);
        match self.by {
            Distinguisher::None => {}
            Distinguisher::User => user.name.hash(&mut hash),
            Distinguisher::Namespace => info.namespace.hash(&mut hash),
        }
        hash.finish()
    }
}

fn maps<'a>(m: &'a Map, key: &str) -> impl Iterator<Item = &'a Map> {
    m.arr(key).into_iter().flatten().filter_map(Value::as_object)
}
fn strings(m: &Map, key: &str) -> Vec<Str> {
    m.arr(key)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Str::from)
        .collect()
}
fn any(list: &[Str], wanted: &str) -> bool {
    list.iter().any(|v| v == "*" || v == wanted)
}

impl Rule {
    fn read(m: &Map) -> Self {
        let resources = maps(m, "resourceRules").map(|r| ResourceRule {
            verbs: strings(r, "verbs"),
            groups: strings(r, "apiGroups"),
            resources: strings(r, "resources"),
            namespaces: strings(r, "namespaces"),
            cluster_scope: r.bool("clusterScope").unwrap_or(false),
        });
        let paths = maps(m, "nonResourceRules").map(|r| PathRule {
            verbs: strings(r, "verbs"),
            paths: strings(r, "nonResourceURLs"),
        });
        Rule {
            subjects: maps(m, "subjects").filter_map(Subject::read).collect(),
            resources: resources.collect(),
            paths: paths.collect(),
        }
    }
    fn matches(&self, info: &RequestInfo) -> bool {
        if !info.is_resource_request {
            return self.paths.iter().any(|r| {
                any(&r.verbs, &info.verb)
                    && r.paths.iter().any(|p| {
                        p == "*" || *p == info.path || p.strip_suffix('*').is_some_and(|pre| info.path.starts_with(pre))
                    })
            });
        }
        self.resources.iter().any(|r| {
            any(&r.verbs, &info.verb)
                && any(&r.groups, &info.api_group)
                && any(&r.resources, &info.resource_with_sub())
                && if info.namespace.is_empty() {
                    r.cluster_scope
                } else {
                    any(&r.namespaces, &info.namespace)
                }
        })
    }
}

impl Subject {
    fn read(m: &Map) -> Option<Self> {
        let part = |kind: &str, key: &str| Str::from(m.obj(kind).and_then(|s| s.str(key)).unwrap_or_default());
        Some(match m.str("kind")? {
            "User" => Subject::User(part("user", "name")),
            "Group" => Subject::Group(part("group", "name")),
            "ServiceAccount" => {
                Subject::ServiceAccount(part("serviceAccount", "namespace"), part("serviceAccount", "name"))
            }
            _ => return None,
        })
    }
    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(group) => group == "*" || user.groups.contains(group),
            Subject::ServiceAccount(namespace, name) => user
                .service_account_name()
                .is_some_and(|(ns, n)| ns == namespace && (name == "*" || n == name)),
        }
    }
}
