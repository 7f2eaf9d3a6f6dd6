//! Headers between client and backend: what concerns one connection only goes no further, and who the client is, is told by us alone.

use super::From;
use crate::table::Headers;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Request, Version};

/// Of one connection, whether or not `Connection` names them.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
/// Set here; what a client says of itself is not passed on.
const ABOUT_CLIENTS: [&str; 8] = [
    CERTIFICATE,
    "client-cert-chain",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

const CERTIFICATE: &str = "client-cert";

/// By whom a request was passed on already (RFC 8586). `Via` would tell it as well, but servers answer without compression where it stands.
const PASSED: &str = "cdn-loop";
/// By gateways like this one, of whichever cluster.
const US: &str = "keelson";
/// A request that has been passed on so often goes round.
const OFTEN: usize = 8;

/// The longest name that DNS has, and a port. Rules are looked for by each of a name's labels, so it may not have any number of them.
const LONGEST_HOST: usize = 253 + 6;

/// Host and port as the client said them: the URI's go before the header's. `None`: they are missing, said twice or no host.
pub fn authority<B>(request: &Request<B>) -> Option<String> {
    let mut all = request.headers().get_all(header::HOST).iter();
    let first = all.next();
    if all.next().is_some() {
        return None;
    }
    if let Some(authority) = request.uri().authority() {
        return said(authority);
    }
    match first {
        Some(host) if host.is_empty() => Some(String::new()),
        Some(host) => said(&Authority::try_from(host.as_bytes()).ok()?),
        // Hosts have been asked for since HTTP/1.1.
        None => (request.version() == Version::HTTP_10).then(String::new),
    }
}

fn said(authority: &Authority) -> Option<String> {
    let port = authority.port().map(|p| format!(":{p}")).unwrap_or_default();
    let text = authority.host().to_string() + &port;
    // Who somebody is has no place in it: before a backend it would be another host than before the rules.
    (text.len() <= LONGEST_HOST && !authority.as_str().contains('@')).then_some(text)
}

/// Whether a backend leads back to where its requests come from.
pub fn goes_round(headers: &HeaderMap) -> bool {
    let all = headers.get_all(PASSED).iter().filter_map(|v| v.to_str().ok());
    let ours = all.flat_map(|v| v.split(',')).filter(|by| by.trim() == US);
    ours.count() >= OFTEN
}

/// The protocol that a client wants to go on with in place of HTTP.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let tokens = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok());
    let wants = tokens
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| wants).cloned()
}

/// Takes away what is of this connection only.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    named.into_iter().for_each(|name| drop(headers.remove(name)));
    HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(*name)));
}

/// A request's headers as a backend gets them, but for its filters.
pub fn to_backend(headers: &mut HeaderMap, from: &From) {
    let trailers = headers
        .get_all(header::TE)
        .iter()
        .any(|v| v.as_bytes().eq_ignore_ascii_case(b"trailers"));
    strip(headers);
    // gRPC asks for them by this.
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // HTTP/2 may bring a cookie in pieces, HTTP/1.1 has one line for it.
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let pieces: Vec<&[u8]> = headers
            .get_all(header::COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
            headers.insert(header::COOKIE, whole);
        }
    }
    // The client was told to go on by this server already.
    headers.remove(header::EXPECT);
    headers.append(PASSED, HeaderValue::from_static(US));
    ABOUT_CLIENTS.iter().for_each(|name| drop(headers.remove(*name)));
    if let Some(shown) = &from.certificate {
        headers.insert(HeaderName::from_static(CERTIFICATE), shown.clone());
    }
    let ip = from.remote.ip().to_string();
    let said = [
        ("x-forwarded-for", ip.as_str()),
        ("x-real-ip", ip.as_str()),
        ("x-forwarded-proto", from.scheme),
        ("x-forwarded-host", from.authority.as_str()),
        ("x-forwarded-port", &from.port.to_string()),
    ];
    for (name, value) in said {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

pub fn change(headers: &mut HeaderMap, wanted: &Headers) {
    for (name, value) in &wanted.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &wanted.add {
        headers.append(name.clone(), value.clone());
    }
    for name in &wanted.remove {
        headers.remove(name);
    }
}
