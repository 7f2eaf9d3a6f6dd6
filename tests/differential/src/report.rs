//! Differences in groups, and those that have a reason.

use crate::case::Case;
use crate::compare::{Difference, Group};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

const KNOWN: &str = include_str!("../known-differences.txt");

/// The differences of one cause.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    pub group: Group,
    pub count: usize,
    /// The smallest case that shows it.
    pub case: Case,
    pub ours: String,
    pub peer: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Groups {
    found: BTreeMap<String, Found>,
    pub compared: usize,
    /// Cases in which nothing differed.
    pub equal: usize,
}

impl Groups {
    pub fn add(&mut self, case: &Case, differences: Vec<Difference>) {
        self.compared += 1;
        self.equal += usize::from(differences.is_empty());
        for d in differences {
            let size = |case: &Case| case.steps.iter().map(|s| s.body.len() + s.path.len()).sum::<usize>();
            let found = self.found.entry(d.group.to_string()).or_insert_with(|| Found {
                group: d.group.clone(),
                count: 0,
                case: case.clone(),
                ours: d.ours.clone(),
                peer: d.peer.clone(),
            });
            found.count += 1;
            if size(case) < size(&found.case) {
                found.case = case.clone();
                (found.ours, found.peer) = (d.ours, d.peer);
            }
        }
    }

    /// Those without a reason, the most frequent first.
    pub fn unknown(&self, known: &Known) -> Vec<&Found> {
        let mut out: Vec<&Found> = self
            .found
            .values()
            .filter(|f| known.reason(&f.group).is_none())
            .collect();
        out.sort_by_key(|f| std::cmp::Reverse(f.count));
        out
    }

    /// What a reader is shown, with `shown` in place of a group's case where it was made smaller.
    pub fn text(&self, known: &Known, smaller: &BTreeMap<String, Case>) -> String {
        let unknown = self.unknown(known);
        let mut out = format!(
            "{} compared, {} equal; {} differences, of which {} have a reason\n",
            self.compared,
            self.equal,
            self.found.len(),
            self.found.len() - unknown.len()
        );
        for found in unknown {
            let case = smaller.get(&found.group.to_string()).unwrap_or(&found.case);
            let _ = write!(
                out,
                "\n{} × {}\n  {}\n  ours: {}\n  peer: {}\n",
                found.count, found.group, case.what, found.ours, found.peer
            );
            for step in &case.steps {
                let body: String = step.body.chars().take(1500).collect();
                let _ = writeln!(out, "  {} {} {} {body}", step.method, step.path, step.content_type);
            }
        }
        for unused in known.unused(self) {
            let _ = writeln!(out, "\nno longer differs, and can go from the list: {unused}");
        }
        out
    }
}

/// Differences with a reason: patterns of groups in which `*` stands for anything, below the reason.
pub struct Known(Vec<(String, String)>);

impl Known {
    pub fn read() -> Result<Known> {
        Known::parse(KNOWN)
    }

    /// Nothing has a reason.
    pub fn none() -> Known {
        Known(Vec::new())
    }

    pub fn parse(text: &str) -> Result<Known> {
        let (mut reason, mut out) = (String::new(), Vec::new());
        for line in text.lines().map(str::trim) {
            if line.is_empty() {
                reason.clear();
            } else if let Some(text) = line.strip_prefix("# ") {
                reason = text.into();
            } else {
                anyhow::ensure!(!reason.is_empty(), "a difference without a reason: {line}");
                out.push((line.to_string(), reason.clone()));
            }
        }
        Ok(Known(out))
    }

    pub fn reason(&self, group: &Group) -> Option<&str> {
        let shown = group.to_string();
        self.0
            .iter()
            .find(|(pattern, _)| fits(pattern, &shown))
            .map(|(_, reason)| reason.as_str())
    }

    fn unused<'a>(&'a self, groups: &'a Groups) -> impl Iterator<Item = &'a str> {
        self.patterns()
            .filter(|pattern| !groups.found.keys().any(|g| fits(pattern, g)))
    }

    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(pattern, _)| pattern.as_str())
    }
}

/// Whether a text is what a pattern says, `*` being anything.
pub fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

impl Groups {
    pub fn load(text: &str) -> Result<Groups> {
        serde_json::from_str(text).context("the state of an earlier run")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_below_their_reason() {
        let known = Known::parse("# why\nv1 Pod | * | value\n\n# other\nx")
            .ok()
            .unwrap_or(Known(Vec::new()));
        let group = |kind: &str, sort: &str| Group {
            kind: kind.into(),
            field: "spec.a".into(),
            sort: sort.into(),
        };
        assert_eq!(known.reason(&group("v1 Pod", "value")), Some("why"));
        assert_eq!(known.reason(&group("v1 Pod", "values")), None);
        assert_eq!(known.reason(&group("v1 Pods", "value")), None);
        assert!(Known::parse("x").is_err(), "without a reason");
        let lines = Known::parse("# why\nv1 Pod | spec.a | a\\nb")
            .ok()
            .unwrap_or(Known(Vec::new()));
        assert_eq!(
            lines.reason(&group("v1 Pod", "a\nb")),
            Some("why"),
            "a text of lines is one"
        );
    }
}
