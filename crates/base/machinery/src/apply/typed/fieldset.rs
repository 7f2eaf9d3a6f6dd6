//! The set of every leaf field and list item that a value mentions.

use super::super::fieldpath::{PathElement, Set};
use super::{Atom, list_item, root_atom};
use keelson_api::{SchemaRef, Value};

/// The fields of an object. Elements that can't be named are left out: validation refuses them.
pub fn to_field_set(v: &Value, schema: &SchemaRef) -> Set {
    walk(v, root_atom(schema)).1
}

/// Whether the value is itself a member, and what of it is below.
fn walk(v: &Value, atom: Atom) -> (bool, Set) {
    let atom = atom.deduce(Some(v));
    let mut set = Set::new();
    if let Some(map) = atom.map {
        let Value::Object(m) = v else { return (map.atomic, set) };
        if map.atomic {
            return (true, set);
        }
        for (key, v) in m {
            let named = map.field(key);
            let ty = named.or(map.element);
            let (is_leaf, below) = ty.map(|ty| walk(v, ty.resolve())).unwrap_or_default();
            let is_empty = v.is_null() || v.as_object().is_some_and(|m| m.is_empty());
            let is_member = is_leaf || is_empty || named.is_none();
            set.put(&PathElement::Field(key.clone()), is_member, below);
        }
        return (false, set);
    }
    if atom.scalar.is_some() {
        return (true, set);
    }
    let Some(list) = atom.list else { return (false, set) };
    if !list.associative {
        return (true, set);
    }
    let items = v.as_array().into_iter().flatten();
    let mut steps: Vec<(PathElement, &Value)> = items.filter_map(|i| Some((list_item(&list, i).ok()?, i))).collect();
    steps.sort_by(|a, b| a.0.cmp(&b.0));
    for same in steps.chunk_by(|a, b| a.0 == b.0) {
        let below = match same {
            [(_, item)] => walk(item, list.element.resolve()).1,
            // What stands twice is owned as a whole.
            _ => Set::new(),
        };
        set.put(&same[0].0, true, below);
    }
    (false, set)
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
