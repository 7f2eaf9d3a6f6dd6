//! Flow control: which requests a schema is about, and what a priority level allows.

use super::super::check::{Errs, count, is_true, s};
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;

const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

pub fn schema(o: &Object, e: &mut Errs) {
    e.child(o, "spec", |e, spec| {
        let n = spec.int("matchingPrecedence").unwrap_or(0);
        if n <= 0 {
            e.invalid("matchingPrecedence", n, "must be a positive value");
        }
        if n > 10_000 {
            e.invalid("matchingPrecedence", n, "must not be greater than 10000");
        }
        if n == 1 && o.name() != "exempt" {
            e.invalid(
                "matchingPrecedence",
                n,
                "only the schema named 'exempt' may have matchingPrecedence 1",
            );
        }
        e.child(spec, "distinguisherMethod", |e, m| {
            if !matches!(s(m, "type"), "ByNamespace" | "ByUser") {
                e.not_supported("type", m.clone(), &["ByNamespace", "ByUser"]);
            }
        });
        e.child(spec, "priorityLevelConfiguration", |e, p| match s(p, "name") {
            "" => e.required("name", "must reference a priority level"),
            name => e.format("name", name, names::dns1123_subdomain),
        });
        e.each(spec, "rules", |e, _, r| {
            if count(r, "subjects") == 0 {
                e.required("subjects", "subjects must contain at least one value");
            }
            if count(r, "resourceRules") == 0 && count(r, "nonResourceRules") == 0 {
                e.required(
                    "",
                    "at least one of resourceRules and nonResourceRules has to be non-empty",
                );
            }
            rule(e, r);
        });
    });
}

const SUBJECTS: [(&str, &str); 3] = [
    ("User", "user"),
    ("Group", "group"),
    ("ServiceAccount", "serviceAccount"),
];

fn rule(e: &mut Errs, r: &Map) {
    e.each(r, "subjects", |e, _, of| subject(e, of));
    e.each(r, "resourceRules", |e, _, rule| {
        verbs(e, rule);
        for (key, what, others) in [
            ("apiGroups", "api group", "api groups"),
            ("resources", "resource", "resources"),
        ] {
            if count(rule, key) == 0 {
                e.required(key, &format!("resource rules must supply at least one {what}"));
            }
            all_alone(e, rule, key, others);
        }
        if count(rule, "namespaces") == 0 && !is_true(rule, "clusterScope") {
            e.required(
                "namespaces",
                "resource rules that are not cluster scoped must supply at least one namespace",
            );
        }
        if !all_alone(e, rule, "namespaces", "namespaces") {
            e.each_str(rule, "namespaces", |e, _, name| {
                for why in names::dns1123_label(name) {
                    let why = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                    e.invalid("", name, &why);
                }
            });
        }
    });
    e.each(r, "nonResourceRules", |e, _, rule| {
        verbs(e, rule);
        if count(rule, "nonResourceURLs") == 0 {
            e.required("nonResourceURLs", "nonResourceURLs must contain at least one value");
        }
        if !all_alone(e, rule, "nonResourceURLs", "non-resource URLs") {
            e.each_str(rule, "nonResourceURLs", |e, _, path| {
                if let Some(why) = path_error(path) {
                    e.invalid("", path, why);
                }
            });
        }
    });
}

fn subject(e: &mut Errs, subject: &Map) {
    let kind = s(subject, "kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(of, _)| *of == kind) else {
        return e.not_supported("kind", kind, &["Group", "ServiceAccount", "User"]);
    };
    match subject.obj(own) {
        None => e.required(own, &format!("{own} is required when subject kind is '{kind}'")),
        Some(who) => e.within(own, |e| {
            let name = s(who, "name");
            if name.is_empty() {
                e.required("name", "");
            }
            if kind != "ServiceAccount" {
                return;
            }
            if !name.is_empty() && name != "*" {
                e.format("name", name, names::dns1123_subdomain);
            }
            match s(who, "namespace") {
                "" => e.required("namespace", "must specify namespace for service account"),
                namespace => e.format("namespace", namespace, names::dns1123_label),
            }
        }),
    }
    for (of, key) in ["serviceAccount", "user", "group"]
        .iter()
        .filter_map(|key| SUBJECTS.iter().find(|(_, k)| k == key))
    {
        if of != &kind && subject.contains_key(key) {
            e.forbidden(key, &format!("{key} is forbidden when subject kind is not '{of}'"));
        }
    }
}

/// Whether a list has `*`, beside which nothing else may stand.
fn all_alone(e: &mut Errs, m: &Map, key: &str, others: &str) -> bool {
    let list = m.arr(key).map(Vec::as_slice).unwrap_or_default();
    let all = list.iter().any(|v| v.as_str() == Some("*"));
    if all && list.len() > 1 {
        let why = format!("if '*' is present, must not specify other {others}");
        e.invalid(key, Value::Array(list.to_vec()), &why);
    }
    all
}

fn verbs(e: &mut Errs, rule: &Map) {
    if count(rule, "verbs") == 0 {
        return e.required("verbs", "verbs must contain at least one value");
    }
    let list = rule.arr("verbs").map(Vec::as_slice).unwrap_or_default();
    let known = |v: &Value| v.as_str().is_some_and(|verb| VERBS.contains(&verb));
    if !all_alone(e, rule, "verbs", "verbs") && !list.iter().all(known) {
        e.not_supported("verbs", Value::Array(list.to_vec()), &VERBS);
    }
}

fn path_error(path: &str) -> Option<&'static str> {
    let stars = path.matches('*').count();
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !path.starts_with('/') => Some("must start with slash"),
        _ if path.contains(' ') => Some("must not contain white-space"),
        _ if path.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || (stars == 1 && !path.ends_with("/*")) => Some("wildcard can only do suffix matching"),
        _ => None,
    }
}

pub fn priority_level(o: &Object, e: &mut Errs) {
    e.child(o, "spec", |e, spec| match s(spec, "type") {
        "Exempt" => {
            if spec.contains_key("limited") {
                e.forbidden("limited", "must be nil if the type is not Limited");
            }
        }
        "Limited" => {
            if spec.contains_key("exempt") {
                e.forbidden("exempt", "must be nil if the type is Limited");
            }
            match spec.obj("limited") {
                None => e.required("limited", "must not be empty when type is Limited"),
                Some(l) => e.within("limited", |e| {
                    e.non_negative(l, "nominalConcurrencyShares");
                    e.in_range(l, "lendablePercent", 0, 100);
                    let empty = Map::new();
                    let response = l.obj("limitResponse").unwrap_or(&empty);
                    e.within("limitResponse", |e| match s(response, "type") {
                        "" => e.required("type", ""),
                        "Queue" if !response.contains_key("queuing") => {
                            e.required("queuing", "must not be empty if limitResponse.type is Limited")
                        }
                        "Reject" if response.contains_key("queuing") => {
                            e.forbidden("queuing", "must be nil if limited.limitResponse.type is not Limited")
                        }
                        "Queue" | "Reject" => {}
                        other => e.not_supported("type", other, &["Queue", "Reject"]),
                    });
                }),
            }
        }
        "" => e.required("type", ""),
        other => e.not_supported("type", other, &["Exempt", "Limited"]),
    });
}
