//! Finding a chain from a certificate to a trusted one, and judging it.

use super::constraints;
use super::hostname;
use super::roots::Roots;
use crate::x509::template::ExtKeyUsage;
use crate::x509::{Certificate, Error, Result, signature, template::key_usage};
use jiff::Timestamp;

/// What the certificate is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// By a server that we wanted to reach under this name or address.
    Server(&'a str),
    Client,
}

/// Signatures that are checked at most for one certificate: chains have a few links, but whoever shows one may make it so
/// that there are many ways to try.
const MOST_CHECKS: usize = 100;

/// Whether a certificate is good for its purpose, by way of the other ones shown with it.
pub fn verify(leaf: &Certificate, others: &Roots, roots: &Roots, purpose: Purpose, now: Timestamp) -> Result<()> {
    is_valid(leaf, Place::Leaf, &[], now)?;
    if let Purpose::Server(host) = purpose {
        hostname::verify(leaf, host)?;
    }
    let mut search = Search {
        others,
        roots,
        now,
        checks: 0,
        found: Vec::new(),
    };
    if roots.contains(leaf) {
        search.found.push(vec![leaf]);
    } else {
        search.from(&mut vec![leaf])?;
    }
    judge(search.found, purpose)
}

/// Of the chains that were found one has to be good in all.
fn judge(chains: Vec<Vec<&Certificate>>, purpose: Purpose) -> Result<()> {
    let usage = match purpose {
        Purpose::Server(_) => ExtKeyUsage::ServerAuth,
        Purpose::Client => ExtKeyUsage::ClientAuth,
    };
    let mut name_refused = None;
    let (mut unusable, mut policies) = (0, 0);
    for chain in &chains {
        if !policies_hold(chain) {
            policies += 1;
        } else if !is_for(chain, usage) {
            unusable += 1;
        } else if let Err(why) = constraints::check(chain) {
            name_refused.get_or_insert(why);
        } else {
            return Ok(());
        }
    }
    if let Some(why) = name_refused {
        let said = "x509: a root or intermediate certificate is not authorized to sign for this name";
        return Err(Error(format!("{said}: {why}")));
    }
    if policies == 0 {
        return Err(Error::new("x509: certificate specifies an incompatible key usage"));
    }
    let mut details = Vec::new();
    if unusable > 0 {
        details.push(format!("{unusable} candidate chains with incompatible key usage"));
    }
    details.push(format!("{policies} candidate chains with invalid policies"));
    Err(Error(format!("x509: no valid chains built: {}", details.join(", "))))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Leaf,
    Intermediate,
    Root,
}

/// Whether a certificate may stand where it is about to.
fn is_valid(cert: &Certificate, place: Place, chain: &[&Certificate], now: Timestamp) -> Result<()> {
    if cert.says.unhandled_critical {
        return Err(Error::new("x509: unhandled critical extension"));
    }
    let expired = |relation: &str, date: Timestamp| {
        let shown = |t: Timestamp| t.strftime("%Y-%m-%dT%H:%M:%SZ");
        let (now, date) = (shown(now), shown(date));
        let said = "x509: certificate has expired or is not yet valid";
        Err(Error(format!("{said}: current time {now} is {relation} {date}")))
    };
    if now < cert.not_before {
        return expired("before", cert.not_before);
    }
    if now > cert.not_after {
        return expired("after", cert.not_after);
    }
    // What its key is for is not looked at: too many authorities in the field state it wrongly.
    if place == Place::Intermediate && !cert.says.is_ca() {
        return Err(Error::new(
            "x509: certificate is not authorized to sign other certificates",
        ));
    }
    let most = cert.says.basic_constraints.and_then(|b| b.max_path);
    let between = i64::try_from(chain.len()).unwrap_or(i64::MAX) - 1;
    if most.is_some_and(|most| between > most) {
        return Err(Error::new("x509: too many intermediates for path length constraint"));
    }
    Ok(())
}

/// Whether a certificate was signed by a key of one that may sign.
fn is_signed_by(cert: &Certificate, parent: &Certificate) -> Result<()> {
    let says = &parent.says;
    let no_authority = match says.basic_constraints {
        Some(basic) => !basic.is_ca,
        // Older versions have no way to say so.
        None => parent.version == 3,
    };
    if no_authority || says.key_usage != 0 && says.key_usage & key_usage::CERT_SIGN == 0 {
        let why = "x509: invalid signature: parent certificate cannot sign this kind of certificate";
        return Err(Error::new(why));
    }
    if parent.key.is_none() {
        return Err(Error::new(signature::UNSUPPORTED));
    }
    cert.check_signature(parent.key.as_ref())
}

/// The same subject with the same key and the same other names is the same authority, whoever signed it.
fn stands_in(chain: &[&Certificate], candidate: &Certificate) -> bool {
    let names = |c: &Certificate| c.says.names.clone();
    for cert in chain {
        if candidate.raw_subject != cert.raw_subject || candidate.key != cert.key {
            continue;
        }
        match (names(candidate), names(cert)) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b => return true,
            (Some(_), Some(_)) => {}
            _ => return false,
        }
    }
    false
}

struct Search<'a> {
    others: &'a Roots,
    roots: &'a Roots,
    now: Timestamp,
    checks: usize,
    found: Vec<Vec<&'a Certificate>>,
}

impl<'a> Search<'a> {
    /// Goes on from the last of a chain. An error if no chain was found; the hint says why the likeliest parent was none.
    fn from(&mut self, chain: &mut Vec<&'a Certificate>) -> Result<()> {
        let Some(cert) = chain.last().copied() else {
            return Ok(());
        };
        let before = self.found.len();
        let mut hint: Option<(Error, &Certificate)> = None;
        let mut failure = None;
        let (roots, others) = (self.roots.parents(cert), self.others.parents(cert));
        let roots = roots.into_iter().map(|c| (c, Place::Root));
        for (candidate, place) in roots.chain(others.into_iter().map(|c| (c, Place::Intermediate))) {
            self.checks += 1;
            if self.checks > MOST_CHECKS {
                let why = "x509: signature check attempts limit reached while verifying certificate chain";
                failure = Some(Error::new(why));
                break;
            }
            if candidate.key.is_none() || stands_in(chain, candidate) {
                continue;
            }
            if let Err(why) = is_signed_by(cert, candidate) {
                hint.get_or_insert((why, candidate));
                continue;
            }
            if let Err(why) = is_valid(candidate, place, chain, self.now) {
                hint.get_or_insert((why.clone(), candidate));
                failure = Some(why);
                continue;
            }
            chain.push(candidate);
            failure = match place {
                Place::Intermediate => self.from(chain).err(),
                _ => {
                    self.found.push(chain.clone());
                    None
                }
            };
            chain.pop();
        }
        match (self.found.len() > before, failure) {
            (true, _) => Ok(()),
            (false, Some(why)) => Err(why),
            (false, None) => Err(unknown_authority(hint)),
        }
    }
}

fn unknown_authority(hint: Option<(Error, &Certificate)>) -> Error {
    let mut said = "x509: certificate signed by unknown authority".to_string();
    if let Some((why, candidate)) = hint {
        let subject = &candidate.subject;
        let name = match (subject.common_name.as_str(), subject.organization.first()) {
            ("", Some(organization)) => organization.clone(),
            ("", None) => format!("serial:{}", decimal(&candidate.serial)),
            (name, _) => name.to_string(),
        };
        let why = why.to_string();
        said +=
            &format!(" (possibly because of {why:?} while trying to verify candidate authority certificate {name:?})");
    }
    Error(said)
}

/// A number of any length in decimal digits.
fn decimal(number: &[u8]) -> String {
    let mut digits = vec![0u8];
    for byte in number {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            let n = u32::from(*digit) * 256 + carry;
            *digit = (n % 10) as u8;
            carry = n / 10;
        }
        while carry > 0 {
            digits.push((carry % 10) as u8);
            carry /= 10;
        }
    }
    digits.iter().rev().map(|d| char::from(b'0' + d)).collect()
}

/// Whether everyone in the chain who says what it is for allows the usage.
fn is_for(chain: &[&Certificate], usage: ExtKeyUsage) -> bool {
    chain.iter().all(|cert| {
        let usages = &cert.says.ext_key_usage;
        let names = |usage: ExtKeyUsage| usages.iter().any(|u| u == usage.oid());
        usages.is_empty() || names(ExtKeyUsage::Any) || names(usage)
    })
}

/// Nobody but the root may ask for a policy, or map any to one.
fn policies_hold(chain: &[&Certificate]) -> bool {
    let below_root = &chain[..chain.len() - 1];
    below_root
        .iter()
        .all(|c| c.says.explicit_policy.is_none() && !c.says.maps_any_policy)
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn numbers_are_shown_in_digits() {
        assert_eq!(decimal(&[0]), "0");
        assert_eq!(decimal(&[1, 0]), "256");
        assert_eq!(decimal(&[0xff; 16]), u128::MAX.to_string());
    }
}
