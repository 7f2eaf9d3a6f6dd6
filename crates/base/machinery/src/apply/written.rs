//! Questions about sets of fields that are answered from their written form, along another set.

use super::fieldpath::{PathElement, Set};
use super::fields_v1::element_to_string;
use keelson_api::Map;

/// What the written form has at a step.
fn at<'a>(written: &'a Map, step: &PathElement) -> Option<&'a Map> {
    written.obj(&element_to_string(step))
}

fn has(written: &Map, step: &PathElement) -> bool {
    at(written, step).is_some_and(|below| below.is_empty() || below.contains_key("."))
}

/// Whether a member of `set` is one of the written set, too.
pub fn touches(written: &Map, set: &Set) -> bool {
    let below = |(step, below): &(PathElement, Set)| at(written, step).is_some_and(|w| touches(w, below));
    set.members.iter().any(|step| has(written, step)) || set.children.iter().any(below)
}

/// Whether all members of `set` are members of the written set.
pub fn covers(written: &Map, set: &Set) -> bool {
    let below = |(step, below): &(PathElement, Set)| match at(written, step) {
        Some(w) => covers(w, below),
        None => below.is_empty(),
    };
    set.members.iter().all(|step| has(written, step)) && set.children.iter().all(below)
}
