//! Name constraints: an authority that says for which names it may sign binds everything below it.

use crate::x509::extensions::{Constraints, Subtrees};
use crate::x509::names::{AltNames, is_domain, uri_host};
use crate::x509::{Certificate, mailbox};
use std::fmt::Display;
use std::net::IpAddr;

/// The chain begins with the leaf. Each certificate's names are held to the constraints of all above it.
pub fn check(chain: &[&Certificate]) -> Result<(), String> {
    for (at, cert) in chain.iter().enumerate() {
        let Some(names) = &cert.says.names else { continue };
        let above: Vec<&Constraints> = chain[at + 1..]
            .iter()
            .filter_map(|c| c.says.constraints.as_ref())
            .collect();
        if above.is_empty() {
            continue;
        }
        let names = Names::of(names)?;
        for constraints in above {
            names.check(constraints)?;
        }
    }
    Ok(())
}

/// Names, taken apart as constraints look at them.
struct Names<'a> {
    ips: &'a [IpAddr],
    dns: &'a [String],
    /// Text and host.
    uris: Vec<(&'a str, String)>,
    /// What stands before and after the `@`.
    emails: Vec<(String, String)>,
}

impl Names<'_> {
    fn of(names: &AltNames) -> Result<Names<'_>, String> {
        let uris = names.uris.iter().map(|uri| Ok((uri.as_str(), host_of(uri)?)));
        let emails = names.emails.iter().map(|text| match mailbox::parse(text) {
            Some((local, domain)) => Ok((local, domain.to_ascii_lowercase())),
            None => Err(format!("cannot parse rfc822Name {text:?}")),
        });
        Ok(Names {
            ips: &names.ips,
            dns: &names.dns,
            uris: uris.collect::<Result<_, String>>()?,
            emails: emails.collect::<Result<_, String>>()?,
        })
    }

    fn check(&self, by: &Constraints) -> Result<(), String> {
        for ip in self.ips {
            let find = |trees: &Subtrees, _| Found {
                constrained: !trees.ips.is_empty(),
                by: trees
                    .ips
                    .iter()
                    .find(|(a, m)| covers(a, m, ip))
                    .map(|(a, m)| network(a, m)),
            };
            judge("IP address", &ip.to_canonical().to_string(), by, find)?;
        }
        for name in self.dns {
            if !is_domain(name, false) {
                return Err(format!("x509: cannot parse dnsName {name:?}"));
            }
            judge("DNS name", name, by, |trees, excluded| {
                domain(&trees.dns, name, excluded)
            })?;
        }
        for (uri, host) in &self.uris {
            judge("URI", uri, by, |trees, excluded| domain(&trees.uris, host, excluded))?;
        }
        for (local, host) in &self.emails {
            let text = format!("{local}@{host}");
            if !is_domain(host, false) {
                return Err(format!("x509: cannot parse rfc822Name {text:?}"));
            }
            judge("email address", &text, by, |trees, excluded| {
                let mut found = domain(&domains(&trees.emails), host, excluded);
                let whole =
                    |c: &String| mailbox::parse(c).is_some_and(|(l, h)| l == *local && h.to_ascii_lowercase() == *host);
                if trees.emails.iter().any(|c| c.contains('@') && whole(c)) {
                    found.by = Some(text.clone());
                }
                found.constrained = !trees.emails.is_empty();
                found
            })?;
        }
        Ok(())
    }
}

/// Whether a kind of name is constrained at all, and the constraint that a name falls under.
struct Found {
    constrained: bool,
    by: Option<String>,
}

fn judge(
    kind: &str,
    name: &dyn Display,
    by: &Constraints,
    find: impl Fn(&Subtrees, bool) -> Found,
) -> Result<(), String> {
    let name = name.to_string();
    let permitted = find(&by.permitted, false);
    if permitted.constrained && permitted.by.is_none() {
        return Err(format!("{kind} {name:?} is not permitted by any constraint"));
    }
    match find(&by.excluded, true).by {
        Some(constraint) => Err(format!("{kind} {name:?} is excluded by constraint {constraint:?}")),
        None => Ok(()),
    }
}

/// Constraints of whole domains among those for mail.
fn domains(emails: &[String]) -> Vec<String> {
    emails.iter().filter(|c| !c.contains('@')).cloned().collect()
}

fn domain(constraints: &[String], name: &str, excluded: bool) -> Found {
    let mut falls: Vec<&String> = constraints.iter().filter(|c| is_under(name, c)).collect();
    if falls.is_empty() && excluded && name.starts_with('*') {
        // A name that stands for all of a domain stands for an excluded one of it too.
        let parent = |text: &str| text.find('.').map(|at| text[at..].to_ascii_lowercase());
        let wanted = parent(name);
        falls = constraints
            .iter()
            .filter(|c| wanted.is_some() && parent(c) == wanted)
            .collect();
    }
    // The widest is named.
    falls.sort_by_key(|c| c.len());
    Found {
        constrained: !constraints.is_empty(),
        by: falls.first().map(|c| (*c).clone()),
    }
}

/// Whether a name is the domain or below it; only below it where the constraint begins with a dot.
fn is_under(name: &str, constraint: &str) -> bool {
    let (name, constraint) = (name.to_ascii_lowercase(), constraint.to_ascii_lowercase());
    match name.strip_suffix(constraint.as_str()) {
        None => false,
        Some(before) => {
            constraint.is_empty() || constraint.starts_with('.') || before.is_empty() || before.ends_with('.')
        }
    }
}

fn covers(address: &[u8], mask: &[u8], ip: &IpAddr) -> bool {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let masked = |bytes: &[u8]| bytes.iter().zip(mask).map(|(b, m)| b & m).collect::<Vec<_>>();
    octets.len() == address.len() && masked(&octets) == masked(address)
}

/// `address/length`
fn network(address: &[u8], mask: &[u8]) -> String {
    let length: u32 = mask.iter().map(|b| b.count_ones()).sum();
    let address: IpAddr = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(v4), _) => v4.into(),
        (_, Ok(v6)) => v6.into(),
        _ => return String::new(),
    };
    format!("{address}/{length}")
}

fn host_of(uri: &str) -> Result<String, String> {
    let host = uri_host(uri).unwrap_or_default().to_ascii_lowercase();
    if host.is_empty() {
        return Err(format!(
            "URI with empty host ({uri:?}) cannot be matched against constraints"
        ));
    }
    let bare = match host.rsplit_once(':') {
        Some((bare, _)) if !host.ends_with(']') => bare,
        _ => host.as_str(),
    };
    match bare.starts_with('[') || bare.parse::<IpAddr>().is_ok() {
        true => Err(format!("URI with IP ({uri:?}) cannot be matched against constraints")),
        false => Ok(bare.into()),
    }
}
