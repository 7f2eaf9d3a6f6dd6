//! What the rules of a schema say beside their expressions.

use super::Validator;
use crate::structural::{Rule, Structural};
use keelson_api::{Cause, Value};

const REASONS: [&str; 4] = [
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];
const EMPTY: &str = "must be non-empty if specified";
const LINES: &str = "must not contain line breaks";

fn has_lines(text: &str) -> bool {
    text.contains(['\n', '\r'])
}

impl Validator {
    /// The rules of a node and of all below it.
    pub(super) fn rules(&mut self, s: &Structural, path: &str) {
        for (i, rule) in s.rules.iter().enumerate() {
            self.rule(rule, s, &format!("{path}.x-kubernetes-validations[{i}]"));
        }
        for (key, p) in &s.properties {
            self.rules(p, &format!("{path}.properties[{key}]"));
        }
        if let Some(items) = &s.items {
            self.rules(items, &format!("{path}.items"));
        }
        if let Some(additional) = s.additional_schema() {
            self.rules(additional, &format!("{path}.additionalProperties"));
        }
    }

    fn rule(&mut self, rule: &Rule, s: &Structural, at: &str) {
        let mut invalid = |key: &str, value: &str, why: &str| {
            self.out
                .push(Cause::invalid(format!("{at}.{key}"), &Value::from(value), why));
        };
        let (text, message) = (rule.rule.trim(), rule.message.trim());
        let mut required = None;
        if text.is_empty() {
            required = Some(("rule", "rule is not specified"));
        } else if !rule.message.is_empty() && message.is_empty() {
            invalid("message", &rule.message, EMPTY);
        } else if has_lines(message) {
            invalid("message", &rule.message, LINES);
        } else if has_lines(text) && message.is_empty() {
            required = Some(("message", "message must be specified if rule contains line breaks"));
        }
        let path = rule.field_path.as_str();
        if !path.is_empty() {
            if path.trim().is_empty() {
                invalid("fieldPath", path, EMPTY);
            }
            if has_lines(path) {
                invalid("fieldPath", path, LINES);
            }
            if !is_field(path, s) {
                invalid("fieldPath", path, "must be a valid path");
            }
        }
        if let Some((key, why)) = required {
            self.out.push(Cause::required(format!("{at}.{key}"), why));
        }
        if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            self.out.push(Cause::required(format!("{at}.messageExpression"), why));
        }
        if !rule.reason.is_empty() && !REASONS.contains(&rule.reason.as_str()) {
            let value = Value::String(rule.reason.clone());
            self.out
                .push(Cause::not_supported(format!("{at}.reason"), &value, &REASONS));
        }
    }
}

/// Whether a path (`.a.b`, `.a['b']`) is one of a schema's fields.
fn is_field(path: &str, s: &Structural) -> bool {
    let (mut rest, mut s) = (path, s);
    while !rest.is_empty() {
        let Some((name, after)) = step(rest) else { return false };
        let below = match s.properties.is_empty() {
            false => s.properties.get(name.as_str()),
            true => s.additional_schema(),
        };
        let Some(below) = below else { return false };
        (rest, s) = (after, below);
    }
    true
}

/// The first name of a path, and what follows it.
fn step(path: &str) -> Option<(String, &str)> {
    if let Some(rest) = path.strip_prefix('.') {
        let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
        return (end > 0).then(|| (rest[..end].to_owned(), &rest[end..]));
    }
    let mut name = String::new();
    let quoted = path.strip_prefix("['")?;
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Some((name, quoted[at + 1..].strip_prefix(']')?)),
            '\\' => name.push(match chars.next()?.1 {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                c @ ('\'' | '\\') => c,
                _ => return None,
            }),
            c => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn paths_are_those_of_fields() {
        let s = value!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b.c": {"type": "string"}}},
            "m": {"type": "object", "additionalProperties": {"type": "string"}}}});
        let s = Structural::parse(&s);
        for good in ["", ".a", ".a['b.c']", ".m.any", ".m['any']", "['a']"] {
            assert!(is_field(good, &s), "{good}");
        }
        for bad in [
            "a",
            ".",
            ".x",
            ".a.b",
            ".a['b.c'",
            ".a[0]",
            ".a['x']",
            ".m.any.more",
            "['\\x']",
        ] {
            assert!(!is_field(bad, &s), "{bad}");
        }
    }
}
