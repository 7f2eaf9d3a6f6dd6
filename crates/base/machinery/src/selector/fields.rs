//! Field selectors: `a.b=c,d!=e`.

use crate::names::go_quote;
use keelson_api::Str;
use std::fmt;

/// One condition on a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: Str,
    pub value: Str,
    pub negated: bool,
}

/// A conjunction of conditions on fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub requirements: Vec<FieldRequirement>,
}

/// Protects `\`, `,` and `=` within a value.
pub fn escape_value(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Undoes [`escape_value`].
pub fn unescape_value(s: &str) -> Result<String, String> {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let tail = other.map(String::from).unwrap_or_default();
                    return Err(format!("invalid field selector: invalid escape sequence: \\{tail}"));
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {}",
                    c as u32
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn split_terms(s: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in s.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&s[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&s[start..]);
    terms
}

impl FieldSelector {
    pub fn parse(s: &str) -> Result<Self, String> {
        let mut terms = split_terms(s);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let split = term.char_indices().find_map(|(i, _)| {
                ["!=", "==", "="]
                    .iter()
                    .find_map(|op| term[i..].strip_prefix(op).map(|rhs| (&term[..i], *op, rhs)))
            });
            let Some((lhs, op, rhs)) = split else {
                return Err(format!("invalid selector: '{s}'; can't understand '{term}'"));
            };
            requirements.push(FieldRequirement {
                field: lhs.into(),
                value: unescape_value(rhs)?.into(),
                negated: op == "!=",
            });
        }
        Ok(FieldSelector { requirements })
    }
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    /// Matches by looking each field up; an absent field reads as the empty string.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements
            .iter()
            .all(|r| (lookup(&r.field).unwrap_or_default() == r.value) != r.negated)
    }
    /// The value that `field` must have, if the selector says so.
    pub fn requires_exact_match(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| !r.negated && r.field == field)
            .map(|r| r.value.as_str())
    }
    /// Refuses fields that the resource doesn't know, in upstream's words.
    pub fn check_supported(&self, supported: impl Fn(&str) -> bool) -> Result<(), String> {
        match self.requirements.iter().find(|r| !supported(&r.field)) {
            None => Ok(()),
            Some(r) => Err(format!("field label not supported: {}", r.field)),
        }
    }
    /// The complaint about a field that an unversioned resource doesn't know.
    pub fn unknown_field_message(field: &str) -> String {
        format!(
            "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            go_quote(field)
        )
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let op = if r.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{op}{}", r.field, escape_value(&r.value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_matches_and_prints() {
        let s = FieldSelector::parse("spec.nodeName=n1,metadata.name!=x,,a==b\\,c").unwrap();
        assert_eq!(s.to_string(), "a=b\\,c,metadata.name!=x,spec.nodeName=n1");
        let get = |f: &str| match f {
            "spec.nodeName" => Some("n1"),
            "a" => Some("b,c"),
            _ => None,
        };
        assert!(s.matches_with(get));
        assert!(!s.matches_with(|f| if f == "metadata.name" { Some("x") } else { get(f) }));
        assert_eq!(s.requires_exact_match("spec.nodeName"), Some("n1"));
    }

    #[test]
    fn errors_are_upstreams() {
        assert_eq!(
            FieldSelector::parse("a").unwrap_err(),
            "invalid selector: 'a'; can't understand 'a'"
        );
        assert_eq!(
            FieldSelector::parse("a=b=c").unwrap_err(),
            "invalid field selector: unescaped character in value: 61"
        );
        assert_eq!(
            FieldSelector::parse("a=b\\d").unwrap_err(),
            "invalid field selector: invalid escape sequence: \\d"
        );
    }
}
