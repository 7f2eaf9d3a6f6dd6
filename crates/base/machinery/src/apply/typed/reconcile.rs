//! Bringing an old field set in line with a type that has since become atomic somewhere.

use super::super::fieldpath::{PathElement, Set};
use super::{Atom, root_atom};
use keelson_api::SchemaRef;

/// The set as the type has it now, or `None` when nothing has to change.
pub fn reconcile(set: &Set, schema: &SchemaRef) -> Option<Set> {
    let mut collapse = Set::new();
    walk(Some(set), root_atom(schema), false, &mut Vec::new(), &mut collapse);
    if collapse.is_empty() {
        return None;
    }
    Some(set.recursive_difference(&collapse).union(&collapse))
}

fn walk(set: Option<&Set>, atom: Atom, owned_whole: bool, path: &mut Vec<PathElement>, collapse: &mut Set) {
    if let Some(map) = atom.map {
        if map.is_untyped() {
            return;
        }
        if map.atomic && !owned_whole {
            if set.is_some_and(|s| !s.is_empty()) {
                collapse.insert(path);
            }
            return;
        }
        each(set, path, |pe, below, whole, path| {
            let PathElement::Field(name) = pe else { return };
            if let Some(ty) = map.at(name) {
                walk(below, ty.resolve(), whole, path, collapse);
            }
        });
    } else if atom.scalar.is_some() {
        // Leaves have nothing below them.
    } else if let Some(list) = atom.list {
        if !list.associative && !owned_whole {
            collapse.insert(path);
            return;
        }
        each(set, path, |_, below, whole, path| {
            walk(below, list.element.resolve(), whole, path, collapse)
        });
    }
}

/// Visits each step of a node: with what is below it, and whether it is owned as a whole.
fn each(
    set: Option<&Set>,
    path: &mut Vec<PathElement>,
    mut f: impl FnMut(&PathElement, Option<&Set>, bool, &mut Vec<PathElement>),
) {
    let Some(set) = set else { return };
    for (pe, below) in set.children.iter().filter(|(pe, _)| !set.has_member(pe)) {
        path.push(pe.clone());
        f(pe, Some(below), false, path);
        path.pop();
    }
    for pe in &set.members {
        let below = set.child(pe);
        path.push(pe.clone());
        f(pe, below, below.is_none(), path);
        path.pop();
    }
}
