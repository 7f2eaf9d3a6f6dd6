//! Whether a set of fields, as `managedFields` has it, can stay as it is written.

use super::super::fields_v1;
use super::{Atom, root_atom};
use keelson_api::{Map, SchemaRef, Value};

/// True: reading the set, [reconciling](super::reconcile()) it with the type and writing it again gives the same.
/// False: that isn't known.
pub fn is_settled(set: &Map, schema: &SchemaRef) -> bool {
    !set.is_empty() && !set.contains_key(".") && below(set, Some(root_atom(schema)))
}

/// `atom`: what the type has here; `None`: what it has doesn't matter.
fn below(set: &Map, atom: Option<Atom>) -> bool {
    let map = atom.and_then(|a| a.map).filter(|map| !map.is_untyped());
    let list = atom
        .filter(|a| a.map.is_none() && a.scalar.is_none())
        .and_then(|a| a.list);
    // Something is owned of what is owned as a whole.
    if map.is_some_and(|map| map.atomic) || list.is_some_and(|list| !list.associative) {
        return false;
    }
    set.iter().all(|(step, v)| {
        let Value::Object(inner) = v else { return false };
        if step == "." {
            return inner.is_empty() && set.len() > 1;
        }
        if !fields_v1::is_as_written(step) {
            return false;
        }
        let atom = match (map, list) {
            _ if inner.is_empty() => return true,
            (Some(map), _) => step.strip_prefix("f:").and_then(|name| map.at(name)),
            (_, Some(list)) => Some(list.element),
            _ => None,
        };
        below(inner, atom.map(|ty| ty.resolve()))
    })
}
