//! Merging a partial object into a whole one.
//!
//! Nothing is removed. A leaf that both have keeps the partial one's value. Lists keep the order of the whole one where
//! the partial one says nothing else, and take the partial one's order where it does.

use super::super::fieldpath::PathElement;
use super::validate::check_scalar;
use super::{Atom, ListAtom, TypedErrors, list_item, paired, root_atom};
use keelson_api::{Map, SchemaRef, Str, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Merges `config` into `live`.
pub fn merge(live: &Value, config: &Value, schema: &SchemaRef) -> Result<Value, TypedErrors> {
    let mut errs = TypedErrors::default();
    let out = walk(Some(live), Some(config), root_atom(schema), &mut errs);
    errs.into_result()?;
    Ok(out.unwrap_or_default())
}

fn walk(l: Option<&Value>, r: Option<&Value>, atom: Atom, errs: &mut TypedErrors) -> Option<Value> {
    let (al, ar) = (atom.deduce(l), atom.deduce(r));
    if r.is_none() {
        match l {
            Some(v) if is_sound(v, al) => Some(v.clone()),
            _ => handle(l, r, al, errs),
        }
    } else if l.is_none() || al.kinds() == ar.kinds() {
        handle(l, r, ar, errs)
    } else {
        handle(l, r, al, errs);
        handle(l, r, ar, errs)
    }
}

/// Whether there is nothing to complain of in a value: then it comes out as it is where the other side has none.
fn is_sound(v: &Value, atom: Atom) -> bool {
    match (v, atom.map, atom.scalar, atom.list) {
        (Value::Object(m), Some(map), ..) => {
            let below = |(key, v): (&Str, &Value)| {
                let atom = map.at(key).map(|t| t.resolve()).unwrap_or_default();
                is_sound(v, atom.deduce(Some(v)))
            };
            map.atomic || m.iter().all(below)
        }
        (Value::Array(items), None, None, Some(list)) if list.associative => {
            let element = list.element.resolve();
            let is_named = |item| list_item(&list, item).is_ok() && is_sound(item, element.deduce(Some(item)));
            items.iter().all(is_named)
        }
        (_, None, None, None) => false,
        _ => true,
    }
}

fn keep(l: Option<&Value>, r: Option<&Value>) -> Option<Value> {
    r.or(l).cloned()
}

fn below(pe: &PathElement, l: Option<&Value>, r: Option<&Value>, atom: Atom, errs: &mut TypedErrors) -> Option<Value> {
    let mut own = TypedErrors::default();
    let out = walk(l, r, atom, &mut own);
    errs.extend(own.prefixed(pe));
    out
}

fn handle(l: Option<&Value>, r: Option<&Value>, atom: Atom, errs: &mut TypedErrors) -> Option<Value> {
    if let Some(map) = atom.map {
        let (lm, rm) = (l.and_then(Value::as_object), r.and_then(Value::as_object));
        let empty = lm.is_none_or(|m| m.is_empty()) && rm.is_none_or(|m| m.is_empty());
        if map.atomic || empty {
            return keep(l, r);
        }
        let mut out = Map::with_capacity(lm.map_or(0, Map::len).max(rm.map_or(0, Map::len)));
        let nothing = Map::new();
        let (lm, rm) = (lm.unwrap_or(&nothing), rm.unwrap_or(&nothing));
        for (key, l, r) in paired(lm, rm) {
            let atom = map.at(key).map(|t| t.resolve()).unwrap_or_default();
            let pe = PathElement::Field(key.clone());
            if let Some(v) = below(&pe, l, r, atom, errs) {
                out.push(key.clone(), v);
            }
        }
        return (!out.is_empty()).then_some(Value::Object(out));
    }
    if let Some(scalar) = atom.scalar {
        let (le, re) = (check_scalar(scalar, l, "lhs: "), check_scalar(scalar, r, "rhs: "));
        if !le.is_empty() && !re.is_empty() {
            errs.extend(le);
            errs.extend(re);
            return None;
        }
        return keep(l, r);
    }
    let Some(list) = atom.list else {
        errs.extend(TypedErrors::one("schema error: invalid atom: inlined"));
        return None;
    };
    let (la, ra) = (l.and_then(Value::as_array), r.and_then(Value::as_array));
    let empty = la.is_none_or(|a| a.is_empty()) && ra.is_none_or(|a| a.is_empty());
    if !list.associative || empty {
        return keep(l, r);
    }
    let none = Vec::new();
    let out = items(&list, la.unwrap_or(&none), ra.unwrap_or(&none), errs);
    (!out.is_empty()).then_some(Value::Array(out))
}

/// The steps of a list's elements, and the value at each (null where a step occurs twice).
fn index<'a>(
    list: &ListAtom,
    items: &'a [Value],
    allow_duplicates: bool,
    errs: &mut TypedErrors,
) -> (Vec<PathElement>, BTreeMap<PathElement, Option<&'a Value>>) {
    let (mut steps, mut seen) = (Vec::with_capacity(items.len()), BTreeMap::new());
    for (i, item) in items.iter().enumerate() {
        let pe = match list_item(list, item) {
            Ok(pe) => pe,
            Err(e) => {
                errs.extend(TypedErrors::one(format!("element {i}: {e}")));
                continue;
            }
        };
        if seen.contains_key(&pe) {
            if !allow_duplicates {
                errs.extend(TypedErrors::one(format!("duplicate entries for key {pe}")));
                continue;
            }
            seen.insert(pe.clone(), None);
        } else {
            seen.insert(pe.clone(), Some(item));
        }
        steps.push(pe);
    }
    (steps, seen)
}

static NULL: Value = Value::Null;

fn items(list: &ListAtom, l: &[Value], r: &[Value], errs: &mut TypedErrors) -> Vec<Value> {
    let (rs, rv) = index(list, r, false, errs);
    let (ls, lv) = index(list, l, true, errs);
    if !errs.is_empty() {
        return Vec::new();
    }
    let mut shared = rs.iter().filter(|pe| lv.contains_key(*pe));
    let mut next = shared.next();
    let mut done = BTreeSet::new();
    let mut out = Vec::with_capacity(l.len().max(r.len()));
    // A step that occurs twice on the left merges with null rather than with either.
    let left = |pe: &PathElement| lv.get(pe).map(|v| v.unwrap_or(&NULL));
    let right = |pe: &PathElement| rv.get(pe).map(|v| v.unwrap_or(&NULL));
    let mut emit = |pe: &PathElement, l: Option<&Value>, r: Option<&Value>| {
        // Upstream drops errors below list items here: both sides were validated before.
        out.extend(below(pe, l, r, list.element.resolve(), &mut TypedErrors::default()));
    };
    let (mut i, mut j) = (0, 0);
    while i < ls.len() || j < rs.len() {
        if i < ls.len() && j < rs.len() {
            let pe = &ls[i];
            if *pe == rs[j] {
                done.insert(pe);
                emit(pe, left(pe), right(pe));
                i += 1;
                j += 1;
                next = shared.next();
                continue;
            }
            if rv.contains_key(pe) && next.is_some_and(|n| n != pe) {
                // Shared, but not the one whose turn it is: it comes when the right side reaches it.
                i += 1;
                continue;
            }
        }
        if i < ls.len() {
            let pe = &ls[i];
            if !rv.contains_key(pe) {
                emit(pe, Some(&l[i]), None);
                i += 1;
                continue;
            }
            if done.contains(pe) {
                i += 1;
            }
        }
        if j < rs.len() {
            let pe = &rs[j];
            done.insert(pe);
            emit(pe, left(pe), right(pe));
            j += 1;
            if next == Some(pe) {
                next = shared.next();
            }
        }
    }
    out
}
