//! Optional values.

use super::super::value::{CelError, Val};
use super::{Found, lists};

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    match (name, args) {
        ("optional.of", [v]) => Some(Ok(Val::some(v.clone()))),
        ("optional.ofNonZeroValue", [v]) => Some(Ok(if v.is_zero() {
            Val::Optional(None)
        } else {
            Val::some(v.clone())
        })),
        ("optional.none", []) => Some(Ok(Val::Optional(None))),
        ("optional.unwrap", [v]) => v.items().map(|items| Ok(lists::unwrap(items))),
        _ => None,
    }
}

pub fn member<'a>(name: &str, of: &Option<Box<Val<'a>>>, args: &[Val<'a>]) -> Found<'a> {
    Some(match (name, args) {
        ("hasValue", []) => Ok(Val::Bool(of.is_some())),
        ("value", []) => of
            .as_deref()
            .cloned()
            .ok_or_else(|| CelError::new("optional.none() dereference")),
        ("or", [other]) => Ok(if of.is_some() {
            Val::Optional(of.clone())
        } else {
            other.clone()
        }),
        ("orValue", [other]) => Ok(of.as_deref().cloned().unwrap_or_else(|| other.clone())),
        _ => return None,
    })
}
