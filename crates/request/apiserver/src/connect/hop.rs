//! Headers that belong to one connection end with it.
//!
//! The client's `Connection` header names further ones to be taken off. What this server sets for a backend (an identity
//! above all) is set after that, or a client could name it there.

use http::{HeaderMap, HeaderName, HeaderValue, header};

const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .flat_map(|v| v.as_bytes().split(|b| *b == b','));
    values.filter_map(|word| std::str::from_utf8(word).ok()).map(str::trim)
}

/// The protocol that a request asks to change to. Without a `Connection` that says so the header means nothing.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = words(headers, header::CONNECTION).any(|w| w.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// Takes off what belonged to the connection that a message came by.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = words(headers, header::CONNECTION)
        .filter_map(|name| HeaderName::try_from(name).ok())
        .collect();
    for name in named.iter().chain(HOP_BY_HOP.iter()) {
        headers.remove(name);
    }
}

/// A request's headers for the next hop: an upgrade, and that trailers are understood, are asked for again.
pub fn pass_on(headers: &mut HeaderMap) {
    let protocol = upgrade(headers);
    let trailers = words(headers, header::TE).any(|w| w.eq_ignore_ascii_case("trailers"));
    strip(headers);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        for (name, value) in list {
            all.append(*name, value.parse().unwrap());
        }
        all
    }

    #[test]
    fn headers_of_a_hop_are_not_passed_on() {
        let mut given = headers(&[
            ("connection", "X-Own, close"),
            ("connection", "x-other"),
            ("x-own", "1"),
            ("x-other", "1"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        pass_on(&mut given);
        assert_eq!(given, headers(&[("accept", "*/*"), ("te", "trailers")]));
        let mut upgrading = headers(&[
            ("connection", "x-own, upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-own", "1"),
        ]);
        pass_on(&mut upgrading);
        let expected = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        assert_eq!(upgrading, expected);
        pass_on(&mut upgrading);
        assert_eq!(upgrading, expected);
    }
}
