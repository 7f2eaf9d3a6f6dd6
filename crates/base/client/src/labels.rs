//! Label selectors as they stand in typed objects, and whether labels match them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
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
                // Only selectors that were read from text have these two.
                "Gt" | "Lt" => value.zip(values.first()).is_some_and(|(value, bound)| {
                    let numbers = (value.parse::<i64>(), bound.parse::<i64>());
                    matches!(numbers, (Ok(v), Ok(b)) if if rule.operator == "Gt" { v > b } else { v < b })
                }),
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
            "Gt" => format!("{}>{values}", rule.key),
            "Lt" => format!("{}<{values}", rule.key),
            _ => format!("!{}", rule.key),
        });
    }
    parts.sort();
    parts.join(",")
}

/// Reads a selector as it is written in a query or a scale's status. `None` if it isn't well formed.
pub fn parse(text: &str) -> Option<LabelSelector> {
    let mut rest = text.trim_start();
    let mut rules = Vec::new();
    while !rest.is_empty() {
        let absent = rest.strip_prefix('!');
        rest = absent.unwrap_or(rest).trim_start();
        let key = word(&mut rest)?;
        let mut rule = LabelSelectorRequirement {
            key: key.to_string(),
            operator: if absent.is_some() { "DoesNotExist" } else { "Exists" }.into(),
            values: None,
        };
        if absent.is_none() && !rest.is_empty() && !rest.starts_with(',') {
            let (operator, values) = comparison(&mut rest)?;
            rule.operator = operator.into();
            rule.values = Some(values);
        }
        rules.push(rule);
        match rest.strip_prefix(',') {
            Some(more) => {
                rest = more.trim_start();
                if rest.is_empty() {
                    return None;
                }
            }
            None if rest.is_empty() => {}
            None => return None,
        }
    }
    Some(LabelSelector {
        match_labels: None,
        match_expressions: (!rules.is_empty()).then_some(rules),
    })
}

/// A key or a value, and the blanks after it.
fn word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after.trim_start();
    (!word.is_empty()).then_some(word)
}

fn comparison(rest: &mut &str) -> Option<(&'static str, Vec<String>)> {
    for (sign, operator) in [("==", "In"), ("!=", "NotIn"), ("=", "In"), (">", "Gt"), ("<", "Lt")] {
        if let Some(after) = rest.strip_prefix(sign) {
            *rest = after.trim_start();
            // A value may be empty.
            let value = word(rest).unwrap_or_default().to_string();
            return (operator.len() != 2 || operator == "In" || value.parse::<i64>().is_ok())
                .then(|| (operator, vec![value]));
        }
    }
    let operator = match word(rest)? {
        "in" => "In",
        "notin" => "NotIn",
        _ => return None,
    };
    let (list, after) = rest.strip_prefix('(')?.split_once(')')?;
    *rest = after.trim_start();
    let mut values = Vec::new();
    for part in list.split(',') {
        let mut part = part.trim();
        let value = word(&mut part).unwrap_or_default();
        if !part.is_empty() {
            return None;
        }
        values.push(value.to_string());
    }
    Some((operator, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_go_into_text_and_back() {
        let labels: Labels = [("app", "web"), ("tier", "a"), ("n", "5")]
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .into();
        for (text, does) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier in (a, b)", true),
            ("app!=web", false),
            ("other!=web", true),
            ("tier notin (a,b)", false),
            ("app", true),
            ("!app", false),
            ("! other , app = web", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app=", false),
        ] {
            let selector = parse(text).unwrap_or_else(|| panic!("{text} is well formed"));
            assert_eq!(matches(Some(&selector), Some(&labels)), does, "{text}");
            let again = parse(&format(&selector)).expect("well formed");
            assert_eq!(
                matches(Some(&again), Some(&labels)),
                does,
                "{text}, written and read again"
            );
        }
        for bad in ["=", "a=b,", "a in b", "a in (b", "a b", "a>x", "a,,b", "a=b=c"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

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
