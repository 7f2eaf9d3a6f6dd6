//! What a definition's status should say: accepted names and conditions. Pure; the clock is an argument.

use keelson_api::{Map, Object, Value, value};
use keelson_machinery::structural::{check, definition};
use std::collections::BTreeSet;

/// Names that other definitions of the group hold.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    pub resources: BTreeSet<String>,
    pub kinds: BTreeSet<String>,
}

impl Taken {
    /// Adds what a definition has been granted.
    pub fn add(&mut self, crd: &Object) {
        let Some(names) = crd.at(&["status", "acceptedNames"]).and_then(Value::as_object) else {
            return;
        };
        for key in ["plural", "singular"] {
            self.resources
                .extend(names.str(key).filter(|n| !n.is_empty()).map(String::from));
        }
        self.resources.extend(
            names
                .arr("shortNames")
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(String::from),
        );
        for key in ["kind", "listKind"] {
            self.kinds
                .extend(names.str(key).filter(|n| !n.is_empty()).map(String::from));
        }
    }
}

pub fn condition<'a>(crd: &'a Object, kind: &str) -> Option<&'a Value> {
    let list = crd.at(&["status", "conditions"]).and_then(Value::as_array)?;
    list.iter()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(kind))
}

pub fn is_true(crd: &Object, kind: &str) -> bool {
    condition(crd, kind)
        .and_then(|c| c.get("status"))
        .and_then(Value::as_str)
        == Some("True")
}

/// Sets a condition; the time moves only with the status.
pub fn set_condition(crd: &mut Object, kind: &str, status: &str, reason: &str, message: &str, now: &str) {
    let old = condition(crd, kind).cloned();
    let same = |key: &str, v: &str| old.as_ref().and_then(|o| o.get(key)).and_then(Value::as_str) == Some(v);
    if same("status", status) && same("reason", reason) && same("message", message) {
        return;
    }
    let time = match &old {
        Some(o) if same("status", status) => o.get("lastTransitionTime").cloned().unwrap_or_else(|| now.into()),
        _ => now.into(),
    };
    let mut new = value!({"type": kind, "status": status, "reason": reason, "message": message});
    new.set_at(&["lastTransitionTime"], time);
    let mut list = crd
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    match list
        .iter_mut()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(kind))
    {
        Some(c) => *c = new,
        None => list.push(new),
    }
    crd.set_at(&["status", "conditions"], list);
}

fn remove_condition(crd: &mut Object, kind: &str) {
    if condition(crd, kind).is_none() {
        return;
    }
    let mut list = crd
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some(kind));
    crd.set_at(&["status", "conditions"], list);
}

/// The definition with the status it should have; `taken` are the names of the other definitions of its group.
pub fn plan(crd: &Object, taken: &Taken, now: &str) -> Object {
    let mut out = crd.clone();
    let accepted = names(&mut out, taken, now);
    if !is_true(&out, "Established") {
        if accepted {
            set_condition(
                &mut out,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
                now,
            );
        } else {
            set_condition(
                &mut out,
                "Established",
                "False",
                "NotAccepted",
                "not all names are accepted",
                now,
            );
        }
    }
    structural(&mut out, now);
    approval(&mut out, now);
    out
}

/// Grants what is free; whether everything asked for was granted.
fn names(crd: &mut Object, taken: &Taken, now: &str) -> bool {
    let empty = Map::new();
    let wanted = crd
        .at(&["spec", "names"])
        .and_then(Value::as_object)
        .unwrap_or(&empty)
        .clone();
    let mut granted = crd
        .at(&["status", "acceptedNames"])
        .and_then(Value::as_object)
        .unwrap_or(&empty)
        .clone();
    let mut refused: Option<(&str, String)> = None;
    let used = |name: &str| format!("\"{name}\" is already in use");
    for (key, reason, set) in [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("shortNames", "ShortNamesConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ] {
        let asked: Vec<&str> = match wanted.get(key) {
            Some(Value::String(s)) => vec![s.as_str()],
            Some(Value::Array(a)) => a.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let own = granted.get(key).cloned().unwrap_or_default();
        let has = |n: &str| {
            own.as_str() == Some(n) || own.as_array().is_some_and(|a| a.iter().any(|v| v.as_str() == Some(n)))
        };
        let bad: Vec<String> = asked
            .iter()
            .filter(|n| !has(n) && set.contains(**n))
            .map(|n| used(n))
            .collect();
        match bad.as_slice() {
            [] => match wanted.get(key) {
                Some(v) => drop(granted.insert(key, v.clone())),
                None => drop(granted.remove(key)),
            },
            [one] => refused = Some((reason, one.clone())),
            many => refused = Some((reason, format!("[{}]", many.join(", ")))),
        }
    }
    match wanted.get("categories") {
        Some(v) => drop(granted.insert("categories", v.clone())),
        None => drop(granted.remove("categories")),
    }
    for key in ["plural", "kind"] {
        granted.entry_or_insert_with(key, || Value::from(""));
    }
    crd.set_at(&["status", "acceptedNames"], granted);
    let accepted = refused.is_none();
    let (status, reason, message) = match &refused {
        None => ("True", "NoConflicts", "no conflicts found"),
        Some((reason, message)) => ("False", *reason, message.as_str()),
    };
    set_condition(crd, "NamesAccepted", status, reason, message, now);
    accepted
}

fn structural(crd: &mut Object, now: &str) {
    let versions = crd
        .at(&["spec", "versions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let mut bad = Vec::new();
    if crd.at(&["spec", "preserveUnknownFields"]).and_then(Value::as_bool) == Some(true) {
        bad.push("spec.preserveUnknownFields: Invalid value: true: must be false".to_string());
    }
    for (i, v) in versions.iter().enumerate() {
        if let Some(s) = v.at(&["schema", "openAPIV3Schema"]) {
            let found = check::violations(s, &format!("spec.versions[{i}].schema.openAPIV3Schema"));
            bad.extend(found.into_iter().map(|c| format!("{}: {}", c.field, c.message)));
        }
    }
    let message = match bad.as_slice() {
        [] => return remove_condition(crd, "NonStructuralSchema"),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    set_condition(crd, "NonStructuralSchema", "True", "Violations", &message, now);
}

fn approval(crd: &mut Object, now: &str) {
    const KIND: &str = "KubernetesAPIApprovalPolicyConformant";
    let group = crd.at(&["spec", "group"]).and_then(Value::as_str).unwrap_or_default();
    if !definition::is_protected(group) {
        return remove_condition(crd, KIND);
    }
    let annotation = crd.annotation("api-approved.kubernetes.io").map(String::from);
    let message = definition::approval_reason(annotation.as_deref());
    let (status, reason) = match definition::approval(annotation.as_deref()) {
        definition::Approval::Missing => ("False", "MissingAnnotation"),
        definition::Approval::Invalid => ("False", "InvalidAnnotation"),
        definition::Approval::Bypassed => ("False", "UnapprovedAnnotation"),
        definition::Approval::Approved => ("True", "ApprovedAnnotation"),
    };
    set_condition(crd, KIND, status, reason, &message, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(kind: &str) -> Object {
        Object::try_from(value!({"metadata": {"name": "tabs.x.io"}, "spec": {"group": "x.io",
            "names": {"plural": "tabs", "singular": "tab", "kind": kind, "listKind": "TabList", "shortNames": ["tb"]},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object"}}}]}}))
        .unwrap()
    }

    #[test]
    fn free_names_are_accepted_and_established() {
        let out = plan(&crd("Tab"), &Taken::default(), "t");
        assert!(is_true(&out, "NamesAccepted") && is_true(&out, "Established"));
        assert_eq!(out.at(&["status", "acceptedNames"]), out.at(&["spec", "names"]));
        assert_eq!(plan(&out, &Taken::default(), "later"), out);
    }

    #[test]
    fn taken_names_are_refused() {
        let mut taken = Taken::default();
        taken.add(&plan(&crd("Tab"), &Taken::default(), "t"));
        let out = plan(&crd("Other"), &taken, "t");
        assert!(!is_true(&out, "NamesAccepted") && !is_true(&out, "Established"));
        let c = condition(&out, "NamesAccepted").unwrap();
        assert_eq!(c.get("reason"), Some(&Value::from("ListKindConflict")));
        assert_eq!(c.get("message"), Some(&Value::from("\"TabList\" is already in use")));
        assert_eq!(
            out.at(&["status", "acceptedNames", "kind"]),
            Some(&Value::from("Other"))
        );
    }
}
