//! Expressions that select devices: `device.driver`, `device.attributes`, `device.capacity` and
//! `device.allowMultipleAllocations`.
//!
//! A name without a domain is in the driver's; a domain that a device says nothing of is an empty map, so that only the last
//! step has to be guarded. Bounds of names and values are the API's, so that each expression has a cost at worst.

use super::types::{Declared, ObjectTy, Record, Ty};
use super::value::{CelError, Key, Val};
use super::{Env, PER_CALL_LIMIT, Program, compile, cost};
use keelson_api::Quantity;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// The most that a selector may be estimated to cost, and cost.
pub const MOST_COST: u64 = PER_CALL_LIMIT;
/// Bytes of a selector.
pub const LONGEST: usize = 10 * 1024;

const DOMAIN: f64 = 63.0;
const ID: f64 = 32.0;
const VALUE: f64 = 64.0;
const MEMBERS: f64 = 32.0;

/// What an attribute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    Bool(bool),
    Int(i64),
    Text(String),
    /// A semantic version, as it is written.
    Version(String),
}

/// A device, as selectors see it.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    pub driver: &'a str,
    pub is_shared: bool,
    /// By names with or without a domain.
    pub attributes: &'a BTreeMap<String, Attribute>,
    pub capacity: &'a BTreeMap<String, Quantity>,
}

/// What is said of an expression that is right, but would cost too much.
pub const TOO_COSTLY: &str = "too complex, exceeds cost limit";

/// A checked selector.
#[derive(Debug)]
pub struct Selector(Program);

impl Selector {
    /// The error is what is wrong with the expression, as upstream tells it.
    pub fn compile(expression: &str) -> Result<Selector, String> {
        if expression.len() > LONGEST {
            return Err(format!("must be no more than {LONGEST} bytes"));
        }
        let program = compile(expression, &ENV).map_err(|e| format!("compilation failed: {e}"))?;
        if !matches!(program.ty, Ty::Bool | Ty::Dyn) {
            let other = &program.ty;
            return Err(format!("must evaluate to bool or the unknown type, not {other}"));
        }
        let selector = Selector(program);
        match selector.most_cost() > MOST_COST as f64 {
            true => Err(TOO_COSTLY.into()),
            false => Ok(selector),
        }
    }

    /// What one evaluation costs at worst.
    pub fn most_cost(&self) -> f64 {
        cost::estimate_of(&self.0, &["device"], &DECLARED)
    }

    /// Whether the device is selected.
    pub fn matches(&self, device: Device<'_>) -> Result<bool, CelError> {
        let variables = BTreeMap::from([("device", value(device)?)]);
        match self.0.eval(&variables, MOST_COST).0? {
            Val::Bool(is_it) => Ok(is_it),
            other => Err(CelError::new(format!(
                "CEL result of type {} could not be converted to bool: type conversion error from '{}' to 'bool'",
                other.type_name(),
                other.type_name()
            ))),
        }
    }
}

/// With a hint for whoever looks for what isn't there.
pub fn explained(error: &CelError) -> String {
    match error.message.contains("no such key:") {
        true => format!(
            "{error}. consider using CEL optional chaining (.? followed by orValue()) or guarding the check with has() for optional fields"
        ),
        false => error.to_string(),
    }
}

fn value(device: Device<'_>) -> Result<Val<'_>, CelError> {
    let attributes = device.attributes.iter().map(|(name, value)| {
        let value = match value {
            Attribute::Bool(value) => Val::Bool(*value),
            Attribute::Int(value) => Val::Int(*value),
            Attribute::Text(value) => Val::Str(value.as_str().into()),
            Attribute::Version(text) => {
                let version = super::library::semver::Semver::parse(text, false);
                let wrong = || CelError::new(format!("attribute {name}: parse semantic version: {text:?} is none"));
                Val::Semver(Arc::new(version.ok_or_else(wrong)?))
            }
        };
        Ok((name.as_str(), value))
    });
    let attributes = by_domain(device.driver, attributes.collect::<Result<Vec<_>, CelError>>()?);
    let capacity = device
        .capacity
        .iter()
        .map(|(name, value)| (name.as_str(), Val::Quantity(*value)));
    let capacity = by_domain(device.driver, capacity.collect());
    let key = |name: &str| Key::Str(name.to_owned());
    Ok(Val::Map(Arc::new(BTreeMap::from([
        (key("driver"), Val::Str(device.driver.into())),
        (key("allowMultipleAllocations"), Val::Bool(device.is_shared)),
        (key("attributes"), attributes),
        (key("capacity"), capacity),
    ]))))
}

fn by_domain<'a>(driver: &str, members: Vec<(&str, Val<'a>)>) -> Val<'a> {
    let mut domains: BTreeMap<String, BTreeMap<Key, Val>> = BTreeMap::new();
    for (name, value) in members {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        let members = domains.entry(domain.to_owned()).or_default();
        members.insert(Key::Str(id.to_owned()), value);
    }
    let domains = domains
        .into_iter()
        .map(|(name, members)| (Key::Str(name), Val::Map(Arc::new(members))));
    Val::Domains(Arc::new(domains.collect()))
}

static ENV: LazyLock<Env> = LazyLock::new(|| Env {
    binds: true,
    ..Env::default().with("device", DECLARED.ty.clone())
});

static DECLARED: LazyLock<Arc<Declared>> = LazyLock::new(|| {
    let node = |ty: Ty, max_elements: f64, element: Option<Arc<Declared>>| {
        Arc::new(Declared {
            ty,
            max_elements,
            min_size: 1.0,
            element,
            fields: BTreeMap::new(),
        })
    };
    let domains = |member: Ty, size: f64| {
        let inner = node(
            Ty::map(Ty::String, member.clone()),
            MEMBERS,
            Some(node(member, size, None)),
        );
        node(Ty::map(Ty::String, inner.ty.clone()), MEMBERS, Some(inner))
    };
    let fields = BTreeMap::from([
        ("driver".to_owned(), node(Ty::String, DOMAIN, None)),
        ("allowMultipleAllocations".to_owned(), node(Ty::Bool, 1.0, None)),
        ("attributes".to_owned(), domains(Ty::Dyn, VALUE.max(ID))),
        ("capacity".to_owned(), domains(Ty::Opaque("kubernetes.Quantity"), 1.0)),
    ]);
    let record = Record {
        name: "kubernetes.DRADevice".into(),
        fields: fields
            .iter()
            .map(|(name, field)| (name.clone(), field.ty.clone()))
            .collect(),
    };
    Arc::new(Declared {
        ty: Ty::Object(ObjectTy::Record(Arc::new(record))),
        max_elements: 1.0,
        min_size: 1.0,
        element: None,
        fields,
    })
});

#[cfg(test)]
mod tests;
