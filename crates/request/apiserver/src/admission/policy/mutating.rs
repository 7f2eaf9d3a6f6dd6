//! `MutatingAdmissionPolicy`: objects are merged with what an expression builds, or patched by it.

use super::{Binding, Body, Policies, Policy, Seen, params};
use crate::admission::changed::{completed, schema_of};
use crate::admission::expressions::{Budget, Expression, Inputs, Variables};
use crate::admission::matching::{Target, request_value};
use crate::admission::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::status::Cause;
use keelson_api::{ApiResult, Map, Object, Reason, SchemaRef, Value};
use keelson_machinery::apply::typed;
use keelson_machinery::cel::{Env, RUNTIME_BUDGET, mutation};
use keelson_machinery::patch::json_patch;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

const NAME: &str = "MutatingAdmissionPolicy";

#[derive(Debug)]
enum Mutation {
    Apply(Expression),
    Patch(Expression),
}

/// `mutations` and `reinvocationPolicy`.
#[derive(Debug)]
pub struct Mutations {
    list: Vec<Mutation>,
    again: bool,
}

impl Body for Mutations {
    fn parse(spec: &Map, env: &Env) -> Self {
        let text = |m: &Value, path: [&str; 2]| {
            let at = m.get(path[0]).and_then(|v| v.get(path[1]));
            at.and_then(Value::as_str).unwrap_or_default().to_string()
        };
        let mutation = |m: &Value| match m.get("patchType").and_then(Value::as_str) {
            Some("JSONPatch") => Mutation::Patch(Expression::new(
                &text(m, ["jsonPatch", "expression"]),
                env,
                &["list(JSONPatch)"],
            )),
            _ => Mutation::Apply(Expression::new(
                &text(m, ["applyConfiguration", "expression"]),
                env,
                &["Object"],
            )),
        };
        Mutations {
            list: spec.arr("mutations").into_iter().flatten().map(mutation).collect(),
            again: spec.str("reinvocationPolicy") == Some("IfNeeded"),
        }
    }
}

/// The object as a mutation leaves it; `None`: as it was.
fn changed(
    policy: &Policy<Mutations>,
    mutation: &Mutation,
    seen: &Seen<'_>,
    inputs: &Inputs<'_>,
    schema: Option<&SchemaRef>,
) -> Result<Option<Value>, String> {
    let Some(object) = inputs.object else { return Ok(None) };
    let cost = AtomicU64::new(0);
    let variables = Variables::bind(
        &policy.declarations,
        inputs.with_authorizer(seen.review, &seen.subject),
        &cost,
    );
    let mut budget = Budget::new(RUNTIME_BUDGET, Some(&cost));
    let (Mutation::Apply(expression) | Mutation::Patch(expression)) = mutation;
    let value = budget.evaluate(expression, variables.as_ref())??;
    match mutation {
        Mutation::Apply(_) => {
            mutation::check_type_names(&value).map_err(|e| format!("type mismatch: {e}"))?;
            let Value::Object(mut config) = value.to_json().map_err(|e| e.message)? else {
                return Err(format!(
                    "unsupported return type from ApplyConfiguration expression: {}",
                    value.type_name()
                ));
            };
            for key in ["apiVersion", "kind"] {
                config.insert(key, object.get(key).cloned().unwrap_or_default());
            }
            merged(object, &Value::Object(config), schema)
                .map(Some)
                .map_err(|e| format!("error applying patch: {e}"))
        }
        Mutation::Patch(_) => {
            let operations = mutation::patch_operations(&value)?;
            let mut out = Value::Object(object.0.clone());
            match json_patch::apply_operations(&mut out, &operations) {
                Ok(()) => Ok(Some(out)),
                Err(e) if e.ends_with("test failed") => Ok(None),
                Err(e) => Err(format!("JSON Patch: {e}")),
            }
        }
    }
}

/// An object merged with an apply configuration, as server-side apply merges, but owned by nobody.
fn merged(object: &Object, config: &Value, schema: Option<&SchemaRef>) -> Result<Value, String> {
    let schema = schema.ok_or("type converter must not be nil")?;
    typed::validate(config, schema, false)
        .map_err(|e| format!("failed to convert patch object to typed object: {e}"))?;
    let atomics = typed::atomics(config, schema);
    if !atomics.is_empty() {
        let list = atomics.join(", ");
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {list}"
        ));
    }
    let live = Value::Object(object.0.clone());
    typed::merge(&live, config, schema).map_err(|e| format!("failed to merge patch: {e}"))
}

/// A policy that is to run, with one parameter of one of its bindings.
struct Invocation<'p> {
    policy: &'p Policy<Mutations>,
    binding: &'p Binding,
    target: Target,
    param: Option<Object>,
}

impl Invocation<'_> {
    fn key(&self) -> String {
        let param = self
            .param
            .as_ref()
            .map(|p| format!("{}/{}", p.namespace(), p.name()))
            .unwrap_or_default();
        format!("{}/{}/{param}", self.policy.name, self.binding.name)
    }
}

/// What went wrong with policies that don't ignore it.
#[derive(Default)]
struct Errors(Vec<(String, Option<Reason>)>);

impl Errors {
    fn add(&mut self, policy: &Policy<Mutations>, binding: Option<&Binding>, why: &str, reason: Option<Reason>) {
        if !policy.fail_open {
            let by = match binding {
                Some(b) => format!("policy '{}' with binding '{}'", policy.name, b.name),
                None => format!("policy \"{}\"", policy.name),
            };
            self.0.push((format!("{by} denied request: {why}"), reason));
        }
    }
    fn into_result(self, review: &Review<'_>, object: Option<&Object>) -> ApiResult<()> {
        let Some((message, reason)) = self.0.first() else {
            return Ok(());
        };
        let mut error = review.forbidden(object, "");
        error.message.clone_from(message);
        error.reason = reason.unwrap_or(error.reason);
        let causes = self.0.iter().map(|(message, _)| Cause {
            message: message.clone(),
            ..Cause::default()
        });
        Err(error.with_causes(causes.collect()))
    }
}

pub struct MutatingPolicies(pub Arc<Policies<Mutations>>);

#[async_trait]
impl Plugin for MutatingPolicies {
    fn name(&self) -> &'static str {
        NAME
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }

    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let all = self.0.current();
        if all.is_empty() || Seen::is_exempt(review) {
            return Ok(());
        }
        let Some(new) = new else { return Ok(()) };
        let mut seen = Seen::of(review, Some(new));
        let mut errors = Errors::default();
        let mut invocations = Vec::new();
        for bound in all.iter() {
            let policy = bound.policy.as_ref();
            if let Err(why) = invoked(&seen, policy, &bound.bindings, new, old, &mut invocations, &mut errors).await {
                errors.add(policy, None, &format!("failed to configure policy: {why}"), None);
            }
        }
        if !invocations.is_empty() {
            seen.with_namespace().await?;
            review.rounds.begin(NAME, new);
            for invocation in &invocations {
                run(&seen, invocation, new, old, &mut errors).await?;
            }
            review.rounds.end(NAME, new);
        }
        errors.into_result(review, Some(new))
    }
}

/// Finds out with what a policy is to run; the error is its configuration's.
async fn invoked<'p>(
    seen: &Seen<'_>,
    policy: &'p Policy<Mutations>,
    bindings: &'p [Arc<Binding>],
    new: &Object,
    old: Option<&Object>,
    out: &mut Vec<Invocation<'p>>,
    errors: &mut Errors,
) -> Result<(), String> {
    let Some(target) = seen.matched(policy, Some(new), old).await? else {
        return Ok(());
    };
    let def = policy.params.as_ref().map(|k| k.resolve(seen.review)).transpose()?;
    for binding in bindings {
        let params = match seen.bound(binding, Some(new), old).await {
            Ok(false) => continue,
            Ok(true) => {
                params::collect(
                    seen.review,
                    def.as_ref(),
                    binding.params.as_ref(),
                    &seen.subject.namespace,
                )
                .await
            }
            Err(why) => Err(why),
        };
        match params {
            Ok(params) => out.extend(params.into_iter().map(|param| Invocation {
                policy,
                binding,
                target: target.clone(),
                param,
            })),
            Err(why) => errors.add(
                policy,
                Some(binding),
                &format!("failed to configure binding: {why}"),
                None,
            ),
        }
    }
    Ok(())
}

async fn run(
    seen: &Seen<'_>,
    i: &Invocation<'_>,
    new: &mut Object,
    old: Option<&Object>,
    errors: &mut Errors,
) -> ApiResult<()> {
    let (review, key) = (seen.review, i.key());
    let request = request_value(review, &seen.subject, &i.target);
    let schema = schema_of(review, &i.target);
    let before = new.clone();
    for (index, mutation) in i.policy.body.list.iter().enumerate() {
        let result = {
            let (object, old) = i.target.views(review, Some(new), old).await?;
            let inputs = Inputs {
                object: object.as_deref(),
                old: old.as_deref(),
                request: &request,
                namespace: seen.namespace.as_ref(),
                params: i.param.as_ref(),
            };
            // Conditions are asked once, about the object as the policy found it.
            let holds = index > 0 || i.policy.conditions.is_empty();
            match if holds {
                Ok(true)
            } else {
                i.policy.conditions.hold(&inputs.with_authorizer(review, &seen.subject))
            } {
                Ok(true) if !review.rounds.runs(NAME, &key) => return Ok(()),
                Ok(true) => changed(i.policy, mutation, seen, &inputs, schema.as_ref()),
                Ok(false) => return Ok(()),
                Err(why) => {
                    errors.add(i.policy, Some(i.binding), &why, Some(Reason::Invalid));
                    return Ok(());
                }
            }
        };
        match result {
            Ok(None) => {}
            Ok(Some(value)) => {
                let object = completed(review, &i.target, value)?;
                *new = i.target.back(review, object).await?;
            }
            Err(why) => errors.add(i.policy, Some(i.binding), &why, Some(Reason::Invalid)),
        }
    }
    review.rounds.ran(NAME, &key, *new != before, i.policy.body.again);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::{builtin, value};

    #[test]
    fn configurations_merge_by_type_and_spare_atomics() {
        let schema = builtin::builtin_kind_at("apps/v1", "Deployment");
        let live = value!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"annotations": {"a": "1"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"x": "y"}}}});
        let live = Object::try_from(live).unwrap();
        let merge = |config: Value| merged(&live, &config, schema.as_ref());
        let out = merge(
            value!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"annotations": {"b": "2"}}, "spec": {"replicas": 3}}),
        );
        let out = out.unwrap();
        assert_eq!(
            out.get("metadata").unwrap(),
            &value!({"annotations": {"a": "1", "b": "2"}})
        );
        assert_eq!(out.get("spec").and_then(|s| s.get("replicas")), Some(&Value::Int(3)));
        let why =
            merge(value!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"selector": {"matchLabels": {}}}}))
                .unwrap_err();
        assert_eq!(
            why,
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector"
        );
        let why = merge(value!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"nope": 1}})).unwrap_err();
        assert_eq!(
            why,
            "failed to convert patch object to typed object: .spec.nope: field not declared in schema"
        );
    }
}
