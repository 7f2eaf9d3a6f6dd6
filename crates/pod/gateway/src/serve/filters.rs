//! Redirects and rewrites: pure.

use super::From;
use crate::table::{PathChange, PathRule, Redirect};

/// The path that comes of a change; `rule` is what matched.
pub fn path(path: &str, change: Option<&PathChange>, rule: &PathRule) -> String {
    match (change, rule) {
        (None, _) => path.into(),
        (Some(PathChange::Full(new)), _) => rooted(new),
        (Some(PathChange::Prefix(new)), PathRule::Prefix(prefix)) => match path.strip_prefix(prefix.as_str()) {
            Some("") => rooted(new),
            Some(rest) => rooted(&format!("{}{rest}", new.trim_end_matches('/'))),
            None => path.into(),
        },
        // The API has prefixes replaced only where prefixes match.
        (Some(PathChange::Prefix(_)), _) => path.into(),
    }
}

fn rooted(path: &str) -> String {
    match path.starts_with('/') {
        true => path.into(),
        false => format!("/{path}"),
    }
}

/// Where a client is sent.
pub fn location(redirect: &Redirect, rule: &PathRule, from: &From, uri: &http::Uri) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(from.scheme);
    let own = match from
        .authority
        .rfind(':')
        .filter(|at| !from.authority[*at..].contains(']'))
    {
        Some(at) => &from.authority[..at],
        None => &from.authority,
    };
    let host = redirect.host.as_deref().unwrap_or(own);
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(_)) => usual,
        (None, None) => from.port,
    };
    let port = if port == usual {
        String::new()
    } else {
        format!(":{port}")
    };
    let path = path(uri.path(), redirect.path.as_ref(), rule);
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_by_elements() {
        // The table of the API's documentation.
        for (given, prefix, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
        ] {
            let change = PathChange::Prefix(new.into());
            let got = path(given, Some(&change), &PathRule::prefix(prefix));
            assert_eq!(got, expected, "{given} {prefix} {new:?}");
        }
    }

    #[test]
    fn who_is_redirected_goes_where_the_filter_says_and_else_where_it_was() {
        let uri = "/a/b?c=d".parse().unwrap();
        let from = |port, authority: &str| From {
            certificate: None,
            remote: ([192, 0, 2, 1], 1).into(),
            scheme: "http",
            port,
            authority: authority.into(),
        };
        let redirect = |scheme: Option<&str>, host: Option<&str>, port| Redirect {
            scheme: scheme.map(Into::into),
            host: host.map(Into::into),
            port,
            path: None,
            status: 302,
        };
        let rule = PathRule::prefix("/a");
        let to = |r, f: &From| location(&r, &rule, f, &uri);
        assert_eq!(
            to(redirect(Some("https"), None, None), &from(80, "x.org")),
            "https://x.org/a/b?c=d"
        );
        assert_eq!(
            to(redirect(None, Some("y.org"), None), &from(8080, "x.org:8080")),
            "http://y.org:8080/a/b?c=d"
        );
        assert_eq!(
            to(redirect(None, None, Some(81)), &from(80, "[::1]:80")),
            "http://[::1]:81/a/b?c=d"
        );
        assert_eq!(
            to(redirect(Some("https"), None, Some(8443)), &from(80, "x.org")),
            "https://x.org:8443/a/b?c=d"
        );
    }
}
