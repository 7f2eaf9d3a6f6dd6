//! The keys of other issuers (RFC 7517), and whether one of them signed a token (RFC 7515, the compact form).
//!
//! Signatures only, with the verdicts of Go's libraries: times, audiences and the rest of what a token claims are for who
//! asks. A set is taken whole or not at all, as upstream takes it.

use crate::x509::Certificate;
use crate::x509::key::{Curve, PublicKey};
use crate::x509::signature::{self, Algorithm, Hash, Sha1Use};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The algorithms that issuers may sign with, by name.
pub const ALGORITHMS: [&str; 9] = [
    "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512",
];

/// A published set of keys.
#[derive(Clone, Debug, Default)]
pub struct KeySet(Vec<Named>);

#[derive(Clone, Debug)]
struct Named {
    id: String,
    /// None: a key that verifies nothing here (a shared secret, Ed25519).
    key: Option<PublicKey>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    keys: Option<Vec<Jwk>>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Jwk {
    kty: String,
    kid: String,
    crv: String,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    x5c: Option<Vec<String>>,
}

impl KeySet {
    pub fn parse(json: &[u8]) -> Result<KeySet, String> {
        let set: Set = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let keys = set.keys.unwrap_or_default();
        keys.into_iter().map(Jwk::read).collect::<Result<_, _>>().map(KeySet)
    }

    /// Whether one of the keys signed the token: the one it names, or any if it names none.
    pub fn signed(&self, token: &Signed) -> bool {
        self.0
            .iter()
            .filter(|k| token.key_id.is_empty() || k.id == token.key_id)
            .filter_map(|k| k.key.as_ref())
            .any(|key| token.is_by(key))
    }
}

impl Jwk {
    fn read(self) -> Result<Named, String> {
        let key = match self.kty.as_str() {
            "RSA" => Some(self.rsa()?),
            "EC" => Some(self.ec()?),
            "oct" if self.x5c.as_ref().is_some_and(|c| !c.is_empty()) => {
                return Err("invalid JWK, found 'oct' (symmetric) key with cert chain".into());
            }
            "oct" => None,
            "OKP" if self.crv == "Ed25519" && self.x.is_some() => None,
            "OKP" => return Err(format!("unknown curve {}'", self.crv)),
            other => return Err(format!("unknown json web key type '{other}'")),
        };
        self.chain(key.as_ref())?;
        Ok(Named { id: self.kid, key })
    }

    fn rsa(&self) -> Result<PublicKey, String> {
        let missing = "invalid RSA key, missing n/e values";
        let modulus = bytes(self.n.as_deref().ok_or(missing)?)?;
        let modulus: Vec<u8> = modulus.into_iter().skip_while(|b| *b == 0).collect();
        let exponent = bytes(self.e.as_deref().ok_or(missing)?)?;
        let exponent = exponent
            .iter()
            .try_fold(0u64, |sum, b| sum.checked_mul(256)?.checked_add(u64::from(*b)));
        match exponent {
            Some(exponent) if exponent > 0 && !modulus.is_empty() => Ok(PublicKey::Rsa { modulus, exponent }),
            _ => Err("invalid RSA key".into()),
        }
    }

    fn ec(&self) -> Result<PublicKey, String> {
        let curve = match self.crv.as_str() {
            "P-256" => Curve::P256,
            "P-384" => Curve::P384,
            "P-521" => Curve::P521,
            other => return Err(format!("unsupported elliptic curve '{other}'")),
        };
        let coordinate = |text: &Option<String>, name: &str| {
            let found = bytes(text.as_deref().ok_or("invalid EC key, missing x/y values")?)?;
            match found.len() == curve.size() {
                true => Ok(found),
                false => Err(format!("invalid EC public key, wrong length for {name}")),
            }
        };
        let point = [vec![4], coordinate(&self.x, "x")?, coordinate(&self.y, "y")?].concat();
        match curve.has(&point) {
            true => Ok(PublicKey::Ecdsa(curve, point)),
            false => Err("invalid EC key: point is not on the curve".into()),
        }
    }

    /// Certificates that come with a key have to be readable, and the first one for this key.
    fn chain(&self, key: Option<&PublicKey>) -> Result<(), String> {
        for (i, text) in self.x5c.iter().flatten().enumerate() {
            let said = |why: String| format!("failed to unmarshal x5c field: {why}");
            let der = STANDARD.decode(text).map_err(|e| said(e.to_string()))?;
            let certificate = Certificate::from_der(&der).map_err(|e| said(e.to_string()))?;
            if i == 0 && key.is_some() && certificate.key.as_ref() != key {
                return Err("invalid JWK, public keys in key and x5c fields do not match".into());
            }
        }
        Ok(())
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|e| format!("a number of the key is no base64: {e}"))
}

/// A token in its parts. Nothing in it has been verified.
#[derive(Clone, Debug)]
pub struct Signed {
    pub algorithm: String,
    pub key_id: String,
    pub payload: Vec<u8>,
    /// What the signature is over.
    message: String,
    signature: Vec<u8>,
    /// The header demands what isn't known here.
    critical: bool,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    alg: String,
    #[serde(default)]
    kid: String,
    crit: Option<serde_json::Value>,
}

impl Signed {
    pub fn parse(token: &str) -> Result<Signed, String> {
        let parts: Vec<&str> = token.split('.').collect();
        let [head, payload, signature] = parts[..] else {
            return Err("compact JWS format must have three parts".into());
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|e| e.to_string());
        let header: Header = serde_json::from_slice(&decode(head)?).map_err(|e| e.to_string())?;
        Ok(Signed {
            algorithm: header.alg,
            key_id: header.kid,
            payload: decode(payload)?,
            message: format!("{head}.{payload}"),
            signature: decode(signature)?,
            critical: header.crit.is_some(),
        })
    }

    /// Bytes of what is signed.
    pub fn length(&self) -> usize {
        self.message.len()
    }

    pub(super) fn is_by(&self, key: &PublicKey) -> bool {
        use Hash::{Sha256, Sha384, Sha512};
        let (algorithm, curve) = match self.algorithm.as_str() {
            "RS256" => (Algorithm::Rsa(Sha256), None),
            "RS384" => (Algorithm::Rsa(Sha384), None),
            "RS512" => (Algorithm::Rsa(Sha512), None),
            "PS256" => (Algorithm::RsaPss(Sha256), None),
            "PS384" => (Algorithm::RsaPss(Sha384), None),
            "PS512" => (Algorithm::RsaPss(Sha512), None),
            "ES256" => (Algorithm::Ecdsa(Sha256), Some(Curve::P256)),
            "ES384" => (Algorithm::Ecdsa(Sha384), Some(Curve::P384)),
            "ES512" => (Algorithm::Ecdsa(Sha512), Some(Curve::P521)),
            _ => return false,
        };
        let der;
        let signature = match (curve, key) {
            (None, PublicKey::Rsa { .. }) => &self.signature,
            (Some(curve), PublicKey::Ecdsa(own, _)) if curve == *own && self.signature.len() == 2 * curve.size() => {
                der = signature::of_halves(&self.signature);
                &der
            }
            _ => return false,
        };
        let message = self.message.as_bytes();
        !self.critical && signature::check(algorithm, Some(key), message, signature, Sha1Use::Refused).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that another implementation has signed (PyJWT over OpenSSL), with the public keys as issuers publish them.
    const FOREIGN: &str = include_str!("foreign.json");
    /// What go-jose made of its keys: one of each algorithm.
    const GO: &str = include_str!("go.json");

    #[test]
    fn tokens_of_other_issuers_are_told_from_forged_ones() {
        let mut seen = Vec::new();
        for text in [FOREIGN, GO] {
            let cases: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
            for case in cases.iter().filter(|c| c["alg"] != "EdDSA") {
                let set = serde_json::json!({"keys": [case["jwk"]]}).to_string();
                let set = KeySet::parse(set.as_bytes()).unwrap();
                let token = case["token"].as_str().unwrap();
                let signed = Signed::parse(token).unwrap();
                let algorithm = signed.algorithm.clone();
                assert!(set.signed(&signed), "{algorithm}");
                seen.push(algorithm.clone());
                for other in ALGORITHMS.iter().chain(&["none", "HS256"]).filter(|a| **a != algorithm) {
                    let lie = Signed {
                        algorithm: (*other).to_string(),
                        ..signed.clone()
                    };
                    assert!(!set.signed(&lie), "{algorithm} as {other}");
                }
                let mut forged = signed.clone();
                forged.signature[5] ^= 1;
                assert!(!set.signed(&forged), "{algorithm}");
                let mut other = signed.clone();
                other.key_id = "another".into();
                assert!(!set.signed(&other), "{algorithm}");
                let critical = Signed {
                    critical: true,
                    ..signed
                };
                assert!(!set.signed(&critical), "{algorithm}");
            }
        }
        for algorithm in ALGORITHMS {
            assert!(seen.iter().any(|s| s == algorithm), "{algorithm} is not tried");
        }
    }

    #[test]
    fn a_set_with_a_key_that_cannot_be_is_refused() {
        let refused = |key: &str, why: &str| {
            let set = format!(r#"{{"keys": [{key}]}}"#);
            let said = KeySet::parse(set.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{key}: {said}");
        };
        refused(r#"{"kty": "XY"}"#, "unknown json web key type 'XY'");
        refused(r#"{"kty": "RSA", "n": "AQAB"}"#, "missing n/e");
        refused(r#"{"kty": "RSA", "n": "AQAB", "e": "AA"}"#, "invalid RSA key");
        refused(r#"{"kty": "EC", "crv": "P-224"}"#, "unsupported elliptic curve 'P-224'");
        refused(
            r#"{"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}"#,
            "wrong length for x",
        );
        let zeros = "A".repeat(43);
        refused(
            &format!(r#"{{"kty": "EC", "crv": "P-256", "x": "{zeros}", "y": "{zeros}"}}"#),
            "not on the curve",
        );
        refused(r#"{"kty": "OKP", "crv": "X25519", "x": "AA"}"#, "unknown curve");
        refused(r#"{"kty": "oct", "k": "AA", "x5c": ["AA=="]}"#, "with cert chain");
        assert!(KeySet::parse(b"<html>").is_err());
        assert!(KeySet::parse(b"{}").unwrap().0.is_empty());
        let set = KeySet::parse(br#"{"keys": [{"kty": "oct", "k": "AA"}]}"#).unwrap();
        assert!(set.0[0].key.is_none());
    }

    #[test]
    fn only_the_compact_form_is_a_token() {
        for wrong in ["", "a.b", "a.b.c.d", "{}", "e30.e30.", ".."] {
            let read = Signed::parse(wrong);
            assert!(
                read.is_err() || !KeySet::default().signed(&read.unwrap()),
                "{wrong} is no token"
            );
        }
    }
}
