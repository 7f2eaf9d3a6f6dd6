//! Who makes an object owns what it says beyond what nobody has to say: written at once, without sets in between.
//!
//! It is [`compare`](super::compare) with an object's zero value, of which what was removed doesn't matter, in the form that `managedFields`
//! have. What needs more than one look (a value of several possible types, elements that are there already) is left to that.

use super::super::fieldpath::{PathElement, Set, equal_values};
use super::super::fields_v1::element_to_string;
use super::{Atom, ListAtom, list_item, paired, root_atom};
use keelson_api::{Map, SchemaRef, Str, Value};

/// Fields that aren't owned: with all that is below them, or alone.
#[derive(Clone, Copy, Default)]
struct Not<'a> {
    below: Option<&'a Set>,
    alone: Option<&'a Set>,
}

impl<'a> Not<'a> {
    fn is_anything(self) -> bool {
        self.below.is_some() || self.alone.is_some()
    }
    fn under(self, step: &PathElement) -> Not<'a> {
        Not {
            below: self.below.and_then(|set| set.child(step)),
            alone: self.alone.and_then(|set| set.child(step)),
        }
    }
}

/// It has to be compared.
struct Unclear;

/// What `new` says that `zero` doesn't, without `below` and what is below it, and without `alone`. `None`: it isn't told here.
pub fn first(zero: &Value, new: &Value, schema: &SchemaRef, below: &Set, alone: &Set) -> Option<Map> {
    let not = Not {
        below: Some(below),
        alone: Some(alone),
    };
    // No one owns the whole object.
    let owned = walk(Some(zero), new, root_atom(schema), not, false).ok()?;
    Some(owned.unwrap_or_default())
}

/// What is owned of a value, in its written form; `None`: nothing. `itself`: the value as such may be.
fn walk(l: Option<&Value>, r: &Value, atom: Atom, not: Not, itself: bool) -> Result<Option<Map>, Unclear> {
    let (old, new) = (atom.deduce(l), atom.deduce(Some(r)));
    if l.is_some() && old.kinds() != new.kinds() {
        return Err(Unclear);
    }
    let leaf = || (itself && l.is_none_or(|l| !equal_values(l, r))).then(Map::new);
    let mut owned = Owned::new(itself && l.is_none());
    if let Some(map) = new.map {
        let nothing = Map::new();
        let lm = l.and_then(Value::as_object).unwrap_or(&nothing);
        let rm = r.as_object().unwrap_or(&nothing);
        if map.atomic || (lm.is_empty() && rm.is_empty()) {
            return Ok(leaf());
        }
        owned.0.reserve(rm.len());
        for (key, l, r) in paired(lm, rm).filter(|(_, l, r)| l != r) {
            // What is gone is owned by nobody.
            let Some(r) = r else { continue };
            let below = map.at(key).ok_or(Unclear)?.resolve();
            let child = match not.is_anything() {
                true => at(&PathElement::Field(key.clone()), l, r, below, not)?,
                false => walk(l, r, below, not, true)?,
            };
            owned.add(|| field(key), child);
        }
        return Ok(owned.written());
    }
    if new.scalar.is_some() {
        return Ok(leaf());
    }
    let list = new.list.ok_or(Unclear)?;
    let la = l.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ra = r.as_array().map_or(&[][..], Vec::as_slice);
    if !list.associative || (la.is_empty() && ra.is_empty()) {
        return Ok(leaf());
    }
    if !la.is_empty() {
        return Err(Unclear);
    }
    items(&list, ra, not, owned)
}

fn items(list: &ListAtom, items: &[Value], not: Not, mut owned: Owned) -> Result<Option<Map>, Unclear> {
    owned.0.reserve(items.len());
    let element = list.element.resolve();
    for item in items {
        let step = list_item(list, item).map_err(|_| Unclear)?;
        let child = at(&step, None, item, element, not)?;
        owned.add(|| element_to_string(&step), child);
    }
    let all = owned.0.len();
    let written = owned.written();
    // An element that is there twice is owned as a whole.
    let is_each_once = all < 2 || written.as_ref().is_some_and(|map| map.len() == all);
    is_each_once.then_some(written).ok_or(Unclear)
}

/// The same one step further down.
fn at(step: &PathElement, l: Option<&Value>, r: &Value, atom: Atom, not: Not) -> Result<Option<Map>, Unclear> {
    if not.below.is_some_and(|set| set.has_member(step)) {
        return Ok(None);
    }
    let itself = !not.alone.is_some_and(|set| set.has_member(step));
    walk(l, r, atom, not.under(step), itself)
}

/// What is owned of a map or list.
struct Owned(Vec<(Str, Value)>);

impl Owned {
    fn new(itself: bool) -> Owned {
        let mark = itself.then(|| (ITSELF, Map::new().into()));
        Owned(mark.into_iter().collect())
    }
    fn add(&mut self, name: impl FnOnce() -> Str, child: Option<Map>) {
        if let Some(below) = child {
            self.0.push((name(), below.into()));
        }
    }
    fn written(self) -> Option<Map> {
        match self.0.as_slice() {
            [] => None,
            // What is owned as such only says nothing of it.
            [(name, _)] if *name == ITSELF => Some(Map::new()),
            _ => Some(Map::from_pairs(self.0)),
        }
    }
}

const ITSELF: Str = Str::const_new(".");

fn field(name: &Str) -> Str {
    let mut out = Str::with_capacity(name.len() + 2);
    out.push_str("f:");
    out.push_str(name);
    out
}
