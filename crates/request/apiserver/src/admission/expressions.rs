//! The expressions of webhooks and policies: compiled once, evaluated with what a request gives.

use super::authorizer;
use super::{Review, matching::Subject};
use keelson_api::{Map, Object, Value};
use keelson_machinery::cel::{
    Activation, CelError, Dynamic, Env, MATCH_CONDITIONS_BUDGET, PER_CALL_LIMIT, Program, Ty, Val,
};
use keelson_registry::resources::expressions::{self as declared, Scope};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// What ends the evaluation of a policy or of match conditions altogether.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression, compiled or not.
#[derive(Debug)]
pub struct Expression {
    pub source: String,
    pub program: Result<Program, String>,
}

impl Expression {
    /// Compiles an expression that has to yield one of `wanted` (none: anything).
    pub fn new(source: &str, env: &Env, wanted: &[&str]) -> Expression {
        Expression {
            source: source.to_string(),
            program: declared::check(source, env, wanted),
        }
    }
}

/// The values of a request's variables.
pub type Bindings<'a> = BTreeMap<&'a str, Val<'a>>;

/// What a request gives to expressions, in the version that they are for.
pub struct Inputs<'a> {
    pub object: Option<&'a Object>,
    pub old: Option<&'a Object>,
    pub request: &'a Map,
    pub namespace: Option<&'a Object>,
    pub params: Option<&'a Object>,
}

fn of_object(o: Option<&Object>) -> Val<'_> {
    o.map_or(Val::Null, |o| Val::JsonMap(&o.0, None))
}

impl<'a> Inputs<'a> {
    /// The variables without `authorizer`.
    pub fn bindings(&self) -> Bindings<'a> {
        BTreeMap::from([
            ("object", of_object(self.object)),
            ("oldObject", of_object(self.old)),
            ("request", Val::JsonMap(self.request, None)),
            ("namespaceObject", of_object(self.namespace)),
            ("params", of_object(self.params)),
        ])
    }
    /// All variables.
    pub fn with_authorizer(&self, review: &Review<'a>, subject: &Subject) -> Bindings<'a> {
        let mut all = self.bindings();
        let (any, own) = authorizer::values(review, subject);
        all.insert("authorizer", any);
        all.insert("authorizer.requestResource", own);
        all
    }
}

/// The cost that a request's evaluations may still have.
pub struct Budget<'a> {
    left: u64,
    /// What lazily evaluated variables have cost since last asked.
    lazily: Option<&'a AtomicU64>,
}

impl<'a> Budget<'a> {
    pub fn new(left: u64, lazily: Option<&'a AtomicU64>) -> Self {
        Budget { left, lazily }
    }

    /// One evaluation. The outer error: the budget is spent.
    pub fn evaluate<'v>(
        &mut self,
        e: &'v Expression,
        activation: &dyn Activation<'v>,
    ) -> Result<Result<Val<'v>, String>, &'static str> {
        let program = match &e.program {
            Ok(p) => p,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        let (result, cost) = program.eval(activation, PER_CALL_LIMIT);
        let cost = cost + self.lazily.map_or(0, |c| c.swap(0, Ordering::Relaxed));
        match self.left.checked_sub(cost) {
            Some(left) => self.left = left,
            None => return Err(OUT_OF_BUDGET),
        }
        Ok(result.map_err(|err| format!("expression '{}' resulted in error: {err}", e.source)))
    }
}

/// `matchConditions`.
#[derive(Debug, Default)]
pub struct Conditions {
    list: Vec<Expression>,
    fail_open: bool,
}

impl Conditions {
    pub fn parse(m: &Map, env: &Env) -> Conditions {
        let list = m.arr("matchConditions").into_iter().flatten();
        let list = list.map(|c| {
            Expression::new(
                c.get("expression").and_then(Value::as_str).unwrap_or_default(),
                env,
                &["bool"],
            )
        });
        Conditions {
            list: list.collect(),
            fail_open: m.str("failurePolicy") == Some("Ignore"),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    /// Whether all hold. One that is false decides, whatever failed besides.
    pub fn hold<'a>(&'a self, bindings: &Bindings<'a>) -> Result<bool, String> {
        let mut budget = Budget::new(MATCH_CONDITIONS_BUDGET, None);
        let mut failures = Vec::new();
        for e in &self.list {
            match budget.evaluate(e, bindings) {
                Err(spent) if self.fail_open => {
                    tracing::debug!("match conditions: {spent}");
                    return Ok(false);
                }
                Err(spent) => return Err(spent.into()),
                Ok(Err(why)) => failures.push(why),
                Ok(Ok(Val::Bool(false))) => return Ok(false),
                Ok(Ok(_)) => {}
            }
        }
        match (failures.as_slice(), self.fail_open) {
            ([], _) => Ok(true),
            (_, true) => Ok(false),
            ([one], false) => Err(one.clone()),
            (many, false) => Err(format!("[{}]", many.join(", "))),
        }
    }
}

/// The environment of match conditions and of a policy's expressions.
pub fn env(params: bool) -> Env {
    declared::env(Scope {
        params,
        authorizer: true,
    })
}

/// A policy's variables as declared: each may use those before it.
#[derive(Debug, Default)]
pub struct Declarations(Vec<(String, Expression)>);

impl Declarations {
    /// Compiles `spec.variables`; gives back the environment with all of them.
    pub fn parse(spec: &Map, base: &Env) -> (Declarations, Env) {
        let mut types = BTreeMap::new();
        let mut env = declared::with_variables(base, &types);
        let mut out = Vec::new();
        for v in spec.arr("variables").into_iter().flatten() {
            let text = |key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default();
            let e = Expression::new(text("expression"), &env, &[]);
            types.insert(
                text("name").to_string(),
                e.program.as_ref().map_or(Ty::Dyn, |p| p.ty.clone()),
            );
            out.push((text("name").to_string(), e));
            env = declared::with_variables(base, &types);
        }
        (Declarations(out), env)
    }
}

/// `variables` during a request: computed when first asked for.
pub struct Variables<'a> {
    declared: &'a Declarations,
    bindings: Bindings<'a>,
    known: parking_lot::Mutex<BTreeMap<String, Result<Val<'a>, CelError>>>,
    cost: &'a AtomicU64,
    me: Weak<Variables<'a>>,
}

impl<'a> Variables<'a> {
    /// The bindings with `variables`, whose cost is added to `cost`.
    pub fn bind(declared: &'a Declarations, bindings: Bindings<'a>, cost: &'a AtomicU64) -> Arc<Variables<'a>> {
        Arc::new_cyclic(|me| Variables {
            declared,
            bindings,
            known: parking_lot::Mutex::default(),
            cost,
            me: me.clone(),
        })
    }
    fn compute(&self, name: &str) -> Option<Result<Val<'a>, CelError>> {
        let (_, e) = self.declared.0.iter().find(|(n, _)| n == name)?;
        let program = match &e.program {
            Ok(p) => p,
            Err(why) => {
                return Some(Err(CelError::new(format!(
                    "composited variable \"{name}\" fails to compile: {why}"
                ))));
            }
        };
        let (result, cost) = program.eval(self, PER_CALL_LIMIT);
        self.cost.fetch_add(cost, Ordering::Relaxed);
        Some(result.map_err(|e| CelError {
            message: format!("composited variable \"{name}\" fails to evaluate: {e}"),
            fatal: e.fatal,
        }))
    }
}

impl<'a> Activation<'a> for Variables<'a> {
    fn get(&self, name: &str) -> Option<Val<'a>> {
        if name == "variables" {
            return self.me.upgrade().map(|me| Val::Dynamic(me));
        }
        self.bindings.get(name).cloned()
    }
}

impl std::fmt::Debug for Variables<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("variables")
    }
}

impl<'a> Dynamic<'a> for Variables<'a> {
    fn field(&self, name: &str) -> Option<Result<Val<'a>, CelError>> {
        if let Some(known) = self.known.lock().get(name) {
            return Some(known.clone());
        }
        let value = self.compute(name)?;
        self.known.lock().insert(name.to_string(), value.clone());
        Some(value)
    }
    fn type_name(&self) -> &'static str {
        "kubernetes.variables"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn map(v: Value) -> Map {
        match v {
            Value::Object(m) => m,
            _ => Map::new(),
        }
    }

    #[test]
    fn a_false_condition_decides_and_failures_follow_the_policy() {
        let request = map(value!({"operation": "CREATE"}));
        let object = Object(map(value!({"a": 1})));
        let inputs = Inputs {
            object: Some(&object),
            old: None,
            request: &request,
            namespace: None,
            params: None,
        };
        let hold = |policy: &str, expressions: &[&str]| {
            let list: Vec<Value> = expressions
                .iter()
                .map(|e| value!({"name": "c", "expression": *e}))
                .collect();
            let spec = map(value!({"failurePolicy": policy, "matchConditions": list}));
            Conditions::parse(&spec, &env(false)).hold(&inputs.bindings())
        };
        assert_eq!(
            hold("Fail", &["object.a == 1", "request.operation == 'CREATE'"]),
            Ok(true)
        );
        assert_eq!(hold("Fail", &["object.b == 1", "object.a == 2"]), Ok(false));
        assert_eq!(hold("Ignore", &["object.b == 1"]), Ok(false));
        assert_eq!(
            hold("Fail", &["object.b == 1"]),
            Err("expression 'object.b == 1' resulted in error: no such key: b".into())
        );
        assert_eq!(hold("Fail", &["oldObject == null"]), Ok(true));
    }

    #[test]
    fn variables_are_lazy_and_use_those_before_them() {
        let spec = map(value!({"variables": [
            {"name": "one", "expression": "object.a"},
            {"name": "two", "expression": "variables.one + 1"},
            {"name": "bad", "expression": "object.missing"},
        ]}));
        let (declared, env) = Declarations::parse(&spec, &env(false));
        let request = Map::new();
        let object = Object(map(value!({"a": 1})));
        let inputs = Inputs {
            object: Some(&object),
            old: None,
            request: &request,
            namespace: None,
            params: None,
        };
        let cost = AtomicU64::new(0);
        let eval = |source: &str| {
            let e = Expression::new(source, &env, &[]);
            let variables = Variables::bind(&declared, inputs.bindings(), &cost);
            let mut budget = Budget::new(1000, Some(&cost));
            budget
                .evaluate(&e, variables.as_ref())
                .unwrap()
                .map(|v| v.to_json().unwrap())
        };
        assert_eq!(eval("variables.two == 2 && variables.one == 1"), Ok(true.into()));
        assert_eq!(eval("variables.two == 2 || variables.bad"), Ok(true.into()));
        let why = eval("variables.bad").unwrap_err();
        assert!(
            why.contains("composited variable \"bad\" fails to evaluate: no such key: missing"),
            "{why}"
        );
    }
}
