//! The type checker: every expression gets a type, or an error with its place.

use super::Env;
use super::decls::{self, Overload};
use super::library;
use super::parse::{Parsed, located, position};
use super::types::{ObjectTy, TYPE_NAMES, Ty};

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The placeholder of an empty list's elements: gives way to any type.
const OPEN: char = '_';

/// Checks an expression; the messages of all errors, or its type.
pub fn check(parsed: &Parsed, env: &Env, source: &str) -> Result<Ty, String> {
    let mut c = Checker {
        parsed,
        source,
        variables: &env.variables,
        binds: env.binds,
        scopes: Vec::new(),
        errors: Vec::new(),
        literals: Vec::new(),
        mixed: false,
    };
    let ty = c.expr(&parsed.expr);
    if c.errors.is_empty() {
        c.check_literals();
    }
    if c.errors.is_empty() {
        return Ok(closed(ty));
    }
    c.errors.sort_by_key(|(at, _)| *at);
    let each: Vec<String> = c
        .errors
        .iter()
        .map(|(at, message)| {
            let (line, column) = position(source, *at);
            located(source, line, column, message)
        })
        .collect();
    Err(each.join("\n"))
}

/// The type with placeholders read as dynamic.
fn closed(ty: Ty) -> Ty {
    match ty {
        Ty::Param(_) => Ty::Dyn,
        Ty::List(t) => Ty::list(closed(*t)),
        Ty::Map(k, v) => Ty::map(closed(*k), closed(*v)),
        Ty::Optional(t) => Ty::optional(closed(*t)),
        other => other,
    }
}

struct Checker<'a> {
    parsed: &'a Parsed,
    source: &'a str,
    variables: &'a BTreeMap<String, Ty>,
    /// Whether `cel.bind` is there.
    binds: bool,
    scopes: Vec<(String, Ty)>,
    errors: Vec<(usize, String)>,
    /// Constant arguments whose text has to be well-formed, by their function.
    literals: Vec<(&'a IdedExpr, &'static str)>,
    /// Within `format`'s argument, where a list may hold anything.
    mixed: bool,
}

type Bindings = HashMap<char, Ty>;

/// Whether a value of type `from` may stand where `to` is wanted, binding `to`'s parameters.
fn accepts(to: &Ty, from: &Ty, bound: &mut Bindings) -> bool {
    match (to, from) {
        (Ty::Param(OPEN), _) | (_, Ty::Param(OPEN)) if !matches!(to, Ty::Param(c) if *c != OPEN) => true,
        (Ty::Param(c), from) => match bound.get(c).cloned() {
            None | Some(Ty::Param(OPEN)) => {
                bound.insert(*c, from.clone());
                true
            }
            Some(had) => {
                let joined = join(&had, from);
                let ok = joined.is_some();
                if let Some(t) = joined {
                    bound.insert(*c, t);
                }
                ok
            }
        },
        (Ty::Dyn | Ty::Error, _) | (_, Ty::Dyn | Ty::Error) => true,
        (
            Ty::Object(_) | Ty::Timestamp | Ty::Duration | Ty::Optional(_) | Ty::Opaque(_) | Ty::Null | Ty::Named(_),
            Ty::Null,
        ) => true,
        (Ty::List(a), Ty::List(b)) => accepts(a, b, bound),
        (Ty::Map(k, v), Ty::Map(l, w)) => accepts(k, l, bound) && accepts(v, w, bound),
        (Ty::Optional(a), Ty::Optional(b)) => accepts(a, b, bound),
        (Ty::Object(a), Ty::Object(b)) => a == b,
        (Ty::Opaque(a), Ty::Opaque(b)) => a == b,
        (Ty::Named(a), Ty::Named(b)) => a == b,
        (Ty::Bool, Ty::Bool)
        | (Ty::Int, Ty::Int)
        | (Ty::Uint, Ty::Uint)
        | (Ty::Double, Ty::Double)
        | (Ty::String, Ty::String)
        | (Ty::Bytes, Ty::Bytes)
        | (Ty::Timestamp, Ty::Timestamp)
        | (Ty::Duration, Ty::Duration)
        | (Ty::Type, Ty::Type) => true,
        _ => false,
    }
}

/// The type that covers both, if one does.
fn join(a: &Ty, b: &Ty) -> Option<Ty> {
    match (a, b) {
        (Ty::Param(OPEN), t) | (t, Ty::Param(OPEN)) => Some(t.clone()),
        (Ty::Dyn, _) | (_, Ty::Dyn) => Some(Ty::Dyn),
        (Ty::List(x), Ty::List(y)) => join(x, y).map(Ty::list),
        (Ty::Map(k, v), Ty::Map(l, w)) => Some(Ty::map(join(k, l)?, join(v, w)?)),
        (Ty::Optional(x), Ty::Optional(y)) => join(x, y).map(Ty::optional),
        (Ty::Null, t) if accepts(t, &Ty::Null, &mut Bindings::new()) => Some(t.clone()),
        (t, f) => accepts(t, f, &mut Bindings::new()).then(|| t.clone()),
    }
}

fn substitute(ty: &Ty, bound: &Bindings) -> Ty {
    match ty {
        // What nothing has bound stays open for who uses the result.
        Ty::Param(c) => bound.get(c).cloned().unwrap_or(Ty::Param(OPEN)),
        Ty::List(t) => Ty::list(substitute(t, bound)),
        Ty::Map(k, v) => Ty::map(substitute(k, bound), substitute(v, bound)),
        Ty::Optional(t) => Ty::optional(substitute(t, bound)),
        other => other.clone(),
    }
}

fn same(a: &Ty, b: &Ty) -> bool {
    a.to_string() == b.to_string()
}

/// The dotted name that an expression spells.
pub(super) fn qualified(e: &IdedExpr) -> Option<String> {
    match &e.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(s) if !s.test => Some(format!("{}.{}", qualified(&s.operand)?, s.field)),
        _ => None,
    }
}

/// Whether a call is one of the macros that the parser leaves alone.
pub(super) fn is_lambda(call: &CallExpr) -> bool {
    let ident = |i: usize| matches!(call.args.get(i).map(|a| &a.expr), Some(Expr::Ident(_)));
    call.target.is_some()
        && match (call.func_name.as_str(), call.args.len()) {
            ("all" | "exists" | "existsOne" | "exists_one", 3) => ident(0) && ident(1),
            ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => ident(0) && ident(1),
            ("optMap" | "optFlatMap" | "sortBy", 2) => ident(0),
            _ => is_bind(call),
        }
}

/// `cel.bind(name, value, expression)`: the expression may use the value by the name.
pub(super) fn is_bind(call: &CallExpr) -> bool {
    let on_cel = call.target.as_ref().is_some_and(|t| ident(t) == "cel");
    on_cel && call.func_name == "bind" && call.args.len() == 3 && !ident(&call.args[0]).is_empty()
}

pub(super) fn ident(e: &IdedExpr) -> String {
    match &e.expr {
        Expr::Ident(name) => name.clone(),
        _ => String::new(),
    }
}

impl<'a> Checker<'a> {
    fn error(&mut self, at: &IdedExpr, message: impl Into<String>) -> Ty {
        let offset = self
            .parsed
            .info
            .offset_for(at.id)
            .map_or(0, |(start, _)| start as usize);
        let offset = offset.min(self.source.chars().count());
        self.errors.push((offset, message.into()));
        Ty::Error
    }

    /// Reports constants that no evaluation could read.
    fn check_literals(&mut self) {
        for (arg, function) in std::mem::take(&mut self.literals) {
            let Expr::Literal(l) = &arg.expr else { continue };
            if !library::is_well_formed(function, l) {
                self.error(arg, format!("invalid {function} argument"));
            }
        }
    }

    fn lookup(&self, name: &str) -> Option<Ty> {
        let local = self
            .scopes
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, t)| t.clone());
        local.or_else(|| self.variables.get(name).cloned())
    }

    fn expr(&mut self, e: &'a IdedExpr) -> Ty {
        match &e.expr {
            Expr::Unspecified => Ty::Error,
            Expr::Literal(l) => match l {
                LiteralValue::Boolean(_) => Ty::Bool,
                LiteralValue::Bytes(_) => Ty::Bytes,
                LiteralValue::Double(_) => Ty::Double,
                LiteralValue::Int(_) => Ty::Int,
                LiteralValue::Null => Ty::Null,
                LiteralValue::String(_) => Ty::String,
                LiteralValue::UInt(_) => Ty::Uint,
            },
            Expr::Ident(name) => self.name(e, name),
            Expr::Select(s) => {
                if let Some(name) = qualified(e) {
                    if TYPE_NAMES.contains(&name.as_str()) {
                        return Ty::Type;
                    }
                    // A variable may have a dotted name of its own: `authorizer.requestResource`.
                    if let Some(ty) = self.lookup(&name) {
                        return ty;
                    }
                }
                let operand = self.expr(&s.operand);
                let ty = self.field(e, &operand, &s.field);
                if s.test { Ty::Bool } else { ty }
            }
            Expr::Call(call) => self.call(e, call),
            Expr::Comprehension(c) => self.comprehension(c),
            Expr::List(l) => {
                let mut of = Ty::Param(OPEN);
                for (i, el) in l.elements.iter().enumerate() {
                    let mut t = self.expr(el);
                    if l.optional_indices.contains(&i) {
                        t = match t {
                            Ty::Optional(t) => *t,
                            t if t.is_dyn() => t,
                            t => self.error(el, format!("expected type 'optional_type({t})' but found '{t}'")),
                        };
                    }
                    of = match join(&of, &t) {
                        Some(j) => j,
                        None if self.mixed => Ty::Dyn,
                        None => self.error(el, format!("expected type '{of}' but found '{t}'")),
                    };
                }
                Ty::list(of)
            }
            Expr::Map(m) => {
                let (mut key, mut value) = (Ty::Param(OPEN), Ty::Param(OPEN));
                for entry in &m.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        continue;
                    };
                    for (part, of) in [(&entry.key, &mut key), (&entry.value, &mut value)] {
                        let mut t = self.expr(part);
                        if entry.optional
                            && std::ptr::eq(part, &entry.value)
                            && let Ty::Optional(inner) = t
                        {
                            t = *inner;
                        }
                        *of = match join(of, &t) {
                            Some(j) => j,
                            None => {
                                self.error(part, format!("expected type '{of}' but found '{t}'"));
                                continue;
                            }
                        };
                    }
                }
                Ty::map(key, value)
            }
            Expr::Struct(s) => {
                let known = s.type_name == "Object" || s.type_name.starts_with("Object.") || s.type_name == "JSONPatch";
                if !known {
                    return self.error(
                        e,
                        format!("undeclared reference to '{}' (in container '')", s.type_name),
                    );
                }
                for entry in &s.entries {
                    let EntryExpr::StructField(f) = &entry.expr else {
                        continue;
                    };
                    if s.type_name == "JSONPatch" && !matches!(f.field.as_str(), "op" | "path" | "from" | "value") {
                        self.error(&f.value, format!("undefined field '{}'", f.field));
                    }
                    self.expr(&f.value);
                }
                Ty::Named(Arc::from(s.type_name.as_str()))
            }
        }
    }

    fn name(&mut self, e: &IdedExpr, name: &str) -> Ty {
        if let Some(t) = self.lookup(name.strip_prefix('.').unwrap_or(name)) {
            return t;
        }
        if TYPE_NAMES.contains(&name) {
            return Ty::Type;
        }
        self.error(e, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn field(&mut self, e: &IdedExpr, operand: &Ty, field: &str) -> Ty {
        match operand {
            Ty::Dyn | Ty::Error | Ty::Param(_) => Ty::Dyn,
            Ty::Map(_, v) => (**v).clone(),
            Ty::Object(o) => match o.field(field) {
                Some(t) => t,
                None => self.error(e, format!("undefined field '{field}'")),
            },
            Ty::Named(_) => Ty::Dyn,
            Ty::Optional(inner) => {
                let t = self.field(e, inner, field);
                match t {
                    Ty::Optional(_) => t,
                    t => Ty::optional(t),
                }
            }
            other => self.error(e, format!("type '{other}' does not support field selection")),
        }
    }

    fn call(&mut self, e: &'a IdedExpr, call: &'a CallExpr) -> Ty {
        let name = call.func_name.as_str();
        let constant = match (name, call.target.is_some()) {
            ("duration", false) => Some("duration"),
            ("timestamp", false) => Some("timestamp"),
            ("matches", _) => Some("matches"),
            _ => None,
        };
        if let (Some(function), Some(arg)) = (constant, call.args.last())
            && matches!(arg.expr, Expr::Literal(_))
        {
            self.literals.push((arg, function));
        }
        if name == cel::common::ast::operators::OPT_SELECT {
            let operand = call.args.first().map_or(Ty::Error, |a| self.expr(a));
            let field = match call.args.get(1).map(|a| &a.expr) {
                Some(Expr::Literal(LiteralValue::String(s))) => s.inner().to_string(),
                _ => return Ty::Dyn,
            };
            return match self.field(e, &operand, &field) {
                t @ Ty::Optional(_) => t,
                t => Ty::optional(t),
            };
        }
        if is_lambda(call) {
            return self.lambda(e, call);
        }
        if let Some(target) = &call.target {
            // `sets.contains(…)` is a function with a dotted name, unless `sets` is a variable.
            if let Some(prefix) = qualified(target)
                && self.lookup(prefix.split('.').next().unwrap_or_default()).is_none()
            {
                let full = format!("{prefix}.{name}");
                if let Some(list) = decls::overloads(&full) {
                    let args: Vec<Ty> = call.args.iter().map(|a| self.expr(a)).collect();
                    return self.resolve(e, &full, list, &args, false);
                }
            }
            let mut args = vec![self.expr(target)];
            let outer = std::mem::replace(&mut self.mixed, name == "format");
            args.extend(call.args.iter().map(|a| self.expr(a)).collect::<Vec<_>>());
            self.mixed = outer;
            return match decls::overloads(name) {
                Some(list) => self.resolve(e, name, list, &args, true),
                None => self.error(e, format!("undeclared reference to '{name}' (in container '')")),
            };
        }
        let args: Vec<Ty> = call.args.iter().map(|a| self.expr(a)).collect();
        match decls::overloads(name) {
            Some(list) => self.resolve(e, name, list, &args, false),
            None => self.error(e, format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn resolve(&mut self, e: &IdedExpr, name: &str, overloads: &[Overload], args: &[Ty], member: bool) -> Ty {
        if args.iter().any(|a| matches!(a, Ty::Error)) {
            return Ty::Error;
        }
        let mut result: Option<Ty> = None;
        for o in overloads
            .iter()
            .filter(|o| o.member == member && o.params.len() == args.len())
        {
            let mut bound = Bindings::new();
            if !o.params.iter().zip(args).all(|(p, a)| accepts(p, a, &mut bound)) {
                continue;
            }
            let t = substitute(&o.result, &bound);
            result = Some(match result {
                None => t,
                Some(had) if same(&had, &t) => had,
                Some(_) => Ty::Dyn,
            });
        }
        result.unwrap_or_else(|| {
            let shown: Vec<String> = args.iter().map(|t| closed(t.clone()).to_string()).collect();
            let shown = match (member, shown.split_first()) {
                (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            self.error(
                e,
                format!("found no matching overload for '{name}' applied to '{shown}'"),
            )
        })
    }

    /// What the variables of a comprehension over a type are: key or index, and value.
    fn range(&mut self, at: &IdedExpr, ty: &Ty, two: bool) -> (Ty, Ty) {
        match ty {
            Ty::List(t) if two => (Ty::Int, (**t).clone()),
            Ty::List(t) => ((**t).clone(), Ty::Dyn),
            Ty::Map(k, v) => ((**k).clone(), (**v).clone()),
            Ty::Dyn | Ty::Error | Ty::Param(_) => (Ty::Dyn, Ty::Dyn),
            other => {
                self.error(
                    at,
                    format!("expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"),
                );
                (Ty::Error, Ty::Error)
            }
        }
    }

    fn comprehension(&mut self, c: &'a ComprehensionExpr) -> Ty {
        let range = self.expr(&c.iter_range);
        let (first, second) = self.range(&c.iter_range, &range, c.iter_var2.is_some());
        let init = self.expr(&c.accu_init);
        let depth = self.scopes.len();
        self.scopes.push((c.accu_var.clone(), init.clone()));
        self.scopes.push((c.iter_var.clone(), first));
        if let Some(v) = &c.iter_var2 {
            self.scopes.push((v.clone(), second));
        }
        self.expr(&c.loop_cond);
        let step = self.expr(&c.loop_step);
        self.scopes.truncate(depth);
        let accu = join(&init, &step).unwrap_or(Ty::Dyn);
        self.scopes.push((c.accu_var.clone(), accu));
        let result = self.expr(&c.result);
        self.scopes.truncate(depth);
        result
    }

    fn want_bool(&mut self, e: &'a IdedExpr) {
        let t = self.expr(e);
        if !matches!(t, Ty::Bool | Ty::Dyn | Ty::Error) {
            self.error(e, format!("expected type 'bool' but found '{t}'"));
        }
    }

    fn lambda(&mut self, e: &'a IdedExpr, call: &'a CallExpr) -> Ty {
        let Some(target) = &call.target else { return Ty::Error };
        if is_bind(call) && self.binds {
            let value = self.expr(&call.args[1]);
            self.scopes.push((ident(&call.args[0]), value));
            let ty = self.expr(&call.args[2]);
            self.scopes.pop();
            return ty;
        }
        let range = self.expr(target);
        let depth = self.scopes.len();
        let name = call.func_name.as_str();
        let ty = match name {
            "optMap" | "optFlatMap" => {
                let of = match &range {
                    Ty::Optional(t) => (**t).clone(),
                    t if t.is_dyn() => Ty::Dyn,
                    other => self.error(
                        target,
                        format!("found no matching overload for '{name}' applied to '{other}'"),
                    ),
                };
                self.scopes.push((ident(&call.args[0]), of));
                let t = self.expr(&call.args[1]);
                if name == "optMap" { Ty::optional(t) } else { t }
            }
            "sortBy" => {
                let (item, _) = self.range(target, &range, false);
                self.scopes.push((ident(&call.args[0]), item));
                self.expr(&call.args[1]);
                range
            }
            _ => {
                let (key, value) = self.range(target, &range, true);
                self.scopes.push((ident(&call.args[0]), key.clone()));
                self.scopes.push((ident(&call.args[1]), value));
                let rest = &call.args[2..];
                if let [filter, _] = rest {
                    self.want_bool(filter);
                }
                match (name, rest.last()) {
                    ("all" | "exists" | "existsOne" | "exists_one", Some(p)) => {
                        self.want_bool(p);
                        Ty::Bool
                    }
                    ("transformList", Some(t)) => Ty::list(self.expr(t)),
                    ("transformMap", Some(t)) => Ty::map(key, self.expr(t)),
                    ("transformMapEntry", Some(t)) => self.expr(t),
                    _ => self.error(e, format!("undeclared reference to '{name}' (in container '')")),
                }
            }
        };
        self.scopes.truncate(depth);
        ty
    }
}

/// Whether the object type is the one called `name`.
pub fn is_named(ty: &Ty, name: &str) -> bool {
    match ty {
        Ty::Named(n) => **n == *name,
        Ty::Object(ObjectTy::Record(r)) => r.name == name,
        _ => false,
    }
}
