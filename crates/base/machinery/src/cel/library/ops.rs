//! Operators: arithmetic, comparison, membership, indexing, size.

use super::super::eval::optional_member;
use super::super::value::{CelError, Key, Res, Val};
use super::Found;
use keelson_api::Time;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

pub fn call<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    match (name, args) {
        ("_==_", [a, b]) => Some(Ok(Val::Bool(a.equals(b)))),
        ("_!=_", [a, b]) => Some(Ok(Val::Bool(!a.equals(b)))),
        ("_<_", [a, b]) => Some(ordered(a, b, Ordering::is_lt)),
        ("_<=_", [a, b]) => Some(ordered(a, b, Ordering::is_le)),
        ("_>_", [a, b]) => Some(ordered(a, b, Ordering::is_gt)),
        ("_>=_", [a, b]) => Some(ordered(a, b, Ordering::is_ge)),
        ("!_", [a]) => Some(a.as_bool().map(|b| Val::Bool(!b))),
        ("-_", [Val::Int(i)]) => Some(i.checked_neg().map(Val::Int).ok_or_else(overflow)),
        ("-_", [Val::Double(f)]) => Some(Ok(Val::Double(-f))),
        ("_+_", [a, b]) => Some(add(a, b)),
        ("_-_", [a, b]) => Some(subtract(a, b)),
        ("_*_", [Val::Int(a), Val::Int(b)]) => Some(a.checked_mul(*b).map(Val::Int).ok_or_else(overflow)),
        ("_*_", [Val::Uint(a), Val::Uint(b)]) => Some(a.checked_mul(*b).map(Val::Uint).ok_or_else(unsigned_overflow)),
        ("_*_", [Val::Double(a), Val::Double(b)]) => Some(Ok(Val::Double(a * b))),
        ("_/_", [Val::Int(_), Val::Int(0)]) | ("_/_", [Val::Uint(_), Val::Uint(0)]) => {
            Some(Err(CelError::new("division by zero")))
        }
        ("_/_", [Val::Int(a), Val::Int(b)]) => Some(a.checked_div(*b).map(Val::Int).ok_or_else(overflow)),
        ("_/_", [Val::Uint(a), Val::Uint(b)]) => Some(Ok(Val::Uint(a / b))),
        ("_/_", [Val::Double(a), Val::Double(b)]) => Some(Ok(Val::Double(a / b))),
        ("_%_", [Val::Int(_), Val::Int(0)]) | ("_%_", [Val::Uint(_), Val::Uint(0)]) => {
            Some(Err(CelError::new("modulus by zero")))
        }
        ("_%_", [Val::Int(a), Val::Int(b)]) => Some(a.checked_rem(*b).map(Val::Int).ok_or_else(overflow)),
        ("_%_", [Val::Uint(a), Val::Uint(b)]) => Some(Ok(Val::Uint(a % b))),
        ("@in", [a, b]) => Some(contains(b, a)),
        ("_[_]", [a, b]) => Some(index(a, b)),
        ("_[?_]", [a, b]) => Some(optional_member(a.clone(), b)),
        ("size", [a]) => size(a),
        _ => None,
    }
}

fn overflow() -> CelError {
    CelError::new("integer overflow")
}
fn unsigned_overflow() -> CelError {
    CelError::new("unsigned integer overflow")
}

pub fn size<'a>(v: &Val<'a>) -> Found<'a> {
    v.len().map(|n| Ok(Val::Int(n as i64)))
}

fn ordered<'a>(a: &Val<'a>, b: &Val<'a>, test: fn(Ordering) -> bool) -> Res<Val<'a>> {
    match a.compare(b) {
        Some(o) => Ok(Val::Bool(test(o))),
        // NaN has no order, but its comparison is no error.
        None if matches!((a, b), (Val::Double(_), _) | (_, Val::Double(_))) => Ok(Val::Bool(false)),
        None => Err(CelError::no_overload()),
    }
}

pub fn shift(t: &Time, nanos: i64) -> Res<Time> {
    let total = i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos) + i128::from(nanos);
    let seconds = total.div_euclid(1_000_000_000);
    if !(-62_135_596_800..=253_402_300_799).contains(&seconds) {
        return Err(CelError::new("timestamp overflow"));
    }
    Ok(Time {
        seconds: seconds as i64,
        nanos: total.rem_euclid(1_000_000_000) as u32,
    })
}

pub fn add<'a>(a: &Val<'a>, b: &Val<'a>) -> Res<Val<'a>> {
    Ok(match (a, b) {
        (Val::Int(a), Val::Int(b)) => Val::Int(a.checked_add(*b).ok_or_else(overflow)?),
        (Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_add(*b).ok_or_else(unsigned_overflow)?),
        (Val::Double(a), Val::Double(b)) => Val::Double(a + b),
        (Val::Str(a), Val::Str(b)) => Val::Str(Cow::Owned(format!("{a}{b}"))),
        (Val::Bytes(a), Val::Bytes(b)) => Val::Bytes(a.iter().chain(b.iter()).copied().collect()),
        (Val::Timestamp(t), Val::Duration(d)) | (Val::Duration(d), Val::Timestamp(t)) => Val::Timestamp(shift(t, *d)?),
        (Val::Duration(a), Val::Duration(b)) => {
            Val::Duration(a.checked_add(*b).ok_or_else(|| CelError::new("duration overflow"))?)
        }
        (a, b) => {
            let (Some(mut x), Some(y)) = (a.items(), b.items()) else {
                return Err(CelError::no_overload());
            };
            match a.list_type() {
                // Sets and lists with keys are united, as apply would.
                "set" => x.extend(
                    y.into_iter()
                        .filter(|v| !a.items().into_iter().flatten().any(|w| w.equals(v))),
                ),
                "map" => {
                    for v in y {
                        match x.iter().position(|w| a.same_key(w, &v)) {
                            Some(i) => x[i] = v,
                            None => x.push(v),
                        }
                    }
                }
                _ => x.extend(y),
            }
            match a.list_node().filter(|h| matches!(h.list_type.as_str(), "set" | "map")) {
                Some(h) => Val::United(Arc::new(x), h),
                None => Val::List(Arc::new(x)),
            }
        }
    })
}

fn subtract<'a>(a: &Val<'a>, b: &Val<'a>) -> Res<Val<'a>> {
    Ok(match (a, b) {
        (Val::Int(a), Val::Int(b)) => Val::Int(a.checked_sub(*b).ok_or_else(overflow)?),
        (Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_sub(*b).ok_or_else(unsigned_overflow)?),
        (Val::Double(a), Val::Double(b)) => Val::Double(a - b),
        (Val::Timestamp(t), Val::Duration(d)) => Val::Timestamp(shift(
            t,
            d.checked_neg().ok_or_else(|| CelError::new("duration overflow"))?,
        )?),
        (Val::Duration(a), Val::Duration(b)) => {
            Val::Duration(a.checked_sub(*b).ok_or_else(|| CelError::new("duration overflow"))?)
        }
        (Val::Timestamp(a), Val::Timestamp(b)) => {
            let nanos = |t: &Time| i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos);
            let d = i64::try_from(nanos(a) - nanos(b)).map_err(|_| CelError::new("duration overflow"))?;
            Val::Duration(d)
        }
        _ => return Err(CelError::no_overload()),
    })
}

fn contains<'a>(container: &Val<'a>, item: &Val<'a>) -> Res<Val<'a>> {
    if let Some(items) = container.items() {
        return Ok(Val::Bool(items.iter().any(|v| v.equals(item))));
    }
    if let Val::Domains(m) = container {
        return Ok(Val::Bool(m.contains_key(&Key::of(item)?)));
    }
    container.member(item).map(|v| Val::Bool(v.is_some()))
}

fn index<'a>(container: &Val<'a>, key: &Val<'a>) -> Res<Val<'a>> {
    if let Val::Optional(of) = container {
        return match of {
            None => Ok(Val::Optional(None)),
            Some(v) => optional_member((**v).clone(), key),
        };
    }
    if container.items().is_some() {
        let i = match key {
            Val::Int(i) => *i,
            Val::Uint(u) => i64::try_from(*u).map_err(|_| CelError::new(format!("index out of bounds: {u}")))?,
            Val::Double(f) if f.fract() == 0.0 => *f as i64,
            _ => return Err(CelError::no_overload()),
        };
        return container.element(i).unwrap_or_else(|| Err(CelError::no_overload()));
    }
    match container.member(key)? {
        Some(v) => Ok(v),
        None => {
            let shown = match key {
                Val::Str(s) => s.to_string(),
                other => other.to_json().map(|v| crate::go::go_value(&v)).unwrap_or_default(),
            };
            Err(CelError::new(format!("no such key: {shown}")))
        }
    }
}
