//! Values while an expression is evaluated.
//!
//! Objects are read in place: a list or map of an object is a reference into it, with the schema node that says how its
//! strings and numbers are to be read. Only what expressions build themselves is owned.

use super::types::escape;
use crate::go;
use crate::structural::Structural;
use base64_lite::encode as base64;
use keelson_api::{Map, Quantity, Time, Value, duration};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Something the caller provides whose members are computed when asked for: lazy variables, an authorizer.
pub trait Dynamic<'a>: fmt::Debug + Send + Sync {
    /// The value of a field; `None`: there is none.
    fn field(&self, name: &str) -> Option<Result<Val<'a>, CelError>>;
    /// A method call; `None`: there is no such method.
    fn call(&self, _method: &str, _args: &[Val<'a>]) -> Option<Result<Val<'a>, CelError>> {
        None
    }
    /// The type's name.
    fn type_name(&self) -> &'static str {
        "object"
    }
}

/// Why an evaluation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CelError {
    pub message: String,
    /// Out of budget: ends the evaluation whatever logical operators stand around it.
    pub fatal: bool,
}

impl CelError {
    pub fn new(message: impl Into<String>) -> CelError {
        CelError {
            message: message.into(),
            fatal: false,
        }
    }
    pub fn no_overload() -> CelError {
        CelError::new("no such overload")
    }
}
impl fmt::Display for CelError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

pub type Res<T> = Result<T, CelError>;

/// The schema node a JSON value is read by.
pub type Hint<'a> = Option<&'a Structural>;

#[derive(Clone, Debug)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(Cow<'a, str>),
    Bytes(Arc<[u8]>),
    Timestamp(Time),
    /// Nanoseconds.
    Duration(i64),
    List(Arc<Vec<Val<'a>>>),
    Map(Arc<BTreeMap<Key, Val<'a>>>),
    /// Maps by domain: one that isn't there is empty.
    Domains(Arc<BTreeMap<Key, Val<'a>>>),
    JsonList(&'a [Value], Hint<'a>),
    /// What two lists of such a node were united to.
    United(Arc<Vec<Val<'a>>>, &'a Structural),
    JsonMap(&'a Map, Hint<'a>),
    Optional(Option<Box<Val<'a>>>),
    Type(Cow<'static, str>),
    /// `Object.spec{…}`: the written name and the fields.
    Struct(Arc<str>, Arc<BTreeMap<String, Val<'a>>>),
    Quantity(Quantity),
    Url(Arc<super::library::url::Url>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Semver(Arc<super::library::semver::Semver>),
    Format(&'static str),
    Dynamic(Arc<dyn Dynamic<'a> + 'a>),
}

/// A key of a map that an expression built.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Str(String),
}

impl Key {
    pub fn of(v: &Val) -> Res<Key> {
        Ok(match v {
            Val::Bool(b) => Key::Bool(*b),
            Val::Int(i) => Key::Int(*i),
            Val::Uint(u) => i64::try_from(*u).map_or(Key::Uint(*u), Key::Int),
            Val::Double(f) if f.fract() == 0.0 && f.abs() < 9.0e15 => Key::Int(*f as i64),
            Val::Str(s) => Key::Str(s.to_string()),
            other => return Err(CelError::new(format!("unsupported key type: {}", other.type_name()))),
        })
    }
    pub fn to_val<'a>(&self) -> Val<'a> {
        match self {
            Key::Bool(b) => Val::Bool(*b),
            Key::Int(i) => Val::Int(*i),
            Key::Uint(u) => Val::Uint(*u),
            Key::Str(s) => Val::Str(Cow::Owned(s.clone())),
        }
    }
}

/// Small base64, for bytes turned into text.
pub(super) mod base64_lite {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub fn encode(bytes: &[u8]) -> String {
        let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
            for i in 0..4 {
                if i <= chunk.len() {
                    out.push(DIGITS[(n >> (18 - 6 * i) & 63) as usize] as char);
                } else {
                    out.push('=');
                }
            }
        }
        out
    }

    pub fn decode(s: &str) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(s.len() / 4 * 3);
        let (mut n, mut bits) = (0u32, 0);
        for b in s.trim_end_matches('=').bytes() {
            let d = DIGITS.iter().position(|d| *d == b)? as u32;
            n = n << 6 | d;
            bits += 6;
            if bits >= 8 {
                bits -= 8;
                out.push((n >> bits & 0xff) as u8);
            }
        }
        Some(out)
    }
}

impl<'a> Val<'a> {
    pub fn str(s: impl Into<String>) -> Val<'a> {
        Val::Str(Cow::Owned(s.into()))
    }
    pub fn list(items: Vec<Val<'a>>) -> Val<'a> {
        Val::List(Arc::new(items))
    }
    pub fn some(v: Val<'a>) -> Val<'a> {
        Val::Optional(Some(Box::new(v)))
    }

    /// A JSON value as expressions see it.
    pub fn of_json(v: &'a Value, hint: Hint<'a>) -> Val<'a> {
        match v {
            Value::Null => Val::Null,
            Value::Bool(b) => Val::Bool(*b),
            Value::Int(i) if hint.is_some_and(|h| h.ty == "number") => Val::Double(*i as f64),
            Value::Int(i) => Val::Int(*i),
            Value::Float(f) if hint.is_some_and(|h| h.ty == "integer") && f.fract() == 0.0 => Val::Int(*f as i64),
            Value::Float(f) => Val::Double(*f),
            Value::String(s) => Val::of_text(s, hint),
            Value::Array(a) => Val::JsonList(a, hint),
            Value::Object(m) => Val::JsonMap(m, hint),
        }
    }

    fn of_text(s: &'a str, hint: Hint<'a>) -> Val<'a> {
        let plain = || Val::Str(Cow::Borrowed(s));
        let Some(h) = hint.filter(|h| h.ty == "string") else {
            return plain();
        };
        match h.checks.format.as_str() {
            "byte" => base64_lite::decode(s).map_or_else(plain, |b| Val::Bytes(b.into())),
            "date" => Time::parse(&format!("{s}T00:00:00Z")).map_or_else(|_| plain(), Val::Timestamp),
            "date-time" => Time::parse(s).map_or_else(|_| plain(), Val::Timestamp),
            "duration" => duration::parse(s).map_or_else(|_| plain(), Val::Duration),
            _ => plain(),
        }
    }

    pub fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::Str(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::List(_) | Val::JsonList(..) | Val::United(..) => "list",
            Val::Map(_) | Val::Domains(_) | Val::JsonMap(..) => "map",
            Val::Optional(_) => "optional_type",
            Val::Type(_) => "type",
            Val::Struct(name, _) => return Cow::Owned(name.to_string()),
            Val::Quantity(_) => "kubernetes.Quantity",
            Val::Url(_) => "kubernetes.URL",
            Val::Ip(_) => "net.IP",
            Val::Cidr(..) => "net.CIDR",
            Val::Semver(_) => "kubernetes.Semver",
            Val::Format(_) => "kubernetes.NamedFormat",
            Val::Dynamic(d) => d.type_name(),
        })
    }

    pub fn as_bool(&self) -> Res<bool> {
        match self {
            Val::Bool(b) => Ok(*b),
            _ => Err(CelError::no_overload()),
        }
    }
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Val::Str(s) => Some(s),
            _ => None,
        }
    }
    /// The elements of a list.
    pub fn items(&self) -> Option<Vec<Val<'a>>> {
        match self {
            Val::List(l) | Val::United(l, _) => Some(l.to_vec()),
            Val::JsonList(l, hint) => {
                let items = hint.and_then(|h| h.items.as_deref());
                Some(l.iter().map(|v| Val::of_json(v, items)).collect())
            }
            _ => None,
        }
    }
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> Option<usize> {
        match self {
            Val::List(l) | Val::United(l, _) => Some(l.len()),
            Val::JsonList(l, _) => Some(l.len()),
            Val::Map(m) | Val::Domains(m) => Some(m.len()),
            Val::JsonMap(m, _) => Some(m.len()),
            Val::Str(s) => Some(s.chars().count()),
            Val::Bytes(b) => Some(b.len()),
            _ => None,
        }
    }
    pub fn element(&self, i: i64) -> Option<Res<Val<'a>>> {
        let out_of = |n: usize| {
            usize::try_from(i)
                .ok()
                .filter(|i| *i < n)
                .ok_or_else(|| CelError::new(format!("index out of bounds: {i}")))
        };
        match self {
            Val::List(l) | Val::United(l, _) => Some(out_of(l.len()).map(|i| l[i].clone())),
            Val::JsonList(l, hint) => {
                Some(out_of(l.len()).map(|i| Val::of_json(&l[i], hint.and_then(|h| h.items.as_deref()))))
            }
            _ => None,
        }
    }
    /// The keys of a map, or the elements of a list: what a comprehension runs over.
    pub fn range(&self) -> Option<Vec<Val<'a>>> {
        match self {
            Val::Map(m) | Val::Domains(m) => Some(m.keys().map(Key::to_val).collect()),
            Val::JsonMap(m, hint) => Some(
                m.keys()
                    .map(|k| match hint {
                        Some(h) if h.properties.contains_key(k) => {
                            Val::Str(escape(k).map_or(Cow::Borrowed(k.as_str()), Cow::Owned))
                        }
                        _ => Val::Str(Cow::Borrowed(k.as_str())),
                    })
                    .collect(),
            ),
            _ => self.items(),
        }
    }
    /// The member of a map or struct; `Ok(None)`: it has none of that key; `Err`: no map at all.
    pub fn member(&self, key: &Val<'a>) -> Res<Option<Val<'a>>> {
        match self {
            Val::Map(m) => Ok(m.get(&Key::of(key)?).cloned()),
            Val::Domains(m) => {
                let domain = m.get(&Key::of(key)?).cloned();
                Ok(Some(domain.unwrap_or_else(|| Val::Map(Arc::default()))))
            }
            Val::JsonMap(m, hint) => match key.as_str() {
                Some(k) => Ok(json_member(m, *hint, k)),
                None => Ok(None),
            },
            Val::Struct(_, fields) => Ok(key.as_str().and_then(|k| fields.get(k).cloned())),
            Val::Dynamic(d) => match key.as_str().and_then(|k| d.field(k)) {
                Some(v) => v.map(Some),
                None => Ok(None),
            },
            _ => Err(CelError::no_overload()),
        }
    }

    /// Equality across kinds: values of unlike kinds are unequal, numbers compare by amount.
    pub fn equals(&self, other: &Val<'a>) -> bool {
        use Val::*;
        match (self, other) {
            (Null, Null) => true,
            (Bool(a), Bool(b)) => a == b,
            (Str(a), Str(b)) => a == b,
            (Bytes(a), Bytes(b)) => a == b,
            (Timestamp(a), Timestamp(b)) => a == b,
            (Duration(a), Duration(b)) => a == b,
            (Type(a), Type(b)) => a == b,
            (Optional(a), Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Quantity(a), Quantity(b)) => a == b,
            (Url(a), Url(b)) => a == b,
            (Ip(a), Ip(b)) => a == b,
            (Cidr(a, n), Cidr(b, m)) => a == b && n == m,
            (Semver(a), Semver(b)) => a == b,
            (Format(a), Format(b)) => a == b,
            (Struct(n, a), Struct(m, b)) => {
                n == m && a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| v.equals(w)))
            }
            (Int(_) | Uint(_) | Double(_), Int(_) | Uint(_) | Double(_)) => {
                self.compare(other).is_some_and(Ordering::is_eq)
            }
            (List(_) | JsonList(..) | United(..), List(_) | JsonList(..) | United(..)) => self.lists_equal(other),
            (Map(_) | Domains(_) | JsonMap(..), Map(_) | Domains(_) | JsonMap(..)) => {
                let (Some(keys), true) = (self.range(), self.len() == other.len()) else {
                    return false;
                };
                keys.iter().all(|k| match (self.member(k), other.member(k)) {
                    (Ok(Some(a)), Ok(Some(b))) => a.equals(&b),
                    _ => false,
                })
            }
            _ => false,
        }
    }

    fn lists_equal(&self, other: &Val<'a>) -> bool {
        let (Some(a), Some(b)) = (self.items(), other.items()) else {
            return false;
        };
        if a.len() != b.len() {
            return false;
        }
        match self.list_type() {
            // Order says nothing in sets and lists with keys.
            "set" => a.iter().all(|x| b.iter().any(|y| x.equals(y))),
            "map" => a.iter().all(|x| {
                let same = |y: &&Val<'a>| self.same_key(x, y);
                b.iter().find(same).is_some_and(|y| x.equals(y))
            }),
            _ => a.iter().zip(&b).all(|(x, y)| x.equals(y)),
        }
    }

    /// How the list's schema says its elements merge.
    pub fn list_type(&self) -> &str {
        self.list_node().map_or("", |h| &h.list_type)
    }

    /// The schema node of a list.
    pub fn list_node(&self) -> Hint<'a> {
        match self {
            Val::JsonList(_, h) => *h,
            Val::United(_, h) => Some(h),
            _ => None,
        }
    }

    /// Whether two elements of a list with keys stand for the same entry.
    pub fn same_key(&self, x: &Val<'a>, y: &Val<'a>) -> bool {
        let Some(h) = self.list_node() else { return false };
        h.list_map_keys.iter().all(|k| {
            let key = Val::str(escape(k).unwrap_or_else(|| k.to_string()));
            match (x.member(&key), y.member(&key)) {
                (Ok(Some(a)), Ok(Some(b))) => a.equals(&b),
                (Ok(None), Ok(None)) => true,
                _ => false,
            }
        })
    }

    /// The order of two values; `None`: they have none.
    pub fn compare(&self, other: &Val<'a>) -> Option<Ordering> {
        use Val::*;
        match (self, other) {
            (Bool(a), Bool(b)) => Some(a.cmp(b)),
            (Int(a), Int(b)) => Some(a.cmp(b)),
            (Uint(a), Uint(b)) => Some(a.cmp(b)),
            (Int(a), Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Uint(a), Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Double(a), Double(b)) => a.partial_cmp(b),
            (Double(a), Int(b)) => a.partial_cmp(&(*b as f64)),
            (Int(a), Double(b)) => (*a as f64).partial_cmp(b),
            (Double(a), Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Uint(a), Double(b)) => (*a as f64).partial_cmp(b),
            (Str(a), Str(b)) => Some(a.cmp(b)),
            (Bytes(a), Bytes(b)) => Some(a.cmp(b)),
            (Timestamp(a), Timestamp(b)) => Some(a.cmp(b)),
            (Duration(a), Duration(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// The value as JSON; the message says what has no JSON form.
    pub fn to_json(&self) -> Res<Value> {
        Ok(match self {
            Val::Null => Value::Null,
            Val::Bool(b) => Value::Bool(*b),
            Val::Int(i) => Value::Int(*i),
            Val::Uint(u) => i64::try_from(*u).map_or(Value::Float(*u as f64), Value::Int),
            Val::Double(f) => Value::Float(*f),
            Val::Str(s) => Value::from(s.as_ref()),
            Val::Bytes(b) => Value::from(base64(b)),
            Val::Timestamp(t) => Value::from(t.rfc3339_nano()),
            Val::Duration(n) => Value::from(format!("{}s", go::go_float(*n as f64 / 1e9))),
            Val::JsonList(l, _) => Value::Array(l.to_vec()),
            Val::JsonMap(m, _) => Value::Object((*m).clone()),
            Val::List(l) | Val::United(l, _) => {
                let items = l.iter().filter(|v| !matches!(v, Val::Optional(None)));
                Value::Array(items.map(Val::to_json).collect::<Res<_>>()?)
            }
            Val::Map(m) | Val::Domains(m) => {
                let mut out = Map::new();
                for (k, v) in m.iter() {
                    let key = match k {
                        Key::Str(s) => s.clone(),
                        Key::Bool(b) => b.to_string(),
                        Key::Int(i) => i.to_string(),
                        Key::Uint(u) => u.to_string(),
                    };
                    out.insert(key, v.to_json()?);
                }
                Value::Object(out)
            }
            Val::Struct(_, fields) => {
                let mut out = Map::new();
                for (k, v) in fields.iter() {
                    match v {
                        Val::Optional(None) => {}
                        Val::Optional(Some(v)) => drop(out.insert(k.as_str(), v.to_json()?)),
                        v => drop(out.insert(k.as_str(), v.to_json()?)),
                    }
                }
                Value::Object(out)
            }
            Val::Optional(Some(v)) => v.to_json()?,
            Val::Optional(None) => Value::Null,
            Val::Quantity(q) => Value::from(q.to_string()),
            Val::Ip(ip) => Value::from(ip.to_string()),
            Val::Cidr(ip, n) => Value::from(format!("{ip}/{n}")),
            other => {
                return Err(CelError::new(format!(
                    "unsupported conversion of {} to JSON",
                    other.type_name()
                )));
            }
        })
    }

    /// Whether the value is its type's zero.
    pub fn is_zero(&self) -> bool {
        match self {
            Val::Null => true,
            Val::Bool(b) => !b,
            Val::Int(i) => *i == 0,
            Val::Uint(u) => *u == 0,
            Val::Double(f) => *f == 0.0,
            Val::Duration(n) => *n == 0,
            Val::Timestamp(t) => t.is_zero(),
            Val::Optional(o) => o.is_none(),
            Val::Struct(_, f) => f.is_empty(),
            v => v.len() == Some(0),
        }
    }
}

/// A member of an object; with a schema, only what it declares, under its escaped name.
fn json_member<'a>(m: &'a Map, hint: Hint<'a>, key: &str) -> Option<Val<'a>> {
    let Some(h) = hint else {
        return m.get(key).map(|v| Val::of_json(v, None));
    };
    if !h.properties.is_empty() || h.embedded_resource {
        let raw = super::types::unescape(key);
        if let Some(p) = h.properties.get(raw.as_str()) {
            // What is null is absent.
            return m.get(&raw).filter(|v| !v.is_null()).map(|v| Val::of_json(v, Some(p)));
        }
        if matches!(raw.as_str(), "apiVersion" | "kind" | "metadata") {
            return m.get(&raw).map(|v| Val::of_json(v, None));
        }
    }
    match h.additional_schema() {
        Some(a) => m.get(key).map(|v| Val::of_json(v, Some(a))),
        None => m.get(key).map(|v| Val::of_json(v, None)),
    }
}
