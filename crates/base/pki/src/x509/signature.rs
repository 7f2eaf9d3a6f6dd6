//! Checking signatures: which algorithm is meant, whether it fits the key, whether it is good enough, and whether it holds.
//!
//! `ring` checks what it knows (the fast, usual cases); the RustCrypto crates check the rest that the field has: P-521 and
//! P-224, hashes that don't match the curve, RSA keys below 2048 bits.

use super::der::{self, Reader};
use super::key::{Curve, PublicKey, bit_length};
use super::{Error, Result, oid};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use ring::digest;
use ring::signature as fast;
use rsa::traits::SignatureScheme;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Md5,
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rsa(Hash),
    RsaPss(Hash),
    Dsa(Hash),
    Ecdsa(Hash),
    Ed25519,
    Unknown,
}

use Hash::{Md5, Sha1, Sha256, Sha384, Sha512};

/// The least bits of an RSA key.
const LEAST_RSA_BITS: usize = 1024;
/// The most: checking a signature by a larger one would take seconds.
const MOST_RSA_BITS: usize = 16 * 1024;

impl Algorithm {
    /// Of an AlgorithmIdentifier's content.
    pub fn parse(mut identifier: Reader) -> Option<Algorithm> {
        let kind = identifier.oid()?;
        let parameters = match identifier.is_empty() {
            true => &[][..],
            false => identifier.any()?.raw,
        };
        Some(match kind {
            oid::RSA_MD5 => Algorithm::Rsa(Md5),
            oid::RSA_SHA1 | oid::ISO_RSA_SHA1 => Algorithm::Rsa(Sha1),
            oid::RSA_SHA256 => Algorithm::Rsa(Sha256),
            oid::RSA_SHA384 => Algorithm::Rsa(Sha384),
            oid::RSA_SHA512 => Algorithm::Rsa(Sha512),
            oid::RSA_PSS => pss(parameters).map_or(Algorithm::Unknown, Algorithm::RsaPss),
            oid::DSA_SHA1 => Algorithm::Dsa(Sha1),
            oid::DSA_SHA256 => Algorithm::Dsa(Sha256),
            oid::ECDSA_SHA1 => Algorithm::Ecdsa(Sha1),
            oid::ECDSA_SHA256 => Algorithm::Ecdsa(Sha256),
            oid::ECDSA_SHA384 => Algorithm::Ecdsa(Sha384),
            oid::ECDSA_SHA512 => Algorithm::Ecdsa(Sha512),
            oid::ED25519 if parameters.is_empty() => Algorithm::Ed25519,
            _ => Algorithm::Unknown,
        })
    }

    fn name(self) -> String {
        let hash = |h| match h {
            Md5 => "MD5",
            Sha1 => "SHA1",
            Sha256 => "SHA256",
            Sha384 => "SHA384",
            Sha512 => "SHA512",
        };
        match self {
            Algorithm::Rsa(h) => format!("{}-RSA", hash(h)),
            Algorithm::RsaPss(h) => format!("{}-RSAPSS", hash(h)),
            Algorithm::Dsa(h) => format!("DSA-{}", hash(h)),
            Algorithm::Ecdsa(h) => format!("ECDSA-{}", hash(h)),
            Algorithm::Ed25519 => "Ed25519".into(),
            Algorithm::Unknown => "0".into(),
        }
    }
}

/// Of the many forms of PSS those where one hash is used throughout and the salt has its length.
fn pss(parameters: &[u8]) -> Option<Hash> {
    let mut list = Reader(parameters).enter(der::SEQUENCE)?;
    let absent = |rest: Reader| rest.is_empty() || rest.0 == [der::NULL, 0];
    let mut hash = list.enter(der::constructed(0))?.enter(der::SEQUENCE)?;
    let name = hash.oid().filter(|_| absent(hash))?;
    let mut mask = list.enter(der::constructed(1))?.enter(der::SEQUENCE)?;
    if mask.oid()? != oid::MGF1 {
        return None;
    }
    let mut inner = mask.enter(der::SEQUENCE)?;
    if inner.oid()? != name || !absent(inner) {
        return None;
    }
    let salt = list.enter(der::constructed(2))?.small_integer()?;
    let trailer = match list.enter(der::constructed(3)) {
        Some(mut t) => t.small_integer()?,
        None => 1,
    };
    match (name, salt, trailer) {
        (oid::SHA256, 32, 1) => Some(Sha256),
        (oid::SHA384, 48, 1) => Some(Sha384),
        (oid::SHA512, 64, 1) => Some(Sha512),
        _ => None,
    }
}

impl Hash {
    fn of(self, message: &[u8]) -> Option<digest::Digest> {
        let algorithm = match self {
            Md5 => return None,
            Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Sha256 => &digest::SHA256,
            Sha384 => &digest::SHA384,
            Sha512 => &digest::SHA512,
        };
        Some(digest::digest(algorithm, message))
    }
    /// What stands before the hash in a PKCS #1 signature: the DER of a DigestInfo up to it.
    fn prefix(self) -> &'static [u8] {
        match self {
            Md5 => &[],
            Sha1 => &[0x30, 0x21, 0x30, 9, 6, 5, 0x2b, 0x0e, 3, 2, 0x1a, 5, 0, 4, 0x14],
            Sha256 => &[
                0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20,
            ],
            Sha384 => &[
                0x30, 0x41, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 4, 0x30,
            ],
            Sha512 => &[
                0x30, 0x51, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 4, 0x40,
            ],
        }
    }
}

/// Whether SHA-1 will do: for the signature of a request, which proves only that its sender holds the key, but not for
/// one of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sha1Use {
    Allowed,
    Refused,
}

/// What is said of keys and signatures of an unknown kind.
pub const UNSUPPORTED: &str = "x509: cannot verify signature: algorithm unimplemented";

/// Whether the signature is the key's over the message.
pub fn check(
    algorithm: Algorithm,
    key: Option<&PublicKey>,
    message: &[u8],
    signature: &[u8],
    sha1: Sha1Use,
) -> Result<()> {
    let unsupported = || Error::new(UNSUPPORTED);
    let (hash, kind) = match algorithm {
        Algorithm::Rsa(h) | Algorithm::RsaPss(h) => (Some(h), "RSA"),
        Algorithm::Dsa(h) => (Some(h), "DSA"),
        Algorithm::Ecdsa(h) => (Some(h), "ECDSA"),
        Algorithm::Ed25519 => (None, "Ed25519"),
        Algorithm::Unknown => return Err(unsupported()),
    };
    if hash == Some(Md5) || hash == Some(Sha1) && sha1 == Sha1Use::Refused {
        let name = algorithm.name();
        return Err(Error(format!(
            "x509: cannot verify signature: insecure algorithm {name}"
        )));
    }
    let key = key.ok_or_else(unsupported)?;
    match (key, algorithm) {
        (PublicKey::Dsa, _) => Err(unsupported()),
        (PublicKey::Rsa { modulus, exponent }, Algorithm::Rsa(h) | Algorithm::RsaPss(h)) => {
            let padding = matches!(algorithm, Algorithm::RsaPss(_));
            rsa_holds(key, modulus, *exponent, (h, padding), message, signature)
        }
        (PublicKey::Ecdsa(curve, point), Algorithm::Ecdsa(h)) => {
            match ecdsa_holds(*curve, point, h, message, signature) {
                true => Ok(()),
                false => Err(Error::new("x509: ECDSA verification failure")),
            }
        }
        (PublicKey::Ed25519(key), Algorithm::Ed25519) => fast::UnparsedPublicKey::new(&fast::ED25519, key)
            .verify(message, signature)
            .map_err(|_| Error::new("x509: Ed25519 verification failure")),
        _ => {
            let found = key.type_name();
            let why = format!(
                "x509: signature algorithm specifies an {kind} public key, but have public key of type {found}"
            );
            Err(Error(why))
        }
    }
}

fn rsa_holds(
    key: &PublicKey,
    modulus: &[u8],
    exponent: u64,
    (hash, is_pss): (Hash, bool),
    message: &[u8],
    signature: &[u8],
) -> Result<()> {
    let failed = || Error::new("crypto/rsa: verification error");
    let bits = bit_length(modulus);
    if bits < LEAST_RSA_BITS {
        let why = "keys are insecure (see https://go.dev/pkg/crypto/rsa#hdr-Minimum_key_size)";
        return Err(Error(format!("crypto/rsa: {bits}-bit {why}")));
    }
    if bits > MOST_RSA_BITS {
        return Err(Error(format!("crypto/rsa: {bits}-bit keys are larger than any in use")));
    }
    if (2048..=8192).contains(&bits) {
        let algorithm: Option<&'static dyn fast::VerificationAlgorithm> = match (is_pss, hash) {
            (false, Sha256) => Some(&fast::RSA_PKCS1_2048_8192_SHA256),
            (false, Sha384) => Some(&fast::RSA_PKCS1_2048_8192_SHA384),
            (false, Sha512) => Some(&fast::RSA_PKCS1_2048_8192_SHA512),
            (true, Sha256) => Some(&fast::RSA_PSS_2048_8192_SHA256),
            (true, Sha384) => Some(&fast::RSA_PSS_2048_8192_SHA384),
            (true, Sha512) => Some(&fast::RSA_PSS_2048_8192_SHA512),
            _ => None,
        };
        if let (Some(algorithm), Some(bits)) = (algorithm, key.bits()) {
            let key = fast::UnparsedPublicKey::new(algorithm, bits);
            return key.verify(message, signature).map_err(|_| failed());
        }
    }
    let (n, e) = (rsa::BigUint::from_bytes_be(modulus), rsa::BigUint::from(exponent));
    let key =
        rsa::RsaPublicKey::new_with_max_size(n, e, MOST_RSA_BITS).map_err(|e| Error(format!("crypto/rsa: {e}")))?;
    let hashed = hash.of(message).ok_or_else(failed)?;
    let holds = match (is_pss, hash) {
        (false, _) => {
            let scheme = rsa::Pkcs1v15Sign {
                hash_len: Some(hashed.as_ref().len()),
                prefix: hash.prefix().into(),
            };
            scheme.verify(&key, hashed.as_ref(), signature)
        }
        (true, Sha256) => rsa::Pss::new_with_salt::<sha2::Sha256>(32).verify(&key, hashed.as_ref(), signature),
        (true, Sha384) => rsa::Pss::new_with_salt::<sha2::Sha384>(48).verify(&key, hashed.as_ref(), signature),
        (true, Sha512) => rsa::Pss::new_with_salt::<sha2::Sha512>(64).verify(&key, hashed.as_ref(), signature),
        (true, Md5 | Sha1) => return Err(failed()),
    };
    holds.map_err(|_| failed())
}

/// A signature of two numbers of one length, as tokens have it, in the form that certificates have.
pub fn of_halves(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(signature.len() / 2);
    der::wrap(der::SEQUENCE, [der::unsigned(r), der::unsigned(s)])
}

fn ecdsa_holds(curve: Curve, point: &[u8], hash: Hash, message: &[u8], signature: &[u8]) -> bool {
    let algorithm: Option<&'static dyn fast::VerificationAlgorithm> = match (curve, hash) {
        (Curve::P256, Sha256) => Some(&fast::ECDSA_P256_SHA256_ASN1),
        (Curve::P256, Sha384) => Some(&fast::ECDSA_P256_SHA384_ASN1),
        (Curve::P384, Sha256) => Some(&fast::ECDSA_P384_SHA256_ASN1),
        (Curve::P384, Sha384) => Some(&fast::ECDSA_P384_SHA384_ASN1),
        _ => None,
    };
    if let Some(algorithm) = algorithm {
        return fast::UnparsedPublicKey::new(algorithm, point)
            .verify(message, signature)
            .is_ok();
    }
    let Some(hashed) = hash.of(message) else { return false };
    // A short hash is the same number with zeros before it; the crates want half the field at least.
    let mut padded = vec![0; curve.size().saturating_sub(hashed.as_ref().len())];
    padded.extend_from_slice(hashed.as_ref());
    macro_rules! holds {
        ($curve:ident) => {
            match (
                $curve::ecdsa::VerifyingKey::from_sec1_bytes(point),
                $curve::ecdsa::Signature::from_der(signature),
            ) {
                (Ok(key), Ok(signature)) => key.verify_prehash(&padded, &signature).is_ok(),
                _ => false,
            }
        };
    }
    match curve {
        Curve::P224 => holds!(p224),
        Curve::P256 => holds!(p256),
        Curve::P384 => holds!(p384),
        Curve::P521 => holds!(p521),
    }
}
