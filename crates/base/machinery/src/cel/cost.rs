//! What an expression may cost at worst, from the bounds that a schema sets.
//!
//! Estimates follow upstream's rules where a decision hangs on them: loops multiply by the most elements, comparisons
//! and searches grow with the longest text.

use super::Program;
use super::types::{Declared, MAX_REQUEST};
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};
use std::sync::Arc;

/// The most that one rule may be estimated to cost, over all values it applies to.
pub const RULE_LIMIT: f64 = 10_000_000.0;
/// The most that all rules of a version may be estimated to cost.
pub const TOTAL_LIMIT: f64 = 100_000_000.0;

/// `cel.bind`: a list without elements to run over, and a loop that never turns.
const BINDING: f64 = 10.0;

/// The cost of one evaluation of the program with `self` (and `oldSelf`) of the declared type.
pub fn estimate(program: &Program, declared: &Arc<Declared>) -> f64 {
    estimate_of(program, &["self", "oldSelf"], declared)
}

/// The same with other names for the variables of that type.
pub fn estimate_of(program: &Program, variables: &'static [&'static str], declared: &Arc<Declared>) -> f64 {
    let mut e = Estimator {
        root: declared.clone(),
        variables,
        scopes: Vec::new(),
    };
    e.expr(program.expr()).cost
}

/// How often a value of the type can occur in a request at most, when nothing else bounds it.
pub fn max_cardinality(min_size: f64) -> f64 {
    MAX_REQUEST / (min_size + 1.0)
}

#[derive(Clone, Debug)]
enum Shape {
    Node(Arc<Declared>),
    /// A value that the expression builds: its size, and the shape of its elements.
    Built(f64, Option<Box<Shape>>),
    Unknown,
}

impl Shape {
    fn size(&self) -> f64 {
        match self {
            Shape::Node(d) => d.max_elements.max(1.0),
            Shape::Built(n, _) => *n,
            Shape::Unknown => MAX_REQUEST,
        }
    }
    fn element(&self) -> Shape {
        match self {
            Shape::Node(d) => d.element.clone().map_or(Shape::Unknown, Shape::Node),
            Shape::Built(_, Some(e)) => (**e).clone(),
            _ => Shape::Unknown,
        }
    }
    fn is_map(&self) -> bool {
        matches!(self, Shape::Node(d) if matches!(d.ty, super::Ty::Map(..)))
    }
}

struct Estimate {
    cost: f64,
    shape: Shape,
}

struct Estimator {
    root: Arc<Declared>,
    /// The names of what has the declared type.
    variables: &'static [&'static str],
    scopes: Vec<(String, Shape)>,
}

fn known(cost: f64) -> Estimate {
    Estimate {
        cost,
        shape: Shape::Built(1.0, None),
    }
}

impl Estimator {
    fn name(&self, name: &str) -> Shape {
        let local = self
            .scopes
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, s)| s.clone());
        local.unwrap_or_else(|| match self.variables.contains(&name) {
            true => Shape::Node(self.root.clone()),
            false => Shape::Unknown,
        })
    }

    fn expr(&mut self, e: &IdedExpr) -> Estimate {
        match &e.expr {
            Expr::Unspecified => known(0.0),
            Expr::Literal(l) => Estimate {
                cost: 0.0,
                shape: Shape::Built(literal_size(l), None),
            },
            Expr::Ident(name) => Estimate {
                cost: 1.0,
                shape: self.name(name),
            },
            Expr::Select(s) => {
                let operand = self.expr(&s.operand);
                let shape = match &operand.shape {
                    Shape::Node(d) => d
                        .fields
                        .get(&s.field)
                        .cloned()
                        .or(d.element.clone())
                        .map_or(Shape::Unknown, Shape::Node),
                    _ => Shape::Unknown,
                };
                if s.test {
                    return known(operand.cost);
                }
                Estimate {
                    cost: operand.cost + 1.0,
                    shape,
                }
            }
            Expr::Call(c) => self.call(c),
            Expr::List(l) => {
                let parts: Vec<Estimate> = l.elements.iter().map(|e| self.expr(e)).collect();
                let cost = 10.0 + parts.iter().map(|p| p.cost).sum::<f64>();
                let element = parts.into_iter().next().map(|p| Box::new(p.shape));
                Estimate {
                    cost,
                    shape: Shape::Built(l.elements.len() as f64, element),
                }
            }
            Expr::Map(m) => {
                let cost: f64 = m.entries.iter().map(|e| self.entry(&e.expr)).sum();
                Estimate {
                    cost: 30.0 + cost,
                    shape: Shape::Built(m.entries.len() as f64, None),
                }
            }
            Expr::Struct(s) => known(40.0 + s.entries.iter().map(|e| self.entry(&e.expr)).sum::<f64>()),
            Expr::Comprehension(c) => {
                let range = self.expr(&c.iter_range);
                let init = self.expr(&c.accu_init);
                let n = range.shape.size();
                let depth = self.scopes.len();
                self.scopes.push((c.accu_var.clone(), init.shape.clone()));
                // A key's length, which no schema bounds, upstream doesn't count.
                let item = if range.shape.is_map() {
                    Shape::Built(0.0, None)
                } else {
                    range.shape.element()
                };
                self.scopes.push((c.iter_var.clone(), item));
                if let Some(second) = &c.iter_var2 {
                    self.scopes.push((second.clone(), range.shape.element()));
                }
                let turn = self.expr(&c.loop_cond).cost + self.expr(&c.loop_step).cost;
                self.scopes.truncate(depth);
                let grows = matches!(&c.accu_init.expr, Expr::List(_));
                let shape = if grows {
                    Shape::Built(n, Some(Box::new(Shape::Unknown)))
                } else {
                    init.shape
                };
                self.scopes.push((c.accu_var.clone(), shape.clone()));
                let result = self.expr(&c.result).cost;
                self.scopes.truncate(depth);
                Estimate {
                    cost: range.cost + init.cost + n * turn + result,
                    shape,
                }
            }
        }
    }

    fn entry(&mut self, e: &EntryExpr) -> f64 {
        match e {
            EntryExpr::MapEntry(m) => self.expr(&m.key).cost + self.expr(&m.value).cost,
            EntryExpr::StructField(f) => self.expr(&f.value).cost,
        }
    }

    fn call(&mut self, c: &CallExpr) -> Estimate {
        if super::check::is_lambda(c) {
            return self.lambda(c);
        }
        let mut parts: Vec<Estimate> = Vec::new();
        if let Some(t) = &c.target {
            parts.push(self.expr(t));
        }
        parts.extend(c.args.iter().map(|a| self.expr(a)).collect::<Vec<_>>());
        let args: f64 = parts.iter().map(|p| p.cost).sum();
        let size = |i: usize| parts.get(i).map_or(1.0, |p| p.shape.size());
        let text = |i: usize| match parts.get(i).map(|p| &p.shape) {
            Some(Shape::Node(d)) => matches!(d.ty, super::Ty::String | super::Ty::Bytes),
            Some(Shape::Built(n, _)) => *n > 1.0,
            _ => true,
        };
        let own = match c.func_name.as_str() {
            op::CONDITIONAL => {
                let worst = parts
                    .get(1)
                    .map_or(0.0, |p| p.cost)
                    .max(parts.get(2).map_or(0.0, |p| p.cost));
                let shape = parts.get(1).map_or(Shape::Unknown, |p| p.shape.clone());
                return Estimate {
                    cost: parts.first().map_or(0.0, |p| p.cost) + worst,
                    shape,
                };
            }
            op::LOGICAL_AND | op::LOGICAL_OR => 0.0,
            op::EQUALS | op::NOT_EQUALS | op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS
                if text(0) && text(1) =>
            {
                (size(0).min(size(1)) * 0.1).ceil().max(1.0)
            }
            op::ADD if text(0) && text(1) => ((size(0) + size(1)) * 0.1).ceil(),
            op::IN => size(1),
            "contains" => (size(0) * 0.1).ceil() * (size(1) * 0.1).ceil(),
            "matches" | "find" | "findAll" => ((size(0) + 1.0) * 0.1).ceil() * (size(1) * 0.25).ceil(),
            "startsWith" | "endsWith" => (size(1) * 0.1).ceil(),
            "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" | "includes" | "distinct" | "sort" => {
                size(0)
            }
            "lowerAscii" | "upperAscii" | "trim" | "replace" | "split" | "join" | "substring" | "url" | "isURL"
            | "quantity" | "isQuantity" | "ip" | "isIP" | "cidr" | "isCIDR" => (size(0) * 0.1).ceil(),
            "sets.contains" | "sets.equivalent" | "sets.intersects" => size(0) * size(1) * 2.0,
            _ => 1.0,
        };
        let shape = match c.func_name.as_str() {
            op::INDEX | op::OPT_INDEX | op::OPT_SELECT => parts.first().map_or(Shape::Unknown, |p| p.shape.element()),
            op::ADD => Shape::Built(size(0) + size(1), None),
            "lowerAscii" | "upperAscii" | "trim" | "substring" | "replace" | "dyn" | "value" | "sort" | "reverse" => {
                parts.first().map_or(Shape::Unknown, |p| p.shape.clone())
            }
            "split" | "findAll" => Shape::Built(size(0), Some(Box::new(Shape::Built(size(0), None)))),
            _ => Shape::Built(1.0, None),
        };
        Estimate {
            cost: args + own,
            shape,
        }
    }

    fn lambda(&mut self, c: &CallExpr) -> Estimate {
        let Some(target) = &c.target else { return known(0.0) };
        if super::check::is_bind(c) {
            let value = self.expr(&c.args[1]);
            self.scopes.push((super::check::ident(&c.args[0]), value.shape));
            let body = self.expr(&c.args[2]);
            self.scopes.pop();
            return Estimate {
                cost: value.cost + body.cost + BINDING,
                shape: body.shape,
            };
        }
        let range = self.expr(target);
        let depth = self.scopes.len();
        let (n, vars) = match c.func_name.as_str() {
            "optMap" | "optFlatMap" => (1.0, 1),
            "sortBy" => (range.shape.size(), 1),
            _ => (range.shape.size(), 2),
        };
        for (i, arg) in c.args.iter().take(vars).enumerate() {
            let shape = if i + 1 == vars {
                range.shape.element()
            } else {
                Shape::Built(1.0, None)
            };
            self.scopes.push((super::check::ident(arg), shape));
        }
        let turn: f64 = c.args.iter().skip(vars).map(|a| self.expr(a).cost).sum();
        self.scopes.truncate(depth);
        Estimate {
            cost: range.cost + n * (turn + 1.0),
            shape: Shape::Built(n, None),
        }
    }
}

fn literal_size(l: &LiteralValue) -> f64 {
    match l {
        LiteralValue::String(s) => s.inner().len() as f64,
        LiteralValue::Bytes(b) => b.inner().len() as f64,
        _ => 1.0,
    }
}
