//! Lists and sets.

use super::super::value::{CelError, Res, Val};
use super::{Found, ops};
use std::cmp::Ordering;

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    let sets = || -> Option<(Vec<Val<'a>>, Vec<Val<'a>>)> {
        let [a, b] = args else { return None };
        Some((a.items()?, b.items()?))
    };
    let all_in = |x: &[Val<'a>], y: &[Val<'a>]| x.iter().all(|v| y.iter().any(|w| w.equals(v)));
    Some(Ok(Val::Bool(match name {
        "sets.contains" => sets().map(|(a, b)| all_in(&b, &a))?,
        "sets.equivalent" => sets().map(|(a, b)| all_in(&a, &b) && all_in(&b, &a))?,
        "sets.intersects" => sets().map(|(a, b)| a.iter().any(|v| b.iter().any(|w| w.equals(v))))?,
        "lists.range" => {
            let [Val::Int(n)] = args else { return None };
            if *n > 1_000_000 {
                return Some(Err(CelError::new("range is too long")));
            }
            return Some(Ok(Val::list((0..*n).map(Val::Int).collect())));
        }
        _ => return None,
    })))
}

pub fn member<'a>(name: &str, target: &Val<'a>, args: &[Val<'a>]) -> Found<'a> {
    let items = target.items()?;
    Some(match (name, args) {
        ("size", []) => Ok(Val::Int(items.len() as i64)),
        ("isSorted", []) => is_sorted(&items),
        ("sum", []) if items.is_empty() => Ok(nothing(target)),
        ("sum", []) => sum(&items),
        ("min", []) => extreme(items, Ordering::is_lt, "min"),
        ("max", []) => extreme(items, Ordering::is_gt, "max"),
        ("indexOf", [v]) => Ok(Val::Int(
            items.iter().position(|x| x.equals(v)).map_or(-1, |i| i as i64),
        )),
        ("lastIndexOf", [v]) => Ok(Val::Int(
            items.iter().rposition(|x| x.equals(v)).map_or(-1, |i| i as i64),
        )),
        ("includes", [v]) => Ok(Val::Bool(items.iter().any(|x| x.equals(v)))),
        ("join", []) => join(&items, ""),
        ("join", [Val::Str(sep)]) => join(&items, sep),
        ("reverse", []) => Ok(Val::list(items.into_iter().rev().collect())),
        ("slice", [Val::Int(from), Val::Int(to)]) => slice(items, *from, *to),
        ("flatten", []) => Ok(Val::list(flatten(items, 1))),
        ("flatten", [Val::Int(depth)]) if *depth >= 0 => Ok(Val::list(flatten(items, *depth))),
        ("flatten", [Val::Int(_)]) => Err(CelError::new("level must be non-negative")),
        ("sort", []) => sort_pairs(items.into_iter().map(|v| (v.clone(), v)).collect()),
        ("distinct", []) => {
            let mut out: Vec<Val<'a>> = Vec::new();
            for v in items {
                if !out.iter().any(|w| w.equals(&v)) {
                    out.push(v);
                }
            }
            Ok(Val::list(out))
        }
        ("first", []) => Ok(items.into_iter().next().map_or(Val::Optional(None), Val::some)),
        ("last", []) => Ok(items.into_iter().next_back().map_or(Val::Optional(None), Val::some)),
        ("unwrapOpt", []) => Ok(unwrap(items)),
        _ => return None,
    })
}

pub fn unwrap<'a>(items: Vec<Val<'a>>) -> Val<'a> {
    Val::list(
        items
            .into_iter()
            .filter_map(|v| match v {
                Val::Optional(o) => o.map(|v| *v),
                _ => None,
            })
            .collect(),
    )
}

fn is_sorted<'a>(items: &[Val<'a>]) -> Res<Val<'a>> {
    for pair in items.windows(2) {
        match pair[0].compare(&pair[1]) {
            None => return Err(CelError::no_overload()),
            Some(Ordering::Greater) => return Ok(Val::Bool(false)),
            _ => {}
        }
    }
    Ok(Val::Bool(true))
}

/// The sum of no elements, of the kind that the list would have.
fn nothing<'a>(list: &Val<'a>) -> Val<'a> {
    let node = list.list_node().and_then(|h| h.items.as_deref());
    match node.map(|n| (n.ty.as_str(), n.checks.format.as_str())) {
        Some(("string", "duration")) => Val::Duration(0),
        Some(("number", _)) => Val::Double(0.0),
        _ => Val::Int(0),
    }
}

fn sum<'a>(items: &[Val<'a>]) -> Res<Val<'a>> {
    let Some((first, rest)) = items.split_first() else {
        return Ok(Val::Int(0));
    };
    rest.iter().try_fold(first.clone(), |sum, v| ops::add(&sum, v))
}

fn extreme<'a>(items: Vec<Val<'a>>, better: fn(Ordering) -> bool, name: &str) -> Res<Val<'a>> {
    let mut items = items.into_iter();
    let mut best = items
        .next()
        .ok_or_else(|| CelError::new(format!("{name} called on empty list")))?;
    for v in items {
        match v.compare(&best) {
            None => return Err(CelError::no_overload()),
            Some(o) if better(o) => best = v,
            _ => {}
        }
    }
    Ok(best)
}

fn join<'a>(items: &[Val<'a>], sep: &str) -> Res<Val<'a>> {
    let parts: Option<Vec<&str>> = items.iter().map(Val::as_str).collect();
    parts.map(|p| Val::str(p.join(sep))).ok_or_else(CelError::no_overload)
}

fn slice<'a>(items: Vec<Val<'a>>, from: i64, to: i64) -> Res<Val<'a>> {
    let n = items.len() as i64;
    if from < 0 || to < 0 {
        return Err(CelError::new(format!(
            "cannot slice({from}, {to}), negative indexes not supported"
        )));
    }
    if from > to {
        return Err(CelError::new(format!(
            "cannot slice({from}, {to}), start index must be less than or equal to end index"
        )));
    }
    if to > n {
        return Err(CelError::new(format!("cannot slice({from}, {to}), list is length {n}")));
    }
    Ok(Val::list(items[from as usize..to as usize].to_vec()))
}

fn flatten(items: Vec<Val>, depth: i64) -> Vec<Val> {
    let mut out = Vec::new();
    for v in items {
        match v.items() {
            Some(inner) if depth > 0 => out.extend(flatten(inner, depth - 1)),
            _ => out.push(v),
        }
    }
    out
}

/// Sorts by keys that must be of one comparable kind; gives back the values.
pub fn sort_pairs<'a>(mut pairs: Vec<(Val<'a>, Val<'a>)>) -> Res<Val<'a>> {
    if pairs.windows(2).any(|w| w[0].0.compare(&w[1].0).is_none()) {
        return Err(CelError::new("list elements must have the same type"));
    }
    pairs.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(Ordering::Equal));
    Ok(Val::list(pairs.into_iter().map(|(_, v)| v).collect()))
}
