//! Public keys: RSA, ECDSA over P-224, P-256, P-384 and P-521, Ed25519. DSA keys are known by name; nothing is verified by them.

use super::der::{self, Reader};
use super::{Error, Result, oid};
use p256::elliptic_curve::sec1::FromEncodedPoint;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    P224,
    P256,
    P384,
    P521,
}

impl Curve {
    pub(crate) fn of(identifier: &[u8]) -> Option<Curve> {
        Some(match identifier {
            oid::P224 => Curve::P224,
            oid::P256 => Curve::P256,
            oid::P384 => Curve::P384,
            oid::P521 => Curve::P521,
            _ => return None,
        })
    }
    fn oid(self) -> &'static [u8] {
        match self {
            Curve::P224 => oid::P224,
            Curve::P256 => oid::P256,
            Curve::P384 => oid::P384,
            Curve::P521 => oid::P521,
        }
    }
    /// The length of a coordinate in bytes.
    pub fn size(self) -> usize {
        match self {
            Curve::P224 => 28,
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }
    /// Whether an uncompressed point lies on the curve.
    pub fn has(self, point: &[u8]) -> bool {
        macro_rules! on {
            ($curve:ident) => {
                $curve::EncodedPoint::from_bytes(point)
                    .is_ok_and(|p| bool::from($curve::PublicKey::from_encoded_point(&p).is_some()))
            };
        }
        point.first() == Some(&4)
            && point.len() == 1 + 2 * self.size()
            && match self {
                Curve::P224 => on!(p224),
                Curve::P256 => on!(p256),
                Curve::P384 => on!(p384),
                Curve::P521 => on!(p521),
            }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    Rsa {
        /// The modulus without leading zeros, big end first.
        modulus: Vec<u8>,
        exponent: u64,
    },
    /// The point, uncompressed.
    Ecdsa(Curve, Vec<u8>),
    Ed25519(Vec<u8>),
    Dsa,
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo; `None` where its algorithm is not known.
    pub fn parse(info: &[u8]) -> Result<Option<PublicKey>> {
        let malformed = || Error::new("x509: malformed spki");
        let mut info = Reader(info).enter(der::SEQUENCE).ok_or_else(malformed)?;
        let mut algorithm = info.enter(der::SEQUENCE).ok_or_else(malformed)?;
        let kind = algorithm
            .oid()
            .ok_or_else(|| Error::new("x509: malformed public key algorithm identifier"))?;
        let parameters = match algorithm.is_empty() {
            true => &[][..],
            false => {
                algorithm
                    .any()
                    .ok_or_else(|| Error::new("x509: malformed parameters"))?
                    .raw
            }
        };
        let (bits, unused) = info
            .bits()
            .ok_or_else(|| Error::new("x509: malformed subjectPublicKey"))?;
        let data = der::right_align(bits, unused);
        Ok(Some(match kind {
            oid::RSA => rsa(parameters, &data)?,
            oid::EC => ecdsa(parameters, data)?,
            oid::ED25519 if !parameters.is_empty() => {
                return Err(Error::new("x509: Ed25519 key encoded with illegal parameters"));
            }
            oid::ED25519 if data.len() != 32 => return Err(Error::new("x509: wrong Ed25519 public key size")),
            oid::ED25519 => PublicKey::Ed25519(data),
            oid::DSA => PublicKey::Dsa,
            _ => return Ok(None),
        }))
    }

    /// The SubjectPublicKeyInfo; none for a kind of key that nobody gets a certificate for.
    pub fn to_der(&self) -> Option<Vec<u8>> {
        let oid = |o| der::write(der::OBJECT_IDENTIFIER, o);
        let (algorithm, key) = match self {
            PublicKey::Rsa { .. } => (vec![oid(oid::RSA), der::write(der::NULL, &[])], self.bits()?),
            PublicKey::Ecdsa(curve, _) => (vec![oid(oid::EC), oid(curve.oid())], self.bits()?),
            PublicKey::Ed25519(_) => (vec![oid(oid::ED25519)], self.bits()?),
            PublicKey::Dsa => return None,
        };
        let key = der::wrap(der::BIT_STRING, [&[0][..], &key]);
        Some(der::wrap(der::SEQUENCE, [der::wrap(der::SEQUENCE, algorithm), key]))
    }

    /// The key alone, as it stands in a SubjectPublicKeyInfo.
    pub fn bits(&self) -> Option<Vec<u8>> {
        match self {
            PublicKey::Rsa { modulus, exponent } => {
                let parts = [der::unsigned(modulus), der::unsigned(&exponent.to_be_bytes())];
                Some(der::wrap(der::SEQUENCE, parts))
            }
            PublicKey::Ecdsa(_, point) => Some(point.clone()),
            PublicKey::Ed25519(key) => Some(key.clone()),
            PublicKey::Dsa => None,
        }
    }

    /// How Go calls the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            PublicKey::Rsa { .. } => "*rsa.PublicKey",
            PublicKey::Ecdsa(..) => "*ecdsa.PublicKey",
            PublicKey::Ed25519(_) => "ed25519.PublicKey",
            PublicKey::Dsa => "*dsa.PublicKey",
        }
    }
}

/// The length of a number in bits.
pub fn bit_length(number: &[u8]) -> usize {
    number
        .first()
        .map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

fn rsa(parameters: &[u8], data: &[u8]) -> Result<PublicKey> {
    if parameters != [der::NULL, 0] {
        return Err(Error::new("x509: RSA key missing NULL parameters"));
    }
    let mut key = Reader(data)
        .enter(der::SEQUENCE)
        .ok_or_else(|| Error::new("x509: invalid RSA public key"))?;
    let modulus = key.integer().ok_or_else(|| Error::new("x509: invalid RSA modulus"))?;
    let exponent = key
        .small_integer()
        .ok_or_else(|| Error::new("x509: invalid RSA public exponent"))?;
    if modulus[0] & 0x80 != 0 || modulus == [0] {
        return Err(Error::new("x509: RSA modulus is not a positive number"));
    }
    match u64::try_from(exponent) {
        Ok(exponent) if exponent > 0 => Ok(PublicKey::Rsa {
            modulus: modulus.strip_prefix(&[0]).unwrap_or(modulus).to_vec(),
            exponent,
        }),
        _ => Err(Error::new("x509: RSA public exponent is not a positive number")),
    }
}

fn ecdsa(parameters: &[u8], point: Vec<u8>) -> Result<PublicKey> {
    let curve = Reader(parameters)
        .oid()
        .ok_or_else(|| Error::new("x509: invalid ECDSA parameters"))?;
    let curve = Curve::of(curve).ok_or_else(|| Error::new("x509: unsupported elliptic curve"))?;
    match curve.has(&point) {
        true => Ok(PublicKey::Ecdsa(curve, point)),
        false if point.len() == 1 + 2 * curve.size() => Err(Error(format!("{curve:?} point not on curve"))),
        false => Err(Error(format!("invalid {curve:?} point encoding"))),
    }
}
