//! What differs between two values of a type.

use super::super::fieldpath::{PathElement, Set, equal_values};
use super::validate::check_scalar;
use super::{Atom, ListAtom, TypedErrors, list_item, paired, root_atom};
use keelson_api::{Map, SchemaRef, Value};

/// The fields that differ; none is in two of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }
    /// Without fields that are in `excluded` or under it.
    pub fn exclude(self, excluded: &Set) -> Comparison {
        let without = |set: Set| match set.is_empty() || excluded.is_empty() {
            true => set,
            false => set.recursively_without(excluded),
        };
        Comparison {
            removed: without(self.removed),
            modified: without(self.modified),
            added: without(self.added),
        }
    }
    fn union(self, other: Comparison) -> Comparison {
        Comparison {
            removed: self.removed.union(&other.removed),
            modified: self.modified.union(&other.modified),
            added: self.added.union(&other.added),
        }
    }
    /// Adds what was found at a step that sorts after all present ones.
    fn put(&mut self, step: &PathElement, found: Found) {
        self.removed.put(step, found.is_removed, found.below.removed);
        self.modified.put(step, found.is_modified, found.below.modified);
        self.added.put(step, found.is_added, found.below.added);
    }
}

/// Compares two objects of one type.
pub fn compare(old: &Value, new: &Value, schema: &SchemaRef) -> Result<Comparison, TypedErrors> {
    if old == new {
        return Ok(Comparison::default());
    }
    let mut errs = TypedErrors::default();
    // No one owns the whole object: what became of the root itself doesn't matter.
    let found = walk(Some(old), Some(new), root_atom(schema), &mut errs);
    errs.into_result()?;
    Ok(found.below)
}

/// How a value differs from another: as a whole, and in what is below it.
#[derive(Default)]
struct Found {
    is_removed: bool,
    is_modified: bool,
    is_added: bool,
    below: Comparison,
}

impl Found {
    fn below(below: Comparison) -> Found {
        Found {
            below,
            ..Found::default()
        }
    }
    fn union(self, other: Found) -> Found {
        Found {
            is_removed: self.is_removed || other.is_removed,
            is_modified: self.is_modified || other.is_modified,
            is_added: self.is_added || other.is_added,
            below: self.below.union(other.below),
        }
    }
}

/// Of values that aren't equal: whoever has them has compared them, and comparing them again at each level would take long.
fn walk(l: Option<&Value>, r: Option<&Value>, atom: Atom, errs: &mut TypedErrors) -> Found {
    if l.is_none() && r.is_none() {
        errs.extend(TypedErrors::one("at least one of lhs and rhs must be provided"));
        return Found::default();
    }
    let (al, ar) = (atom.deduce(l), atom.deduce(r));
    let mut found = if r.is_none() {
        of_atom(l, r, al, errs)
    } else if l.is_none() || al.kinds() == ar.kinds() {
        of_atom(l, r, ar, errs)
    } else {
        of_atom(l, r, al, errs).union(of_atom(l, r, ar, errs))
    };
    found.is_added |= l.is_none();
    found.is_removed |= r.is_none();
    found
}

/// The same one step further down.
fn at(step: &PathElement, l: Option<&Value>, r: Option<&Value>, atom: Atom, errs: &mut TypedErrors) -> Found {
    let mut own = TypedErrors::default();
    let found = walk(l, r, atom, &mut own);
    errs.extend(own.prefixed(step));
    found
}

fn of_atom(l: Option<&Value>, r: Option<&Value>, atom: Atom, errs: &mut TypedErrors) -> Found {
    if let Some(map) = atom.map {
        let nothing = Map::new();
        let lm = l.and_then(Value::as_object).unwrap_or(&nothing);
        let rm = r.and_then(Value::as_object).unwrap_or(&nothing);
        if map.atomic || (lm.is_empty() && rm.is_empty()) {
            return leaf(l, r);
        }
        let mut out = Comparison::default();
        // Most of an object is as it was, and often the very same in memory.
        for (key, l, r) in paired(lm, rm).filter(|(_, l, r)| l != r) {
            let below = map.at(key).map(|t| t.resolve()).unwrap_or_default();
            let step = PathElement::Field(key.clone());
            out.put(&step, at(&step, l, r, below, errs));
        }
        return Found::below(out);
    }
    if let Some(scalar) = atom.scalar {
        let (le, re) = (check_scalar(scalar, l, "lhs: "), check_scalar(scalar, r, "rhs: "));
        if !le.is_empty() && !re.is_empty() {
            errs.extend(le);
            errs.extend(re);
            return Found::default();
        }
        return leaf(l, r);
    }
    let Some(list) = atom.list else {
        errs.extend(TypedErrors::one("schema error: invalid atom: inlined"));
        return Found::default();
    };
    let la = l.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ra = r.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if !list.associative || (la.is_empty() && ra.is_empty()) {
        return leaf(l, r);
    }
    Found::below(items(&list, la, ra, errs))
}

fn leaf(l: Option<&Value>, r: Option<&Value>) -> Found {
    Found {
        is_modified: matches!((l, r), (Some(l), Some(r)) if !equal_values(l, r)),
        ..Found::default()
    }
}

fn items(list: &ListAtom, l: &[Value], r: &[Value], errs: &mut TypedErrors) -> Comparison {
    let mut steps = Vec::with_capacity(l.len() + r.len());
    for (is_new, items) in [(false, l), (true, r)] {
        for (i, item) in items.iter().enumerate() {
            match list_item(list, item) {
                Ok(step) => steps.push((step, is_new, item)),
                Err(e) => errs.extend(TypedErrors::one(format!("element {i}: {e}"))),
            }
        }
    }
    // The old one's stay before the new one's.
    steps.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = Comparison::default();
    for same in steps.chunk_by(|a, b| a.0 == b.0) {
        let step = &same[0].0;
        let (l, r) = same.split_at(same.partition_point(|(_, is_new, _)| !is_new));
        let (first_l, first_r) = (l.first().map(|l| l.2), r.first().map(|r| r.2));
        let mut one = |l, r| at(step, l, r, list.element.resolve(), errs);
        let found = match (l.len(), r.len()) {
            (0 | 1, 0 | 1) if first_l == first_r => Found::default(),
            (0 | 1, 0 | 1) => one(first_l, first_r),
            // Duplicates on both sides are compared whole.
            (2.., 2..) => Found {
                is_modified: l.len() != r.len() || l.iter().zip(r).any(|(l, r)| !equal_values(l.2, r.2)),
                ..Found::default()
            },
            (2.., _) => Found {
                is_removed: true,
                ..first_r.map(|r| one(None, Some(r))).unwrap_or_default()
            },
            _ => Found {
                is_added: true,
                ..first_l.map(|l| one(Some(l), None)).unwrap_or_default()
            },
        };
        out.put(step, found);
    }
    out
}
