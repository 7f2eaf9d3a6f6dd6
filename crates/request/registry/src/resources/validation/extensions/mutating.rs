//! Mutating admission policies and their bindings.

use super::super::Rules;
use super::super::check::{Errs, count, s};
use super::policies::{binding_of_policy, policy_scope, variables};
use super::{expression, reserved};
use crate::resources::expressions::{self, Scope};
use keelson_api::{Map, Value};
use keelson_machinery::cel::Env;

pub const POLICY: Rules = Rules {
    create: |_, o, e| {
        e.child(o, "spec", |e, spec| policy(e, spec, None));
        reserved(o, e);
    },
    update: |_, new, old, e| e.child(new, "spec", |e, spec| policy(e, spec, old.obj("spec"))),
    ..Rules::SUBDOMAIN
};
pub const BINDING: Rules = Rules {
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            binding_of_policy(e, spec);
            if let Some(m) = spec.obj("matchResources") {
                e.within("matchResources", |e| operations(e, m));
            }
        });
    },
    create: |_, o, e| reserved(o, e),
    ..Rules::SUBDOMAIN
};

fn policy(e: &mut Errs, spec: &Map, old: Option<&Map>) {
    policy_scope(e, spec, old);
    if let Some(m) = spec.obj("matchConstraints") {
        e.within("matchConstraints", |e| operations(e, m));
    }
    let params = spec.contains_key("paramKind");
    let env = variables(
        e,
        spec,
        expressions::env(Scope {
            params,
            authorizer: true,
        }),
    );
    if count(spec, "mutations") == 0 {
        e.required("mutations", "mutations must contain at least one item");
    }
    e.each(spec, "mutations", |e, _, m| mutation(e, m, &env));
    match spec.str("reinvocationPolicy") {
        None | Some("") => e.required("reinvocationPolicy", ""),
        Some(_) => e.optional_one_of(spec, "reinvocationPolicy", &["IfNeeded", "Never"]),
    }
}

/// Only what is written can be changed.
fn operations(e: &mut Errs, m: &Map) {
    const SUPPORTED: [&str; 3] = ["*", "CREATE", "UPDATE"];
    let rules = m.arr("resourceRules").into_iter().flatten();
    let listed = rules
        .filter_map(|r| r.get("operations")?.as_array())
        .flatten()
        .filter_map(Value::as_str);
    for op in listed.filter(|op| !SUPPORTED.contains(op)) {
        e.not_supported("resourceRules.operations", op, &SUPPORTED);
    }
}

fn mutation(e: &mut Errs, m: &Map, env: &Env) {
    const KINDS: [(&str, &str, &str); 2] = [
        ("JSONPatch", "jsonPatch", "list(JSONPatch)"),
        ("ApplyConfiguration", "applyConfiguration", "Object"),
    ];
    let given = s(m, "patchType");
    if given.is_empty() {
        return e.required("patchType", "");
    }
    if !KINDS.iter().any(|(kind, ..)| *kind == given) {
        return e.not_supported("patchType", given, &["ApplyConfiguration", "JSONPatch"]);
    }
    for (kind, key, ty) in KINDS {
        match (kind == given, m.obj(key)) {
            (true, None) => e.required(key, &format!("must be specified when patchType is {kind}")),
            (true, Some(inner)) => e.within(key, |e| {
                expression(e, "expression", s(inner, "expression"), "", env, &[ty]);
            }),
            (false, Some(_)) => {
                e.invalid(
                    key,
                    format!("{{{key}}}"),
                    &format!("must not be specified when patchType is {given}"),
                );
            }
            (false, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn said(spec: Value) -> Vec<String> {
        let mut e = Errs::default();
        let spec = spec.as_object().cloned().unwrap_or_default();
        e.within("spec", |e| policy(e, &spec, None));
        e.list.iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    fn with(mutation: Value, operation: &str) -> Value {
        value!({"failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": [mutation], "matchConstraints": {
            "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}, "resourceRules": [
            {"operations": [operation], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]}})
    }

    #[test]
    fn expressions_must_yield_what_their_type_says() {
        let apply = |x: &str| value!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": x}});
        assert_eq!(
            said(with(apply("Object{spec: Object.spec{replicas: 1}}"), "CREATE")),
            Vec::<String>::new()
        );
        let patch =
            value!({"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/a'}]"}});
        assert_eq!(said(with(patch, "UPDATE")), Vec::<String>::new());
        let wrong = said(with(apply("1"), "CREATE"));
        assert!(
            wrong[0].starts_with("spec.mutations[0].applyConfiguration.expression: Invalid value: "),
            "{wrong:?}"
        );
        assert!(wrong[0].contains("must evaluate to Object"), "{wrong:?}");
        let wrong = said(with(apply("Object{"), "CREATE"));
        assert!(wrong[0].contains("compilation failed: "), "{wrong:?}");
    }

    #[test]
    fn only_writes_can_be_mutated() {
        let apply = value!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}});
        let wrong = said(with(apply, "DELETE"));
        assert_eq!(
            wrong,
            [
                "spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CREATE\", \"UPDATE\""
            ]
        );
        let missing = value!({"patchType": "JSONPatch", "applyConfiguration": {"expression": "Object{}"}});
        assert_eq!(
            said(with(missing, "*")),
            [
                "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch",
                "spec.mutations[0].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be specified when patchType is JSONPatch",
            ]
        );
    }
}
