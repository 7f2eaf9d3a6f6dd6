//! What differs between two values of a type.

use super::super::fieldpath::{PathElement, Set, equal_values};
use super::validate::check_scalar;
use super::{Atom, ListAtom, TypedErrors, list_item, root_atom};
use keelson_api::{SchemaRef, Value};
use std::collections::BTreeMap;

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
        Comparison {
            removed: self.removed.recursive_difference(excluded),
            modified: self.modified.recursive_difference(excluded),
            added: self.added.recursive_difference(excluded),
        }
    }
}

/// Compares two objects of one type.
pub fn compare(old: &Value, new: &Value, schema: &SchemaRef) -> Result<Comparison, TypedErrors> {
    let mut w = Walker {
        path: Vec::new(),
        out: Comparison::default(),
    };
    w.walk(Some(old), Some(new), root_atom(schema)).into_result()?;
    Ok(w.out)
}

struct Walker {
    path: Vec<PathElement>,
    out: Comparison,
}

impl Walker {
    fn walk(&mut self, l: Option<&Value>, r: Option<&Value>, atom: Atom) -> TypedErrors {
        if l.is_none() && r.is_none() {
            return TypedErrors::one("at least one of lhs and rhs must be provided");
        }
        // Most of an object is as it was, and often the very same in memory.
        if l == r {
            return TypedErrors::default();
        }
        let (al, ar) = (atom.deduce(l), atom.deduce(r));
        let mut leaf = false;
        let mut errs = TypedErrors::default();
        if r.is_none() {
            errs.extend(self.atom(l, r, al, &mut leaf));
        } else if l.is_none() || al.kinds() == ar.kinds() {
            errs.extend(self.atom(l, r, ar, &mut leaf));
        } else {
            let mut other = false;
            errs.extend(self.atom(l, r, al, &mut other));
            errs.extend(self.atom(l, r, ar, &mut leaf));
        }
        if !leaf {
            if l.is_none() {
                self.out.added.insert(&self.path);
            } else if r.is_none() {
                self.out.removed.insert(&self.path);
            }
        }
        errs
    }

    fn atom(&mut self, l: Option<&Value>, r: Option<&Value>, atom: Atom, leaf: &mut bool) -> TypedErrors {
        if let Some(map) = atom.map {
            let (lm, rm) = (l.and_then(Value::as_object), r.and_then(Value::as_object));
            let empty = lm.is_none_or(|m| m.is_empty()) && rm.is_none_or(|m| m.is_empty());
            if map.atomic || empty {
                self.leaf(l, r, leaf);
                return TypedErrors::default();
            }
            let mut keys: Vec<&keelson_api::Str> = lm.into_iter().chain(rm).flat_map(|m| m.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            let mut errs = TypedErrors::default();
            for key in keys {
                let pe = PathElement::Field(key.clone());
                let below = map.at(key).map(|t| t.resolve()).unwrap_or_default();
                self.path.push(pe.clone());
                let e = self.walk(lm.and_then(|m| m.get(key)), rm.and_then(|m| m.get(key)), below);
                self.path.pop();
                errs.extend(e.prefixed(&pe));
            }
            return errs;
        }
        if let Some(scalar) = atom.scalar {
            let (le, re) = (check_scalar(scalar, l, "lhs: "), check_scalar(scalar, r, "rhs: "));
            if !le.is_empty() && !re.is_empty() {
                let mut errs = le;
                errs.extend(re);
                return errs;
            }
            self.leaf(l, r, leaf);
            return TypedErrors::default();
        }
        let Some(list) = atom.list else {
            return TypedErrors::one("schema error: invalid atom: inlined");
        };
        let (la, ra) = (l.and_then(Value::as_array), r.and_then(Value::as_array));
        let empty = la.is_none_or(|a| a.is_empty()) && ra.is_none_or(|a| a.is_empty());
        if !list.associative || empty {
            self.leaf(l, r, leaf);
            return TypedErrors::default();
        }
        self.items(
            &list,
            la.map(Vec::as_slice).unwrap_or_default(),
            ra.map(Vec::as_slice).unwrap_or_default(),
        )
    }

    fn leaf(&mut self, l: Option<&Value>, r: Option<&Value>, leaf: &mut bool) {
        *leaf = true;
        match (l, r) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            (Some(l), Some(r)) if !equal_values(l, r) => self.out.modified.insert(&self.path),
            _ => {}
        }
    }

    fn items(&mut self, list: &ListAtom, l: &[Value], r: &[Value]) -> TypedErrors {
        let mut errs = TypedErrors::default();
        let mut index = BTreeMap::<PathElement, (Vec<&Value>, Vec<&Value>)>::new();
        for (side, items) in [(0, l), (1, r)] {
            for (i, item) in items.iter().enumerate() {
                match list_item(list, item) {
                    Ok(pe) => {
                        let entry = index.entry(pe).or_default();
                        if side == 0 {
                            entry.0.push(item)
                        } else {
                            entry.1.push(item)
                        }
                    }
                    Err(e) => errs.extend(TypedErrors::one(format!("element {i}: {e}"))),
                }
            }
        }
        for (pe, (l, r)) in index {
            self.path.push(pe.clone());
            let mut one = |w: &mut Self, l: Option<&Value>, r: Option<&Value>| {
                errs.extend(w.walk(l, r, list.element.resolve()).prefixed(&pe));
            };
            match (l.as_slice(), r.as_slice()) {
                ([] | [_], [] | [_]) => one(self, l.first().copied(), r.first().copied()),
                // Duplicates on both sides are compared whole.
                ([_, _, ..], [_, _, ..]) => {
                    if l.len() != r.len() || l.iter().zip(&r).any(|(l, r)| !equal_values(l, r)) {
                        self.out.modified.insert(&self.path);
                    }
                }
                ([_, _, ..], _) => {
                    if let Some(r) = r.first() {
                        one(self, None, Some(r));
                    }
                    self.out.removed.insert(&self.path);
                }
                _ => {
                    if let Some(l) = l.first() {
                        one(self, Some(l), None);
                    }
                    self.out.added.insert(&self.path);
                }
            }
            self.path.pop();
        }
        errs
    }
}
