//! Private keys that sign tokens: RSA (RS256) and ECDSA over P-256, P-384 and P-521 (ES256, ES384, ES512), in the forms in which tools
//! write them.
//!
//! `ring` signs by what it knows; P-521 is signed by the RustCrypto crate that checks it, too. RSA keys are of 2048 to 4096 bits, which is
//! what `ring` signs by.

use crate::x509::der::{self, Reader};
use crate::x509::key::{Curve, PublicKey};
use crate::x509::{oid, pem};
use anyhow::{Context, Result, bail};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p521::ecdsa::signature::RandomizedSigner;
use p521::elliptic_curve::rand_core::OsRng;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{self as algorithms, EcdsaKeyPair};
use std::fmt;

pub(super) struct SigningKey {
    pub public: PublicKey,
    kind: Kind,
}

enum Kind {
    Rsa(ring::rsa::KeyPair),
    /// P-256 and P-384.
    Point(EcdsaKeyPair),
    P521(p521::ecdsa::SigningKey),
}

impl fmt::Debug for SigningKey {
    /// The public half alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public).finish()
    }
}

/// The algorithm that a key signs by, as upstream chooses it; none for a key that signs no tokens.
pub(super) fn algorithm(key: &PublicKey) -> Option<&'static str> {
    Some(match key {
        PublicKey::Rsa { .. } => "RS256",
        PublicKey::Ecdsa(Curve::P256, _) => "ES256",
        PublicKey::Ecdsa(Curve::P384, _) => "ES384",
        PublicKey::Ecdsa(Curve::P521, _) => "ES512",
        _ => return None,
    })
}

impl SigningKey {
    /// The first private key in a text of PEM, whatever stands beside it.
    pub fn from_pem(text: &str) -> Result<Self> {
        let mut rest = text.as_bytes();
        let mut wrong = None;
        while let Some((block, after)) = pem::next(rest) {
            match SigningKey::from_block(&block) {
                Ok(Some(key)) => return Ok(key),
                Ok(None) => {}
                Err(why) => wrong = wrong.or(Some(why)),
            }
            rest = after;
        }
        let said = "data does not contain a valid RSA or ECDSA private key";
        Err(wrong.map_or_else(|| anyhow::anyhow!(said), |why| why.context(said)))
    }

    /// Nothing of what is no private key.
    pub fn from_block(block: &pem::Block) -> Result<Option<Self>> {
        Ok(Some(match block.label.as_str() {
            "PRIVATE KEY" => pkcs8(&block.bytes)?,
            "RSA PRIVATE KEY" => rsa(&block.bytes)?,
            "EC PRIVATE KEY" => sec1(&block.bytes, None)?,
            _ => return Ok(None),
        }))
    }

    /// The signature as a token has it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        let failed = |_| anyhow::anyhow!("the key doesn't sign");
        Ok(match &self.kind {
            Kind::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let how = &algorithms::RSA_PKCS1_SHA256;
                key.sign(how, &random, message, &mut signature).map_err(failed)?;
                signature
            }
            Kind::Point(key) => key.sign(&random, message).map_err(failed)?.as_ref().to_vec(),
            Kind::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign_with_rng(&mut OsRng, message);
                signature.to_bytes().to_vec()
            }
        })
    }
}

fn pkcs8(bytes: &[u8]) -> Result<SigningKey> {
    let read = || {
        let mut info = Reader(bytes).enter(der::SEQUENCE)?;
        info.integer()?;
        let mut algorithm = info.enter(der::SEQUENCE)?;
        let kind = algorithm.oid()?;
        Some((kind, algorithm, info.read(der::OCTET_STRING)?))
    };
    let (kind, mut parameters, key) = read().context("it is no PKCS #8")?;
    match kind {
        oid::RSA => rsa(key),
        oid::EC => sec1(key, parameters.oid()),
        _ => bail!("it is neither RSA nor ECDSA"),
    }
}

fn rsa(bytes: &[u8]) -> Result<SigningKey> {
    let key = ring::rsa::KeyPair::from_der(bytes)
        .map_err(|e| anyhow::anyhow!("an RSA key that isn't taken, of 2048 to 4096 bits: {e}"))?;
    let parts: PublicKeyComponents<Vec<u8>> = key.public().into();
    let exponent = parts.e.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Ok(SigningKey {
        public: PublicKey::Rsa {
            modulus: parts.n,
            exponent,
        },
        kind: Kind::Rsa(key),
    })
}

/// Of a curve that is named in it, or beside it.
fn sec1(bytes: &[u8], named: Option<&[u8]>) -> Result<SigningKey> {
    let read = || {
        let mut key = Reader(bytes).enter(der::SEQUENCE)?;
        key.integer()?;
        let number = key.read(der::OCTET_STRING)?;
        let own = key.enter(der::constructed(0)).and_then(|mut own| own.oid());
        Some((number, own))
    };
    let (number, own) = read().context("it is no ECDSA key")?;
    let curve = own.or(named).context("an ECDSA key that names no curve")?;
    let curve = Curve::of(curve).context("unknown private key curve, must be 256, 384, or 521")?;
    // Some leave zeros away.
    let number = number.iter().skip_while(|byte| **byte == 0).copied();
    let digits: Vec<u8> = number.collect();
    let missing = curve.size().checked_sub(digits.len());
    let padded = [vec![0; missing.context("an ECDSA key that is too long")?], digits].concat();
    let wrong = || format!("no key of {curve:?}");
    macro_rules! point {
        ($curve:ident) => {{
            let key = $curve::SecretKey::from_slice(&padded).ok().with_context(wrong)?;
            key.public_key().to_encoded_point(false).as_bytes().to_vec()
        }};
    }
    let ring = |how, point: &[u8]| {
        let pair = EcdsaKeyPair::from_private_key_and_public_key(how, &padded, point, &SystemRandom::new());
        pair.map(Kind::Point).ok().with_context(wrong)
    };
    let (point, kind) = match curve {
        Curve::P256 => {
            let point = point!(p256);
            let kind = ring(&algorithms::ECDSA_P256_SHA256_FIXED_SIGNING, &point)?;
            (point, kind)
        }
        Curve::P384 => {
            let point = point!(p384);
            let kind = ring(&algorithms::ECDSA_P384_SHA384_FIXED_SIGNING, &point)?;
            (point, kind)
        }
        Curve::P521 => {
            let key = p521::ecdsa::SigningKey::from_slice(&padded).ok().with_context(wrong)?;
            (point!(p521), Kind::P521(key))
        }
        Curve::P224 => bail!("unknown private key curve, must be 256, 384, or 521"),
    };
    Ok(SigningKey {
        public: PublicKey::Ecdsa(curve, point),
        kind,
    })
}
