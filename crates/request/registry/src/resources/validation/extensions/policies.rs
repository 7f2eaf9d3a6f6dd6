//! Validating admission policies, their bindings, and what mutating ones have in common with them.

use super::super::Rules;
use super::super::check::{Errs, count, s};
use super::super::conditions::conditions;
use super::{expression, joined, match_conditions, reserved, rule};
use crate::meta::path_segment_errors;
use crate::resources::expressions::{self, Scope};
use crate::strategy::same;
use keelson_api::{Map, Value};
use keelson_machinery::cel::Env;
use keelson_machinery::names;
use std::collections::{BTreeMap, HashSet};

pub const POLICY: Rules = Rules {
    create: |_, o, e| {
        e.child(o, "spec", |e, spec| policy(e, o.name(), spec, None));
        reserved(o, e);
    },
    update: |_, new, old, e| e.child(new, "spec", |e, spec| policy(e, new.name(), spec, old.obj("spec"))),
    status: |_, new, _, e| e.child(new, "status", policy_status),
    ..Rules::SUBDOMAIN
};
pub const BINDING: Rules = Rules {
    object: |_, o, e| e.child(o, "spec", policy_binding),
    create: |_, o, e| reserved(o, e),
    ..Rules::SUBDOMAIN
};

fn policy_status(e: &mut Errs, status: &Map) {
    e.child(status, "typeChecking", |e, checked| {
        e.each(checked, "expressionWarnings", |e, _, warning| {
            if s(warning, "warning").is_empty() {
                e.required("warning", "");
            }
            if s(warning, "fieldRef").is_empty() {
                e.required("fieldRef", "");
            }
        });
    });
    conditions(e, status);
}

/// What is matched, of policies and bindings.
fn match_resources(e: &mut Errs, m: &Map) {
    match m.str("matchPolicy") {
        None => e.required("matchPolicy", ""),
        Some(_) => e.optional_one_of(m, "matchPolicy", &["Equivalent", "Exact"]),
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        match m.obj(selector) {
            None => e.required(selector, ""),
            Some(_) => e.label_selector(m, selector),
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        e.each(m, list, |e, _, r| {
            let mut seen = HashSet::new();
            e.each_str(r, "resourceNames", |e, _, name| {
                e.format("", name, path_segment_errors);
                if !seen.insert(name.to_owned()) {
                    e.duplicate("", name);
                }
            });
            rule(e, r);
        });
    }
}

/// Where parameters come from: a group and version, and a kind, as an APIService has them.
fn param_kind(e: &mut Errs, kind: &Map) {
    let given = s(kind, "apiVersion");
    match given.matches('/').count() {
        _ if given.is_empty() => e.required("apiVersion", ""),
        0 | 1 => {
            let (group, version) = given.split_once('/').unwrap_or(("", given));
            if !group.is_empty() {
                joined(e, "apiVersion", group, names::dns1123_subdomain(group));
            }
            match version {
                "" => e.invalid("apiVersion", given, "version must be specified"),
                _ => joined(e, "apiVersion", version, names::dns1035_label(version)),
            }
        }
        _ => e.invalid("apiVersion", given, &format!("unexpected GroupVersion string: {given}")),
    }
    match s(kind, "kind") {
        "" => e.required("kind", ""),
        name => {
            let errs = names::dns1035_label(&name.to_lowercase());
            if !errs.is_empty() {
                let why = format!("may have mixed case, but should otherwise match: {}", errs.join(","));
                e.invalid("kind", name, &why);
            }
        }
    }
}

/// What policies of both kinds say of where they hold. Conditions that stood so before are taken as they are.
pub fn policy_scope(e: &mut Errs, spec: &Map, old: Option<&Map>) {
    match spec.str("failurePolicy") {
        None => e.required("failurePolicy", ""),
        Some(_) => e.optional_one_of(spec, "failurePolicy", &["Fail", "Ignore"]),
    }
    e.child(spec, "paramKind", param_kind);
    match spec.obj("matchConstraints") {
        None => e.required("matchConstraints", ""),
        Some(m) => e.within("matchConstraints", |e| {
            match_resources(e, m);
            // Which types expressions see follows from them.
            if count(m, "resourceRules") == 0 {
                e.required("resourceRules", "");
            }
        }),
    }
    let stays = |old: &Map| {
        ["paramKind", "matchConditions"]
            .iter()
            .all(|key| same(spec.get(key), old.get(key)))
    };
    if !old.is_some_and(stays) {
        match_conditions(e, spec, spec.contains_key("paramKind"));
    }
}

/// So many annotations, and expressions of them so long.
const MOST_ANNOTATIONS: usize = 20;
const LONGEST_VALUE: usize = 5 * 1024;

fn policy(e: &mut Errs, name: &str, spec: &Map, old: Option<&Map>) {
    policy_scope(e, spec, old);
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
        let why = "validations or auditAnnotations must contain at least one item";
        e.required("validations", why);
        e.required("auditAnnotations", why);
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
        let said = s(v, "messageExpression");
        if !said.is_empty() && said.trim().is_empty() {
            e.invalid("messageExpression", said, "must be non-empty if specified");
        } else if !said.is_empty() {
            let mut env = env.clone();
            env.variables.retain(|name, _| !name.starts_with("authorizer"));
            expression(e, "messageExpression", said, "", &env, &["string"]);
        }
        let message = s(v, "message");
        if !message.is_empty() && message.trim().is_empty() {
            e.invalid("message", message, "must be non-empty if specified");
        } else if message.trim().contains(['\n', '\r']) {
            e.invalid("message", message, "must not contain line breaks");
        }
        let reasons = REASONS;
        e.optional_one_of(v, "reason", &reasons);
    });
    let annotation = ["string", "null"];
    if count(spec, "auditAnnotations") > MOST_ANNOTATIONS {
        let why = format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations");
        e.invalid_as(
            "admissionregistration.AuditAnnotation",
            "auditAnnotations",
            spec.get("auditAnnotations"),
            &why,
        );
    }
    let mut seen = HashSet::new();
    e.each(spec, "auditAnnotations", |e, _, a| {
        let key = s(a, "key");
        match name {
            "" => e.invalid("key", key, "requires metadata.name be non-empty"),
            name => e.format("key", &format!("{name}/{key}"), names::label_key),
        }
        let value = s(a, "valueExpression");
        if value.trim().len() > LONGEST_VALUE {
            e.required(
                "valueExpression",
                &format!("must not exceed {LONGEST_VALUE} bytes in length"),
            );
        } else {
            expression(
                e,
                "valueExpression",
                value,
                "valueExpression is not specified",
                &env,
                &annotation,
            );
        }
        if !seen.insert(key.to_owned()) {
            e.duplicate("key", key);
        }
    });
}

/// What a policy may say that a request was refused for.
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
/// Words of CEL that are no names.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A policy's variables, each of which may use those before it.
pub fn variables(e: &mut Errs, spec: &Map, base: Env) -> Env {
    let mut known = BTreeMap::new();
    let mut env = expressions::with_variables(&base, &known);
    e.each(spec, "variables", |e, _, v| {
        let name = s(v, "name");
        let identifier = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !RESERVED.contains(&name);
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
        // What doesn't compile isn't there.
        if let Some(ty) = ty {
            known.insert(name.to_string(), ty);
        }
        env = expressions::with_variables(&base, &known);
    });
    env
}

/// What bindings of both kinds say.
pub fn binding_of_policy(e: &mut Errs, spec: &Map) {
    match s(spec, "policyName") {
        "" => e.required("policyName", ""),
        name => e.format("policyName", name, names::dns1123_subdomain),
    }
    e.child(spec, "paramRef", |e, p| {
        const BOTH: &str = "name and selector are mutually exclusive";
        let (name, selects) = (s(p, "name"), p.contains_key("selector"));
        if !name.is_empty() {
            e.format("name", name, path_segment_errors);
            if selects {
                e.forbidden("name", BOTH);
            }
        }
        e.label_selector(p, "selector");
        if selects && !name.is_empty() {
            e.forbidden("selector", BOTH);
        }
        if name.is_empty() && !selects {
            e.required("", "one of name or selector must be specified");
        }
        e.one_of(p, "parameterNotFoundAction", &["Deny", "Allow"]);
    });
    e.child(spec, "matchResources", match_resources);
}

fn policy_binding(e: &mut Errs, spec: &Map) {
    binding_of_policy(e, spec);
    let mut seen = HashSet::new();
    e.each_str(spec, "validationActions", |e, _, action| {
        if !matches!(action, "Audit" | "Deny" | "Warn") {
            e.not_supported("", action, &["Audit", "Deny", "Warn"]);
        }
        if !seen.insert(action.to_owned()) {
            e.duplicate("", action);
        }
    });
    if ["Deny", "Warn"].iter().all(|action| seen.contains(*action)) {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        e.invalid(
            "validationActions",
            spec.get("validationActions").cloned().unwrap_or(Value::Null),
            why,
        );
    }
    if seen.is_empty() {
        e.required("validationActions", "");
    }
}
