//! `x-kubernetes-validations`: compiling a schema's rules, and checking objects by them.

mod run;

use super::types::Declared;
use super::{Env, Program, Ty, compile, cost};
use crate::structural::{Rule, Structural};
use keelson_api::codec::json;
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
    /// Of `allOf`, each about the same value.
    all_of: Vec<Rules>,
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
        Rules::build(s, s, Declared::of(s, root).as_ref())
    }

    /// `v` has the rules, `node` the types: within `allOf` there are rules only.
    fn build(v: &Structural, node: &Structural, declared: Option<&Arc<Declared>>) -> Option<Rules> {
        if !v.has_rules() {
            return None;
        }
        let below = |v: Option<&Structural>, node: Option<&Structural>| {
            let (v, node) = (v.filter(|v| v.has_rules())?, node?);
            Rules::build(v, node, Declared::of(node, node.embedded_resource).as_ref())
        };
        let rules = Rules {
            here: declared
                .map(|d| v.rules.iter().filter_map(|r| Compiled::new(r, d)).collect())
                .unwrap_or_default(),
            properties: v
                .properties
                .iter()
                .filter_map(|(k, p)| below(Some(p), node.properties.get(k)).map(|r| (k.clone(), r)))
                .collect(),
            items: below(v.items.as_deref(), node.items.as_deref()).map(Box::new),
            additional: below(v.additional_schema(), node.additional_schema()).map(Box::new),
            all_of: v
                .checks
                .all_of
                .iter()
                .filter_map(|a| Rules::build(a, node, declared))
                .collect(),
        };
        let any = !rules.here.is_empty()
            || !rules.properties.is_empty()
            || rules.items.is_some()
            || rules.additional.is_some()
            || !rules.all_of.is_empty();
        any.then_some(rules)
    }

    /// Everything an object violates; `old` is the object before an update.
    pub fn validate(&self, object: &Value, old: Option<&Value>, s: &Structural) -> Vec<Cause> {
        run::violations(self, object, old, s)
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

    fn rule(&mut self, rule: &Rule, d: &Arc<Declared>, at: &str, times: Option<f64>, loose: Option<&str>) {
        let shown = Value::from(rule.rule.as_str());
        let Some(compiled) = Compiled::new(rule, d) else { return };
        match &compiled.program {
            Err(e) => self
                .out
                .push(Cause::invalid_shown(format!("{at}.rule"), &whole(rule), e)),
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
                self.out.push(Cause::invalid_shown(
                    format!("{at}.messageExpression"),
                    &whole(rule),
                    &why,
                ));
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

/// The rule as upstream shows it in errors: the whole struct, in its order.
fn whole(rule: &Rule) -> String {
    let text = |of: &str| String::from_utf8_lossy(&json::encode(&Value::from(of))).into_owned();
    let reason = if rule.reason.is_empty() {
        "null".into()
    } else {
        text(&rule.reason)
    };
    let optional = rule.optional_old_self.map_or("null".into(), |o| o.to_string());
    format!(
        r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{reason},"FieldPath":{},"OptionalOldSelf":{optional}}}"#,
        text(&rule.rule),
        text(&rule.message),
        text(&rule.message_expression),
        text(&rule.field_path)
    )
}
