//! Writing certificates: from what they shall say to their DER, signed.
//!
//! The only place where a certificate for others is put together. It takes values that were read and checked, and no bytes
//! of a request pass through it.

use super::der::{self, Reader, context};
use super::key::PublicKey;
use super::names::AltNames;
use super::{Error, Result, oid};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rand::Rng;

/// What a key may be used for, as bits of the extension, the first one lowest.
pub mod key_usage {
    pub const DIGITAL_SIGNATURE: u16 = 1;
    pub const CONTENT_COMMITMENT: u16 = 1 << 1;
    pub const KEY_ENCIPHERMENT: u16 = 1 << 2;
    pub const DATA_ENCIPHERMENT: u16 = 1 << 3;
    pub const KEY_AGREEMENT: u16 = 1 << 4;
    pub const CERT_SIGN: u16 = 1 << 5;
    pub const CRL_SIGN: u16 = 1 << 6;
    pub const ENCIPHER_ONLY: u16 = 1 << 7;
    pub const DECIPHER_ONLY: u16 = 1 << 8;
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtKeyUsage {
    Any,
    ServerAuth,
    ClientAuth,
    CodeSigning,
    EmailProtection,
    IpsecEndSystem,
    IpsecTunnel,
    IpsecUser,
    TimeStamping,
    OcspSigning,
    MicrosoftSgc,
    NetscapeSgc,
}

impl ExtKeyUsage {
    pub fn oid(self) -> &'static [u8] {
        match self {
            ExtKeyUsage::Any => &[0x55, 0x1d, 37, 0],
            ExtKeyUsage::ServerAuth => &[0x2b, 6, 1, 5, 5, 7, 3, 1],
            ExtKeyUsage::ClientAuth => &[0x2b, 6, 1, 5, 5, 7, 3, 2],
            ExtKeyUsage::CodeSigning => &[0x2b, 6, 1, 5, 5, 7, 3, 3],
            ExtKeyUsage::EmailProtection => &[0x2b, 6, 1, 5, 5, 7, 3, 4],
            ExtKeyUsage::IpsecEndSystem => &[0x2b, 6, 1, 5, 5, 7, 3, 5],
            ExtKeyUsage::IpsecTunnel => &[0x2b, 6, 1, 5, 5, 7, 3, 6],
            ExtKeyUsage::IpsecUser => &[0x2b, 6, 1, 5, 5, 7, 3, 7],
            ExtKeyUsage::TimeStamping => &[0x2b, 6, 1, 5, 5, 7, 3, 8],
            ExtKeyUsage::OcspSigning => &[0x2b, 6, 1, 5, 5, 7, 3, 9],
            ExtKeyUsage::MicrosoftSgc => &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 10, 3, 3],
            ExtKeyUsage::NetscapeSgc => &[0x60, 0x86, 0x48, 1, 0x86, 0xf8, 0x42, 4, 1],
        }
    }
}

/// Who signs.
pub struct Issuer<'a> {
    /// The subject of its certificate, as it stands there.
    pub subject: &'a [u8],
    /// The identifier of its key, if its certificate names one.
    pub key_id: Option<&'a [u8]>,
    /// The AlgorithmIdentifier of its signatures.
    pub algorithm: Vec<u8>,
}

/// What a certificate shall say. An authority's only where one vouches for the next.
pub struct Template<'a> {
    /// In DER.
    pub subject: &'a [u8],
    pub names: &'a AltNames,
    pub key: &'a PublicKey,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub key_usage: u16,
    pub ext_key_usage: Vec<ExtKeyUsage>,
    /// Of an authority: the identifier of its key.
    pub authority: Option<&'a [u8]>,
}

impl Template<'_> {
    /// The certificate, signed by `sign`.
    pub fn issue(&self, issuer: &Issuer, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let key = self
            .key
            .to_der()
            .ok_or_else(|| Error(format!("x509: unsupported public key type: {}", self.key.type_name())))?;
        let body = der::wrap(
            der::SEQUENCE,
            [
                der::write(der::constructed(0), &[der::INTEGER, 1, 2]),
                der::unsigned(&serial()),
                issuer.algorithm.clone(),
                issuer.subject.to_vec(),
                der::wrap(der::SEQUENCE, [time(self.not_before), time(self.not_after)]),
                self.subject.to_vec(),
                key,
                self.extensions(issuer),
            ],
        );
        let signature = sign(&body)?;
        let signature = der::wrap(der::BIT_STRING, [&[0][..], &signature]);
        Ok(der::wrap(der::SEQUENCE, [body, issuer.algorithm.clone(), signature]))
    }

    fn extensions(&self, issuer: &Issuer) -> Vec<u8> {
        let mut list = Vec::new();
        if self.key_usage != 0 {
            list.push(extension(oid::KEY_USAGE, true, &bits(self.key_usage)));
        }
        if !self.ext_key_usage.is_empty() {
            let usages = self
                .ext_key_usage
                .iter()
                .map(|u| der::write(der::OBJECT_IDENTIFIER, u.oid()));
            list.push(extension(oid::EXT_KEY_USAGE, false, &der::wrap(der::SEQUENCE, usages)));
        }
        let is_ca = self.authority.map(|_| der::write(der::BOOLEAN, &[0xff]));
        list.push(extension(
            oid::BASIC_CONSTRAINTS,
            true,
            &der::wrap(der::SEQUENCE, is_ca),
        ));
        if let Some(id) = self.authority.filter(|id| !id.is_empty()) {
            list.push(extension(
                oid::SUBJECT_KEY_ID,
                false,
                &der::write(der::OCTET_STRING, id),
            ));
        }
        if let Some(id) = issuer.key_id {
            let id = der::wrap(der::SEQUENCE, [der::write(context(0), id)]);
            list.push(extension(oid::AUTHORITY_KEY_ID, false, &id));
        }
        if !self.names.is_empty() {
            // Where the subject says nothing, the other names must be understood.
            let critical = Reader(self.subject).enter(der::SEQUENCE).is_none_or(|s| s.is_empty());
            list.push(extension(oid::SUBJECT_ALT_NAME, critical, &self.names.to_der()));
        }
        der::wrap(der::constructed(3), [der::wrap(der::SEQUENCE, list)])
    }
}

/// 128 bits at random: numbers of one authority never meet, also where two requests are for one key.
fn serial() -> [u8; 16] {
    rand::rng().random()
}

fn extension(kind: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![der::write(der::OBJECT_IDENTIFIER, kind)];
    if critical {
        parts.push(der::write(der::BOOLEAN, &[0xff]));
    }
    parts.push(der::write(der::OCTET_STRING, value));
    der::wrap(der::SEQUENCE, parts)
}

/// A bit string of flags, the lowest bit first, without zeros at its end.
fn bits(flags: u16) -> Vec<u8> {
    let bytes = flags.reverse_bits().to_be_bytes();
    let used = if bytes[1] == 0 { &bytes[..1] } else { &bytes[..] };
    let unused = used[used.len() - 1].trailing_zeros() as u8;
    der::wrap(der::BIT_STRING, [&[unused][..], used])
}

/// Two digits of the year until 2049, four from then on.
fn time(at: Timestamp) -> Vec<u8> {
    let at = at.to_zoned(TimeZone::UTC);
    match at.year() {
        1950..=2049 => der::write(der::UTC_TIME, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()),
        _ => der::write(
            der::GENERALIZED_TIME,
            at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes(),
        ),
    }
}
