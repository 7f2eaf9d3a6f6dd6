//! Resource quantities.

use super::super::value::{CelError, Val};
use super::Found;
use keelson_api::Quantity;
use std::cmp::Ordering;

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    match (name, args) {
        ("quantity", [Val::Str(s)]) => Some(
            Quantity::parse(s)
                .map(Val::Quantity)
                .map_err(|e| CelError::new(e.to_string())),
        ),
        ("isQuantity", [Val::Str(s)]) => Some(Ok(Val::Bool(Quantity::parse(s).is_ok()))),
        _ => None,
    }
}

pub fn member<'a>(name: &str, q: &Quantity, args: &[Val<'a>]) -> Found<'a> {
    let with_int = |i: i64| Quantity::new(i, q.format());
    Some(Ok(match (name, args) {
        ("sign", []) => Val::Int(if q.is_zero() {
            0
        } else if q.is_negative() {
            -1
        } else {
            1
        }),
        ("isGreaterThan", [Val::Quantity(o)]) => Val::Bool(q > o),
        ("isLessThan", [Val::Quantity(o)]) => Val::Bool(q < o),
        ("compareTo", [Val::Quantity(o)]) => Val::Int(match q.cmp(o) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }),
        ("asApproximateFloat", []) => Val::Double(q.as_f64()),
        ("asInteger", []) if q.is_whole() => Val::Int(q.value()),
        ("asInteger", []) => return Some(Err(CelError::new("cannot convert value to integer"))),
        ("isInteger", []) => Val::Bool(q.is_whole()),
        ("add", [Val::Quantity(o)]) => {
            let mut sum = *q;
            sum.add(*o);
            Val::Quantity(sum)
        }
        ("add", [Val::Int(i)]) => {
            let mut sum = *q;
            sum.add(with_int(*i));
            Val::Quantity(sum)
        }
        ("sub", [Val::Quantity(o)]) => {
            let mut sum = *q;
            sum.sub(*o);
            Val::Quantity(sum)
        }
        ("sub", [Val::Int(i)]) => {
            let mut sum = *q;
            sum.sub(with_int(*i));
            Val::Quantity(sum)
        }
        _ => return None,
    }))
}
