//! Which rule a request is for: pure.
//!
//! A listener is chosen by the host alone. In it rules of the host itself are asked first, then those of wildcards from the longest on, then
//! those of all hosts: the first whose conditions hold, in the [`crate::table::Order`] in which they stand.

use crate::table::{Listener, PathRule, Port, Rule, Text, When};
use http::HeaderMap;
use std::borrow::Cow;

/// What of a request decides.
pub struct Head<'a> {
    pub method: &'a str,
    /// As [`host`] has it.
    pub host: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
}

/// A name as rules have it: without port and final dot, in small letters.
pub fn host(authority: &str) -> String {
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    };
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a path has a `..`, escaped or not: a backend may take it for another path than the one that a rule was found for.
pub fn climbs(path: &str) -> bool {
    path.split(['/', '\\']).any(|part| {
        let plain = part.to_ascii_lowercase().replace("%2e", ".");
        plain == ".."
            // Some backends take away what comes after a semicolon, and then see it.
            || plain.starts_with("..;")
            || plain.contains("..%2f")
            || plain.contains("..%5c")
            || plain.ends_with("%2f..")
            || plain.ends_with("%5c..")
    })
}

pub fn listener<'a>(port: &'a Port, host: &str) -> Option<&'a Listener> {
    port.listeners.iter().find(|l| l.host.has(host))
}

pub fn find<'a>(port: &'a Port, head: &Head<'_>) -> Option<&'a Rule> {
    let listener = listener(port, head.host)?;
    let rules = |host: &str| listener.hosts.get(host).into_iter().flatten();
    let wildcards = wildcards(head.host).take(if listener.one_label { 1 } else { usize::MAX });
    let mut all = rules(head.host)
        .chain(wildcards.flat_map(|w| rules(&w)))
        .chain(rules(""));
    all.find(|rule| holds(&rule.when, head))
}

/// `*.b.c` and `*.c` for `a.b.c`.
fn wildcards(host: &str) -> impl Iterator<Item = String> {
    let dots = host.match_indices('.').filter(|(at, _)| *at > 0);
    dots.map(|(at, _)| format!("*{}", &host[at..]))
}

pub fn holds(when: &When, head: &Head<'_>) -> bool {
    let path = match &when.path {
        PathRule::Exact(path) => path == head.path,
        PathRule::Prefix(prefix) => {
            let rest = head.path.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathRule::Pattern(pattern) => pattern.0.is_match(head.path),
    };
    path && when.method.as_deref().is_none_or(|method| method == head.method)
        && when.headers.iter().all(|(name, text)| {
            let values: Vec<&str> = head
                .headers
                .get_all(name)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .collect();
            !values.is_empty() && is(text, &values.join(","))
        })
        && when.query.iter().all(|(name, text)| {
            // The first of several counts.
            let all = head
                .query
                .split('&')
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            let found = all.map(|(k, v)| (unescaped(k), v)).find(|(k, _)| k == name);
            found.is_some_and(|(_, value)| is(text, &unescaped(value)))
        })
}

fn is(text: &Text, value: &str) -> bool {
    match text {
        Text::Exact(wanted) => wanted == value,
        Text::Pattern(pattern) => pattern.0.is_match(value),
    }
}

/// A query's word without escapes.
fn unescaped(word: &str) -> Cow<'_, str> {
    if !word.contains(['%', '+']) {
        return word.into();
    }
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
        match (first, digit(tail.first()), digit(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
                continue;
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb() {
        for path in [
            "/a/../b",
            "/..",
            "/a/%2E%2e/b",
            "/a/..%2fb",
            "/a%5c..",
            "/a\\..\\b",
            "/a/..;/b",
            "/a/%2e.;x=1",
        ] {
            assert!(climbs(path), "{path}");
        }
        for path in ["/", "/a..b", "/...", "/a/./b", "/a/b..;c", "/.well-known/x", "/a%2fb"] {
            assert!(!climbs(path), "{path}");
        }
    }

    #[test]
    fn names_of_wildcards_and_words_of_queries() {
        assert_eq!(wildcards("a.b.c").collect::<Vec<_>>(), ["*.b.c", "*.c"]);
        assert_eq!(wildcards(".b").count(), 0);
        assert_eq!(unescaped("a%20b+c%zz%4"), "a b c%zz%4");
    }
}
