//! An object measured by its schema's rules.

use super::super::{Activation, CelError, MAX_MESSAGE_BYTES, PER_CALL_LIMIT, RUNTIME_BUDGET, Val};
use super::{Compiled, Rules};
use crate::apply::fieldpath::equal_values;
use crate::structural::{Rule, Structural};
use keelson_api::{Cause, Value};

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

/// Everything an object violates; `old` is the object before an update.
pub(super) fn violations(r: &Rules, object: &Value, old: Option<&Value>, s: &Structural) -> Vec<Cause> {
    let mut run = Run {
        budget: RUNTIME_BUDGET as i64,
        out: Vec::new(),
    };
    let ratchet = Ratchet {
        here: Some(Known {
            old,
            same: old.is_some_and(|o| equal_values(o, object)),
        }),
        above: None,
    };
    run.node(r, object, old, s, "", ratchet);
    run.out
}

/// What a value was before, where it can be told again.
#[derive(Clone, Copy)]
struct Known<'a> {
    old: Option<&'a Value>,
    same: bool,
}

/// Whether what was wrong before may stay: a violation of a value that didn't change is let pass.
#[derive(Clone, Copy)]
struct Ratchet<'a> {
    /// None: the value can't be told again, so that the nearest one above that can be decides.
    here: Option<Known<'a>>,
    above: Option<Known<'a>>,
}

impl<'a> Ratchet<'a> {
    fn lets_pass(self) -> bool {
        self.here.or(self.above).is_some_and(|k| k.same)
    }
    fn below(self, new: &Value, old: impl FnOnce(&'a Value) -> Option<&'a Value>) -> Ratchet<'a> {
        let Some(here) = self.here else { return self };
        let found = here.old.and_then(old);
        let known = |o| Known {
            old: Some(o),
            same: here.same || equal_values(o, new),
        };
        Ratchet {
            here: found.map(known),
            above: Some(here),
        }
    }
    fn key(self, key: &str, new: &Value) -> Ratchet<'a> {
        if self.here.is_some() && self.above.is_none() && matches!(key, "apiVersion" | "kind") {
            // A change of these makes everything new.
            return Ratchet {
                here: None,
                above: None,
            };
        }
        self.below(new, |old| old.get(key))
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
        ratchet: Ratchet<'a>,
    ) {
        if v.is_null() || self.budget < 0 {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        self.here(r, v, old, s, path, ratchet.lets_pass());
        for r in &r.all_of {
            let alone = Ratchet { here: None, ..ratchet };
            self.node(r, v, old, s, path, alone);
        }
        let child = |key: &str| {
            if path.is_empty() {
                key.to_string()
            } else {
                format!("{path}.{key}")
            }
        };
        match v {
            Value::Object(m) => {
                // Members of an atomic map are new with it.
                let old = old.filter(|_| s.map_type != "atomic");
                for (key, v) in m {
                    let before = old.and_then(|o| o.get(key));
                    if let (Some(r), Some(p)) = (r.properties.get(key), s.properties.get(key)) {
                        self.node(r, v, before, p, &child(key), ratchet.key(key, v));
                    } else if let (Some(r), Some(p), false) =
                        (&r.additional, s.additional_schema(), s.properties.contains_key(key))
                    {
                        self.node(r, v, before, p, &format!("{path}[{key}]"), ratchet.key(key, v));
                    }
                }
            }
            Value::Array(a) => {
                let (Some(r), Some(items)) = (&r.items, s.items.as_deref()) else {
                    return;
                };
                for (i, v) in a.iter().enumerate() {
                    // Only elements with keys can be told again.
                    let find = |o: &'a Value| {
                        let list = o.as_array().filter(|_| s.list_type == "map")?;
                        list.iter()
                            .find(|o| s.list_map_keys.iter().all(|k| o.get(k) == v.get(k)))
                    };
                    let before = old.and_then(find);
                    self.node(r, v, before, items, &format!("{path}[{i}]"), ratchet.below(v, find));
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
