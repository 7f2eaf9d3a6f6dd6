//! Label selectors as they stand in typed objects, and whether labels match them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

/// Whether `labels` satisfy the selector. An empty selector matches everything; no selector nothing; one with an
/// unknown operator nothing.
pub fn matches(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return false };
    let none = Labels::new();
    let labels = labels.unwrap_or(&none);
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|rule| {
            let value = labels.get(&rule.key);
            let values = rule.values.as_deref().unwrap_or_default();
            match rule.operator.as_str() {
                "In" => value.is_some_and(|v| values.contains(v)),
                "NotIn" => value.is_none_or(|v| !values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether a selector says nothing at all, and so would match everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|m| m.is_empty())
        && selector.match_expressions.as_ref().is_none_or(|m| m.is_empty())
}

/// Whether `labels` contain every pair of `wanted` (the old kind of selector).
pub fn includes(labels: Option<&Labels>, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

/// The selector as it is written in a query or a scale's status.
pub fn format(selector: &LabelSelector) -> String {
    let mut parts: Vec<String> = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    for rule in selector.match_expressions.iter().flatten() {
        let mut values = rule.values.clone().unwrap_or_default();
        values.sort();
        let values = values.join(",");
        parts.push(match rule.operator.as_str() {
            "In" => format!("{} in ({values})", rule.key),
            "NotIn" => format!("{} notin ({values})", rule.key),
            "Exists" => rule.key.clone(),
            _ => format!("!{}", rule.key),
        });
    }
    parts.sort();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    #[test]
    fn selectors() {
        let labels: Labels = [("app".to_string(), "web".to_string())].into();
        let rule = |operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "app".into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| v.to_string()).collect()),
            }]),
            ..Default::default()
        };
        for (selector, with, without) in [
            (rule("In", &["web"]), true, false),
            (rule("In", &["db"]), false, false),
            (rule("NotIn", &["web"]), false, true),
            (rule("Exists", &[]), true, false),
            (rule("DoesNotExist", &[]), false, true),
            (rule("Near", &["web"]), false, false),
            (LabelSelector::default(), true, true),
        ] {
            assert_eq!(matches(Some(&selector), Some(&labels)), with, "{selector:?}");
            assert_eq!(matches(Some(&selector), None), without, "{selector:?}");
        }
        assert!(!matches(None, Some(&labels)));
        assert_eq!(format(&rule("NotIn", &["b", "a"])), "app notin (a,b)");
    }
}
