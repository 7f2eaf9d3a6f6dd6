//! Whether a certificate is the one of a host.

use crate::x509::{Certificate, Error, Result};
use std::net::IpAddr;

/// At so many names they are counted, not listed, in messages.
const MOST_SHOWN: usize = 100;

/// Whether the certificate is for the name or the address (which may stand in brackets). The common name doesn't count.
pub fn verify(cert: &Certificate, host: &str) -> Result<()> {
    let names = cert.says.names.clone().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        let same = |ip: &IpAddr| ip.to_canonical() == address.to_canonical();
        return match names.ips.iter().any(same) {
            true => Ok(()),
            false => Err(mismatch(cert, bare)),
        };
    }
    let wanted = host.to_ascii_lowercase();
    let proper = is_hostname(&wanted, false);
    let matches = |name: &String| match proper && is_hostname(name, true) {
        true => matches_pattern(name, &wanted),
        // Names that are none are compared whole.
        false => !matches!(name.as_str(), "" | ".") && !wanted.is_empty() && name.eq_ignore_ascii_case(&wanted),
    };
    match names.dns.iter().any(matches) {
        true => Ok(()),
        false => Err(mismatch(cert, host)),
    }
}

fn mismatch(cert: &Certificate, host: &str) -> Error {
    let Some(names) = &cert.says.names else {
        if matches_pattern(&cert.subject.common_name, &host.to_ascii_lowercase()) {
            let why = "x509: certificate relies on legacy Common Name field, use SANs instead";
            return Error::new(why);
        }
        return unlisted(host, &[], &[]);
    };
    unlisted(host, &names.dns, &names.ips)
}

fn unlisted(host: &str, dns: &[String], ips: &[IpAddr]) -> Error {
    let (count, kind, list) = match host.parse::<IpAddr>() {
        Ok(_) if ips.is_empty() => {
            let why = "because it doesn't contain any IP SANs";
            return Error(format!("x509: cannot validate certificate for {host} {why}"));
        }
        Ok(_) => {
            let shown = ips.iter().map(|ip| ip.to_canonical().to_string());
            (ips.len(), "IP SANs", shown.collect::<Vec<_>>())
        }
        Err(_) => (dns.len(), "names", dns.to_vec()),
    };
    if count >= MOST_SHOWN {
        return Error(format!(
            "x509: certificate is valid for {count} {kind}, but none matched {host}"
        ));
    }
    match list.join(", ").as_str() {
        "" => Error(format!(
            "x509: certificate is not valid for any names, but wanted to match {host}"
        )),
        list => Error(format!("x509: certificate is valid for {list}, not {host}")),
    }
}

/// Label by label; the first one of a pattern may be `*`.
fn matches_pattern(pattern: &str, host: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(host);
    if pattern.is_empty() {
        return false;
    }
    let (pattern, host): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    let fits = |(at, (p, h)): (usize, (&&str, &&str))| at == 0 && *p == "*" || p == h;
    pattern.len() == host.len() && pattern.iter().zip(&host).enumerate().all(fits)
}

/// Letters, digits, hyphens and, because people use them, underscores.
fn is_hostname(host: &str, pattern: bool) -> bool {
    let host = match pattern {
        true => host,
        false => host.strip_suffix('.').unwrap_or(host),
    };
    let label = |(at, label): (usize, &str)| {
        pattern && at == 0 && label == "*"
            || !label.is_empty()
                && !label.starts_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host != "*" && host.split('.').enumerate().all(label)
}
