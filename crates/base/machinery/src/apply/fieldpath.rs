//! Paths to fields, and sets of them.
//!
//! A set is a tree; being in the tree isn't being a member. Members and children are sorted, so set operations are
//! merges of sorted lists and the printed order is defined.

use crate::go;
use keelson_api::{Str, Value};
use std::cmp::Ordering;
use std::fmt;

/// One step of a path.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of a struct or key of a map.
    Field(Str),
    /// The element of an associative list with these key fields, sorted by name.
    Key(Vec<(Str, Value)>),
    /// The element of a set.
    Value(Value),
    /// The element of an atomic list.
    Index(i64),
}

/// A path from the root of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(pub Vec<PathElement>);

/// A total order over values: numbers (ints and floats together), strings, bools, lists, maps, null.
pub fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(v: &Value) -> u8 {
        match v {
            Value::Float(_) => 0,
            Value::Int(_) => 1,
            Value::String(_) => 2,
            Value::Bool(_) => 3,
            Value::Array(_) => 4,
            Value::Object(_) => 5,
            Value::Null => 6,
        }
    }
    match (a, b) {
        (Value::Int(x), Value::Int(y)) => x.cmp(y),
        (Value::Float(x), Value::Float(y)) => compare_floats(*x, *y),
        (Value::Int(x), Value::Float(y)) => compare_number(*x, *y),
        (Value::Float(x), Value::Int(y)) => compare_number(*y, *x).reverse(),
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => {
            let first = x.iter().zip(y).map(|(x, y)| compare_values(x, y)).find(|o| o.is_ne());
            first.unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        (Value::Object(x), Value::Object(y)) => {
            let pairs = x.iter().zip(y.iter());
            let first = pairs
                .map(|((ka, va), (kb, vb))| ka.cmp(kb).then_with(|| compare_values(va, vb)))
                .find(|o| o.is_ne());
            first.unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// What is no number comes after all that are.
fn compare_floats(x: f64, y: f64) -> Ordering {
    x.partial_cmp(&y).unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()))
}

/// By all digits: as floats, ints that differ can equal the same float, and sorting needs an order without contradictions.
fn compare_number(int: i64, float: f64) -> Ordering {
    compare_floats(int as f64, float).then_with(|| i128::from(int).cmp(&(float as i128)))
}

/// Equality of values: ints and floats compare as floats.
pub fn equal_values(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(_), Value::Int(_) | Value::Float(_)) | (Value::Int(_), Value::Float(_)) => {
            compare_floats(a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default()).is_eq()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_values(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b.iter())
                    .all(|((ka, va), (kb, vb))| ka == kb && equal_values(va, vb))
        }
        _ => a == b,
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        use PathElement::*;
        fn rank(e: &PathElement) -> u8 {
            match e {
                Field(_) => 0,
                Key(_) => 1,
                Value(_) => 2,
                Index(_) => 3,
            }
        }
        match (self, other) {
            (Field(a), Field(b)) => a.cmp(b),
            (Key(a), Key(b)) => {
                let first = a
                    .iter()
                    .zip(b)
                    .map(|((ka, va), (kb, vb))| ka.cmp(kb).then_with(|| compare_values(va, vb)))
                    .find(|o| o.is_ne());
                first.unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (Value(a), Value(b)) => compare_values(a, b),
            (Index(a), Index(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}
impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for PathElement {}

/// A value as conflict messages show it.
fn shown(v: &Value) -> String {
    match v {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Float(f) => go::go_float(*f),
        Value::String(s) => go::go_quote(s),
        Value::Array(a) => format!("[{}]", a.iter().map(shown).collect::<Vec<_>>().join(",")),
        Value::Object(m) => m.iter().map(|(k, v)| format!("{k}={}", shown(v))).collect(),
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(f, ".{name}"),
            PathElement::Key(keys) => {
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={}", shown(v))).collect();
                write!(f, "[{}]", pairs.join(","))
            }
            PathElement::Value(v) => write!(f, "[={}]", shown(v)),
            PathElement::Index(i) => write!(f, "[{i}]"),
        }
    }
}
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|e| write!(f, "{e}"))
    }
}

impl Path {
    /// A path of field names.
    pub fn fields(names: &[&str]) -> Path {
        Path(names.iter().map(|n| PathElement::Field(Str::from(*n))).collect())
    }
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) members: Vec<PathElement>,
    pub(super) children: Vec<(PathElement, Set)>,
}

static EMPTY: Set = Set {
    members: Vec::new(),
    children: Vec::new(),
};

/// Merges two sorted lists; `pick` says what becomes of an element found left, right or on both sides.
fn merge_sorted<T: Clone>(
    a: &[T],
    b: &[T],
    order: impl Fn(&T, &T) -> Ordering,
    mut pick: impl FnMut(Option<&T>, Option<&T>) -> Option<T>,
) -> Vec<T> {
    let mut out = Vec::with_capacity(a.len().max(b.len()));
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let o = match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) => order(x, y),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let (x, y) = (a.get(i).filter(|_| o.is_le()), b.get(j).filter(|_| o.is_ge()));
        out.extend(pick(x, y));
        i += usize::from(o.is_le());
        j += usize::from(o.is_ge());
    }
    out
}

impl Set {
    pub fn new() -> Set {
        Set::default()
    }
    pub fn from_paths(paths: impl IntoIterator<Item = Path>) -> Set {
        let mut s = Set::new();
        for p in paths {
            s.insert(&p.0);
        }
        s
    }
    /// A set of paths of field names.
    pub fn of_fields(paths: &[&[&str]]) -> Set {
        Set::from_paths(paths.iter().map(|p| Path::fields(p)))
    }
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            // No one owns the whole object.
            [] => {}
            [last] => {
                if let Err(i) = self.members.binary_search(last) {
                    self.members.insert(i, last.clone());
                }
            }
            [first, rest @ ..] => self.descend(first).insert(rest),
        }
    }
    /// Adds a step that sorts after all present ones: whether it is a member, and what lies under it.
    pub(super) fn put(&mut self, step: &PathElement, is_member: bool, below: Set) {
        if is_member {
            self.members.push(step.clone());
        }
        if !(below.members.is_empty() && below.children.is_empty()) {
            self.children.push((step.clone(), below));
        }
    }
    pub(super) fn descend(&mut self, pe: &PathElement) -> &mut Set {
        let i = match self.children.binary_search_by(|(k, _)| k.cmp(pe)) {
            Ok(i) => i,
            Err(i) => {
                self.children.insert(i, (pe.clone(), Set::new()));
                i
            }
        };
        &mut self.children[i].1
    }
    pub(super) fn child(&self, pe: &PathElement) -> Option<&Set> {
        self.children
            .binary_search_by(|(k, _)| k.cmp(pe))
            .ok()
            .map(|i| &self.children[i].1)
    }
    pub(super) fn has_member(&self, pe: &PathElement) -> bool {
        self.members.binary_search(pe).is_ok()
    }
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.has_member(last),
            [first, rest @ ..] => self.child(first).is_some_and(|c| c.has(rest)),
        }
    }
    /// What lies under a step, with the step taken off.
    pub fn with_prefix(&self, pe: &PathElement) -> &Set {
        self.child(pe).unwrap_or(&EMPTY)
    }
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.iter().all(|(_, c)| c.is_empty())
    }
    pub fn len(&self) -> usize {
        self.members.len() + self.children.iter().map(|(_, c)| c.len()).sum::<usize>()
    }
    pub fn union(&self, other: &Set) -> Set {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other } else { self }.clone();
        }
        Set {
            members: merge_sorted(&self.members, &other.members, Ord::cmp, |a, b| a.or(b).cloned()),
            children: merge_sorted(
                &self.children,
                &other.children,
                |a, b| a.0.cmp(&b.0),
                |a, b| match (a, b) {
                    (Some(a), Some(b)) => Some((a.0.clone(), a.1.union(&b.1))),
                    (a, b) => a.or(b).cloned(),
                },
            ),
        }
    }
    pub fn intersection(&self, other: &Set) -> Set {
        Set {
            members: merge_sorted(&self.members, &other.members, Ord::cmp, |a, b| b.and(a).cloned()),
            children: merge_sorted(
                &self.children,
                &other.children,
                |a, b| a.0.cmp(&b.0),
                |a, b| {
                    let (a, b) = (a?, b?);
                    let both = a.1.intersection(&b.1);
                    (!both.is_empty()).then(|| (a.0.clone(), both))
                },
            ),
        }
    }
    /// Members that aren't in `other`; a parent in `other` takes no children along.
    pub fn difference(&self, other: &Set) -> Set {
        Set {
            members: merge_sorted(&self.members, &other.members, Ord::cmp, |a, b| {
                a.filter(|_| b.is_none()).cloned()
            }),
            children: merge_sorted(
                &self.children,
                &other.children,
                |a, b| a.0.cmp(&b.0),
                |a, b| match (a, b) {
                    (Some(a), Some(b)) => {
                        let left = a.1.difference(&b.1);
                        (!left.is_empty()).then(|| (a.0.clone(), left))
                    }
                    (a, _) => a.cloned(),
                },
            ),
        }
    }
    /// Members that neither are in `other` nor lie under a member of it.
    pub fn recursive_difference(&self, other: &Set) -> Set {
        let mut out = self.difference_members(other);
        out.children = merge_sorted(
            &self.children,
            &other.children,
            |a, b| a.0.cmp(&b.0),
            |a, b| {
                let a = a?;
                if other.has_member(&a.0) {
                    return None;
                }
                let Some(b) = b else { return Some(a.clone()) };
                let left = a.1.recursive_difference(&b.1);
                (!left.is_empty()).then(|| (a.0.clone(), left))
            },
        );
        out
    }
    /// [`union`](Self::union) of sets that nobody needs any more.
    pub fn joined(self, other: Set) -> Set {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => self.union(&other),
        }
    }
    /// [`difference`](Self::difference) of a set that nobody needs any more.
    pub fn without(mut self, other: &Set) -> Set {
        self.members.retain(|step| !other.has_member(step));
        self.children.retain_mut(|(step, below)| {
            let Some(other) = other.child(step) else { return true };
            *below = std::mem::take(below).without(other);
            !below.is_empty()
        });
        self
    }
    /// [`recursive_difference`](Self::recursive_difference) of a set that nobody needs any more.
    pub fn recursively_without(mut self, other: &Set) -> Set {
        self.members.retain(|step| !other.has_member(step));
        self.children.retain_mut(|(step, below)| {
            if other.has_member(step) {
                return false;
            }
            let Some(other) = other.child(step) else { return true };
            *below = std::mem::take(below).recursively_without(other);
            !below.is_empty()
        });
        self
    }
    fn difference_members(&self, other: &Set) -> Set {
        Set {
            members: merge_sorted(&self.members, &other.members, Ord::cmp, |a, b| {
                a.filter(|_| b.is_none()).cloned()
            }),
            children: Vec::new(),
        }
    }
    /// Calls `f` for each member, parents before children.
    pub fn each(&self, f: &mut impl FnMut(&[PathElement])) {
        fn go(s: &Set, path: &mut Vec<PathElement>, f: &mut impl FnMut(&[PathElement])) {
            for m in &s.members {
                path.push(m.clone());
                f(path);
                path.pop();
            }
            for (k, c) in &s.children {
                path.push(k.clone());
                go(c, path, f);
                path.pop();
            }
        }
        go(self, &mut Vec::new(), f);
    }
    /// Every member.
    pub fn paths(&self) -> Vec<Path> {
        let mut out = Vec::new();
        self.each(&mut |p| out.push(Path(p.to_vec())));
        out
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let lines: Vec<String> = self.paths().iter().map(Path::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_an_order_without_contradictions() {
        let big = 1_i64 << 53;
        let (a, f, b) = (Value::Int(big), Value::Float(big as f64), Value::Int(big + 1));
        assert!(compare_values(&a, &f).is_eq());
        assert!(compare_values(&a, &b).is_lt());
        assert!(compare_values(&f, &b).is_lt());
        assert!(compare_values(&b, &f).is_gt());
        assert!(equal_values(&b, &f));
        assert!(!equal_values(&a, &b));
        assert!(compare_values(&Value::Int(1), &Value::Float(1.5)).is_lt());
        assert!(compare_values(&Value::Int(i64::MAX), &Value::Float(f64::NAN)).is_lt());
        assert!(compare_values(&Value::Float(f64::NAN), &Value::Float(f64::NAN)).is_eq());
    }
}
