//! What an attempt to empty a namespace found, and the conditions that tell it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::ResourceId;
use std::collections::BTreeMap;

pub struct Remaining {
    pub name: String,
    pub finalizers: Vec<String>,
}

#[derive(Default)]
pub struct Findings {
    /// Group versions that could not be discovered, and why.
    pub undiscovered: Vec<(String, String)>,
    pub failures: Vec<String>,
    pub remaining: BTreeMap<String, usize>,
    pub finalizers: BTreeMap<String, usize>,
    /// How many seconds the remaining content is likely to take.
    pub wait: i64,
    /// Pods are left, and nothing else was looked at.
    pub pods_only: bool,
}

struct Kind {
    name: &'static str,
    ok: (&'static str, &'static str),
}

const DISCOVERY: Kind = Kind {
    name: "NamespaceDeletionDiscoveryFailure",
    ok: ("ResourcesDiscovered", "All resources successfully discovered"),
};
const PARSING: Kind = Kind {
    name: "NamespaceDeletionGroupVersionParsingFailure",
    ok: ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
};
const CONTENT: Kind = Kind {
    name: "NamespaceDeletionContentFailure",
    ok: (
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
};
const REMAINING: Kind = Kind {
    name: "NamespaceContentRemaining",
    ok: ("ContentRemoved", "All content successfully removed"),
};
const FINALIZERS: Kind = Kind {
    name: "NamespaceFinalizersRemaining",
    ok: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
};

impl Findings {
    pub fn add(&mut self, resource: &ResourceId, items: &[Remaining]) {
        if items.is_empty() {
            return;
        }
        *self
            .remaining
            .entry(format!("{}.{}", resource.plural, resource.group))
            .or_default() += items.len();
        for finalizer in items.iter().flat_map(|item| &item.finalizers) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }

    /// Why the attempt has to be repeated soon.
    pub fn errors(&self) -> Vec<String> {
        let undiscovered = self.undiscovered.iter().map(|(gv, why)| format!("{gv}: {why}"));
        undiscovered.chain(self.failures.iter().cloned()).collect()
    }

    pub fn conditions(&self, now: Timestamp) -> Vec<NamespaceCondition> {
        let list = |counts: &BTreeMap<String, usize>, word: &str| {
            let parts: Vec<String> = counts
                .iter()
                .map(|(what, n)| format!("{what} {word} {n} resource instances"))
                .collect();
            parts.join(", ")
        };
        let discovery = (!self.undiscovered.is_empty()).then(|| {
            let whole: Vec<String> = self
                .undiscovered
                .iter()
                .map(|(gv, why)| format!("{gv}: {why}"))
                .collect();
            let whole = format!(
                "unable to retrieve the complete list of server APIs: {}",
                whole.join(", ")
            );
            (
                "DiscoveryFailed",
                format!(
                    "Discovery failed for some groups, {} failing: {whole}",
                    self.undiscovered.len()
                ),
            )
        });
        let mut failures = self.failures.clone();
        failures.sort();
        let content = (!failures.is_empty()).then(|| {
            (
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    failures.len(),
                    failures.join(", ")
                ),
            )
        });
        let remaining = (!self.remaining.is_empty()).then(|| {
            (
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", list(&self.remaining, "has")),
            )
        });
        let finalizers = (!self.finalizers.is_empty()).then(|| {
            (
                "SomeFinalizersRemain",
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    list(&self.finalizers, "in")
                ),
            )
        });
        [
            (DISCOVERY, discovery),
            (PARSING, None),
            (CONTENT, content),
            (REMAINING, remaining),
            (FINALIZERS, finalizers),
        ]
        .into_iter()
        .map(|(kind, bad)| {
            let (status, reason, message) = match bad {
                Some((reason, message)) => ("True", reason, message),
                None => ("False", kind.ok.0, kind.ok.1.to_string()),
            };
            NamespaceCondition {
                type_: kind.name.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(Time(now)),
            }
        })
        .collect()
    }
}

/// Brings the status' conditions up to date; says whether anything changed.
pub fn apply(status: &mut NamespaceStatus, wanted: &[NamespaceCondition]) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let mut changed = false;
    for new in wanted {
        match conditions.iter_mut().find(|c| c.type_ == new.type_) {
            None => {
                conditions.push(new.clone());
                changed = true;
            }
            Some(old) if old.status != new.status || old.reason != new.reason || old.message != new.message => {
                let since = if old.status == new.status {
                    old.last_transition_time.clone()
                } else {
                    new.last_transition_time.clone()
                };
                *old = NamespaceCondition {
                    last_transition_time: since,
                    ..new.clone()
                };
                changed = true;
            }
            Some(_) => {}
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_told() {
        let mut findings = Findings::default();
        let pods = ResourceId::fixed("", "v1", "Pod", "pods", true);
        let item = |f: &[&str]| Remaining {
            name: "p".into(),
            finalizers: f.iter().map(|f| f.to_string()).collect(),
        };
        findings.add(&pods, &[item(&["a/b"]), item(&["a/b", "c"])]);
        let mut status = NamespaceStatus::default();
        assert!(apply(&mut status, &findings.conditions(Timestamp::UNIX_EPOCH)));
        let texts: Vec<String> = status
            .conditions
            .iter()
            .flatten()
            .map(|c| {
                format!(
                    "{} {} {}: {}",
                    c.type_,
                    c.status,
                    c.reason.as_deref().unwrap_or(""),
                    c.message.as_deref().unwrap_or("")
                )
            })
            .collect();
        assert_eq!(
            texts,
            [
                "NamespaceDeletionDiscoveryFailure False ResourcesDiscovered: All resources successfully discovered",
                "NamespaceDeletionGroupVersionParsingFailure False ParsedGroupVersions: All legacy kube types successfully parsed",
                "NamespaceDeletionContentFailure False ContentDeleted: All content successfully deleted, may be waiting on finalization",
                "NamespaceContentRemaining True SomeResourcesRemain: Some resources are remaining: pods. has 2 resource instances",
                "NamespaceFinalizersRemaining True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: a/b in 2 resource instances, c in 1 resource instances",
            ]
        );
        assert!(
            !apply(
                &mut status,
                &findings.conditions(Timestamp::from_second(9).unwrap_or_default())
            ),
            "same news, no write"
        );
        assert!(apply(
            &mut status,
            &Findings::default().conditions(Timestamp::UNIX_EPOCH)
        ));
    }
}
