//! The functions of expressions, by name and by the kinds of their arguments.

mod convert;
mod format;
mod lists;
mod net;
mod ops;
mod optional;
mod quantity;
pub(super) mod semver;
mod strings;
mod time;
pub(super) mod url;

pub(super) use lists::sort_pairs;

use super::value::{CelError, Res, Val};
use cel::common::ast::LiteralValue;

/// A function's part: `None` when it has nothing of that name for these arguments.
type Found<'a> = Option<Res<Val<'a>>>;

/// Calls a function; a member function has its receiver as `target`.
pub(super) fn call<'a>(name: &str, target: Option<Val<'a>>, args: Vec<Val<'a>>) -> Res<Val<'a>> {
    let found = match &target {
        None => global(name, &args),
        Some(t) => member(name, t, &args),
    };
    found.unwrap_or_else(|| Err(CelError::no_overload()))
}

/// Whether a constant can be the argument of `duration`, `timestamp` or `matches`.
pub(super) fn is_well_formed(function: &str, l: &LiteralValue) -> bool {
    let v = match l {
        LiteralValue::String(s) if function == "matches" => return strings::regex(s.inner()).is_ok(),
        LiteralValue::String(s) => Val::str(s.inner()),
        LiteralValue::Int(i) => Val::Int(*i.inner()),
        _ => return true,
    };
    !matches!(convert::call(function, &[v]), Some(Err(_)))
}

fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    ops::call(name, args)
        .or_else(|| convert::call(name, args))
        .or_else(|| strings::global(name, args))
        .or_else(|| lists::global(name, args))
        .or_else(|| optional::global(name, args))
        .or_else(|| quantity::global(name, args))
        .or_else(|| url::global(name, args))
        .or_else(|| net::global(name, args))
        .or_else(|| semver::global(name, args))
        .or_else(|| format::global(name, args))
}

fn member<'a>(name: &str, target: &Val<'a>, args: &[Val<'a>]) -> Found<'a> {
    match target {
        Val::Str(s) => strings::member(name, s, args),
        Val::List(_) | Val::JsonList(..) | Val::United(..) => lists::member(name, target, args),
        Val::Map(_) | Val::Domains(_) | Val::JsonMap(..) | Val::Bytes(_) if name == "size" => ops::size(target),
        Val::Timestamp(t) => time::of_timestamp(name, t, args),
        Val::Duration(d) => time::of_duration(name, *d, args),
        Val::Optional(o) => optional::member(name, o, args),
        Val::Quantity(q) => quantity::member(name, q, args),
        Val::Url(u) => url::member(name, u, args),
        Val::Ip(ip) => net::ip_member(name, ip, args),
        Val::Cidr(ip, n) => net::cidr_member(name, *ip, *n, args),
        Val::Semver(v) => semver::member(name, v, args),
        Val::Format(f) => format::member(name, f, args),
        _ => None,
    }
}

/// What a call costs, by the sizes of its arguments.
pub(super) fn cost<'a>(name: &str, target: Option<&Val<'a>>, args: &[Val<'a>]) -> u64 {
    let size = |v: Option<&Val>| v.and_then(Val::len).unwrap_or(1) as u64;
    let tenth = |n: u64| n.div_ceil(10);
    let first = target.or(args.first());
    let second = if target.is_some() { args.first() } else { args.get(1) };
    match name {
        "contains" => tenth(size(first)).saturating_mul(tenth(size(second))).max(1),
        "matches" | "find" | "findAll" => {
            // The text is traversed once for each quarter of the pattern.
            tenth(size(first) + 1).saturating_mul(size(second).div_ceil(4)).max(1)
        }
        "startsWith" | "endsWith" => tenth(size(second)).max(1),
        "_+_" => match first {
            Some(Val::Str(_) | Val::Bytes(_)) => tenth(size(first) + size(second)).max(1),
            _ => 1,
        },
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => match first {
            Some(Val::Str(_) | Val::Bytes(_)) => tenth(size(first).min(size(second))).max(1),
            Some(v) if v.items().is_some() => size(first).min(size(second)).max(1),
            _ => 1,
        },
        "@in" => match second {
            Some(v) if v.items().is_some() => size(second).max(1),
            _ => 1,
        },
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" | "includes" | "slice" | "distinct" | "sort"
        | "reverse" | "flatten" | "join"
            if first.is_some_and(|v| v.items().is_some()) =>
        {
            size(first).max(1)
        }
        "lowerAscii" | "upperAscii" | "trim" | "replace" | "split" | "substring" | "charAt" | "indexOf"
        | "lastIndexOf" | "format" | "reverse" | "strings.quote" | "url" | "isURL" | "quantity" | "isQuantity"
        | "ip" | "isIP" | "cidr" | "isCIDR" | "string" | "bytes" => tenth(size(first)).max(1),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => {
            size(first).saturating_mul(size(second)).saturating_mul(2).max(1)
        }
        "check" => 350_000,
        _ => 1,
    }
}
