//! URLs, absolute or rooted, as Go's `ParseRequestURI` takes them.

use super::super::value::{CelError, Key, Val};
use super::Found;
use crate::go;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    pub fn parse(s: &str) -> Option<Url> {
        if s.is_empty() || s.chars().any(|c| c.is_control() || c == ' ') {
            return None;
        }
        let s = s.split('#').next().unwrap_or_default();
        let (scheme, rest) = match s.split_once(':') {
            Some((scheme, rest))
                if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')) =>
            {
                (scheme.to_ascii_lowercase(), rest)
            }
            _ if s.starts_with('/') => (String::new(), s),
            _ => return None,
        };
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match before.strip_prefix("//") {
            Some(r) => r.find('/').map_or((r, ""), |i| r.split_at(i)),
            None if before.starts_with('/') => ("", before),
            None => return None,
        };
        let host = host.rsplit_once('@').map_or(host, |(_, h)| h);
        Some(Url {
            scheme,
            host: host.into(),
            path: path.into(),
            query: query.into(),
        })
    }
    fn split_host(&self) -> (&str, &str) {
        if let Some(end) = self.host.rfind(']') {
            let (addr, rest) = self.host.split_at(end + 1);
            return (addr.trim_matches(['[', ']']), rest.strip_prefix(':').unwrap_or(""));
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }
}

fn decode(s: &str) -> String {
    let b = s.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        let hex = || {
            std::str::from_utf8(b.get(i + 1..i + 3)?)
                .ok()
                .and_then(|h| u8::from_str_radix(h, 16).ok())
        };
        match (b[i], hex()) {
            (b'%', Some(c)) => {
                out.push(c);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (c, _) => out.push(c),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    let [Val::Str(s)] = args else { return None };
    match name {
        "url" => Some(match Url::parse(s) {
            Some(u) => Ok(Val::Url(Arc::new(u))),
            None => Err(CelError::new(format!(
                "URL parse error during conversion from string: parse {}: invalid URI for request",
                go::go_quote(s)
            ))),
        }),
        "isURL" => Some(Ok(Val::Bool(Url::parse(s).is_some()))),
        _ => None,
    }
}

pub fn member<'a>(name: &str, u: &Url, args: &[Val<'a>]) -> Found<'a> {
    if !args.is_empty() {
        return None;
    }
    Some(Ok(match name {
        "getScheme" => Val::str(u.scheme.as_str()),
        "getHost" => Val::str(u.host.as_str()),
        "getHostname" => Val::str(u.split_host().0),
        "getPort" => Val::str(u.split_host().1),
        "getEscapedPath" => Val::str(u.path.as_str()),
        "getQuery" => {
            let mut out: BTreeMap<Key, Vec<Val<'a>>> = BTreeMap::new();
            for pair in u.query.split('&').filter(|p| !p.is_empty()) {
                let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
                out.entry(Key::Str(decode(k))).or_default().push(Val::str(decode(v)));
            }
            Val::Map(Arc::new(out.into_iter().map(|(k, v)| (k, Val::list(v))).collect()))
        }
        _ => return None,
    }))
}
