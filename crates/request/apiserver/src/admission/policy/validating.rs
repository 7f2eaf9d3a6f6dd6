//! `ValidatingAdmissionPolicy`: requests are refused, warned of or noted as bindings say.

use super::source::Bound;
use super::{Binding, Body, Policies, Policy, Seen, params};
use crate::admission::changed::text_of;
use crate::admission::expressions::{Budget, Expression, Inputs, Variables};
use crate::admission::matching::request_value;
use crate::admission::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::status::Cause;
use keelson_api::{ApiResult, Map, Object, Reason, Value, value};
use keelson_machinery::cel::{Env, MAX_MESSAGE_BYTES, RUNTIME_BUDGET, Val};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// The longest value of an audit annotation.
const MAX_ANNOTATION: usize = 10 * 1024;
/// The most failures that one audit annotation lists.
const MAX_FAILURES: usize = 50;

#[derive(Debug)]
struct Validation {
    expression: Expression,
    message_expression: Option<Expression>,
    message: String,
    reason: Reason,
}

/// `validations` and `auditAnnotations`.
#[derive(Debug)]
pub struct Validations {
    list: Vec<Validation>,
    annotations: Vec<(String, Expression)>,
}

impl Body for Validations {
    fn parse(spec: &Map, env: &Env) -> Self {
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let validation = |v: &Value| {
            let message = text(v, "messageExpression");
            Validation {
                expression: Expression::new(&text(v, "expression"), env, &["bool"]),
                message_expression: (!message.is_empty()).then(|| Expression::new(&message, env, &["string"])),
                message: text(v, "message"),
                reason: match Reason::parse(&text(v, "reason")) {
                    Reason::Unknown => Reason::Invalid,
                    given => given,
                },
            }
        };
        let annotation = |v: &Value| {
            (
                text(v, "key"),
                Expression::new(&text(v, "valueExpression"), env, &["string", "null_type", "null"]),
            )
        };
        Validations {
            list: spec.arr("validations").into_iter().flatten().map(validation).collect(),
            annotations: spec
                .arr("auditAnnotations")
                .into_iter()
                .flatten()
                .map(annotation)
                .collect(),
        }
    }
}

/// Why an object is refused.
struct Denial {
    /// Of the validation in its policy.
    index: usize,
    message: String,
    reason: Reason,
}

/// What an evaluation came to.
#[derive(Default)]
struct Outcome {
    denials: Vec<Denial>,
    annotations: Vec<(String, String)>,
    /// Failures of audit annotations, which deny whatever the binding's actions.
    broken: Vec<String>,
}

impl Outcome {
    fn failed(fail_open: bool, message: String) -> Outcome {
        let denial = Denial {
            index: 0,
            message,
            reason: Reason::Invalid,
        };
        Outcome {
            denials: if fail_open { Vec::new() } else { vec![denial] },
            ..Outcome::default()
        }
    }
}

fn evaluate(policy: &Policy<Validations>, seen: &Seen<'_>, inputs: &Inputs<'_>) -> Outcome {
    let bindings = inputs.with_authorizer(seen.review, &seen.subject);
    match policy.conditions.hold(&bindings) {
        Ok(true) => {}
        Ok(false) => return Outcome::default(),
        Err(why) => return Outcome::failed(policy.fail_open, why),
    }
    let cost = AtomicU64::new(0);
    let variables = Variables::bind(&policy.declarations, bindings, &cost);
    let mut budget = Budget::new(RUNTIME_BUDGET, Some(&cost));
    let mut out = Outcome::default();
    let mut refused = Vec::new();
    for (index, v) in policy.body.list.iter().enumerate() {
        match budget.evaluate(&v.expression, variables.as_ref()) {
            Err(spent) => return Outcome::failed(policy.fail_open, spent.into()),
            Ok(Ok(Val::Bool(true))) => {}
            Ok(Ok(_)) => refused.push((index, None)),
            Ok(Err(why)) => refused.push((index, Some(why))),
        }
    }
    for (index, failure) in refused {
        let v = &policy.body.list[index];
        match failure {
            Some(_) if policy.fail_open => {}
            Some(message) => out.denials.push(Denial {
                index,
                message,
                reason: Reason::Invalid,
            }),
            None => {
                let message = v
                    .message_expression
                    .as_ref()
                    .map(|e| budget.evaluate(e, variables.as_ref()));
                match message {
                    Some(Err(_)) if policy.fail_open => {}
                    Some(Err(spent)) => {
                        let message = format!("failed messageExpression: {spent}");
                        out.denials.push(Denial {
                            index,
                            message,
                            reason: Reason::Invalid,
                        });
                    }
                    Some(Ok(Ok(said))) => out.denials.push(Denial {
                        index,
                        message: message_of(v, said.as_str()),
                        reason: v.reason,
                    }),
                    Some(Ok(Err(_))) | None => {
                        out.denials.push(Denial {
                            index,
                            message: message_of(v, None),
                            reason: v.reason,
                        });
                    }
                }
            }
        }
    }
    let mut budget = Budget::new(RUNTIME_BUDGET, Some(&cost));
    for (key, e) in &policy.body.annotations {
        match budget.evaluate(e, variables.as_ref()) {
            Err(spent) => return Outcome::failed(policy.fail_open, spent.into()),
            Ok(Ok(Val::Null)) => {}
            Ok(Ok(v)) => match v.as_str() {
                Some(text) if text.trim().is_empty() => {}
                Some(text) => out.annotations.push((key.clone(), text.trim().to_string())),
                None => out.broken.push(format!(
                    "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                    e.source,
                    v.type_name()
                )),
            },
            Ok(Err(_)) if policy.fail_open => {}
            Ok(Err(why)) => out.broken.push(why),
        }
    }
    out
}

/// The computed message if it is one, else the given one, else the expression.
fn message_of(v: &Validation, computed: Option<&str>) -> String {
    let computed = computed
        .map(str::trim)
        .filter(|m| m.len() <= MAX_MESSAGE_BYTES && !m.contains('\n'));
    match (computed.unwrap_or_default(), v.message.trim()) {
        ("", "") => format!("failed expression: {}", v.expression.source.trim()),
        ("", given) => given.to_string(),
        (computed, _) => computed.to_string(),
    }
}

pub struct ValidatingPolicies(pub Arc<Policies<Validations>>);

/// What all policies together came to.
#[derive(Default)]
struct Verdict {
    denied: Option<(String, Reason)>,
    failures: Vec<Value>,
}

impl Verdict {
    fn deny(&mut self, policy: &str, binding: Option<&str>, message: &str, reason: Reason) {
        if self.denied.is_none() {
            let with = binding.map(|b| format!(" with binding '{b}'")).unwrap_or_default();
            self.denied = Some((
                format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {message}"),
                reason,
            ));
        }
    }
    fn configuration<B>(&mut self, policy: &Policy<B>, binding: Option<&Binding>, why: &str) {
        if !policy.fail_open {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let message = format!("failed to configure {what}: {why}");
            self.deny(
                &policy.name,
                binding.map(|b| b.name.as_str()),
                &message,
                Reason::Invalid,
            );
        }
    }
    fn act(&mut self, review: &Review<'_>, policy: &str, binding: &Binding, d: &Denial) {
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => self.deny(policy, Some(&binding.name), &d.message, d.reason),
                "Warn" => review.cx.warn(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{}': {}",
                    binding.name, d.message
                )),
                "Audit" => {
                    let actions: Vec<Value> = binding.actions.iter().map(|a| Value::from(a.as_str())).collect();
                    self.failures.push(value!({
                        "message": d.message.as_str(),
                        "policy": policy,
                        "binding": binding.name.as_str(),
                        "expressionIndex": d.index as i64,
                        "validationActions": actions
                    }));
                }
                _ => {}
            }
        }
    }
}

#[async_trait]
impl Plugin for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }

    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let all = self.0.current();
        if all.is_empty() || Seen::is_exempt(review) {
            return Ok(());
        }
        let mut seen = Seen::of(review, new);
        let mut verdict = Verdict::default();
        for bound in all.iter() {
            consult(&mut seen, bound, new, old, &mut verdict).await?;
        }
        if !verdict.failures.is_empty() {
            verdict.failures.truncate(MAX_FAILURES);
            let key = "validation.policy.admission.k8s.io/validation_failure";
            review.cx.annotate(key, text_of(&Value::Array(verdict.failures)));
        }
        match verdict.denied {
            None => Ok(()),
            Some((message, reason)) => {
                let mut error = review.forbidden(new, &message);
                error.reason = reason;
                error.code = reason.code();
                let mut causes = error
                    .details
                    .as_mut()
                    .map(|d| std::mem::take(&mut d.causes))
                    .unwrap_or_default();
                causes.push(Cause {
                    message,
                    ..Cause::default()
                });
                Err(error.with_causes(causes))
            }
        }
    }
}

/// One policy with all its bindings.
async fn consult(
    seen: &mut Seen<'_>,
    bound: &Bound<Validations>,
    new: Option<&Object>,
    old: Option<&Object>,
    verdict: &mut Verdict,
) -> ApiResult<()> {
    let (policy, review) = (bound.policy.as_ref(), seen.review);
    let target = match seen.matched(policy, new, old).await {
        Ok(Some(target)) => target,
        Ok(None) => return Ok(()),
        Err(why) => {
            verdict.configuration(policy, None, &why);
            return Ok(());
        }
    };
    let def = match policy.params.as_ref().map(|k| k.resolve(review)).transpose() {
        Ok(def) => def,
        Err(why) => {
            verdict.configuration(policy, None, &why);
            return Ok(());
        }
    };
    let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for binding in &bound.bindings {
        let params = match seen.bound(binding, new, old).await {
            Ok(false) => continue,
            Ok(true) => params::collect(review, def.as_ref(), binding.params.as_ref(), &seen.subject.namespace).await,
            Err(why) => Err(why),
        };
        let params = match params {
            Ok(params) => params,
            Err(why) => {
                verdict.configuration(policy, Some(binding), &why);
                continue;
            }
        };
        if params.is_empty() {
            continue;
        }
        let (object, old) = match target.views(review, new, old).await {
            Ok(views) => views,
            Err(e) => {
                let why = format!("failed to convert object version: {}", e.message);
                verdict.configuration(policy, Some(binding), &why);
                continue;
            }
        };
        seen.with_namespace().await?;
        let request = request_value(review, &seen.subject, &target);
        for param in &params {
            let inputs = Inputs {
                object: object.as_deref(),
                old: old.as_deref(),
                request: &request,
                namespace: seen.namespace.as_ref(),
                params: param.as_ref(),
            };
            let outcome = evaluate(policy, seen, &inputs);
            outcome
                .denials
                .iter()
                .for_each(|d| verdict.act(review, &policy.name, binding, d));
            for why in &outcome.broken {
                verdict.deny(&policy.name, Some(&binding.name), why, Reason::Invalid);
            }
            for (key, mut text) in outcome.annotations {
                cut(&mut text, MAX_ANNOTATION);
                let texts = annotations.entry(key).or_default();
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
        }
    }
    for (key, texts) in annotations {
        review.cx.annotate(&format!("{}/{key}", policy.name), texts.join(", "));
    }
    Ok(())
}

/// Cuts a text to at most so many bytes, between characters.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
}
