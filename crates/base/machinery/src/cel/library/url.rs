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
    pub fn parse(s: &str) -> Result<Url, String> {
        const INVALID: &str = "invalid URI for request";
        if s.chars().any(|c| c.is_ascii_control()) {
            return Err("net/url: invalid control character in URL".into());
        }
        let s = s.split('#').next().unwrap_or_default();
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
        };
        let (scheme, rest) = match s.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
            _ if s.starts_with('/') => (String::new(), s),
            Some(("", _)) => return Err("missing protocol scheme".into()),
            _ if s.is_empty() => return Err("empty url".into()),
            _ => return Err(INVALID.into()),
        };
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match before.strip_prefix("//") {
            Some(r) if !scheme.is_empty() => r.find('/').map_or((r, ""), |i| r.split_at(i)),
            // What follows a scheme without a slash is opaque.
            _ if !before.starts_with('/') => ("", ""),
            _ => ("", before),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, h)| h);
        check_host(host)?;
        check_escapes(path)?;
        Ok(Url {
            scheme,
            host: host.into(),
            path: path.into(),
            query: query.into(),
        })
    }
    /// The path as it goes over the wire: as written, if it is well written.
    fn escaped_path(&self) -> String {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&c);
        if self.path.bytes().all(|c| plain(c) || b"!'()*[]%".contains(&c)) {
            return self.path.clone();
        }
        let mut out = String::new();
        for c in decode(&self.path.replace('+', "%2B")).bytes() {
            if plain(c) {
                out.push(char::from(c));
            } else {
                out.push_str(&format!("%{c:02X}"));
            }
        }
        out
    }
    fn split_host(&self) -> (&str, &str) {
        if let Some(end) = self.host.rfind(']') {
            let (addr, rest) = self.host.split_at(end + 1);
            return (addr.trim_matches(['[', ']']), rest.strip_prefix(':').unwrap_or(""));
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }
}

fn check_host(host: &str) -> Result<(), String> {
    let port = match host.rfind(']') {
        Some(end) => &host[end + 1..],
        None if host.matches(':').count() > 1 => host.find(':').map_or("", |i| &host[i..]),
        None => host.rfind(':').map_or("", |i| &host[i..]),
    };
    let digits = port
        .strip_prefix(':')
        .is_none_or(|p| p.bytes().all(|c| c.is_ascii_digit()));
    if !digits || !(port.is_empty() || port.starts_with(':')) {
        return Err(format!("invalid port {} after host", go::go_quote(port)));
    }
    match host
        .chars()
        .find(|c| matches!(c, ' ' | '<' | '>' | '"' | '\\' | '^' | '`' | '{' | '|' | '}'))
    {
        Some(c) if !matches!(c, '<' | '>' | '"') => Err(format!(
            "invalid character {} in host name",
            go::go_quote(&c.to_string())
        )),
        _ => Ok(()),
    }
}

fn check_escapes(path: &str) -> Result<(), String> {
    for (i, _) in path.match_indices('%') {
        let escape = path.get(i..i + 3).unwrap_or(&path[i..]);
        if escape.len() < 3 || !escape.bytes().skip(1).all(|c| c.is_ascii_hexdigit()) {
            return Err(format!("invalid URL escape {}", go::go_quote(escape)));
        }
    }
    Ok(())
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
            Ok(u) => Ok(Val::Url(Arc::new(u))),
            Err(why) => Err(CelError::new(format!(
                "URL parse error during conversion from string: parse {}: {why}",
                go::go_quote(s)
            ))),
        }),
        "isURL" => Some(Ok(Val::Bool(Url::parse(s).is_ok()))),
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
        "getEscapedPath" => Val::str(u.escaped_path()),
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
