//! What extends the API: webhooks, admission policies, API services; and flow control.

mod flow;
mod mutating;

use super::Rules;
use super::check::{Errs, count, is_true, range_error, s};
use crate::resources::expressions::{self, Scope};
use keelson_api::{Map, Object, Value};
use keelson_machinery::cel::{Env, Ty};
use keelson_machinery::names;
use std::collections::BTreeMap;

const WEBHOOKS: Rules = Rules {
    object: |_, o, e| webhooks(o, e),
    ..Rules::SUBDOMAIN
};
const API_SERVICE: Rules = Rules {
    object: |_, o, e| api_service(o, e),
    ..Rules::NONE
};
const FLOW_SCHEMA: Rules = Rules {
    object: |_, o, e| flow::schema(o, e),
    ..Rules::SUBDOMAIN
};
const PRIORITY_LEVEL: Rules = Rules {
    object: |_, o, e| flow::priority_level(o, e),
    ..Rules::SUBDOMAIN
};
const POLICY: Rules = Rules {
    object: |_, o, e| e.child(o, "spec", policy),
    ..Rules::SUBDOMAIN
};
const BINDING: Rules = Rules {
    object: |_, o, e| e.child(o, "spec", policy_binding),
    ..Rules::SUBDOMAIN
};

pub fn of(kind: &str) -> Rules {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => admission(WEBHOOKS),
        "ValidatingAdmissionPolicy" => admission(POLICY),
        "ValidatingAdmissionPolicyBinding" => admission(BINDING),
        "MutatingAdmissionPolicy" => admission(mutating::POLICY),
        "MutatingAdmissionPolicyBinding" => admission(mutating::BINDING),
        "APIService" => API_SERVICE,
        "FlowSchema" => FLOW_SCHEMA,
        "PriorityLevelConfiguration" => PRIORITY_LEVEL,
        _ => Rules::SUBDOMAIN,
    }
}

/// Names that upstream has for what stands in files of a server.
const STATIC: &str = ".static.k8s.io";

/// What configures admission: names of files' content aren't made by the API.
fn admission(rules: Rules) -> Rules {
    Rules {
        create: |_, obj, e| {
            if obj.name().ends_with(STATIC) {
                let why = format!(
                    "names ending with {STATIC:?} are reserved for static manifest-based configurations and cannot be managed via the API"
                );
                e.invalid("metadata.name", obj.name(), &why);
            }
        },
        ..rules
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
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        e.invalid("url", scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let host = if scheme.is_empty() {
        ""
    } else {
        rest.split(['/', '?', '#']).next().unwrap_or_default()
    };
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

fn webhook_service(e: &mut Errs, service: &Map) {
    for key in ["name", "namespace"] {
        if s(service, key).is_empty() {
            e.required(key, "");
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
    let steps = path.strip_prefix('/').unwrap_or(path);
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

fn review_versions(e: &mut Errs, m: &Map, key: &str, accepted: &[&str]) {
    let list: Vec<&str> = m.arr(key).into_iter().flatten().filter_map(Value::as_str).collect();
    if list.is_empty() {
        return e.required(key, &format!("must specify one of {}", accepted.join(", ")));
    }
    for (i, v) in list.iter().enumerate() {
        let field = format!("{key}[{i}]");
        if list[..i].contains(v) {
            e.invalid(&field, *v, "duplicate version");
            continue;
        }
        e.format(&field, v, names::dns1035_label);
    }
    if !list.iter().any(|v| accepted.contains(v)) {
        let shown: Vec<Value> = list.iter().map(|v| Value::from(*v)).collect();
        e.invalid(
            key,
            shown,
            &format!("must include at least one of {}", accepted.join(", ")),
        );
    }
}

fn webhooks(o: &Object, e: &mut Errs) {
    let mut seen = Vec::new();
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
        match w.str("sideEffects") {
            None => e.required("sideEffects", "must specify one of None, NoneOnDryRun"),
            Some(_) => e.optional_one_of(w, "sideEffects", &["None", "NoneOnDryRun"]),
        }
        if let Some(n) = w.int("timeoutSeconds").filter(|n| !(1..=30).contains(n)) {
            e.invalid(
                "timeoutSeconds",
                n,
                "the timeout value must be between 1 and 30 seconds",
            );
        }
        e.label_selector(w, "namespaceSelector");
        e.label_selector(w, "objectSelector");
        e.optional_one_of(w, "reinvocationPolicy", &["IfNeeded", "Never"]);
        let empty = Map::new();
        e.within("clientConfig", |e| {
            client_config(e, w.obj("clientConfig").unwrap_or(&empty))
        });
        match_conditions(e, w, false);
        review_versions(e, w, "admissionReviewVersions", &["v1", "v1beta1"]);
        if !name.is_empty() && seen.contains(&name) {
            e.duplicate("name", name.as_str());
        }
        seen.push(name);
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
    let mut seen = Vec::new();
    e.each(m, "matchConditions", |e, _, c| {
        expression(e, "expression", s(c, "expression"), "", &env, &["bool"]);
        let name = s(c, "name").to_string();
        match name.as_str() {
            "" => return e.required("name", ""),
            _ => e.format("name", &name, names::label_key),
        }
        if seen.contains(&name) {
            e.duplicate("name", name.as_str());
        }
        seen.push(name);
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
    for (i, resource) in resources.iter().enumerate() {
        let field = format!("resources[{i}]");
        match *resource {
            "" => e.required(&field, ""),
            "*/*" if resources.len() > 1 => {
                e.invalid(
                    "resources",
                    shown("resources"),
                    "if '*/*' is present, must not specify other resources",
                );
            }
            _ => {
                let parent = resource.split('/').next().unwrap_or_default();
                let covered =
                    resource.contains('/') && parent != "*" && resources.contains(&format!("{parent}/*").as_str());
                if covered && !resource.ends_with("/*") {
                    e.invalid(
                        &field,
                        *resource,
                        &format!("if '{parent}/*' is present, must not specify {resource}"),
                    );
                }
            }
        }
    }
    if let Some(scope) = r.str("scope") {
        let known = ["*", "Cluster", "Namespaced"];
        if !known.contains(&scope) {
            e.not_supported("scope", scope, &known);
        }
    }
}

/// What policies of both kinds say of where they hold.
fn policy_scope(e: &mut Errs, spec: &Map) {
    match spec.str("failurePolicy") {
        None => e.required("failurePolicy", ""),
        Some(_) => e.optional_one_of(spec, "failurePolicy", &["Fail", "Ignore"]),
    }
    e.child(spec, "paramKind", |e, kind| {
        for key in ["apiVersion", "kind"] {
            if s(kind, key).is_empty() {
                e.required(key, "");
            }
        }
    });
    match spec.obj("matchConstraints") {
        None => e.required("matchConstraints", ""),
        Some(m) => e.within("matchConstraints", |e| {
            if count(m, "resourceRules") == 0 {
                e.required("resourceRules", "");
            }
            e.label_selector(m, "namespaceSelector");
            e.label_selector(m, "objectSelector");
            e.optional_one_of(m, "matchPolicy", &["Equivalent", "Exact"]);
            for list in ["resourceRules", "excludeResourceRules"] {
                e.each(m, list, |e, _, r| rule(e, r));
            }
        }),
    }
    match_conditions(e, spec, spec.contains_key("paramKind"));
}

fn policy(e: &mut Errs, spec: &Map) {
    policy_scope(e, spec);
    let params = spec.contains_key("paramKind");
    let env = variables(
        e,
        spec,
        expressions::env(Scope {
            params,
            authorizer: true,
        }),
    );
    if count(spec, "validations") == 0 && count(spec, "auditAnnotations") == 0 {
        e.required("validations", "validations or auditAnnotations must be specified");
        e.required("auditAnnotations", "validations or auditAnnotations must be specified");
    }
    e.each(spec, "validations", |e, _, v| {
        expression(
            e,
            "expression",
            s(v, "expression"),
            "expression is not specified",
            &env,
            &["bool"],
        );
        if !s(v, "messageExpression").is_empty() {
            let mut env = env.clone();
            env.variables.retain(|name, _| !name.starts_with("authorizer"));
            expression(
                e,
                "messageExpression",
                s(v, "messageExpression"),
                "must be non-empty if specified",
                &env,
                &["string"],
            );
        }
        let message = s(v, "message");
        if !message.is_empty() && message.trim().is_empty() {
            e.invalid("message", message, "message must be non-empty if specified");
        } else if message.trim().contains('\n') {
            e.invalid("message", message, "message must not contain line breaks");
        } else if message.is_empty() && s(v, "expression").trim().contains('\n') {
            e.required(
                "message",
                "message must be specified if expression contains line breaks",
            );
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
        e.optional_one_of(v, "reason", &reasons);
    });
    let annotation = ["string", "null"];
    e.each(spec, "auditAnnotations", |e, _, a| {
        expression(
            e,
            "valueExpression",
            s(a, "valueExpression"),
            "valueExpression is not specified",
            &env,
            &annotation,
        );
    });
}

/// A policy's variables, each of which may use those before it.
fn variables(e: &mut Errs, spec: &Map, base: Env) -> Env {
    let mut known = BTreeMap::new();
    let mut env = expressions::with_variables(&base, &known);
    e.each(spec, "variables", |e, _, v| {
        let name = s(v, "name");
        let identifier = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.trim().is_empty() {
            e.required("name", "name is not specified");
        } else if !identifier {
            e.invalid("name", name, "must be a valid CEL identifier");
        }
        let ty = expression(
            e,
            "expression",
            s(v, "expression"),
            "expression is not specified",
            &env,
            &[],
        );
        known.insert(name.to_string(), ty.unwrap_or(Ty::Dyn));
        env = expressions::with_variables(&base, &known);
    });
    env
}

/// What bindings of both kinds say.
fn binding_of_policy(e: &mut Errs, spec: &Map) {
    match s(spec, "policyName") {
        "" => e.required("policyName", ""),
        name => e.format("policyName", name, names::dns1123_subdomain),
    }
    e.child(spec, "paramRef", |e, p| {
        let (name, selector) = (!s(p, "name").is_empty(), p.contains_key("selector"));
        if name && selector {
            e.forbidden("name", "name and selector are mutually exclusive");
        } else if !name && !selector {
            e.required("", "either name or selector must be specified");
        }
        if !p.contains_key("parameterNotFoundAction") {
            e.required("parameterNotFoundAction", "");
        }
        e.optional_one_of(p, "parameterNotFoundAction", &["Allow", "Deny"]);
    });
}

fn policy_binding(e: &mut Errs, spec: &Map) {
    binding_of_policy(e, spec);
    if count(spec, "validationActions") == 0 {
        e.required("validationActions", "");
    }
    e.each_str(spec, "validationActions", |e, _, action| {
        if !matches!(action, "Audit" | "Deny" | "Warn") {
            e.not_supported("", action, &["Audit", "Deny", "Warn"]);
        }
    });
}

fn api_service(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let spec = o.obj("spec").unwrap_or(&empty);
    let required = format!("{}.{}", s(spec, "version"), s(spec, "group"));
    if o.name() != required {
        e.invalid("metadata.name", o.name(), "must be `spec.version+\".\"+spec.group`");
    }
    e.within("spec", |e| {
        let (group, version) = (s(spec, "group"), s(spec, "version"));
        match group {
            "" if version != "v1" => {
                e.required("group", "only v1 may have an empty group and it better be legacy kube")
            }
            "" => {}
            _ => joined(e, "group", group, names::dns1123_subdomain(group)),
        }
        match version {
            "" => e.required("version", ""),
            _ => joined(e, "version", version, names::dns1035_label(version)),
        }
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
                    if service.contains_key("port") {
                        e.port(service, "port");
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
