//! Flow control: which requests a schema is about, and what a priority level allows.

use super::super::check::{Errs, count, is_true, s};
use crate::strategy::same;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;
use std::collections::HashSet;

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
                // Upstream shows the struct that the type is in, by its internal names.
                let shown = Map::from_iter([("Type", Value::from(s(m, "type")))]);
                e.not_supported("type", shown, &["ByNamespace", "ByUser"]);
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
    mandatory(e, "FlowSchema", o);
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

/// What the mandatory objects say, which nothing else may be said of.
const MANDATORY: [(&str, &str, &str); 4] = [
    (
        "FlowSchema",
        "exempt",
        r#"{"matchingPrecedence":1,"priorityLevelConfiguration":{"name":"exempt"},"rules":[{"subjects":[{"kind":"Group","group":{"name":"system:masters"}}],"resourceRules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"],"clusterScope":true,"namespaces":["*"]}],"nonResourceRules":[{"verbs":["*"],"nonResourceURLs":["*"]}]}]}"#,
    ),
    (
        "FlowSchema",
        "catch-all",
        r#"{"matchingPrecedence":10000,"priorityLevelConfiguration":{"name":"catch-all"},"distinguisherMethod":{"type":"ByUser"},"rules":[{"subjects":[{"kind":"Group","group":{"name":"system:unauthenticated"}},{"kind":"Group","group":{"name":"system:authenticated"}}],"resourceRules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"],"clusterScope":true,"namespaces":["*"]}],"nonResourceRules":[{"verbs":["*"],"nonResourceURLs":["*"]}]}]}"#,
    ),
    ("PriorityLevelConfiguration", "exempt", r#"{"type":"Exempt"}"#),
    (
        "PriorityLevelConfiguration",
        "catch-all",
        r#"{"type":"Limited","limited":{"nominalConcurrencyShares":5,"lendablePercent":0,"limitResponse":{"type":"Reject"}}}"#,
    ),
];

fn mandatory(e: &mut Errs, kind: &str, o: &Object) {
    let Some((_, name, fixed)) = MANDATORY.iter().find(|(k, name, _)| *k == kind && *name == o.name()) else {
        return;
    };
    let fixed = serde_json::from_str::<serde_json::Value>(fixed).ok().map(Value::from);
    let mut spec = o.get("spec").cloned();
    // How many seats the exempt level lends is the administrator's to say.
    let own = kind == "PriorityLevelConfiguration" && *name == "exempt";
    if own && let Some(spec) = &mut spec {
        spec.remove_at(&["exempt"]);
    }
    if !same(spec.as_ref(), fixed.as_ref()) {
        let except = if own { " except the 'spec.exempt' field" } else { "" };
        let shown = o.get("spec").cloned().unwrap_or(Value::Null);
        e.invalid(
            "spec",
            shown,
            &format!("spec of '{name}'{except} must equal the fixed value"),
        );
    }
}

/// Conditions of either kind have types of their own.
pub fn status(o: &Object, e: &mut Errs) {
    let mut seen = HashSet::new();
    e.child(o, "status", |e, status| {
        e.each(status, "conditions", |e, _, condition| {
            let of = s(condition, "type");
            if !seen.insert(of.to_owned()) {
                e.duplicate("type", of);
            }
            if of.is_empty() {
                e.required("type", "");
            }
        });
    });
}

pub fn priority_level(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let spec = o.obj("spec").unwrap_or(&empty);
    e.within("spec", |e| {
        let kind = s(spec, "type");
        if (o.name() == "exempt") != (kind == "Exempt") {
            e.invalid("type", kind, "must be 'Exempt' if and only if `name` is 'exempt'");
        }
        match kind {
            "Exempt" => {
                if spec.contains_key("limited") {
                    e.forbidden("limited", "must be nil if the type is not Limited");
                }
                e.child(spec, "exempt", shares);
            }
            "Limited" => {
                if spec.contains_key("exempt") {
                    e.forbidden("exempt", "");
                }
                match spec.obj("limited") {
                    None => e.required("limited", ""),
                    Some(l) => e.within("limited", |e| limited(e, l)),
                }
            }
            _ => {
                for key in ["exempt", "limited"].iter().filter(|key| spec.contains_key(key)) {
                    e.forbidden(key, "");
                }
                e.one_of(spec, "type", &["Exempt", "Limited"]);
            }
        }
    });
    mandatory(e, "PriorityLevelConfiguration", o);
}

fn shares(e: &mut Errs, level: &Map) {
    if let Some(n) = level.int("nominalConcurrencyShares").filter(|n| *n < 0) {
        e.invalid("nominalConcurrencyShares", n, "must be a non-negative integer");
    }
    e.in_range(level, "lendablePercent", 0, 100);
}

fn limited(e: &mut Errs, level: &Map) {
    shares(e, level);
    let empty = Map::new();
    let response = level.obj("limitResponse").unwrap_or(&empty);
    e.within("limitResponse", |e| {
        match (s(response, "type"), response.obj("queuing")) {
            ("Queue", None) => e.required("queuing", ""),
            ("Queue", Some(queuing)) => e.within("queuing", |e| queues(e, queuing)),
            (kind, queuing) => {
                match kind {
                    "" => e.required("type", ""),
                    "Reject" => {}
                    other => e.not_supported("type", other, &["Queue", "Reject"]),
                }
                if queuing.is_some() {
                    e.forbidden("queuing", "");
                }
            }
        }
    });
    if let Some(n) = level.int("borrowingLimitPercent").filter(|n| *n < 0) {
        e.invalid(
            "borrowingLimitPercent",
            n,
            "if specified, must be a non-negative integer",
        );
    }
}

/// How many queues there are, and how many of them a flow may be in: the more, the longer the number by which it is dealt a hand.
fn queues(e: &mut Errs, queuing: &Map) {
    const MOST_QUEUES: i64 = 10_000_000;
    const BITS: i64 = 60;
    let of = |key: &str| queuing.int(key).unwrap_or(0);
    if of("queueLengthLimit") <= 0 {
        e.invalid("queueLengthLimit", of("queueLengthLimit"), "must be positive");
    }
    let (queues, hand) = (of("queues"), of("handSize"));
    if queues <= 0 {
        e.invalid("queues", queues, "must be positive");
    } else if queues > MOST_QUEUES {
        e.invalid("queues", queues, &format!("must not be greater than {MOST_QUEUES}"));
    }
    if hand <= 0 {
        e.invalid("handSize", hand, "must be positive");
    } else if hand > queues {
        let why = format!("should not be greater than queues ({queues})");
        e.invalid("handSize", hand, &why);
    } else if ((queues as f64).log2() * hand as f64).ceil() as i64 > BITS {
        let why =
            format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {BITS}");
        e.invalid("handSize", hand, &why);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::create;
    use keelson_api::{Value, value};

    fn level(name: &str, spec: Value) -> Vec<String> {
        create(
            "flowcontrol.apiserver.k8s.io",
            "PriorityLevelConfiguration",
            value!({"metadata": {"name": (name)}, "spec": (spec)}),
        )
    }

    #[test]
    fn queues_are_bounded_and_so_are_hands() {
        let with = |queues: i64, hand: i64, length: i64| {
            let queuing = value!({"queues": (queues), "handSize": (hand), "queueLengthLimit": (length)});
            let limited =
                value!({"nominalConcurrencyShares": 1, "limitResponse": {"type": "Queue", "queuing": (queuing)}});
            level("mine", value!({"type": "Limited", "limited": (limited)})).len()
        };
        assert_eq!(with(64, 6, 50), 0);
        assert_eq!(with(64, 11, 50), 1, "more bits than there are");
        assert_eq!(with(2, 3, 50), 1);
        assert_eq!(with(2_000_000_000, 1, 50), 1);
        assert_eq!(with(-1, -1, -1), 3);
    }

    #[test]
    fn a_level_has_what_its_type_says() {
        let limited = value!({"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}});
        let told = level("mine", value!({"type": "Other", "limited": (limited), "exempt": {}}));
        let starts = [
            "spec.exempt: Forbidden",
            "spec.limited: Forbidden",
            "spec.type: Unsupported value",
        ];
        assert!(
            told.len() == 3 && told.iter().zip(starts).all(|(t, s)| t.starts_with(s)),
            "{told:?}"
        );
    }

    #[test]
    fn mandatory_levels_stay_what_they_are() {
        assert!(level("exempt", value!({"type": "Exempt", "exempt": {"lendablePercent": 10}})).is_empty());
        let reject = |shares: i64| value!({"type": "Limited", "limited": {"nominalConcurrencyShares": (shares), "lendablePercent": 0, "limitResponse": {"type": "Reject"}}});
        assert!(level("catch-all", reject(5)).is_empty());
        assert_eq!(level("catch-all", reject(6)).len(), 1);
        assert_eq!(
            level("mine", value!({"type": "Exempt"})).len(),
            1,
            "one level is exempt"
        );
    }
}
