//! Checks a validating policy's expressions against the types of what it matches. What is found changes nothing of what
//! the policy does; its author is told in its status.

use crate::admission::expressions::env;
use keelson_api::{Map, Object, Str, Value, value};
use keelson_machinery::cel::{self, Env, Ty};
use keelson_registry::resources::expressions::with_variables;
use keelson_registry::{ResourceDef, ResourceTable};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most kinds that a rule's expressions are checked against.
const MAX_KINDS: usize = 10;

/// `expressionWarnings`.
pub fn warnings(policy: &Object, table: &ResourceTable) -> Vec<Value> {
    let empty = Map::new();
    let spec = policy.obj("spec").unwrap_or(&empty);
    let kinds = kinds(spec, table);
    let params = spec.obj("paramKind").map(|k| params_type(k, table));
    let mut out = Vec::new();
    for (i, v) in spec.arr("validations").into_iter().flatten().enumerate() {
        for key in ["expression", "messageExpression"] {
            let source = v.get(key).and_then(Value::as_str).unwrap_or_default();
            if source.is_empty() && key == "messageExpression" {
                continue;
            }
            let said: Vec<String> = kinds
                .iter()
                .filter_map(|def| check(source, spec, def, params.as_ref()))
                .collect();
            if !said.is_empty() {
                out.push(value!({"fieldRef": format!("spec.validations[{i}].{key}"), "warning": said.join("\n")}));
            }
        }
    }
    out
}

/// What is wrong with an expression when it is about objects of a kind.
fn check(source: &str, spec: &Map, def: &ResourceDef, params: Option<&Ty>) -> Option<String> {
    let ty = Ty::of_schema(&def.schema);
    let mut base = env(params.is_some()).with("object", ty.clone()).with("oldObject", ty);
    if let Some(params) = params {
        base = base.with("params", params.clone());
    }
    let env = declared(spec, &base);
    let issues = cel::compile(source, &env).err()?;
    let kind = def.gvk();
    Some(format!(
        "{}/{}, Kind={}: {issues}\n",
        kind.group, kind.version, kind.kind
    ))
}

fn declared(spec: &Map, base: &Env) -> Env {
    let mut types = BTreeMap::new();
    let mut env = with_variables(base, &types);
    for v in spec.arr("variables").into_iter().flatten() {
        let text = |key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default();
        let ty = cel::compile(text("expression"), &env).map_or(Ty::Dyn, |p| p.ty);
        types.insert(text("name").to_string(), ty);
        env = with_variables(base, &types);
    }
    env
}

fn params_type(kind: &Map, table: &ResourceTable) -> Ty {
    let api_version = kind.str("apiVersion").unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let snapshot = table.snapshot();
    let def = snapshot.by_kind(group, version, kind.str("kind").unwrap_or_default());
    def.map_or(Ty::Dyn, |d| Ty::of_schema(&d.schema))
}

/// The kinds that the policy's rules name outright, in order.
fn kinds(spec: &Map, table: &ResourceTable) -> Vec<Arc<ResourceDef>> {
    let rules = spec.obj("matchConstraints").and_then(|m| m.arr("resourceRules"));
    let mut found: BTreeMap<(Str, Str, Str), Arc<ResourceDef>> = BTreeMap::new();
    for rule in rules.into_iter().flatten().filter_map(Value::as_object) {
        let list = |key: &str| -> Vec<&str> {
            let mut all: Vec<_> = rule.arr(key).into_iter().flatten().filter_map(Value::as_str).collect();
            all.sort_unstable();
            all
        };
        let (groups, versions, mut resources) = (list("apiGroups"), list("apiVersions"), list("resources"));
        if groups.iter().chain(&versions).any(|s| s.contains('*')) {
            continue;
        }
        resources.retain(|r| !r.contains(['*', '/']));
        let named = groups.iter().flat_map(|g| versions.iter().map(move |v| (g, v)));
        let named = named.flat_map(|(g, v)| resources.iter().map(move |r| (*g, *v, *r)));
        for def in named.filter_map(|(g, v, r)| table.get(g, v, r)).take(MAX_KINDS) {
            let kind = def.gvk();
            found.insert((kind.group, kind.version, kind.kind), def);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_registry::resources;

    fn said(validations: Value) -> Vec<Value> {
        let policy = value!({"metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["*"]}
            ]},
            "variables": [{"name": "n", "expression": "object.spec.replicas"}],
            "validations": validations
        }});
        warnings(
            &Object::try_from(policy).unwrap(),
            &ResourceTable::new(resources::rows()),
        )
    }

    #[test]
    fn expressions_are_checked_against_the_kinds_that_match() {
        assert_eq!(
            said(value!([{"expression": "variables.n > 1 && object.metadata.labels['a'] == 'b'"}])),
            Vec::<Value>::new()
        );
        let out = said(
            value!([{"expression": "object.spec.replicas > '1'", "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"}]),
        );
        let text = |i: usize, key: &str| out[i].get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        assert_eq!(text(0, "fieldRef"), "spec.validations[0].expression");
        assert!(text(0, "warning").starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"), "{}", text(0, "warning"));
        assert_eq!(text(1, "fieldRef"), "spec.validations[0].messageExpression");
        assert!(text(1, "warning").contains("found no matching overload for '_+_' applied to '(string, int)'"));
        let out = said(value!([{"expression": "variables.n > '1'"}, {"expression": "object.spec.maxRetries < 10"}]));
        assert_eq!(out.len(), 2);
        assert!(
            out[1]
                .get("warning")
                .and_then(Value::as_str)
                .unwrap()
                .contains("undefined field 'maxRetries'")
        );
    }
}
