//! Expressions in the Common Expression Language, with the libraries that Kubernetes adds.
//!
//! * [`compile`]: text to a checked [`Program`]; errors point into the text as upstream's do.
//! * [`Program::eval`]: evaluation within a cost limit.
//! * [`device`]: the selectors of devices.
//! * [`rules`]: `x-kubernetes-validations` of custom resources.
//! * [`types`]: the static types, from the server's schema or a custom resource's.
//!
//! Nothing here knows admission or requests: callers declare variables and give them values.

mod check;
pub mod cost;
mod decls;
pub mod device;
mod eval;
mod library;
pub mod mutation;
mod parse;
pub mod rules;
pub mod types;
mod value;
mod walk;

pub use check::is_named;
pub use decls::opaque;
pub use eval::Activation;
pub use types::{Declared, ObjectTy, Record, Ty};
pub use value::{CelError, Dynamic, Key, Val};

use cel::common::ast::{Expr, IdedExpr};
use parse::Parsed;
use std::collections::BTreeMap;

/// The most that one evaluation may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// The most that all evaluations for one object or policy may cost.
pub const RUNTIME_BUDGET: u64 = 10_000_000;
/// The most that the match conditions of one webhook or policy may cost.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;
/// The longest message that a message expression may yield.
pub const MAX_MESSAGE_BYTES: usize = 5 * 1024;

/// The variables an expression may use, with their types.
#[derive(Clone, Debug, Default)]
pub struct Env {
    pub variables: BTreeMap<String, Ty>,
    /// Whether expressions may name parts of themselves by `cel.bind`: those that select devices may.
    pub binds: bool,
}

impl Env {
    pub fn with(mut self, name: &str, ty: Ty) -> Env {
        self.variables.insert(name.to_string(), ty);
        self
    }
}

/// A checked expression.
#[derive(Debug)]
pub struct Program {
    parsed: Parsed,
    /// What it evaluates to.
    pub ty: Ty,
}

/// Compiles an expression; the error lists everything wrong with it.
pub fn compile(source: &str, env: &Env) -> Result<Program, String> {
    let parsed = parse::parse(source)?;
    let ty = check::check(&parsed, env, source)?;
    Ok(Program { parsed, ty })
}

impl Program {
    /// Evaluates; gives back the cost, also of a failure.
    pub fn eval<'a>(&'a self, activation: &dyn Activation<'a>, limit: u64) -> (Result<Val<'a>, CelError>, u64) {
        let mut e = eval::Evaluator {
            activation,
            scopes: Vec::new(),
            cost: 0,
            limit,
        };
        let out = e.expr(&self.parsed.expr);
        (out, e.cost)
    }

    /// Whether the expression names a variable.
    pub fn uses(&self, variable: &str) -> bool {
        walk::any(&self.parsed.expr, &|e| matches!(e, Expr::Ident(n) if n == variable))
    }

    /// Whether the expression selects a field by name, of that variable if one is given: `x.f`, `x.?f`, `has(x.f)`.
    pub fn selects(&self, of: Option<&str>, field: &str) -> bool {
        walk::any(&self.parsed.expr, &|e| walk::selects(e, of, field))
    }

    /// Names that the expression selects or looks up are escaped ones: `x.a__dot__b` is `x["a.b"]`.
    pub fn with_escaped_names(mut self) -> Program {
        walk::unescape_names(&mut self.parsed.expr);
        self
    }

    pub(crate) fn expr(&self) -> &IdedExpr {
        &self.parsed.expr
    }
}

#[cfg(test)]
mod tests;
