//! Paths of webhooks as kube-apiserver asks for them: what `clientConfig` says is decoded, cleaned as `path.Join` does, and written anew.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What Go leaves as it is in a path.
const IN_PATHS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// One slash where there are several, none at the end, and no `.` or `..`: a server that has `/hook` is reached as `//hook/`, too.
pub fn cleaned(path: &str) -> String {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut parts = Vec::new();
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", utf8_percent_encode(&parts.join("/"), IN_PATHS))
}

/// A URL without query, with its path so.
pub fn cleaned_url(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let (origin, path) = url.split_at(url[start..].find('/').map_or(url.len(), |at| start + at));
    match url.contains(['?', '#']) {
        true => url.to_string(),
        false => format!("{origin}{}", cleaned(path)),
    }
}

/// Where an answer leads to within the same origin (`https://host:port`): a path, as the next request has it.
pub fn within<'a>(origin: &str, location: &'a str) -> Option<&'a str> {
    let path = location.strip_prefix(origin).unwrap_or(location);
    (path.starts_with('/') && !path.starts_with("//")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kube-apiserver 1.37.2 asked a server for them.
    #[test]
    fn paths_are_asked_for_as_upstream_does() {
        for (said, asked) in [
            ("//failing", "/failing"),
            ("/a/", "/a"),
            ("/a//b/", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/../..", "/"),
            ("", "/"),
            ("/", "/"),
            ("p", "/p"),
            ("/a%20b", "/a%20b"),
            ("/a%2Fb", "/a/b"),
            ("/a%3Fb", "/a%3Fb"),
            ("/ü", "/%C3%BC"),
            ("/a;b=c", "/a;b=c"),
            ("/a+b", "/a+b"),
        ] {
            assert_eq!(cleaned(said), asked, "{said}");
            let url = format!("https://h:1/{}", said.trim_start_matches('/'));
            assert_eq!(cleaned_url(&url), format!("https://h:1{asked}"), "{said}");
        }
        assert_eq!(cleaned_url("https://[::1]:9443//failing"), "https://[::1]:9443/failing");
        assert_eq!(cleaned_url("https://x"), "https://x/");
    }

    #[test]
    fn answers_lead_on_within_their_origin_only() {
        let here = "https://127.0.0.1:9443";
        for (location, path) in [
            ("/a/?timeout=5s", Some("/a/?timeout=5s")),
            ("https://127.0.0.1:9443/a", Some("/a")),
            ("https://127.0.0.1:94430/a", None),
            ("https://127.0.0.1:9443.example.com/a", None),
            ("https://127.0.0.1:9443@example.com/a", None),
            ("//example.com/a", None),
            ("https://127.0.0.1:9443//example.com/a", None),
            ("http://127.0.0.1:9443/a", None),
            ("a", None),
            ("", None),
        ] {
            assert_eq!(within(here, location), path, "{location}");
        }
    }
}
