//! The set of every leaf field and list item that a value mentions.

use super::super::fieldpath::{PathElement, Set};
use super::{Atom, list_item, root_atom};
use keelson_api::{SchemaRef, Value};
use std::collections::BTreeSet;

/// The fields of an object. Elements that can't be named are left out: validation refuses them.
pub fn to_field_set(v: &Value, schema: &SchemaRef) -> Set {
    let mut set = Set::new();
    walk(v, root_atom(schema), &mut Vec::new(), &mut set);
    set
}

fn walk(v: &Value, atom: Atom, path: &mut Vec<PathElement>, set: &mut Set) {
    let atom = atom.deduce(Some(v));
    if let Some(map) = atom.map {
        if map.atomic {
            set.insert(path);
            return;
        }
        let Value::Object(m) = v else { return };
        for (key, v) in m {
            path.push(PathElement::Field(key.clone()));
            let named = map.field(key);
            if let Some(ty) = named.or(map.element) {
                walk(v, ty.resolve(), path, set);
            }
            let empty = v.is_null() || v.as_object().is_some_and(|m| m.is_empty());
            if empty || named.is_none() {
                set.insert(path);
            }
            path.pop();
        }
    } else if atom.scalar.is_some() {
        set.insert(path);
    } else if let Some(list) = atom.list {
        if !list.associative {
            set.insert(path);
            return;
        }
        let Value::Array(items) = v else { return };
        let steps: Vec<Option<PathElement>> = items.iter().map(|i| list_item(&list, i).ok()).collect();
        let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
        for pe in steps.iter().flatten() {
            if !seen.insert(pe) {
                twice.insert(pe);
            }
        }
        for pe in &twice {
            path.push((*pe).clone());
            set.insert(path);
            path.pop();
        }
        for (item, pe) in items.iter().zip(&steps) {
            let Some(pe) = pe.as_ref().filter(|pe| !twice.contains(pe)) else {
                continue;
            };
            path.push(pe.clone());
            walk(item, list.element.resolve(), path, set);
            set.insert(path);
            path.pop();
        }
    }
}

/// The set with every named field on the way to a member made a member too.
pub fn ensure_named_fields(set: &Set, schema: &SchemaRef) -> Set {
    ensure(set, root_atom(schema))
}

fn ensure(set: &Set, atom: Atom) -> Set {
    let mut out = Set {
        members: set.members.clone(),
        children: Vec::with_capacity(set.children.len()),
    };
    for (pe, child) in &set.children {
        let below = match pe {
            PathElement::Field(name) => {
                if atom.map.is_some_and(|m| m.field(name).is_some()) {
                    out.insert(std::slice::from_ref(pe));
                }
                atom.map.and_then(|m| m.at(name))
            }
            PathElement::Key(_) => atom.list.map(|l| l.element),
            _ => None,
        };
        out.children.push((
            pe.clone(),
            ensure(child, below.map(|t| t.resolve()).unwrap_or_default()),
        ));
    }
    out
}
