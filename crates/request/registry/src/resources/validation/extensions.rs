//! What extends the API: webhooks, admission policies, API services; and flow control.

mod flow;
mod mutating;
mod policies;

use super::Rules;
use super::check::{Errs, count, is_true, range_error, s};
use crate::meta::path_segment_errors;
use crate::resources::expressions::{self, Scope};
use keelson_api::{Map, Object, Value, go_quote};
use keelson_machinery::cel::{Env, Ty};
use keelson_machinery::names;
use keelson_machinery::structural::definition;
use std::collections::HashSet;

const WEBHOOKS: Rules = Rules {
    create: |_, o, e| {
        webhooks(o, None, e);
        reserved(o, e);
    },
    update: |_, new, old, e| webhooks(new, Some(old), e),
    ..Rules::SUBDOMAIN
};
const API_SERVICE: Rules = Rules {
    name_of: api_service_name,
    object: |_, o, e| api_service(o, e),
    update: |_, new, _, e| e.format("metadata.name", new.name(), |name| api_service_name(new, name)),
    status: |_, new, _, e| {
        e.child(new, "status", |e, status| {
            e.each(status, "conditions", |e, _, condition| {
                let said = s(condition, "status");
                if !matches!(said, "True" | "False" | "Unknown") {
                    e.not_supported("status", said, &["True", "False", "Unknown"]);
                }
            });
        });
    },
    ..Rules::NONE
};
/// The rest of a definition is judged by itself.
const DEFINITION: Rules = Rules {
    name_of: |o, name| definition::name_errors(&Value::Object(o.0.clone()), name),
    ..Rules::SUBDOMAIN
};
const FLOW_SCHEMA: Rules = Rules {
    object: |_, o, e| flow::schema(o, e),
    status: |_, new, _, e| flow::status(new, e),
    ..Rules::SUBDOMAIN
};
const PRIORITY_LEVEL: Rules = Rules {
    object: |_, o, e| flow::priority_level(o, e),
    status: |_, new, _, e| flow::status(new, e),
    ..Rules::SUBDOMAIN
};
pub fn of(kind: &str) -> Rules {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => WEBHOOKS,
        "ValidatingAdmissionPolicy" => policies::POLICY,
        "ValidatingAdmissionPolicyBinding" => policies::BINDING,
        "MutatingAdmissionPolicy" => mutating::POLICY,
        "MutatingAdmissionPolicyBinding" => mutating::BINDING,
        "APIService" => API_SERVICE,
        "CustomResourceDefinition" => DEFINITION,
        "FlowSchema" => FLOW_SCHEMA,
        "PriorityLevelConfiguration" => PRIORITY_LEVEL,
        _ => Rules::SUBDOMAIN,
    }
}

/// Names that upstream has for what stands in files of a server.
const STATIC: &str = ".static.k8s.io";

/// What configures admission: names of files' content aren't made by the API.
fn reserved(obj: &Object, e: &mut Errs) {
    if obj.name().ends_with(STATIC) {
        let why = format!(
            "names ending with {STATIC:?} are reserved for static manifest-based configurations and cannot be managed via the API"
        );
        e.invalid("metadata.name", obj.name(), &why);
    }
}

/// Joins what upstream joins with commas.
fn joined(e: &mut Errs, key: &str, shown: &str, errs: Vec<String>) {
    if !errs.is_empty() {
        e.invalid(key, shown, &errs.join(","));
    }
}

/// A webhook is reached by URL or by service.
fn client_config(e: &mut Errs, c: &Map) {
    match (c.str("url"), c.obj("service")) {
        (Some(url), None) => webhook_url(e, url),
        (None, Some(service)) => e.within("service", |e| webhook_service(e, service)),
        _ => e.required("", "exactly one of url or service is required"),
    }
}

fn webhook_url(e: &mut Errs, url: &str) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = scheme_of(url);
    if scheme != "https" {
        e.invalid(
            "url",
            scheme.as_str(),
            &format!("'https' is the only allowed URL scheme{FORM}"),
        );
    }
    // Without a scheme three slashes begin a path.
    let authority = rest
        .strip_prefix("//")
        .filter(|of| !scheme.is_empty() || !of.starts_with('/'));
    let host = authority
        .and_then(|of| of.split(['/', '?', '#']).next())
        .unwrap_or_default();
    if host.is_empty() {
        e.invalid("url", "", &format!("host must be specified{FORM}"));
    }
    if let Some((user, _)) = host.split_once('@') {
        e.invalid("url", user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = url.split_once('#') {
        e.invalid("url", fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = url.split('#').next().unwrap_or_default().split_once('?') {
        e.invalid("url", query, "query parameters are not permitted in the URL");
    }
}

/// The scheme of a URL, in lower case and empty if it has none, and what follows, as Go tells them apart.
fn scheme_of(url: &str) -> (String, &str) {
    let is_scheme = |of: &str| {
        of.starts_with(|c: char| c.is_ascii_alphabetic())
            && of
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    };
    match url.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ => (String::new(), url),
    }
}

fn webhook_service(e: &mut Errs, service: &Map) {
    // Upstream takes the one for the other.
    for (key, told) in [("namespace", "name"), ("name", "namespace")] {
        if s(service, key).is_empty() {
            e.required(told, "");
        }
    }
    let port = service.int("port").unwrap_or(443);
    if !(1..=65535).contains(&port) {
        e.invalid("port", port, &format!("port is not valid: {}", range_error(1, 65535)));
    }
    let path = s(service, "path");
    if matches!(path, "" | "/") {
        return;
    }
    if !path.starts_with('/') {
        e.invalid("path", path, "must start with a '/'");
    }
    // The first letter is left out, whatever it is.
    let steps = path.char_indices().nth(1).map_or("", |(at, _)| &path[at..]);
    for (i, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            e.invalid("path", path, &format!("segment[{i}] may not be empty"));
            continue;
        }
        for msg in names::dns1123_subdomain(step) {
            e.invalid("path", path, &format!("segment[{i}]: {msg}"));
        }
    }
}

fn review_versions(e: &mut Errs, m: &Map, key: &str, accepted: &[&str], one_is_known: bool) {
    let list: Vec<&str> = m.arr(key).into_iter().flatten().filter_map(Value::as_str).collect();
    if list.is_empty() {
        return e.required(key, &format!("must specify one of {}", accepted.join(", ")));
    }
    let mut seen = HashSet::new();
    for (i, v) in list.iter().enumerate() {
        let field = format!("{key}[{i}]");
        if !seen.insert(*v) {
            e.invalid(&field, *v, "duplicate version");
            continue;
        }
        e.format(&field, v, names::dns1035_label);
    }
    if one_is_known && !list.iter().any(|v| accepted.contains(v)) {
        let shown: Vec<Value> = list.iter().map(|v| Value::from(*v)).collect();
        e.invalid(
            key,
            shown,
            &format!("must include at least one of {}", accepted.join(", ")),
        );
    }
}

/// What an update may leave as it is, for older servers took it.
struct Left {
    side_effects: bool,
    versions: bool,
    names: bool,
    conditions: bool,
    /// Values in selectors that are no labels'.
    values: bool,
}

fn left(new: &Object, old: Option<&Object>) -> Left {
    let hooks = |o: &Object| -> Vec<Map> {
        let all = o.arr("webhooks").into_iter().flatten();
        all.filter_map(Value::as_object).cloned().collect()
    };
    let was = old.map(hooks).unwrap_or_default();
    let one = |m: &Map, key: &str, known: &[&str]| m.str(key).is_some_and(|v| known.contains(&v));
    let reviewed = |w: &Map| {
        let mut all = w.arr("admissionReviewVersions").into_iter().flatten();
        all.any(|v| matches!(v.as_str(), Some("v1" | "v1beta1")))
    };
    let named = was.iter().map(|w| s(w, "name")).collect::<HashSet<_>>();
    let selects = |w: &Map| {
        let mut e = Errs::default();
        e.label_selector(w, "namespaceSelector");
        e.label_selector(w, "objectSelector");
        e.list.iter().next().is_some()
    };
    let conditions = |all: &[Map]| {
        all.iter()
            .map(|w| w.get("matchConditions").cloned())
            .collect::<Vec<_>>()
    };
    Left {
        side_effects: was.iter().any(|w| !one(w, "sideEffects", &NO_EFFECTS)),
        versions: !was.is_empty() && !was.iter().all(reviewed),
        names: named.len() < was.len(),
        conditions: old.is_some() && conditions(&hooks(new)) == conditions(&was),
        values: was.iter().any(selects),
    }
}

const NO_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];

fn webhooks(o: &Object, old: Option<&Object>, e: &mut Errs) {
    let left = left(o, old);
    let mut seen = HashSet::new();
    e.each(o, "webhooks", |e, _, w| {
        let name = s(w, "name").to_string();
        match name.as_str() {
            "" => e.required("name", ""),
            _ => {
                let errs = names::dns1123_subdomain(&name);
                if errs.is_empty() && name.split('.').count() < 3 {
                    e.invalid(
                        "name",
                        name.as_str(),
                        "should be a domain with at least three segments separated by dots",
                    );
                }
                joined(e, "name", &name, errs);
            }
        }
        e.each(w, "rules", |e, _, r| rule(e, r));
        e.optional_one_of(w, "failurePolicy", &["Fail", "Ignore"]);
        e.optional_one_of(w, "matchPolicy", &["Equivalent", "Exact"]);
        let effects: &[&str] = match left.side_effects {
            true => &["None", "NoneOnDryRun", "Some", "Unknown"],
            false => &NO_EFFECTS,
        };
        match w.str("sideEffects") {
            None => e.required("sideEffects", &format!("must specify one of {}", effects.join(", "))),
            Some(_) => e.optional_one_of(w, "sideEffects", effects),
        }
        if let Some(n) = w.int("timeoutSeconds").filter(|n| !(1..=30).contains(n)) {
            e.invalid(
                "timeoutSeconds",
                n,
                "the timeout value must be between 1 and 30 seconds",
            );
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            match left.values {
                true => e.old_label_selector(w, selector),
                false => e.label_selector(w, selector),
            }
        }
        e.optional_one_of(w, "reinvocationPolicy", &["IfNeeded", "Never"]);
        let empty = Map::new();
        e.within("clientConfig", |e| {
            client_config(e, w.obj("clientConfig").unwrap_or(&empty))
        });
        if !left.conditions {
            match_conditions(e, w, false);
        }
        review_versions(e, w, "admissionReviewVersions", &["v1", "v1beta1"], !left.versions);
        if !left.names && !name.is_empty() && !seen.insert(name.clone()) {
            e.duplicate("name", name.as_str());
        }
    });
}

fn match_conditions(e: &mut Errs, m: &Map, params: bool) {
    if count(m, "matchConditions") > 64 {
        e.too_many("matchConditions", count(m, "matchConditions"), 64);
    }
    let env = expressions::env(Scope {
        params,
        authorizer: true,
    });
    let mut seen = HashSet::new();
    e.each(m, "matchConditions", |e, _, c| {
        expression(e, "expression", s(c, "expression"), "", &env, &["bool"]);
        let name = s(c, "name").to_string();
        match name.as_str() {
            "" => return e.required("name", ""),
            _ => e.format("name", &name, names::label_key),
        }
        if !seen.insert(name.clone()) {
            e.duplicate("name", name.as_str());
        }
    });
}

/// An expression must be there and compile; answers with its type.
fn expression(e: &mut Errs, key: &str, text: &str, missing: &str, env: &Env, wanted: &[&str]) -> Option<Ty> {
    if text.trim().is_empty() {
        e.required(key, missing);
        return None;
    }
    match expressions::check(text.trim(), env, wanted) {
        Ok(program) => Some(program.ty),
        Err(why) => {
            e.invalid(key, text, &why);
            None
        }
    }
}

fn rule(e: &mut Errs, r: &Map) {
    let list = |key: &str| -> Vec<&str> { r.arr(key).into_iter().flatten().filter_map(Value::as_str).collect() };
    let shown = |key: &str| r.get(key).cloned().unwrap_or(Value::Null);
    let operations = list("operations");
    if operations.is_empty() {
        e.required("operations", "");
    }
    if operations.len() > 1 && operations.contains(&"*") {
        e.invalid(
            "operations",
            shown("operations"),
            "if '*' is present, must not specify other operations",
        );
    }
    e.each_str(r, "operations", |e, _, op| {
        let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        if !known.contains(&op) {
            e.not_supported("", op, &known);
        }
    });
    for key in ["apiGroups", "apiVersions"] {
        let items = list(key);
        if items.is_empty() {
            e.required(key, "");
        }
        if items.len() > 1 && items.contains(&"*") {
            let what = if key == "apiGroups" {
                "API groups"
            } else {
                "API versions"
            };
            e.invalid(
                key,
                shown(key),
                &format!("if '*' is present, must not specify other {what}"),
            );
        }
        for (i, _) in items
            .iter()
            .enumerate()
            .filter(|(_, v)| key == "apiVersions" && v.is_empty())
        {
            e.required(&format!("{key}[{i}]"), "");
        }
    }
    let resources = list("resources");
    if resources.is_empty() {
        e.required("resources", "");
    }
    // What came before this one counts, as upstream has it; and of the plain ones the last.
    let (mut parents, mut subs, mut plain) = (HashSet::new(), HashSet::new(), false);
    for (i, resource) in resources.iter().enumerate() {
        let field = format!("resources[{i}]");
        if resource.is_empty() {
            e.required(&field, "");
            continue;
        }
        let Some((parent, sub)) = resource.split_once('/') else {
            plain = *resource != "*";
            continue;
        };
        for (is_whole, whole) in [
            (parents.contains(parent), format!("{parent}/*")),
            (subs.contains(sub), format!("*/{sub}")),
        ] {
            if is_whole {
                let why = format!("if '{whole}' is present, must not specify {resource}");
                e.invalid(&field, *resource, &why);
            }
        }
        if sub == "*" {
            parents.insert(parent);
        }
        if parent == "*" {
            subs.insert(sub);
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        e.invalid("resources", shown("resources"), why);
    }
    if plain && resources.contains(&"*") {
        let why = "if '*' is present, must not specify other resources without subresources";
        e.invalid("resources", shown("resources"), why);
    }
    if let Some(scope) = r.str("scope") {
        let known = ["*", "Cluster", "Namespaced"];
        if !known.contains(&scope) {
            e.not_supported("scope", scope, &known);
        }
    }
}

fn api_service_name(o: &Object, name: &str) -> Vec<String> {
    let of = |key: &str| o.str_at(&["spec", key]).unwrap_or_default();
    let wanted = format!("{}.{}", of("version"), of("group"));
    match path_segment_errors(name) {
        wrong if !wrong.is_empty() => wrong,
        _ if name == wanted => Vec::new(),
        _ => vec![format!(
            "must be `spec.version+\".\"+spec.group`: {}",
            go_quote(&wanted)
        )],
    }
}

fn api_service(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let spec = o.obj("spec").unwrap_or(&empty);
    e.within("spec", |e| {
        let (group, version) = (s(spec, "group"), s(spec, "version"));
        match group {
            "" if version != "v1" => {
                e.required("group", "only v1 may have an empty group and it better be legacy kube")
            }
            "" => {}
            _ => joined(e, "group", group, names::dns1123_subdomain(group)),
        }
        joined(e, "version", version, names::dns1035_label(version));
        for (key, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let n = spec.int(key).unwrap_or(0);
            if n <= 0 || n > max {
                e.invalid(key, n, &format!("must be positive and less than {max}"));
            }
        }
        match spec.obj("service") {
            None => {
                if !s(spec, "caBundle").is_empty() {
                    e.invalid(
                        "caBundle",
                        format!("{} bytes", s(spec, "caBundle").len()),
                        "local APIServices may not have a caBundle",
                    );
                }
                if is_true(spec, "insecureSkipTLSVerify") {
                    e.invalid(
                        "insecureSkipTLSVerify",
                        true,
                        "local APIServices may not have insecureSkipTLSVerify",
                    );
                }
            }
            Some(service) => {
                e.within("service", |e| {
                    for key in ["namespace", "name"] {
                        if s(service, key).is_empty() {
                            e.required(key, "");
                        }
                    }
                    if let Some(n) = service.int("port").filter(|n| !(1..=65535).contains(n)) {
                        e.invalid("port", n, &format!("port is not valid: {}", range_error(1, 65535)));
                    }
                });
                if is_true(spec, "insecureSkipTLSVerify") && !s(spec, "caBundle").is_empty() {
                    e.invalid("insecureSkipTLSVerify", true, "may not be true if caBundle is present");
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::tests::create;
    use keelson_api::value;

    #[test]
    fn names_of_what_stands_in_files_are_taken() {
        let of = |name: &str| {
            create(
                "admissionregistration.k8s.io",
                "ValidatingWebhookConfiguration",
                value!({"metadata": {"name": (name)}}),
            )
        };
        assert_eq!(of("a.static.k8s.io.example.com"), Vec::<String>::new());
        assert_eq!(
            of("a.static.k8s.io"),
            [
                "metadata.name: Invalid value: \"a.static.k8s.io\": names ending with \".static.k8s.io\" are reserved for static \
                 manifest-based configurations and cannot be managed via the API"
            ]
        );
    }
}
