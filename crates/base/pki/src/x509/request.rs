//! Certificate requests (PKCS #10), read once: what is asked for, by whom, and whether the asker holds the key.
//!
//! Approval, admission, checks and signing all go by this value; nothing goes back to the bytes it was read from.

use super::der::{self, Reader};
use super::key::PublicKey;
use super::name::{Name, Values};
use super::names::AltNames;
use super::signature::{self, Algorithm, Sha1Use};
use super::{Error, Result, oid, pem};
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
pub struct Request {
    pub subject: Name,
    pub names: AltNames,
    /// None where the algorithm of the key is not known; then the signature doesn't hold either.
    pub key: Option<PublicKey>,
    signed: Vec<u8>,
    algorithm: Algorithm,
    signature: Vec<u8>,
}

impl Request {
    /// The request in a PEM text: its first block must be one.
    pub fn from_pem(text: &[u8]) -> Result<Request> {
        match pem::next(text) {
            Some((block, _)) if block.label == pem::REQUEST => Request::from_der(&block.bytes),
            _ => Err(Error::new("PEM block type must be CERTIFICATE REQUEST")),
        }
    }

    pub fn from_der(bytes: &[u8]) -> Result<Request> {
        let malformed = |what: &str| Error(format!("asn1: structure error: {what}"));
        let mut outside = Reader(bytes);
        let mut request = outside
            .enter(der::SEQUENCE)
            .ok_or_else(|| malformed("the request is no sequence"))?;
        if !outside.is_empty() {
            return Err(Error::new("asn1: syntax error: trailing data"));
        }
        let body = request
            .element(der::SEQUENCE)
            .ok_or_else(|| malformed("the request has no information"))?;
        let algorithm = request
            .enter(der::SEQUENCE)
            .and_then(Algorithm::parse)
            .ok_or_else(|| malformed("the request has no signature algorithm"))?;
        let (bits, unused) = request
            .bits()
            .ok_or_else(|| malformed("the request has no signature"))?;

        let mut info = Reader(body.value);
        info.small_integer()
            .ok_or_else(|| malformed("the request has no version"))?;
        let subject = info
            .element(der::SEQUENCE)
            .ok_or_else(|| malformed("the request has no subject"))?;
        let key = info
            .element(der::SEQUENCE)
            .ok_or_else(|| malformed("the request has no public key"))?;
        let key = PublicKey::parse(key.raw)?;
        let subject = Name::parse(subject.raw, Values::Any)?;
        // The attributes must be there, if only as an empty set.
        let attributes = info
            .enter(der::constructed(0))
            .ok_or_else(|| malformed("the request has no attributes"))?;
        let mut names = AltNames::default();
        for (kind, value) in extensions(attributes)? {
            if kind == oid::SUBJECT_ALT_NAME {
                names = AltNames::parse(value)?;
            }
        }
        Ok(Request {
            subject,
            names,
            key,
            signed: body.raw.to_vec(),
            algorithm,
            signature: der::right_align(bits, unused),
        })
    }

    /// Whether the request is signed by its own key.
    pub fn check_signature(&self) -> Result<()> {
        let key = self.key.as_ref();
        signature::check(self.algorithm, key, &self.signed, &self.signature, Sha1Use::Allowed)
    }
}

/// The extensions that a request asks for: kinds and values. Attributes that are none are passed over.
fn extensions(mut attributes: Reader<'_>) -> Result<Vec<(&[u8], &[u8])>> {
    let malformed = || Error::new("asn1: structure error: malformed requested extensions");
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    while !attributes.is_empty() {
        let attribute = attributes.any().ok_or_else(malformed)?;
        let Some(mut values) = extension_request(attribute.raw) else {
            continue;
        };
        let mut list = values.enter(der::SEQUENCE).ok_or_else(malformed)?;
        while !list.is_empty() {
            let mut extension = list.enter(der::SEQUENCE).ok_or_else(malformed)?;
            let kind = extension.oid().ok_or_else(malformed)?;
            if extension.peek(der::BOOLEAN) {
                extension.boolean().ok_or_else(malformed)?;
            }
            let value = extension.read(der::OCTET_STRING).ok_or_else(malformed)?;
            found.push((kind, value));
        }
    }
    match found.iter().all(|(kind, _)| seen.insert(*kind)) {
        true => Ok(found),
        false => Err(Error::new(
            "x509: certificate request contains duplicate requested extensions",
        )),
    }
}

/// The values of an attribute that asks for extensions.
fn extension_request(raw: &[u8]) -> Option<Reader<'_>> {
    let mut attribute = Reader(raw).enter(der::SEQUENCE)?;
    attribute.oid().filter(|kind| *kind == oid::EXTENSION_REQUEST)?;
    attribute.enter(der::SET).filter(|values| !values.is_empty())
}
