//! The name and label formats of the API, with upstream's wording of what is wrong.
//!
//! Each function returns the list of complaints; an empty list means the value is valid.

use std::sync::LazyLock;

pub use crate::go::go_quote;
use regex::Regex;

const LABEL_KEY_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_KEY_MSG: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const DNS1123_LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_LABEL_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const DNS1035_LABEL_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";

fn subdomain_fmt() -> String {
    format!("{DNS1123_LABEL_FMT}(\\.{DNS1123_LABEL_FMT})*")
}

/// Upstream's explanation of a failed pattern, with examples.
pub fn regex_error(msg: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{msg} (regex used for validation is '{pattern}')");
    }
    let list: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!(
        "{msg} (e.g. {}regex used for validation is '{pattern}')",
        list.join(" or ")
    )
}

/// Upstream's complaint about a string that is too long.
pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// The older wording of the same, for DNS names.
pub fn max_chars_error(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn is_alnum(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn is_label_name(s: &str) -> bool {
    let b = s.as_bytes();
    match (b.first(), b.last()) {
        (Some(first), Some(last)) => {
            is_alnum(*first) && is_alnum(*last) && b.iter().all(|c| is_alnum(*c) || matches!(c, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

fn is_dns_label(s: &str) -> bool {
    let lower = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let b = s.as_bytes();
    match (b.first(), b.last()) {
        (Some(first), Some(last)) => lower(*first) && lower(*last) && b.iter().all(|c| lower(*c) || *c == b'-'),
        _ => false,
    }
}

/// A label key, annotation key or other qualified name.
pub fn label_key(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let examples = ["MyName", "my.name", "123-abc"];
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errs.push("prefix part must be non-empty".to_string());
            } else {
                errs.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|m| format!("prefix part {m}")),
                );
            }
            name
        }
        _ => {
            errs.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                regex_error(LABEL_KEY_MSG, LABEL_KEY_FMT, &examples)
            ));
            return errs;
        }
    };
    if name.is_empty() {
        errs.push("name part must be non-empty".to_string());
    } else if name.len() > 63 {
        errs.push(format!("name part {}", max_len_error(63)));
    }
    if !is_label_name(name) {
        errs.push(format!(
            "name part {}",
            regex_error(LABEL_KEY_MSG, LABEL_KEY_FMT, &examples)
        ));
    }
    errs
}

/// A label value.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 63 {
        errs.push(max_len_error(63));
    }
    if !value.is_empty() && !is_label_name(value) {
        let pattern = format!("({LABEL_KEY_FMT})?");
        errs.push(regex_error(
            LABEL_VALUE_MSG,
            &pattern,
            &["MyValue", "my_value", "12345"],
        ));
    }
    errs
}

/// A DNS label (RFC 1123).
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 63 {
        errs.push(max_chars_error(63));
    }
    if !is_dns_label(value) {
        if is_dns_subdomain(value) {
            // A subdomain where a label is wanted: upstream says only what is superfluous.
            errs.push("must not contain dots".to_string());
        } else {
            errs.push(regex_error(
                DNS1123_LABEL_MSG,
                DNS1123_LABEL_FMT,
                &["my-name", "123-abc"],
            ));
        }
    }
    errs
}

fn is_dns_subdomain(value: &str) -> bool {
    value.split('.').all(is_dns_label)
}

/// A DNS subdomain (RFC 1123).
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 253 {
        errs.push(max_chars_error(253));
    }
    if !is_dns_subdomain(value) {
        errs.push(regex_error(DNS1123_SUBDOMAIN_MSG, &subdomain_fmt(), &["example.com"]));
    }
    errs
}

/// A DNS label where upstream's rule is declared.
pub fn declared_dns1123_label(value: &str) -> Vec<String> {
    let mut errs = dns1123_label(value);
    if value.len() > 63 {
        errs[0] = max_len_error(63);
    }
    errs
}

/// A DNS subdomain where upstream's rule is declared.
pub fn declared_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errs = dns1123_subdomain(value);
    if value.len() > 253 {
        errs[0] = max_len_error(253);
    }
    errs
}

/// A DNS subdomain of letters of any case.
pub fn dns1123_subdomain_of_any_case(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 253 {
        errs.push(max_len_error(253));
    }
    if !is_dns_subdomain(&value.to_ascii_lowercase()) {
        let msg = "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        errs.push(regex_error(msg, &subdomain_fmt(), &["Example.com"]));
    }
    errs
}

/// The same where each label may begin with an underscore, and have more within.
pub fn dns1123_subdomain_with_underscore(value: &str) -> Vec<String> {
    const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut errs = Vec::new();
    if value.len() > 253 {
        errs.push(max_chars_error(253));
    }
    let is_digit = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_label = |label: &str| {
        let b = label.strip_prefix('_').unwrap_or(label).as_bytes();
        b.first().is_some_and(is_digit)
            && b.last().is_some_and(is_digit)
            && b.iter().all(|c| is_digit(c) || matches!(c, b'-' | b'_'))
    };
    if !value.split('.').all(is_label) {
        let msg = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
        errs.push(regex_error(msg, &format!("{LABEL}(\\.{LABEL})*"), &["example.com"]));
    }
    errs
}

/// `acme.io/foo`: what is wrong of it, each with the part that is. An empty one is the caller's matter.
pub fn domain_prefixed_path(value: &str) -> Vec<(&str, String)> {
    let (host, path) = match value.split_once('/') {
        Some((host, path)) if !host.is_empty() && !path.is_empty() => (host, path),
        _ => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            return vec![(value, why.to_string())];
        }
    };
    let mut wrong: Vec<(&str, String)> = dns1123_subdomain(host).into_iter().map(|why| (host, why)).collect();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(is_plain) {
        let why = regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]);
        wrong.push((path, why));
    }
    wrong
}

/// A DNS label that starts with a letter (RFC 1035).
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 63 {
        errs.push(max_chars_error(63));
    }
    if !(is_dns_label(value) && value.as_bytes().first().is_some_and(u8::is_ascii_lowercase)) {
        errs.push(regex_error(
            DNS1035_LABEL_MSG,
            DNS1035_LABEL_FMT,
            &["my-name", "abc-123"],
        ));
    }
    errs
}

/// A whole-number percentage such as `25%`.
pub fn is_percent(value: &str) -> bool {
    static RE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("^[0-9]+%$").ok());
    RE.as_ref().is_some_and(|re| re.is_match(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys() {
        for good in ["a", "a.b/c", "app.kubernetes.io/name", "A_b-c.d"] {
            assert!(label_key(good).is_empty(), "{good}");
        }
        assert_eq!(label_key("/x"), ["prefix part must be non-empty"]);
        assert!(label_key("a/b/c")[0].starts_with("a valid label key must consist of"));
        assert!(label_key("-a")[0].starts_with("name part must consist of"));
        assert_eq!(
            label_key("")[1],
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        );
    }

    #[test]
    fn dns_names() {
        assert!(dns1123_subdomain("a.b-c.1").is_empty());
        assert!(!dns1123_subdomain("a..b").is_empty());
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert!(!dns1035_label("1a").is_empty());
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }
}
