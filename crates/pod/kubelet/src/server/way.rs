//! Where a request's path leads, before anybody is asked who sends it: as Go's `ServeMux` has it for what upstream's kubelet has there.
//!
//! A path that isn't clean is sent to the clean one; what is judged and what answers see the same path, decoded once.

use super::{Reply, reply};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Nothing is below these.
const EXACT: [&str; 14] = [
    "/configz",
    "/debug/flags/v",
    "/flagz",
    "/healthz",
    "/healthz/log",
    "/healthz/ping",
    "/healthz/syncloop",
    "/metrics",
    "/metrics/cadvisor",
    "/metrics/probes",
    "/metrics/resource",
    "/metrics/slis",
    "/statusz",
    super::archives::PATH,
];
/// These and what is below them.
const BELOW: [&str; 7] = [
    "/attach",
    "/containerLogs",
    "/deletedLogs",
    "/exec",
    "/pods",
    "/portForward",
    "/run",
];
/// What is below these. Without its last slash one leads to itself.
const DIRECTORIES: [&str; 5] = ["/checkpoint", "/debug/pprof", "/logs", "/runningpods", "/stats"];
/// What Go escapes when it writes a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
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

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The path as the authorizer sees it.
    To(String),
    /// To another path; with its query.
    Elsewhere(String),
    Nowhere,
    Malformed,
}

pub(super) fn of(uri: &Uri) -> Way {
    let sent = uri.path();
    let Some(path) = decoded(sent) else {
        return Way::Malformed;
    };
    let clean = clean(sent);
    let with_query = |path: &str| match uri.query() {
        Some(query) if !query.is_empty() => format!("{path}?{query}"),
        _ => path.to_owned(),
    };
    // Names are compared one by one: an escaped slash is none between two of them.
    let names: Option<Vec<String>> = clean.split('/').map(decoded).collect();
    let names = names.unwrap_or_default();
    let is = |known: &&str| known.split('/').eq(&names);
    let is_below = |known: &&str| {
        let mut known = known.split('/');
        let mut names = names.iter();
        known.all(|part| names.next().is_some_and(|name| name == part)) && names.next().is_some()
    };
    if let Some(directory) = DIRECTORIES.iter().find(|known| is(known)) {
        return Way::Elsewhere(with_query(&format!("{directory}/")));
    }
    if clean != sent {
        // As Go writes it: what was escaped already is escaped once more. Two slashes, or what browsers take for a second one, would lead to
        // another host.
        return Way::Elsewhere(with_query(&utf8_percent_encode(&clean, ESCAPED).to_string()));
    }
    let known = EXACT.iter().chain(&BELOW).any(is) || BELOW.iter().chain(&DIRECTORIES).any(is_below);
    match known {
        true => Way::To(path),
        false => Way::Nowhere,
    }
}

/// Nothing if an escape is none.
fn decoded(text: &str) -> Option<String> {
    let mut escapes = text.split('%').skip(1);
    let good = escapes.all(|e| e.len() >= 2 && e.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit));
    good.then(|| percent_decode_str(text).decode_utf8_lossy().into_owned())
}

/// Without `.`, `..` and empty names; a slash at the end stays.
fn clean(path: &str) -> String {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let end = if path.ends_with('/') && !names.is_empty() {
        "/"
    } else {
        ""
    };
    format!("/{}{end}", names.join("/"))
}

/// The answer that sends somebody to another path.
pub(super) fn elsewhere(method: &Method, to: &str) -> Reply {
    let escaped = to
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;");
    let page = format!("<a href=\"{escaped}\">Temporary Redirect</a>.\n\n");
    let body = if *method == Method::GET { page } else { String::new() };
    let mut answer = reply(StatusCode::TEMPORARY_REDIRECT, "text/html; charset=utf-8", body.into());
    if ![Method::GET, Method::HEAD].contains(method) {
        answer.headers_mut().remove(header::CONTENT_TYPE);
    }
    match HeaderValue::from_str(to) {
        Ok(to) => {
            answer.headers_mut().insert(header::LOCATION, to);
            answer
        }
        Err(_) => super::text(StatusCode::BAD_REQUEST, "400 Bad Request"),
    }
}

/// By which methods something is asked for there, if there is anything: of what go-restful serves upstream. The others look themselves.
pub(super) fn methods(parts: &[&str]) -> Option<&'static [Method]> {
    const GET: &[Method] = &[Method::GET];
    const POST: &[Method] = &[Method::POST];
    const BOTH: &[Method] = &[Method::GET, Method::POST];
    match parts {
        ["pods" | "runningpods"] | ["logs", ..] | ["containerLogs", _, _, _] | ["deletedLogs", _, _, _, _] => Some(GET),
        ["run", _, _, _] | ["run", _, _, _, _] | ["checkpoint", _, _, _] => Some(POST),
        ["exec" | "attach", _, _, _] | ["exec" | "attach", _, _, _, _] => Some(BOTH),
        ["portForward", _, _] | ["portForward", _, _, _] | ["stats", "summary"] => Some(BOTH),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::auth::subresources;

    /// What upstream's own router does of it, and by which subresources of the node it is judged.
    #[test]
    fn paths_lead_where_upstreams_do_and_are_judged_by_where_they_lead() {
        let table = [
            ("//checkpoint/a/b/c", "307 /checkpoint/a/b/c"),
            ("//checkpoint/a/b/c?x=1", "307 /checkpoint/a/b/c?x=1"),
            ("/logs/../exec/a/b/c", "307 /exec/a/b/c"),
            ("/logs/%2e%2e/exec/a/b/c", "/logs/../exec/a/b/c log"),
            ("/logs%2F..%2Fexec/a/b/c", "404"),
            ("/%70ods", "/pods pods proxy"),
            ("/%65xec/a/b/c", "/exec/a/b/c proxy"),
            ("/pods/", "/pods/ pods proxy"),
            ("/pods", "/pods pods proxy"),
            ("/pods/x", "/pods/x pods proxy"),
            ("/logs", "307 /logs/"),
            ("/logs?query=a", "307 /logs/?query=a"),
            ("/logs/", "/logs/ log"),
            ("/runningpods", "307 /runningpods/"),
            ("/runningpods/", "/runningpods/ pods proxy"),
            ("/checkpoint", "307 /checkpoint/"),
            ("/checkpoint/a/b/c", "/checkpoint/a/b/c checkpoint"),
            ("/stats", "307 /stats/"),
            ("/stats/summary", "/stats/summary stats"),
            ("/metrics/", "404"),
            ("/metrics/x", "404"),
            ("/metrics%2Fcadvisor", "404"),
            ("/metrics//cadvisor", "307 /metrics/cadvisor"),
            ("/healthz/bogus", "404"),
            ("/healthz/ping", "/healthz/ping healthz proxy"),
            ("/", "404"),
            ("/nothing", "404"),
            ("/exec", "/exec proxy"),
            ("/exec/a/b/c/", "/exec/a/b/c/ proxy"),
            ("/exec/a//c", "307 /exec/a/c"),
            ("/exec/a/b%2Fc/d", "/exec/a/b/c/d proxy"),
            ("/./pods", "307 /pods"),
            ("/pods/.", "307 /pods"),
            ("/pods/..", "307 /"),
            ("/configz/", "404"),
            ("/flagz", "/flagz configz"),
            ("/flagz/x", "404"),
            ("/x/../pods?a=b%20c", "307 /pods?a=b%20c"),
            ("/a%20b/../pods/%C3%A9", "307 /pods/%25C3%25A9"),
            ("/../../pods", "307 /pods"),
            ("/logs/a%2fb", "/logs/a/b log"),
            ("/exec/ns/pod/c%20d/../e", "307 /exec/ns/pod/e"),
            ("/pods;x", "404"),
            ("/./a(b)!*'", "307 /a%28b%29%21%2A%27"),
            ("/logs/a//b", "307 /logs/a/b"),
            ("/pods/%zz", "400"),
            ("/pods/%4", "400"),
        ];
        for (sent, expected) in table {
            let way = match of(&sent.parse().unwrap()) {
                Way::To(path) => format!("{path} {}", subresources(&path).join(" ")),
                Way::Elsewhere(to) => format!("307 {to}"),
                Way::Nowhere => "404".into(),
                Way::Malformed => "400".into(),
            };
            assert_eq!(way, expected, "{sent}");
        }
    }

    #[test]
    fn nobody_is_led_to_another_host() {
        for sent in ["/./\\host.test/a", "/.//host.test/a", "//host.test/./a"] {
            let Way::Elsewhere(to) = of(&sent.parse().unwrap()) else {
                panic!("{sent}");
            };
            assert!(to.starts_with('/') && !to[1..].starts_with(['/', '\\']), "{sent}: {to}");
        }
    }

    #[test]
    fn what_is_asked_for_by_no_method_is_not_there() {
        let allowed = |path: &str| methods(&path.trim_matches('/').split('/').collect::<Vec<_>>());
        assert_eq!(allowed("/exec/a/b/c"), Some(&[Method::GET, Method::POST][..]));
        assert_eq!(allowed("/run/a/b/c"), Some(&[Method::POST][..]));
        assert_eq!(allowed("/logs/"), Some(&[Method::GET][..]));
        assert_eq!(allowed("/exec/a/b"), None);
        assert_eq!(allowed("/pods/x"), None);
    }
}
