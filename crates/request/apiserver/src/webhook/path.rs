//! Paths of webhooks as kube-apiserver asks for them: what `clientConfig` says is decoded, cleaned as `path.Join` does, and written anew.

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

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
    // Bytes, which need not be text.
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in decoded.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", percent_encode(&parts.join(&b'/'), IN_PATHS))
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

/// Where an answer leads to within the same origin (`https://host:port`): a path, as the next request has it. Servers that say all of an
/// address leave a scheme's own port out.
pub fn within(origin: &str, location: &str) -> Option<String> {
    let path = match location.starts_with('/') {
        true => location.to_string(),
        false => {
            let (here, there): (Uri, Uri) = (origin.parse().ok()?, location.parse().ok()?);
            let path = there.path_and_query()?;
            (place(&here)? == place(&there)?).then(|| path.to_string())?
        }
    };
    (!path.starts_with("//")).then_some(path)
}

/// Scheme, host and port; `None` where more is said than these, or what is no port.
fn place(uri: &Uri) -> Option<(&str, String, u16)> {
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let port = match authority.port_u16() {
        Some(port) => port,
        None if authority.as_str() != authority.host() => return None,
        None if scheme == "http" => 80,
        None => 443,
    };
    (!authority.as_str().contains('@')).then(|| (scheme, authority.host().to_ascii_lowercase(), port))
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
            ("/%ff/b", "/%FF/b"),
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
            assert_eq!(within(here, location).as_deref(), path, "{location}");
        }
        let here = "https://hook.shop.svc:443";
        for (location, path) in [
            ("https://hook.shop.svc/a/", Some("/a/")),
            ("HTTPS://Hook.shop.svc:443/a?b=c#d", Some("/a?b=c")),
            ("https://hook.shop.svc", Some("/")),
            ("https://hook.shop.svc:8443/a", None),
            ("https://hook.shop.svc:99999/a", None),
            ("https://user@hook.shop.svc/a", None),
            ("http://hook.shop.svc/a", None),
        ] {
            assert_eq!(within(here, location).as_deref(), path, "{location}");
        }
    }
}
