//! Subject alternative names.

use super::der::{self, Reader, context};
use super::{Error, Result};
use std::net::IpAddr;

/// Who else a certificate is for. Names of other kinds are passed over, as Go does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AltNames {
    pub dns: Vec<String>,
    pub emails: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub uris: Vec<String>,
}

pub const EMAIL: u8 = context(1);
pub const DNS: u8 = context(2);
pub const URI: u8 = context(6);
pub const IP: u8 = context(7);

fn ascii(value: &[u8], kind: &str) -> Result<String> {
    match std::str::from_utf8(value) {
        Ok(text) if text.is_ascii() => Ok(text.into()),
        _ => Err(Error(format!("x509: SAN {kind} is malformed"))),
    }
}

impl AltNames {
    pub fn is_empty(&self) -> bool {
        *self == AltNames::default()
    }

    /// Reads the value of the extension.
    pub fn parse(value: &[u8]) -> Result<AltNames> {
        let malformed = "x509: invalid subject alternative name";
        let mut list = Reader(value)
            .enter(der::SEQUENCE)
            .ok_or_else(|| Error(format!("{malformed}s")))?;
        let mut names = AltNames::default();
        while !list.is_empty() {
            let name = list.any().ok_or_else(|| Error::new(malformed))?;
            match name.tag {
                EMAIL => names.emails.push(ascii(name.value, "rfc822Name")?),
                DNS => names.dns.push(ascii(name.value, "dNSName")?),
                URI => {
                    let text = ascii(name.value, "uniformResourceIdentifier")?;
                    let bad = |why: &str| Error(format!("x509: cannot parse URI {text:?}: {why}"));
                    let host = uri_host(&text).map_err(|why| bad(&format!("parse {text:?}: {why}")))?;
                    if !host.is_empty() && !is_domain(host, false) {
                        return Err(bad("invalid domain"));
                    }
                    names.uris.push(text);
                }
                // One form of each address: whoever compares must not take 10.0.0.1 in sixteen bytes for another one.
                IP => names.ips.push(match name.value.len() {
                    4 => <[u8; 4]>::try_from(name.value).unwrap_or_default().into(),
                    16 => IpAddr::from(<[u8; 16]>::try_from(name.value).unwrap_or_default()).to_canonical(),
                    n => return Err(Error(format!("x509: cannot parse IP address of length {n}"))),
                }),
                _ => {}
            }
        }
        Ok(names)
    }

    /// The value of the extension. Addresses of IPv4 take four bytes, however they were written.
    pub fn to_der(&self) -> Vec<u8> {
        let dns = self.dns.iter().map(|n| der::write(DNS, n.as_bytes()));
        let emails = self.emails.iter().map(|n| der::write(EMAIL, n.as_bytes()));
        let ips = self.ips.iter().map(|ip| match ip.to_canonical() {
            IpAddr::V4(ip) => der::write(IP, &ip.octets()),
            IpAddr::V6(ip) => der::write(IP, &ip.octets()),
        });
        let uris = self.uris.iter().map(|n| der::write(URI, n.as_bytes()));
        der::wrap(der::SEQUENCE, dns.chain(emails).chain(ips).chain(uris))
    }
}

/// Whether a text can be a domain; a constraint may begin with a dot. Labels may hold anything visible.
pub fn is_domain(text: &str, constraint: bool) -> bool {
    if text.is_empty() {
        return true;
    }
    let labels = match constraint {
        true => text.strip_prefix('.').unwrap_or(text),
        false => text,
    };
    text.bytes().all(|b| (33..=126).contains(&b)) && labels.split('.').all(|l| !l.is_empty())
}

/// The host of a URI with its port, or why it is none: what Go's `net/url` asks of one before certificates may hold it.
pub fn uri_host(text: &str) -> std::result::Result<&str, &'static str> {
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL");
    }
    let text = text.split('#').next().unwrap_or_default();
    let rest = match text.split_once(':') {
        Some(("", _)) => return Err("missing protocol scheme"),
        Some((scheme, rest)) if is_scheme(scheme) => rest,
        Some((first, _)) if !first.contains('/') && !first.contains('?') => {
            return Err("first path segment in URL cannot contain colon");
        }
        _ => text,
    };
    let rest = rest.split('?').next().unwrap_or_default();
    escapes(rest)?;
    let Some(authority) = rest.strip_prefix("//") else {
        return Ok("");
    };
    let authority = authority.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = match host.strip_prefix('[') {
        Some(inside) => inside.rsplit_once(']').ok_or("missing ']' in host")?.1,
        None => host.rfind(':').map_or("", |at| &host[at..]),
    };
    match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(host),
        None if port.is_empty() => Ok(host),
        _ => Err("invalid port after host"),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn escapes(text: &str) -> std::result::Result<(), &'static str> {
    let whole = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    match text.split('%').skip(1).all(whole) {
        true => Ok(()),
        false => Err("invalid URL escape"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let names = AltNames {
            dns: vec!["a.example".into(), "*.b".into()],
            emails: vec!["m@a.example".into()],
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            uris: vec!["spiffe://a/b".into()],
        };
        assert_eq!(AltNames::parse(&names.to_der()), Ok(names.clone()));
        let one = |tag, value: &[u8]| AltNames::parse(&der::wrap(der::SEQUENCE, [der::write(tag, value)]));
        assert!(one(DNS, b"\xff").is_err() && one(IP, b"123").is_err());
        assert_eq!(one(context(8), b"\x2a").unwrap(), AltNames::default());
        for (uri, good) in [
            ("spiffe://trust.domain/ns", true),
            ("https://a:443/x", true),
            ("urn:a:b", true),
            ("//host", true),
            ("https://a:x/", false),
            (":a", false),
            ("1a:b", false),
            ("https://a/%zz", false),
            ("https://a b/", false),
            ("https://a..b/", false),
            ("https://[::1/", false),
        ] {
            assert_eq!(one(URI, uri.as_bytes()).is_ok(), good, "{uri}");
        }
    }
}
