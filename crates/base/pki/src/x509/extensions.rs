//! What the extensions of a certificate say. Those that are known must be well formed; those that are not are remembered if
//! they are critical: then nobody may use the certificate.

use super::certificate::Extension;
use super::der::{self, Reader, constructed, context};
use super::names::{self, AltNames, is_domain};
use super::{Error, Result, mailbox, oid};
use std::collections::BTreeSet;
use std::net::IpAddr;

#[derive(Clone, Debug, Default)]
pub struct Extensions {
    /// Bits, the first one lowest; 0 where the certificate doesn't say.
    pub key_usage: u16,
    pub basic_constraints: Option<BasicConstraints>,
    /// None where there is no such extension.
    pub names: Option<AltNames>,
    pub constraints: Option<Constraints>,
    pub subject_key_id: Vec<u8>,
    pub authority_key_id: Vec<u8>,
    /// Identifiers of extended usages, known or not.
    pub ext_key_usage: Vec<Vec<u8>>,
    /// After how many certificates a policy must be named, from policy constraints.
    pub explicit_policy: Option<i64>,
    /// Whether a policy is mapped to or from any.
    pub maps_any_policy: bool,
    /// Whether something critical is not understood.
    pub unhandled_critical: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasicConstraints {
    pub is_ca: bool,
    pub max_path: Option<i64>,
}

/// For which names an authority may sign.
#[derive(Clone, Debug, Default)]
pub struct Constraints {
    pub permitted: Subtrees,
    pub excluded: Subtrees,
}

#[derive(Clone, Debug, Default)]
pub struct Subtrees {
    pub dns: Vec<String>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// Address and mask, of the same length.
    pub ips: Vec<(Vec<u8>, Vec<u8>)>,
}

fn invalid(what: &str) -> Error {
    Error(format!("x509: invalid {what}"))
}

impl Extensions {
    pub fn parse(list: &[Extension]) -> Result<Extensions> {
        let mut found = Extensions::default();
        for extension in list {
            let handled = found.read(extension)?;
            found.unhandled_critical |= extension.critical && !handled;
        }
        Ok(found)
    }

    /// Whether the certificate says of itself to be an authority's.
    pub fn is_ca(&self) -> bool {
        self.basic_constraints.is_some_and(|b| b.is_ca)
    }

    /// Reads one; tells whether it was understood.
    fn read(&mut self, extension: &Extension) -> Result<bool> {
        let value = Reader(&extension.value);
        match extension.kind.as_slice() {
            oid::KEY_USAGE => self.key_usage = key_usage(value)?,
            oid::BASIC_CONSTRAINTS => self.basic_constraints = Some(basic(value)?),
            oid::SUBJECT_ALT_NAME => {
                let names = AltNames::parse(value.0)?;
                let says = !names.is_empty();
                self.names = Some(names);
                return Ok(says);
            }
            oid::NAME_CONSTRAINTS => {
                let (constraints, understood) = constraints(value)?;
                self.constraints = Some(constraints);
                return Ok(understood);
            }
            oid::CRL_DISTRIBUTION_POINTS => distribution_points(value)?,
            oid::AUTHORITY_KEY_ID => self.authority_key_id = authority_key_id(value, extension.critical)?,
            oid::POLICY_CONSTRAINTS => self.explicit_policy = explicit_policy(value)?,
            oid::EXT_KEY_USAGE => {
                let wrong = || invalid("extended key usages");
                let mut list = { value }.enter(der::SEQUENCE).ok_or_else(wrong)?;
                while !list.is_empty() {
                    self.ext_key_usage.push(list.oid().ok_or_else(wrong)?.to_vec());
                }
            }
            oid::SUBJECT_KEY_ID => {
                if extension.critical {
                    return Err(Error::new("x509: subject key identifier incorrectly marked critical"));
                }
                let id = { value }.read(der::OCTET_STRING);
                self.subject_key_id = id.ok_or_else(|| invalid("subject key identifier"))?.to_vec();
            }
            oid::CERTIFICATE_POLICIES => policies(value)?,
            oid::POLICY_MAPPINGS => self.maps_any_policy = mappings(value)?,
            oid::INHIBIT_ANY_POLICY => {
                let number = { value }.small_integer();
                number.ok_or_else(|| invalid("inhibit any policy extension"))?;
            }
            oid::AUTHORITY_INFO_ACCESS => information_access(value, extension.critical)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn key_usage(mut value: Reader) -> Result<u16> {
    let (bytes, unused) = value.bits().ok_or_else(|| invalid("key usage"))?;
    let given = bytes.len() * 8 - usize::from(unused);
    let set = |n: &usize| *n < given && bytes[n / 8] & (0x80 >> (n % 8)) != 0;
    Ok((0..9).filter(set).fold(0, |bits, n| bits | 1 << n))
}

fn basic(mut value: Reader) -> Result<BasicConstraints> {
    let wrong = || invalid("basic constraints");
    let mut inside = value.enter(der::SEQUENCE).ok_or_else(wrong)?;
    let is_ca = match inside.peek(der::BOOLEAN) {
        true => inside.boolean().ok_or_else(wrong)?,
        false => false,
    };
    let max_path = match inside.peek(der::INTEGER) {
        true => Some(inside.small_integer().filter(|n| *n >= 0).ok_or_else(wrong)?),
        false => None,
    };
    Ok(BasicConstraints { is_ca, max_path })
}

fn authority_key_id(mut value: Reader, critical: bool) -> Result<Vec<u8>> {
    if critical {
        return Err(Error::new("x509: authority key identifier incorrectly marked critical"));
    }
    let wrong = || invalid("authority key identifier");
    let mut inside = value.enter(der::SEQUENCE).ok_or_else(wrong)?;
    let id = inside.optional(context(0)).ok_or_else(wrong)?;
    Ok(id.unwrap_or_default().to_vec())
}

/// Nothing is fetched from there; the form is looked at because Go does.
fn distribution_points(mut value: Reader) -> Result<()> {
    let wrong = || invalid("CRL distribution point");
    let mut list = value
        .enter(der::SEQUENCE)
        .ok_or_else(|| invalid("CRL distribution points"))?;
    while !list.is_empty() {
        let mut point = list.enter(der::SEQUENCE).ok_or_else(wrong)?;
        let Some(name) = point.optional(constructed(0)).ok_or_else(wrong)? else {
            continue;
        };
        let mut names = Reader(name).enter(constructed(0)).ok_or_else(wrong)?;
        while names.peek(names::URI) {
            names.read(names::URI).ok_or_else(wrong)?;
        }
    }
    Ok(())
}

fn explicit_policy(mut value: Reader) -> Result<Option<i64>> {
    let wrong = || invalid("policy constraints extension");
    let mut inside = value.enter(der::SEQUENCE).ok_or_else(wrong)?;
    let mut number = |n| {
        let digits = inside.optional(context(n)).ok_or_else(wrong)?;
        let read = |d| Reader(&der::write(der::INTEGER, d)).small_integer().ok_or_else(wrong);
        digits.map(read).transpose()
    };
    let explicit = number(0)?;
    number(1)?;
    Ok(explicit)
}

fn policies(mut value: Reader) -> Result<()> {
    let wrong = || invalid("certificate policies");
    let mut list = value.enter(der::SEQUENCE).ok_or_else(wrong)?;
    let mut seen = BTreeSet::new();
    while !list.is_empty() {
        let policy = list.enter(der::SEQUENCE).and_then(|mut p| p.oid()).ok_or_else(wrong)?;
        if !seen.insert(policy) {
            return Err(wrong());
        }
    }
    Ok(())
}

/// Whether any policy is among the mapped ones.
fn mappings(mut value: Reader) -> Result<bool> {
    let wrong = || invalid("policy mappings extension");
    let mut list = value.enter(der::SEQUENCE).ok_or_else(wrong)?;
    let mut any = false;
    while !list.is_empty() {
        let mut pair = list.enter(der::SEQUENCE).ok_or_else(wrong)?;
        let (from, to) = (pair.oid().ok_or_else(wrong)?, pair.oid().ok_or_else(wrong)?);
        any |= from == oid::ANY_POLICY || to == oid::ANY_POLICY;
    }
    Ok(any)
}

fn information_access(mut value: Reader, critical: bool) -> Result<()> {
    if critical {
        return Err(Error::new("x509: authority info access incorrectly marked critical"));
    }
    let wrong = || invalid("authority info access");
    let mut list = value.enter(der::SEQUENCE).ok_or_else(wrong)?;
    while !list.is_empty() {
        let mut access = list.enter(der::SEQUENCE).ok_or_else(wrong)?;
        access.oid().ok_or_else(wrong)?;
        if access.peek(names::URI) {
            access.read(names::URI).ok_or_else(wrong)?;
        }
    }
    Ok(())
}

/// The constraints, and whether all kinds of names in them are understood.
fn constraints(mut value: Reader) -> Result<(Constraints, bool)> {
    let wrong = || invalid("NameConstraints extension");
    let mut inside = value
        .enter(der::SEQUENCE)
        .filter(|_| value.is_empty())
        .ok_or_else(wrong)?;
    let permitted = inside.optional(constructed(0)).ok_or_else(wrong)?.unwrap_or_default();
    let excluded = inside.optional(constructed(1)).ok_or_else(wrong)?.unwrap_or_default();
    if !inside.is_empty() {
        return Err(wrong());
    }
    if permitted.is_empty() && excluded.is_empty() {
        return Err(Error::new("x509: empty name constraints extension"));
    }
    let (permitted, first) = subtrees(Reader(permitted))?;
    let (excluded, second) = subtrees(Reader(excluded))?;
    Ok((Constraints { permitted, excluded }, first && second))
}

fn subtrees(mut list: Reader) -> Result<(Subtrees, bool)> {
    let mut trees = Subtrees::default();
    let mut understood = true;
    while !list.is_empty() {
        let base = list.enter(der::SEQUENCE).and_then(|mut tree| tree.any());
        let base = base.ok_or_else(|| invalid("NameConstraints extension"))?;
        match base.tag {
            names::DNS => trees.dns.push(domain(base.value, "dnsName")?),
            names::EMAIL => {
                let text = ascii(base.value)?;
                let fits = match text.contains('@') {
                    true => mailbox::parse(&text).is_some(),
                    false => is_domain(&text, true),
                };
                if !fits {
                    return Err(Error(format!("x509: failed to parse rfc822Name constraint {text:?}")));
                }
                trees.emails.push(text);
            }
            names::URI => {
                let text = ascii(base.value)?;
                if text.parse::<IpAddr>().is_ok() {
                    let why = format!("x509: failed to parse URI constraint {text:?}: cannot be IP address");
                    return Err(Error(why));
                }
                trees.uris.push(domain(base.value, "URI")?);
            }
            names::IP => match base.value.len() {
                length @ (8 | 32) => {
                    let (address, mask) = base.value.split_at(length / 2);
                    if !is_mask(mask) {
                        let mask = hex::encode(mask);
                        return Err(Error(format!("x509: IP constraint contained invalid mask {mask}")));
                    }
                    trees.ips.push((address.to_vec(), mask.to_vec()));
                }
                n => return Err(Error(format!("x509: IP constraint contained value of length {n}"))),
            },
            _ => understood = false,
        }
    }
    Ok((trees, understood))
}

fn ascii(value: &[u8]) -> Result<String> {
    match std::str::from_utf8(value) {
        Ok(text) if text.is_ascii() => Ok(text.into()),
        _ => Err(Error(format!(
            "x509: invalid constraint value: x509: {:?} cannot be encoded as an IA5String",
            String::from_utf8_lossy(value)
        ))),
    }
}

fn domain(value: &[u8], kind: &str) -> Result<String> {
    let text = ascii(value)?;
    match is_domain(&text, true) {
        true => Ok(text),
        false => Err(Error(format!("x509: failed to parse {kind} constraint {text:?}"))),
    }
}

/// Ones, then zeros.
fn is_mask(mask: &[u8]) -> bool {
    let ones = mask.iter().take_while(|b| **b == 0xff).count();
    mask[ones..].iter().enumerate().all(|(i, b)| match i {
        0 => b.leading_ones() + b.trailing_zeros() == 8,
        _ => *b == 0,
    })
}
