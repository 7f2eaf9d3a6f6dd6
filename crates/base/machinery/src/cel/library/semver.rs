//! Semantic versions (2.0).

use super::super::value::{CelError, Val};
use super::Found;
use std::cmp::Ordering;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    major: u64,
    minor: u64,
    patch: u64,
    pre: Vec<String>,
}

impl Semver {
    /// Reads a version; `lenient` allows a leading `v`, missing parts and leading zeros.
    pub fn parse(s: &str, lenient: bool) -> Option<Semver> {
        let s = if lenient { s.strip_prefix('v').unwrap_or(s) } else { s };
        let (s, build) = s.split_once('+').map_or((s, None), |(s, b)| (s, Some(b)));
        let (core, pre) = s.split_once('-').map_or((s, None), |(s, p)| (s, Some(p)));
        let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let numeric = |w: &str| w.bytes().all(|b| b.is_ascii_digit());
        if build.is_some_and(|b| !b.split('.').all(word)) {
            return None;
        }
        let pre: Vec<String> = pre
            .map(|p| p.split('.').map(String::from).collect())
            .unwrap_or_default();
        if pre
            .iter()
            .any(|p| !word(p) || (numeric(p) && p.len() > 1 && p.starts_with('0')))
        {
            return None;
        }
        let parts: Vec<&str> = core.split('.').collect();
        if parts.len() > 3 || (!lenient && parts.len() != 3) {
            return None;
        }
        let number = |i: usize| -> Option<u64> {
            let Some(p) = parts.get(i) else { return Some(0) };
            if p.is_empty() || !numeric(p) || (!lenient && p.len() > 1 && p.starts_with('0')) {
                return None;
            }
            p.parse().ok()
        };
        Some(Semver {
            major: number(0)?,
            minor: number(1)?,
            patch: number(2)?,
            pre,
        })
    }

    fn order(&self, other: &Semver) -> Ordering {
        let core = (self.major, self.minor, self.patch).cmp(&(other.major, other.minor, other.patch));
        core.then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let each = self
                    .pre
                    .iter()
                    .zip(&other.pre)
                    .map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
                        (Ok(a), Ok(b)) => a.cmp(&b),
                        (Ok(_), Err(_)) => Ordering::Less,
                        (Err(_), Ok(_)) => Ordering::Greater,
                        (Err(_), Err(_)) => a.cmp(b),
                    });
                each.into_iter()
                    .find(|o| o.is_ne())
                    .unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        })
    }
}

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    let (s, lenient) = match args {
        [Val::Str(s)] => (s, false),
        [Val::Str(s), Val::Bool(b)] => (s, *b),
        _ => return None,
    };
    match name {
        "semver" => Some(match Semver::parse(s, lenient) {
            Some(v) => Ok(Val::Semver(Arc::new(v))),
            None => Err(CelError::new("invalid semantic version")),
        }),
        "isSemver" => Some(Ok(Val::Bool(Semver::parse(s, lenient).is_some()))),
        _ => None,
    }
}

pub fn member<'a>(name: &str, v: &Semver, args: &[Val<'a>]) -> Found<'a> {
    Some(Ok(match (name, args) {
        ("major", []) => Val::Int(v.major as i64),
        ("minor", []) => Val::Int(v.minor as i64),
        ("patch", []) => Val::Int(v.patch as i64),
        ("isGreaterThan", [Val::Semver(o)]) => Val::Bool(v.order(o).is_gt()),
        ("isLessThan", [Val::Semver(o)]) => Val::Bool(v.order(o).is_lt()),
        ("compareTo", [Val::Semver(o)]) => Val::Int(v.order(o) as i64),
        _ => return None,
    }))
}
