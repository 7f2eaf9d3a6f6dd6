//! `x-kubernetes-validations`: compiling a schema's rules, and checking objects by them.

use super::types::Declared;
use super::{
    Activation, CelError, Env, MAX_MESSAGE_BYTES, PER_CALL_LIMIT, Program, RUNTIME_BUDGET, Ty, Val, compile, cost,
};
use crate::apply::fieldpath::equal_values;
use crate::structural::{Rule, Structural};
use keelson_api::{Cause, Str, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The rules of a schema and of everything below it, compiled.
#[derive(Debug, Default)]
pub struct Rules {
    here: Vec<Compiled>,
    properties: BTreeMap<Str, Rules>,
    items: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
}

#[derive(Debug)]
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    message: Option<Program>,
    uses_old: bool,
}

fn env(ty: &Ty, optional_old: bool) -> Env {
    let old = if optional_old {
        Ty::optional(ty.clone())
    } else {
        ty.clone()
    };
    Env::default().with("self", ty.clone()).with("oldSelf", old)
}

impl Compiled {
    fn new(rule: &Rule, declared: &Declared) -> Option<Compiled> {
        if rule.rule.trim().is_empty() {
            return None;
        }
        let env = env(&declared.ty, rule.optional_old_self == Some(true));
        let program = compile(&rule.rule, &env)
            .map_err(|e| format!("compilation failed: {e}"))
            .and_then(|p| {
                if matches!(p.ty, Ty::Bool) {
                    Ok(p)
                } else {
                    Err("cel expression must evaluate to a bool".to_string())
                }
            });
        let message = (!rule.message_expression.is_empty())
            .then(|| {
                compile(&rule.message_expression, &env)
                    .ok()
                    .filter(|p| matches!(p.ty, Ty::String))
            })
            .flatten();
        let uses_old = program.as_ref().is_ok_and(|p| p.uses("oldSelf"));
        Some(Compiled {
            rule: rule.clone(),
            program,
            message,
            uses_old,
        })
    }
}

impl Rules {
    /// Compiles what stands in the schema; `None`: there are no rules. `root`: a resource of its own.
    pub fn new(s: &Structural, root: bool) -> Option<Rules> {
        if !s.has_rules() && s.checks.all_of.iter().all(|a| !a.has_rules()) {
            return None;
        }
        Rules::build(s, Declared::of(s, root).as_ref())
    }

    fn build(s: &Structural, declared: Option<&Arc<Declared>>) -> Option<Rules> {
        let below = |p: &Structural| {
            if p.has_rules() {
                Rules::build(p, Declared::of(p, p.embedded_resource).as_ref())
            } else {
                None
            }
        };
        let rules = Rules {
            here: declared
                .map(|d| s.rules.iter().filter_map(|r| Compiled::new(r, d)).collect())
                .unwrap_or_default(),
            properties: s
                .properties
                .iter()
                .filter_map(|(k, p)| below(p).map(|r| (k.clone(), r)))
                .collect(),
            items: s.items.as_deref().and_then(below).map(Box::new),
            additional: s.additional_schema().and_then(below).map(Box::new),
        };
        let any = !rules.here.is_empty()
            || !rules.properties.is_empty()
            || rules.items.is_some()
            || rules.additional.is_some();
        any.then_some(rules)
    }

    /// Everything an object violates; `old` is the object before an update.
    pub fn validate(&self, object: &Value, old: Option<&Value>, s: &Structural) -> Vec<Cause> {
        let mut run = Run {
            budget: RUNTIME_BUDGET as i64,
            out: Vec::new(),
        };
        run.node(self, object, old, s, "", true);
        run.out
    }
}

struct Run {
    budget: i64,
    out: Vec<Cause>,
}

struct Vars<'a> {
    new: Val<'a>,
    old: Option<Val<'a>>,
}

impl<'a> Activation<'a> for Vars<'a> {
    fn get(&self, name: &str) -> Option<Val<'a>> {
        match name {
            "self" => Some(self.new.clone()),
            "oldSelf" => self.old.clone(),
            _ => None,
        }
    }
}

/// How error messages name a rule.
fn named(rule: &Rule) -> String {
    if rule.message.is_empty() {
        rule.rule.trim().to_string()
    } else {
        rule.message.clone()
    }
}

impl Run {
    fn node<'a>(
        &mut self,
        r: &'a Rules,
        v: &'a Value,
        old: Option<&'a Value>,
        s: &'a Structural,
        path: &str,
        correlated: bool,
    ) {
        if v.is_null() || self.budget < 0 {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        let same = correlated && old.is_some_and(|o| equal_values(o, v));
        self.here(r, v, old, s, path, same);
        let child = |key: &str| {
            if path.is_empty() {
                key.to_string()
            } else {
                format!("{path}.{key}")
            }
        };
        match v {
            Value::Object(m) => {
                for (key, v) in m {
                    let before = old.and_then(|o| o.get(key));
                    if let (Some(r), Some(p)) = (r.properties.get(key), s.properties.get(key)) {
                        self.node(r, v, before, p, &child(key), true);
                    } else if let (Some(r), Some(p), false) =
                        (&r.additional, s.additional_schema(), s.properties.contains_key(key))
                    {
                        self.node(r, v, before, p, &format!("{path}[{key}]"), true);
                    }
                }
            }
            Value::Array(a) => {
                let (Some(r), Some(items)) = (&r.items, s.items.as_deref()) else {
                    return;
                };
                for (i, v) in a.iter().enumerate() {
                    // Only elements with keys can be told again.
                    let before = (s.list_type == "map")
                        .then(|| old.and_then(Value::as_array))
                        .flatten()
                        .and_then(|o| o.iter().find(|o| s.list_map_keys.iter().all(|k| o.get(k) == v.get(k))));
                    self.node(r, v, before, items, &format!("{path}[{i}]"), true);
                }
            }
            _ => {}
        }
    }

    fn here<'a>(
        &mut self,
        r: &'a Rules,
        v: &'a Value,
        old: Option<&'a Value>,
        s: &'a Structural,
        path: &str,
        unchanged: bool,
    ) {
        let ty = Value::String(s.ty.clone());
        for c in &r.here {
            if self.budget < 0 {
                return;
            }
            let program = match &c.program {
                Ok(p) => p,
                Err(e) => {
                    self.out
                        .push(Cause::invalid(path, &ty, &format!("rule compile error: {e}")));
                    continue;
                }
            };
            let optional = c.rule.optional_old_self == Some(true);
            if c.uses_old && old.is_none() && !optional {
                continue;
            }
            let old_val = old.map(|o| Val::of_json(o, Some(s)));
            let old_val = if optional {
                Some(old_val.map_or(Val::Optional(None), Val::some))
            } else {
                old_val
            };
            let vars = Vars {
                new: Val::of_json(v, Some(s)),
                old: old_val,
            };
            let (result, spent) = program.eval(&vars, PER_CALL_LIMIT);
            self.budget -= spent as i64;
            if self.budget < 0 {
                let why =
                    "validation failed due to running out of cost budget, no further validation rules will be run";
                self.out.push(Cause::invalid(path, &ty, why));
                return;
            }
            match result {
                Ok(Val::Bool(true)) => {}
                Ok(_) => {
                    if unchanged && !c.uses_old {
                        continue;
                    }
                    let cause = self.failed(c, &vars, v, s, path);
                    self.out.push(cause);
                }
                Err(e) => {
                    let why = described(&e, &c.rule);
                    if e.fatal {
                        self.budget = -1;
                    }
                    self.out.push(Cause::invalid(path, &ty, &why));
                }
            }
        }
    }

    fn failed<'a>(&mut self, c: &'a Compiled, vars: &Vars<'a>, v: &Value, s: &Structural, path: &str) -> Cause {
        let computed = c.message.as_ref().and_then(|m| {
            let (out, spent) = m.eval(vars, PER_CALL_LIMIT);
            self.budget -= spent as i64;
            let text = out.ok()?.as_str()?.trim().to_string();
            (!text.is_empty() && text.len() <= MAX_MESSAGE_BYTES && !text.contains('\n')).then_some(text)
        });
        let detail = computed.unwrap_or_else(|| {
            if c.rule.message.is_empty() {
                format!("failed rule: {}", c.rule.rule.trim())
            } else {
                c.rule.message.clone()
            }
        });
        let at = match c.rule.field_path.strip_prefix('.') {
            Some(f) if path.is_empty() => f.to_string(),
            Some(f) => format!("{path}.{f}"),
            None => path.to_string(),
        };
        let at = if at.is_empty() { "<nil>".to_string() } else { at };
        // Objects and arrays aren't shown.
        let shown = !matches!(s.ty.as_str(), "object" | "array");
        match c.rule.reason.as_str() {
            "FieldValueForbidden" => Cause::forbidden(at, &detail),
            "FieldValueRequired" => Cause::required(at, &detail),
            "FieldValueDuplicate" if shown => Cause::duplicate(at, v),
            "FieldValueDuplicate" => Cause::new("FieldValueDuplicate", at, "Duplicate value"),
            _ if shown => Cause::invalid(at, v, &detail),
            _ => Cause::new("FieldValueInvalid", at, format!("Invalid value: {detail}")),
        }
    }
}

fn described(e: &CelError, rule: &Rule) -> String {
    if e.fatal {
        format!(
            "'{e}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
            named(rule)
        )
    } else if e.message.starts_with("no such overload") {
        format!(
            "'{e}': call arguments did not match a supported operator, function or macro signature for rule: {}",
            named(rule)
        )
    } else {
        format!("{e} evaluating rule: {}", named(rule))
    }
}

/// What is wrong with the rules of a definition's schema: broken expressions, costs over the limits.
pub fn check(s: &Structural, path: &str) -> Vec<Cause> {
    let mut c = Checker {
        out: Vec::new(),
        total: 0.0,
    };
    c.node(s, true, path, Some(1.0), None);
    if c.total > cost::TOTAL_LIMIT {
        let why = over_budget(
            "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
            c.total / cost::TOTAL_LIMIT,
        );
        c.out.push(Cause::forbidden(path, &why));
    }
    c.out
}

fn over_budget(what: &str, factor: f64) -> String {
    let factor = if factor > 100.0 {
        "more than 100x".to_string()
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

struct Checker {
    out: Vec<Cause>,
    total: f64,
}

impl Checker {
    /// `times`: how many values the node can stand for; `None` where nothing bounds it. `loose`: the path of the list
    /// without keys above, whose elements can't be told again.
    fn node(&mut self, s: &Structural, root: bool, path: &str, times: Option<f64>, loose: Option<&str>) {
        let declared = Declared::of(s, root);
        for (i, rule) in s.rules.iter().enumerate() {
            let at = format!("{path}.x-kubernetes-validations[{i}]");
            self.text(rule, &at);
            match &declared {
                Some(d) => self.rule(rule, d, &at, times, loose),
                None => {
                    let why = "failed to convert to declType for CEL validation rules";
                    self.out.push(Cause::invalid(
                        format!("{at}.rule"),
                        &Value::from(rule.rule.as_str()),
                        why,
                    ));
                }
            }
        }
        let bound = |max: Option<i64>| match (times, max) {
            (Some(t), Some(m)) => Some(t * m.max(0) as f64),
            _ => None,
        };
        for (key, p) in &s.properties {
            self.node(
                p,
                p.embedded_resource,
                &format!("{path}.properties[{key}]"),
                times,
                loose,
            );
        }
        if let Some(items) = &s.items {
            let here = if s.list_type == "map" { loose } else { Some(path) };
            self.node(
                items,
                items.embedded_resource,
                &format!("{path}.items"),
                bound(s.checks.max_items),
                here,
            );
        }
        if let Some(a) = s.additional_schema() {
            self.node(
                a,
                a.embedded_resource,
                &format!("{path}.additionalProperties"),
                bound(s.checks.max_properties),
                loose,
            );
        }
    }

    fn text(&mut self, rule: &Rule, at: &str) {
        let message = Value::from(rule.message.as_str());
        if rule.rule.trim().is_empty() {
            self.out
                .push(Cause::required(format!("{at}.rule"), "rule is not specified"));
        } else if !rule.message.is_empty() && rule.message.trim().is_empty() {
            self.out.push(Cause::invalid(
                format!("{at}.message"),
                &message,
                "must be non-empty if specified",
            ));
        } else if rule.message.contains(['\n', '\r']) {
            self.out.push(Cause::invalid(
                format!("{at}.message"),
                &message,
                "must not contain line breaks",
            ));
        } else if rule.rule.contains(['\n', '\r']) && rule.message.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            self.out.push(Cause::required(format!("{at}.message"), why));
        }
        let reasons = [
            "FieldValueDuplicate",
            "FieldValueForbidden",
            "FieldValueInvalid",
            "FieldValueRequired",
        ];
        if !rule.reason.is_empty() && !reasons.contains(&rule.reason.as_str()) {
            self.out.push(Cause::not_supported(
                format!("{at}.reason"),
                &Value::String(rule.reason.clone()),
                &reasons,
            ));
        }
    }

    fn rule(&mut self, rule: &Rule, d: &Arc<Declared>, at: &str, times: Option<f64>, loose: Option<&str>) {
        let shown = Value::from(rule.rule.as_str());
        let Some(compiled) = Compiled::new(rule, d) else { return };
        match &compiled.program {
            Err(e) => self.out.push(Cause::invalid(format!("{at}.rule"), &whole(rule), e)),
            Ok(p) => {
                let once = cost::estimate(p, d);
                let all = once * times.unwrap_or_else(|| cost::max_cardinality(d.min_size));
                if all > cost::RULE_LIMIT {
                    let why = over_budget("estimated rule cost", all / cost::RULE_LIMIT);
                    self.out.push(Cause::forbidden(format!("{at}.rule"), &why));
                }
                self.total += all;
            }
        }
        if compiled.uses_old
            && let Some(list) = loose
        {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
            self.out.push(Cause::invalid(format!("{at}.rule"), &shown, &why));
        }
        if !rule.message_expression.is_empty() && compiled.program.is_ok() {
            let bad = match compile(
                &rule.message_expression,
                &env(&d.ty, rule.optional_old_self == Some(true)),
            ) {
                Err(e) => Some(format!("messageExpression compilation failed: {e}")),
                Ok(p) if !matches!(p.ty, Ty::String) => Some("messageExpression must evaluate to a string".into()),
                Ok(_) => None,
            };
            if let Some(why) = bad {
                self.out
                    .push(Cause::invalid(format!("{at}.messageExpression"), &whole(rule), &why));
            }
        }
        if rule.optional_old_self.is_some() && !compiled.uses_old && compiled.program.is_ok() {
            let why = "may not be set if oldSelf is not used in rule";
            let value = Value::Bool(rule.optional_old_self == Some(true));
            self.out
                .push(Cause::invalid(format!("{at}.optionalOldSelf"), &value, why));
        }
    }
}

/// The rule as upstream shows it in errors: the whole struct.
fn whole(rule: &Rule) -> Value {
    keelson_api::value!({
        "Rule": rule.rule, "Message": rule.message, "MessageExpression": rule.message_expression,
        "Reason": if rule.reason.is_empty() { serde_json::Value::Null } else { rule.reason.as_str().into() },
        "FieldPath": rule.field_path, "OptionalOldSelf": rule.optional_old_self
    })
}
