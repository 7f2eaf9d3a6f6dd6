//! The evaluator: a walk over the tree that counts what it costs.
//!
//! Costs follow upstream's: one unit a name, a field, a call; more for what grows with its input. Whoever runs an
//! expression sets the limit; beyond it evaluation ends with an error that no logical operator hides.

use super::check::{ident, is_bind, is_lambda, qualified};
use super::decls;
use super::library;
use super::types::TYPE_NAMES;
use super::value::{CelError, Key, Res, Val};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where an expression's free names get their values.
pub trait Activation<'a> {
    fn get(&self, name: &str) -> Option<Val<'a>>;
}

impl<'a> Activation<'a> for BTreeMap<&'a str, Val<'a>> {
    fn get(&self, name: &str) -> Option<Val<'a>> {
        BTreeMap::get(self, name).cloned()
    }
}

pub(super) struct Evaluator<'a, 'e> {
    pub activation: &'e dyn Activation<'a>,
    pub scopes: Vec<(&'a str, Res<Val<'a>>)>,
    pub cost: u64,
    pub limit: u64,
}

const OUT_OF_BUDGET: &str = "operation cancelled: actual cost limit exceeded";

impl<'a> Evaluator<'a, '_> {
    pub fn spend(&mut self, cost: u64) -> Res<()> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit {
            return Err(CelError {
                message: OUT_OF_BUDGET.into(),
                fatal: true,
            });
        }
        Ok(())
    }

    fn lookup(&self, name: &str) -> Option<Res<Val<'a>>> {
        let name = name.strip_prefix('.').unwrap_or(name);
        let local = self
            .scopes
            .iter()
            .rev()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v.clone());
        local.or_else(|| self.activation.get(name).map(Ok))
    }

    pub fn expr(&mut self, e: &'a IdedExpr) -> Res<Val<'a>> {
        match &e.expr {
            Expr::Unspecified => Err(CelError::new("unspecified expression")),
            Expr::Literal(l) => Ok(literal(l)),
            Expr::Ident(name) => {
                self.spend(1)?;
                if let Some(v) = self.lookup(name) {
                    return v;
                }
                type_value(name).ok_or_else(|| CelError::new(format!("no such attribute(s): {name}")))
            }
            Expr::Select(s) => {
                if let Some(name) = qualified(e) {
                    if let Some(v) = type_value(&name).filter(|_| name.contains('.')) {
                        return Ok(v);
                    }
                    if let Some(v) = self.lookup(&name) {
                        return v;
                    }
                }
                let operand = self.expr(&s.operand)?;
                self.spend(if s.test { 0 } else { 1 })?;
                select(operand, &s.field, s.test)
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(c) => self.comprehension(c),
            Expr::List(l) => {
                self.spend(10)?;
                let mut out = Vec::with_capacity(l.elements.len());
                for (i, el) in l.elements.iter().enumerate() {
                    let v = self.expr(el)?;
                    if !l.optional_indices.contains(&i) {
                        out.push(v);
                    } else if let Val::Optional(Some(v)) = v {
                        out.push(*v);
                    }
                }
                Ok(Val::list(out))
            }
            Expr::Map(m) => {
                self.spend(30)?;
                let mut out = BTreeMap::new();
                for entry in &m.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        continue;
                    };
                    let key = Key::of(&self.expr(&entry.key)?)?;
                    match (self.expr(&entry.value)?, entry.optional) {
                        (Val::Optional(Some(v)), true) => drop(out.insert(key, *v)),
                        (Val::Optional(None), true) => {}
                        (v, _) => {
                            if out.insert(key, v).is_some() {
                                return Err(CelError::new("Failed with repeated key"));
                            }
                        }
                    }
                }
                Ok(Val::Map(Arc::new(out)))
            }
            Expr::Struct(s) => {
                self.spend(40)?;
                let mut out = BTreeMap::new();
                for entry in &s.entries {
                    let EntryExpr::StructField(f) = &entry.expr else {
                        continue;
                    };
                    let name = super::types::unescape(&f.field);
                    match (self.expr(&f.value)?, f.optional) {
                        (Val::Optional(Some(v)), true) => drop(out.insert(name, *v)),
                        (Val::Optional(None), true) => {}
                        (v, _) => drop(out.insert(name, v)),
                    }
                }
                Ok(Val::Struct(Arc::from(s.type_name.as_str()), Arc::new(out)))
            }
        }
    }

    fn call(&mut self, call: &'a CallExpr) -> Res<Val<'a>> {
        let args = &call.args;
        match (call.func_name.as_str(), args.as_slice()) {
            (op::LOGICAL_AND, [a, b]) => return self.logical(a, b, false),
            (op::LOGICAL_OR, [a, b]) => return self.logical(a, b, true),
            (op::CONDITIONAL, [c, a, b]) => {
                return match self.expr(c)? {
                    Val::Bool(true) => self.expr(a),
                    Val::Bool(false) => self.expr(b),
                    _ => Err(CelError::no_overload()),
                };
            }
            (op::NOT_STRICTLY_FALSE | "__not_strictly_false__", [a]) => {
                return match self.expr(a) {
                    Err(e) if e.fatal => Err(e),
                    Ok(Val::Bool(b)) => Ok(Val::Bool(b)),
                    _ => Ok(Val::Bool(true)),
                };
            }
            (op::OPT_SELECT, [operand, field]) => {
                let operand = self.expr(operand)?;
                self.spend(1)?;
                let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                    return Err(CelError::no_overload());
                };
                return optional_member(operand, &Val::Str(Cow::Borrowed(field.inner())));
            }
            _ => {}
        }
        if is_lambda(call) {
            return self.lambda(call);
        }
        if let Some(target) = &call.target {
            if let Some(prefix) = qualified(target) {
                let full = format!("{prefix}.{}", call.func_name);
                let root = prefix.split('.').next().unwrap_or_default();
                if decls::overloads(&full).is_some() && self.lookup(root).is_none() {
                    let args = self.all(args)?;
                    return self.apply(&full, None, args);
                }
            }
            let target = self.expr(target)?;
            let args = self.all(args)?;
            return self.apply(&call.func_name, Some(target), args);
        }
        let args = self.all(args)?;
        self.apply(&call.func_name, None, args)
    }

    fn all(&mut self, args: &'a [IdedExpr]) -> Res<Vec<Val<'a>>> {
        args.iter().map(|a| self.expr(a)).collect()
    }

    fn apply(&mut self, name: &str, target: Option<Val<'a>>, args: Vec<Val<'a>>) -> Res<Val<'a>> {
        self.spend(library::cost(name, target.as_ref(), &args))?;
        if let Some(Val::Dynamic(d)) = &target
            && let Some(result) = d.call(name, &args)
        {
            return result;
        }
        library::call(name, target, args)
    }

    /// `&&` and `||`: an error on one side gives way to a decision by the other.
    fn logical(&mut self, a: &'a IdedExpr, b: &'a IdedExpr, decides: bool) -> Res<Val<'a>> {
        let left = self.expr(a).and_then(|v| v.as_bool());
        match left {
            Ok(v) if v == decides => return Ok(Val::Bool(decides)),
            Err(e) if e.fatal => return Err(e),
            _ => {}
        }
        let right = self.expr(b).and_then(|v| v.as_bool());
        match (left, right) {
            (_, Ok(v)) if v == decides => Ok(Val::Bool(decides)),
            (_, Err(e)) if e.fatal => Err(e),
            (Err(e), _) | (Ok(_), Err(e)) => Err(e),
            (Ok(_), Ok(v)) => Ok(Val::Bool(v)),
        }
    }

    fn comprehension(&mut self, c: &'a ComprehensionExpr) -> Res<Val<'a>> {
        let range = self.expr(&c.iter_range)?;
        let items = range.range().ok_or_else(CelError::no_overload)?;
        let init = self.expr(&c.accu_init);
        let depth = self.scopes.len();
        self.scopes.push((&c.accu_var, init));
        let keyed = matches!(range, Val::Map(_) | Val::Domains(_) | Val::JsonMap(..));
        for (i, item) in items.into_iter().enumerate() {
            match &c.iter_var2 {
                Some(second) => {
                    let value = if keyed {
                        range.member(&item)?.unwrap_or(Val::Null)
                    } else {
                        item.clone()
                    };
                    let first = if keyed { item } else { Val::Int(i as i64) };
                    self.scopes.push((&c.iter_var, Ok(first)));
                    self.scopes.push((second, Ok(value)));
                }
                None => self.scopes.push((&c.iter_var, Ok(item))),
            }
            let go_on = self.expr(&c.loop_cond);
            let step = match go_on {
                Ok(Val::Bool(false)) => None,
                Err(e) if e.fatal => {
                    self.scopes.truncate(depth);
                    return Err(e);
                }
                _ => Some(self.step(depth, &c.loop_step)),
            };
            self.scopes.truncate(depth + 1);
            match step {
                None => break,
                Some(Err(e)) if e.fatal => {
                    self.scopes.truncate(depth);
                    return Err(e);
                }
                Some(v) => self.scopes[depth].1 = v,
            }
        }
        let result = self.expr(&c.result);
        self.scopes.truncate(depth);
        result
    }

    /// One step; appending to the accumulator doesn't copy it.
    fn step(&mut self, accu: usize, e: &'a IdedExpr) -> Res<Val<'a>> {
        let append = |e: &'a IdedExpr, name: &str| -> Option<&'a IdedExpr> {
            let Expr::Call(call) = &e.expr else { return None };
            let (op::ADD, [left, right]) = (call.func_name.as_str(), call.args.as_slice()) else {
                return None;
            };
            let Expr::List(l) = &right.expr else { return None };
            (ident(left) == name && l.elements.len() == 1 && l.optional_indices.is_empty()).then(|| &l.elements[0])
        };
        let name = self.scopes[accu].0;
        let appended = match &e.expr {
            // `filter` and conditional `map`: condition ? accu + [x] : accu
            Expr::Call(call) if call.func_name == op::CONDITIONAL && call.args.len() == 3 => {
                match (append(&call.args[1], name), ident(&call.args[2]) == name) {
                    (Some(item), true) => Some((Some(&call.args[0]), item)),
                    _ => None,
                }
            }
            _ => append(e, name).map(|item| (None, item)),
        };
        let Some((condition, item)) = appended else {
            return self.expr(e);
        };
        if let Some(c) = condition
            && !self.expr(c)?.as_bool()?
        {
            return self.scopes[accu].1.clone();
        }
        let value = self.expr(item)?;
        self.spend(2)?;
        match std::mem::replace(&mut self.scopes[accu].1, Ok(Val::Null)) {
            Ok(Val::List(mut list)) => {
                Arc::make_mut(&mut list).push(value);
                Ok(Val::List(list))
            }
            Ok(_) => Err(CelError::no_overload()),
            Err(e) => Err(e),
        }
    }

    fn with<T>(&mut self, bindings: Vec<(&'a str, Val<'a>)>, f: impl FnOnce(&mut Self) -> T) -> T {
        let depth = self.scopes.len();
        self.scopes.extend(bindings.into_iter().map(|(n, v)| (n, Ok(v))));
        let out = f(self);
        self.scopes.truncate(depth);
        out
    }

    /// The macros that the parser leaves as calls.
    fn lambda(&mut self, call: &'a CallExpr) -> Res<Val<'a>> {
        let Some(target) = &call.target else {
            return Err(CelError::no_overload());
        };
        let name = |i: usize| match &call.args[i].expr {
            Expr::Ident(n) => n.as_str(),
            _ => "",
        };
        if is_bind(call) {
            let value = self.expr(&call.args[1])?;
            return self.with(vec![(name(0), value)], |s| s.expr(&call.args[2]));
        }
        let target = self.expr(target)?;
        match call.func_name.as_str() {
            "optMap" | "optFlatMap" => {
                let Val::Optional(of) = target else {
                    return Err(CelError::no_overload());
                };
                let Some(v) = of else { return Ok(Val::Optional(None)) };
                let out = self.with(vec![(name(0), *v)], |s| s.expr(&call.args[1]))?;
                Ok(if call.func_name == "optMap" {
                    Val::some(out)
                } else {
                    out
                })
            }
            "sortBy" => {
                let items = target.items().ok_or_else(CelError::no_overload)?;
                let mut keyed = Vec::with_capacity(items.len());
                for item in items {
                    let key = self.with(vec![(name(0), item.clone())], |s| s.expr(&call.args[1]))?;
                    keyed.push((key, item));
                }
                library::sort_pairs(keyed)
            }
            _ => self.two_variables(call, target, name(0), name(1)),
        }
    }

    fn two_variables(&mut self, call: &'a CallExpr, target: Val<'a>, first: &'a str, second: &'a str) -> Res<Val<'a>> {
        let items = target.range().ok_or_else(CelError::no_overload)?;
        let keyed = matches!(target, Val::Map(_) | Val::Domains(_) | Val::JsonMap(..));
        let rest = &call.args[2..];
        let (filter, body) = match rest {
            [filter, body] => (Some(filter), body),
            [body] => (None, body),
            _ => return Err(CelError::no_overload()),
        };
        let mut list = Vec::new();
        let mut map = BTreeMap::new();
        let mut matched = 0;
        let mut failed = None;
        for (i, item) in items.into_iter().enumerate() {
            self.spend(1)?;
            let value = if keyed {
                target.member(&item)?.unwrap_or(Val::Null)
            } else {
                item.clone()
            };
            let key = if keyed { item } else { Val::Int(i as i64) };
            let out = self.with(vec![(first, key.clone()), (second, value)], |s| {
                if let Some(f) = filter
                    && !s.expr(f)?.as_bool()?
                {
                    return Ok(None);
                }
                s.expr(body).map(Some)
            });
            match (call.func_name.as_str(), out) {
                (_, Err(e)) if e.fatal => return Err(e),
                ("all" | "exists", Err(e)) => failed = Some(e),
                (_, Err(e)) => return Err(e),
                (_, Ok(None)) => {}
                ("all", Ok(Some(v))) if !v.as_bool()? => return Ok(Val::Bool(false)),
                ("exists", Ok(Some(v))) if v.as_bool()? => return Ok(Val::Bool(true)),
                ("existsOne" | "exists_one", Ok(Some(v))) => matched += usize::from(v.as_bool()?),
                ("transformList", Ok(Some(v))) => list.push(v),
                ("transformMap", Ok(Some(v))) => drop(map.insert(Key::of(&key)?, v)),
                ("transformMapEntry", Ok(Some(v))) => {
                    for k in v.range().unwrap_or_default() {
                        let value = v.member(&k)?.unwrap_or(Val::Null);
                        let k = Key::of(&k)?;
                        if map.insert(k, value).is_some() {
                            return Err(CelError::new("insert failed: key already exists"));
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(e) = failed {
            return Err(e);
        }
        Ok(match call.func_name.as_str() {
            "all" => Val::Bool(true),
            "exists" => Val::Bool(false),
            "existsOne" | "exists_one" => Val::Bool(matched == 1),
            "transformList" => Val::list(list),
            _ => Val::Map(Arc::new(map)),
        })
    }
}

fn literal<'a>(l: &'a LiteralValue) -> Val<'a> {
    match l {
        LiteralValue::Boolean(b) => Val::Bool(*b.inner()),
        LiteralValue::Bytes(b) => Val::Bytes(Arc::from(b.inner())),
        LiteralValue::Double(d) => Val::Double(*d.inner()),
        LiteralValue::Int(i) => Val::Int(*i.inner()),
        LiteralValue::Null => Val::Null,
        LiteralValue::String(s) => Val::Str(Cow::Borrowed(s.inner())),
        LiteralValue::UInt(u) => Val::Uint(*u.inner()),
    }
}

fn type_value<'a>(name: &str) -> Option<Val<'a>> {
    TYPE_NAMES
        .into_iter()
        .find(|k| *k == name)
        .map(|k| Val::Type(Cow::Borrowed(k)))
}

/// A field of a value, or whether it has it.
fn select<'a>(operand: Val<'a>, field: &str, test: bool) -> Res<Val<'a>> {
    if let Val::Optional(of) = operand {
        let Some(v) = of else {
            return Ok(if test { Val::Bool(false) } else { Val::Optional(None) });
        };
        return match v.member(&Val::str(field))? {
            _ if test && v.member(&Val::str(field))?.is_some() => Ok(Val::Bool(true)),
            _ if test => Ok(Val::Bool(false)),
            Some(v) => Ok(Val::some(v)),
            None => Ok(Val::Optional(None)),
        };
    }
    let found = operand.member(&Val::Str(Cow::Owned(field.to_string())))?;
    match (found, test) {
        (found, true) => Ok(Val::Bool(found.is_some())),
        (Some(v), _) => Ok(v),
        (None, _) => Err(CelError::new(format!("no such key: {field}"))),
    }
}

/// `x.?f` and `x[?k]`: the member as an optional.
pub(super) fn optional_member<'a>(operand: Val<'a>, key: &Val<'a>) -> Res<Val<'a>> {
    match operand {
        Val::Optional(None) => Ok(Val::Optional(None)),
        Val::Optional(Some(v)) => optional_member(*v, key),
        v if v.items().is_some() => match key {
            Val::Int(i) => Ok(v
                .element(*i)
                .and_then(Result::ok)
                .map_or(Val::Optional(None), Val::some)),
            _ => Err(CelError::no_overload()),
        },
        v => Ok(v.member(key)?.map_or(Val::Optional(None), Val::some)),
    }
}
