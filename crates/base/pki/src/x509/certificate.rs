//! Certificates, read as Go's `ParseCertificate` does: what it refuses is refused, in its words.

use super::der::{self, Reader};
use super::extensions::Extensions;
use super::key::PublicKey;
use super::name::{Name, Values};
use super::signature::{self, Algorithm, Sha1Use};
use super::{Error, Result, oid};
use jiff::Timestamp;
use jiff::civil::DateTime;
use std::collections::BTreeSet;

/// One extension.
#[derive(Clone, Debug)]
pub struct Extension {
    pub kind: Vec<u8>,
    pub critical: bool,
    pub value: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Certificate {
    /// The whole certificate.
    pub raw: Vec<u8>,
    pub raw_issuer: Vec<u8>,
    pub raw_subject: Vec<u8>,
    pub issuer: Name,
    pub subject: Name,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// None where the algorithm of the key is not known.
    pub key: Option<PublicKey>,
    /// 1, 2 or 3.
    pub version: i64,
    pub extensions: Vec<Extension>,
    /// What the extensions say.
    pub says: Extensions,
    pub serial: Vec<u8>,
    pub algorithm: Algorithm,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

fn malformed(what: &str) -> Error {
    Error(format!("x509: malformed {what}"))
}

impl Certificate {
    pub fn from_der(bytes: &[u8]) -> Result<Certificate> {
        let mut outside = Reader(bytes);
        let whole = outside.element(der::SEQUENCE).ok_or_else(|| malformed("certificate"))?;
        if !outside.is_empty() {
            return Err(Error::new("x509: trailing data"));
        }
        let mut outer = Reader(whole.value);
        let body = outer
            .element(der::SEQUENCE)
            .ok_or_else(|| malformed("tbs certificate"))?;
        let mut tbs = Reader(body.value);
        let version = match tbs.optional(der::constructed(0)).ok_or_else(|| malformed("version"))? {
            None => 0,
            Some(inside) => Reader(inside).small_integer().ok_or_else(|| malformed("version"))?,
        };
        if version < 0 {
            return Err(malformed("version"));
        }
        if version > 2 {
            return Err(Error::new("x509: invalid version"));
        }
        let serial = tbs.integer().ok_or_else(|| malformed("serial number"))?;
        if serial[0] & 0x80 != 0 {
            return Err(Error::new("x509: negative serial number"));
        }
        let inner = tbs
            .read(der::SEQUENCE)
            .ok_or_else(|| malformed("signature algorithm identifier"))?;
        let named = outer
            .read(der::SEQUENCE)
            .ok_or_else(|| malformed("algorithm identifier"))?;
        if inner != named {
            let why = "x509: inner and outer signature algorithm identifiers don't match";
            return Err(Error::new(why));
        }
        let algorithm = Algorithm::parse(Reader(inner)).ok_or_else(|| malformed("OID"))?;
        let raw_issuer = tbs.element(der::SEQUENCE).ok_or_else(|| malformed("issuer"))?.raw;
        let issuer = Name::parse(raw_issuer, Values::Text)?;
        let mut validity = tbs.enter(der::SEQUENCE).ok_or_else(|| malformed("validity"))?;
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        let raw_subject = tbs.element(der::SEQUENCE).ok_or_else(|| malformed("issuer"))?.raw;
        let subject = Name::parse(raw_subject, Values::Text)?;
        let key = tbs.element(der::SEQUENCE).ok_or_else(|| malformed("spki"))?;
        let key = PublicKey::parse(key.raw)?;
        let extensions = if version == 0 {
            Vec::new()
        } else {
            tail(&mut tbs, version)?
        };
        let (bits, unused) = outer.bits().ok_or_else(|| malformed("signature"))?;
        Ok(Certificate {
            raw: whole.raw.to_vec(),
            raw_issuer: raw_issuer.to_vec(),
            raw_subject: raw_subject.to_vec(),
            issuer,
            subject,
            not_before,
            not_after,
            key,
            version: version + 1,
            says: Extensions::parse(&extensions)?,
            extensions,
            serial: serial.to_vec(),
            algorithm,
            signed: body.raw.to_vec(),
            signature: der::right_align(bits, unused),
        })
    }

    /// Whether the key signed this certificate.
    pub fn check_signature(&self, key: Option<&PublicKey>) -> Result<()> {
        signature::check(self.algorithm, key, &self.signed, &self.signature, Sha1Use::Refused)
    }
}

/// What comes after the key in certificates that are not of the first version.
fn tail(tbs: &mut Reader, version: i64) -> Result<Vec<Extension>> {
    for (n, what) in [(1, "issuerUniqueID"), (2, "subjectUniqueID")] {
        tbs.optional(der::context(n)).ok_or_else(|| malformed(what))?;
    }
    let mut extensions = Vec::new();
    if version < 2 {
        return Ok(extensions);
    }
    let Some(inside) = tbs
        .optional(der::constructed(3))
        .ok_or_else(|| malformed("extensions"))?
    else {
        return Ok(extensions);
    };
    let mut list = Reader(inside)
        .enter(der::SEQUENCE)
        .ok_or_else(|| malformed("extensions"))?;
    let mut seen = BTreeSet::new();
    while !list.is_empty() {
        let mut extension = list.enter(der::SEQUENCE).ok_or_else(|| malformed("extension"))?;
        let kind = extension.oid().ok_or_else(|| malformed("extension OID field"))?;
        let critical = match extension.peek(der::BOOLEAN) {
            true => extension
                .boolean()
                .ok_or_else(|| malformed("extension critical field"))?,
            false => false,
        };
        let value = extension
            .read(der::OCTET_STRING)
            .ok_or_else(|| malformed("extension value field"))?;
        if !seen.insert(kind) {
            let kind = oid::text(kind);
            return Err(Error(format!(
                "x509: certificate contains duplicate extension with OID {kind:?}"
            )));
        }
        extensions.push(Extension {
            kind: kind.to_vec(),
            critical,
            value: value.to_vec(),
        });
    }
    Ok(extensions)
}

/// A time in either form. Two digits of a year mean 1950 to 2049; seconds may be missing, as old programs wrote it.
fn time(der: &mut Reader) -> Result<Timestamp> {
    let (text, what) = if der.peek(der::UTC_TIME) {
        (der.read(der::UTC_TIME), "UTCTime")
    } else if der.peek(der::GENERALIZED_TIME) {
        (der.read(der::GENERALIZED_TIME), "GeneralizedTime")
    } else {
        return Err(Error::new("x509: unsupported time format"));
    };
    text.and_then(|t| instant(t, what == "UTCTime"))
        .ok_or_else(|| malformed(what))
}

fn instant(text: &[u8], short: bool) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok().filter(|t| t.is_ascii())?;
    let (digits, offset) = match text.strip_suffix('Z') {
        Some(digits) => (digits, 0),
        None => {
            let (digits, zone) = text.split_at_checked(text.len().checked_sub(5)?)?;
            let (sign, zone) = zone.split_at(1);
            let (hours, minutes) = (number(zone.get(..2)?)?, number(zone.get(2..)?)?);
            let offset = i64::from(hours) * 3600 + i64::from(minutes) * 60;
            // Zero is written `Z`.
            let fits = hours < 24 && minutes < 60 && offset != 0;
            match sign {
                "+" if fits => (digits, offset),
                "-" if fits => (digits, -offset),
                _ => return None,
            }
        }
    };
    let (year, rest) = digits.split_at_checked(if short { 2 } else { 4 })?;
    let year = match (number(year)?, short) {
        (year, false) => year,
        (year @ 50.., true) => 1900 + year,
        (year, true) => 2000 + year,
    };
    let part = |at: usize| rest.get(at..at + 2).and_then(number).and_then(|n| i8::try_from(n).ok());
    let seconds = match rest.len() {
        10 => part(8)?,
        8 if short => 0,
        _ => return None,
    };
    // A leap second would be accepted otherwise.
    if seconds > 59 {
        return None;
    }
    let civil = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, seconds, 0).ok()?;
    // The last day of 9999 stands for "never", and is a little past what a timestamp holds.
    let Ok(utc) = jiff::tz::TimeZone::UTC.to_timestamp(civil) else {
        return (year == 9999).then_some(Timestamp::MAX);
    };
    Timestamp::from_second(utc.as_second() - offset).ok()
}

fn number(digits: &str) -> Option<i16> {
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_both_forms() {
        let read = |text: &str, short| instant(text.as_bytes(), short).map(|t| t.to_string());
        for (text, short, at) in [
            ("260101000000Z", true, Some("2026-01-01T00:00:00Z")),
            ("500101000000Z", true, Some("1950-01-01T00:00:00Z")),
            ("2601010000Z", true, Some("2026-01-01T00:00:00Z")),
            ("260101010000+0100", true, Some("2026-01-01T00:00:00Z")),
            ("20500101000000Z", false, Some("2050-01-01T00:00:00Z")),
            ("99991231235959Z", false, Some("9999-12-30T22:00:00.999999999Z")),
            ("260101000000+0000", true, None),
            ("260132000000Z", true, None),
            ("260101000060Z", true, None),
            ("2026010100Z", false, None),
            ("20260101000000.5Z", false, None),
            ("", true, None),
        ] {
            assert_eq!(read(text, short).as_deref(), at, "{text}");
        }
    }
}
