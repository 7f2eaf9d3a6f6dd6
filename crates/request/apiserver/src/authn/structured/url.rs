//! URLs as Go's `url.Parse` takes them, as far as rules ask about them.

use keelson_machinery::go::go_quote;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parts<'a> {
    pub scheme: String,
    pub has_user: bool,
    pub has_query: bool,
    pub has_fragment: bool,
    pub path: &'a str,
}

pub fn parse(url: &str) -> Result<Parts<'_>, String> {
    split(url).map_err(|why| format!("parse {}: {why}", go_quote(url)))
}

fn split(url: &str) -> Result<Parts<'_>, String> {
    if url.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL".into());
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (scheme, rest) = scheme(rest)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parts = Parts {
        scheme: scheme.to_ascii_lowercase(),
        has_query: !query.is_empty(),
        has_fragment: !fragment.is_empty(),
        path: rest,
        ..Parts::default()
    };
    if !rest.starts_with('/') {
        let first = rest.split('/').next().unwrap_or_default();
        if scheme.is_empty() && first.contains(':') {
            return Err("first path segment in URL cannot contain colon".into());
        }
    } else if let Some(after) = rest.strip_prefix("//") {
        let (authority, path) = after.find('/').map_or((after, ""), |i| after.split_at(i));
        let host = match authority.rsplit_once('@') {
            Some((_, host)) => {
                parts.has_user = true;
                host
            }
            None => authority,
        };
        check_host(host)?;
        parts.path = path;
    }
    check_escapes(parts.path)?;
    check_escapes(fragment)?;
    Ok(parts)
}

/// What stands before the first colon, if that can be a scheme.
fn scheme(url: &str) -> Result<(&str, &str), String> {
    for (i, c) in url.bytes().enumerate() {
        match c {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if i > 0 => {}
            b':' if i == 0 => return Err("missing protocol scheme".into()),
            b':' => return Ok((&url[..i], &url[i + 1..])),
            _ => break,
        }
    }
    Ok(("", url))
}

fn check_host(host: &str) -> Result<(), String> {
    let port = match (host.starts_with('['), host.rfind(']')) {
        (true, Some(end)) => &host[end + 1..],
        (true, None) => return Err("missing ']' in host".into()),
        _ => host.rfind(':').map_or("", |i| &host[i..]),
    };
    let digits = port.strip_prefix(':').unwrap_or("x");
    if !port.is_empty() && !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("invalid port {} after host", go_quote(port)));
    }
    if let Some(odd) = host.chars().find(|c| " \"<>^`{|}\\".contains(*c)) {
        return Err(format!("invalid character {} in host name", go_quote(&odd.to_string())));
    }
    Ok(())
}

fn check_escapes(text: &str) -> Result<(), String> {
    for (i, _) in text.match_indices('%') {
        let escape = text.as_bytes().get(i + 1..i + 3);
        if !escape.is_some_and(|e| e.iter().all(u8::is_ascii_hexdigit)) {
            let shown: String = text[i..].chars().take(3).collect();
            return Err(format!("invalid URL escape {}", go_quote(&shown)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_go_reads_them() {
        let full = parse("HTTPS://u:p@h:1/a/b?q#f").unwrap();
        assert_eq!(full.scheme, "https");
        assert!(full.has_user && full.has_query && full.has_fragment);
        assert_eq!(full.path, "/a/b");
        assert_eq!(parse("invalid-url").unwrap().scheme, "");
        assert_eq!(parse("https://[::1]:8443").unwrap().path, "");
        for (url, why) in [
            ("https://h:port", "invalid port \":port\" after host"),
            (":x", "missing protocol scheme"),
            ("a b:c", "first path segment in URL cannot contain colon"),
            ("https://h/%zz", "invalid URL escape \"%zz\""),
            ("https://h\u{7f}", "net/url: invalid control character in URL"),
            ("https://[::1", "missing ']' in host"),
        ] {
            assert_eq!(parse(url).unwrap_err(), format!("parse {}: {why}", go_quote(url)));
        }
    }
}
