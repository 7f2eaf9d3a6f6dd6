//! Groups of the community's own need an approval.

use super::{Validator, text};
use keelson_api::{Cause, Map, Value};

impl Validator {
    /// Groups of the community's own need an approval.
    pub(super) fn approval(&mut self, crd: &Value, spec: &Map) {
        let group = spec.str("group").unwrap_or_default();
        if !is_protected(group) {
            return;
        }
        const KEY: &str = "api-approved.kubernetes.io";
        let annotation = crd.at(&["metadata", "annotations", KEY]).and_then(Value::as_str);
        let at = format!("metadata.annotations[{KEY}]");
        match approval(annotation) {
            Approval::Missing => self.out.push(Cause::required(at, &approval_reason(annotation))),
            Approval::Invalid => {
                self.out.push(Cause::invalid(
                    at,
                    &text(annotation.unwrap_or_default()),
                    &approval_reason(annotation),
                ));
            }
            Approval::Approved | Approval::Bypassed => {}
        }
    }
}

/// What the approval annotation of a definition in a protected group says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Missing,
    Invalid,
    Bypassed,
    Approved,
}

/// Whether a group belongs to the Kubernetes community.
pub fn is_protected(group: &str) -> bool {
    let under = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    under("k8s.io") || under("kubernetes.io")
}

pub fn approval(annotation: Option<&str>) -> Approval {
    match annotation {
        None | Some("") => Approval::Missing,
        Some(a) if a.starts_with("unapproved") => Approval::Bypassed,
        Some(a) => {
            let url = a.strip_prefix("https://").or(a.strip_prefix("http://"));
            if url.is_some_and(|u| !u.split('/').next().unwrap_or_default().is_empty()) {
                Approval::Approved
            } else {
                Approval::Invalid
            }
        }
    }
}

/// The words for an approval's state.
pub fn approval_reason(annotation: Option<&str>) -> String {
    const KEY: &str = "api-approved.kubernetes.io";
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let a = annotation.unwrap_or_default();
    match approval(annotation) {
        Approval::Missing => {
            format!("protected groups must have approval annotation \"{KEY}\", {SEE}")
        }
        Approval::Invalid => {
            format!(
                "protected groups must have approval annotation \"{KEY}\" with either a URL or a reason starting with \"unapproved\", {SEE}"
            )
        }
        Approval::Bypassed => format!("not approved: {}", crate::go::go_quote(a)),
        Approval::Approved => format!("approved in {a}"),
    }
}
