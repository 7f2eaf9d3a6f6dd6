//! Service-account tokens: JWTs signed with ES256, and the keys that check them.
//!
//! The key in `sa.key` signs; every key in `sa.pub` (a PEM may hold several) is accepted, so that a key can be replaced
//! while old tokens live. Whether the objects a token names still exist is the API server's to find out.

pub mod keyset;
mod legacy;
mod provider;
pub mod turn;

pub use legacy::{LEGACY_ISSUER, LegacyClaims};
pub use provider::install as install_provider;

use crate::files;
use crate::x509::key::{Curve, PublicKey as Key};
use crate::x509::{Certificate, pem};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use std::path::Path;

/// Clocks may differ by this much, as upstream allows.
pub const LEEWAY_SECONDS: i64 = 60;

/// The claims of a service-account token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    #[serde(default)]
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(rename = "kubernetes.io", default)]
    pub kubernetes: KubernetesClaims,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    #[serde(default)]
    pub sub: String,
}

/// `kubernetes.io` of a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Ref>,
    #[serde(default)]
    pub serviceaccount: Ref,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// An object that a token names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ref {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Aud {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Aud::deserialize(d)? {
        Aud::One(a) => vec![a],
        Aud::Many(a) => a,
    })
}

/// Why a token that claims to be ours is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("invalid signature, no keys found")]
    UnknownKey,
    #[error("{0}")]
    Invalid(String),
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    #[error("service account token is issued in the future")]
    FromTheFuture,
}

/// A public key that tokens are checked with.
#[derive(Clone)]
struct PublicKey {
    id: String,
    /// Uncompressed point: 4, x, y.
    point: Vec<u8>,
    decoding: DecodingKey,
}

/// The keys of service-account tokens.
#[derive(Clone)]
pub struct ServiceAccountKeys {
    signing: EncodingKey,
    header: Header,
    public: Vec<PublicKey>,
}

impl ServiceAccountKeys {
    /// The keys in `<dir>/sa.key` and `sa.pub`, made when both are missing. The public half alone is an error: with a new
    /// key every token out there would stop to work.
    pub fn open(dir: &Path) -> Result<Self> {
        let (key_path, pub_path) = (dir.join(turn::KEY), dir.join(turn::PUBLIC));
        let key = match files::read(&key_path)? {
            Some(pem) => KeyPair::from_pem(&pem).with_context(|| format!("reading {}", key_path.display()))?,
            None if pub_path.exists() => bail!(
                "{} is there but its key {} is not: restore the key, or remove both to make a new one (every service account's token is then issued anew)",
                pub_path.display(),
                key_path.display()
            ),
            None => {
                let key = KeyPair::generate().context("making the service-account key")?;
                files::write_secret(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let published = match files::read(&pub_path)? {
            Some(pem) => pem,
            None => {
                files::write_public(&pub_path, key.public_key_pem().as_bytes())?;
                key.public_key_pem()
            }
        };
        Self::new(&key, &published).with_context(|| format!("reading {}", pub_path.display()))
    }

    /// Fresh keys that live as long as the process.
    pub fn generate() -> Result<Self> {
        let key = KeyPair::generate().context("making the service-account key")?;
        Self::new(&key, &key.public_key_pem())
    }

    /// With a private key alone, in PEM.
    pub fn of_key(pem: &str) -> Result<Self> {
        Self::with(pem, &[])
    }

    /// With a key that signs, and more by which tokens are taken: public or private keys, or certificates, in PEM.
    pub fn with(signing: &str, taken: &[String]) -> Result<Self> {
        let key = KeyPair::from_pem(signing).context("the key has to be ECDSA P-256, in PKCS #8")?;
        let mut keys = Vec::new();
        for pem in taken {
            keys.extend(public_halves(pem)?);
        }
        Self::of_halves(&key, keys)
    }

    fn new(key: &KeyPair, published: &str) -> Result<Self> {
        let keys = rustls_pki_types::SubjectPublicKeyInfoDer::pem_slice_iter(published.as_bytes());
        let keys: Result<Vec<_>, _> = keys.map(|key| key.map(|key| key.to_vec())).collect();
        Self::of_halves(key, keys.map_err(|e| anyhow::anyhow!("no PEM public key: {e}"))?)
    }

    fn of_halves(key: &KeyPair, published: Vec<Vec<u8>>) -> Result<Self> {
        provider::install();
        anyhow::ensure!(
            key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256),
            "service-account keys have to be ECDSA P-256"
        );
        let own = public_key(&key.subject_public_key_info())?;
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(own.id.clone());
        let mut public = vec![own];
        for other in published {
            let other = public_key(&other)?;
            if public.iter().all(|k| k.id != other.id) {
                public.push(other);
            }
        }
        Ok(ServiceAccountKeys {
            signing: EncodingKey::from_ec_der(&key.serialize_der()),
            header,
            public,
        })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String> {
        jsonwebtoken::encode(&self.header, claims, &self.signing).context("signing a token")
    }

    pub fn sign_legacy(&self, claims: &LegacyClaims) -> Result<String> {
        jsonwebtoken::encode(&self.header, claims, &self.signing).context("signing a token")
    }

    /// The issuer that a token claims, unverified: tells whose token it is.
    pub fn claimed_issuer(token: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Issuer {
            #[serde(default)]
            iss: String,
        }
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice::<Issuer>(&payload).ok().map(|i| i.iss)
    }

    /// What a token says of itself, unverified: for who has it before him, not for who is shown it.
    pub fn unverified(token: &str) -> Option<Claims> {
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        let payload = URL_SAFE_NO_PAD
            .decode(payload)
            .ok()
            .filter(|_| parts.next().is_none())?;
        serde_json::from_slice(&payload).ok()
    }

    /// The claims of a token with a good signature.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.verified(token)
    }

    /// The same for a token of [`LEGACY_ISSUER`].
    pub fn verify_legacy(&self, token: &str) -> Result<LegacyClaims, TokenError> {
        self.verified(token)
    }

    fn verified<T: DeserializeOwned + Clone>(&self, token: &str) -> Result<T, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| TokenError::Invalid(e.to_string()))?;
        let mut candidates = self
            .public
            .iter()
            .filter(|k| header.kid.as_ref().is_none_or(|kid| kid.is_empty() || *kid == k.id))
            .peekable();
        if candidates.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.required_spec_claims.clear();
        // Times and audiences are checked by the caller, with its clock.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let mut last = TokenError::UnknownKey;
        for key in candidates {
            match jsonwebtoken::decode::<T>(token, &key.decoding, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(e) => last = TokenError::Invalid(e.to_string()),
            }
        }
        Err(last)
    }

    /// The JSON Web Key Set that others check tokens with.
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self
            .public
            .iter()
            .map(|k| {
                serde_json::json!({
                    "use": "sig", "kty": "EC", "kid": k.id, "crv": "P-256", "alg": "ES256",
                    "x": URL_SAFE_NO_PAD.encode(&k.point[1..33]), "y": URL_SAFE_NO_PAD.encode(&k.point[33..65]),
                })
            })
            .collect();
        serde_json::json!({ "keys": keys })
    }

    /// The OpenID provider document.
    pub fn openid_configuration(issuer: &str, jwks_uri: &str) -> serde_json::Value {
        serde_json::json!({
            "issuer": issuer, "jwks_uri": jwks_uri, "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

use rustls_pki_types::pem::PemObject;

/// The public keys in a file, which may hold private keys or certificates in their place, as upstream takes them.
fn public_halves(text: &str) -> Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((block, after)) = pem::next(rest) {
        keys.push(match block.label.as_str() {
            "PUBLIC KEY" => block.bytes,
            "CERTIFICATE" => {
                let key = Certificate::from_der(&block.bytes).context("the certificate")?.key;
                key.and_then(|key| key.to_der())
                    .context("a certificate's key is of an unknown kind")?
            }
            "PRIVATE KEY" | "EC PRIVATE KEY" => {
                let key = KeyPair::try_from(block.bytes.as_slice());
                key.context("a private key has to be ECDSA P-256, in PKCS #8")?
                    .subject_public_key_info()
            }
            other => bail!("a {other} is no key that tokens can be checked with"),
        });
        rest = after;
    }
    anyhow::ensure!(!keys.is_empty(), "there is no key in PEM");
    Ok(keys)
}

/// A key from its DER; its id is the hash of that, as upstream derives it.
fn public_key(spki: &[u8]) -> Result<PublicKey> {
    let Some(Key::Ecdsa(Curve::P256, point)) = Key::parse(spki).context("no public key")? else {
        anyhow::bail!("service-account keys have to be ECDSA P-256");
    };
    let id = URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(spki));
    Ok(PublicKey {
        id,
        decoding: DecodingKey::from_ec_der(&point),
        point,
    })
}

impl Claims {
    /// Whether now lies in the token's time.
    pub fn check_time(&self, now: i64) -> Result<(), TokenError> {
        if self.nbf.is_some_and(|nbf| now + LEEWAY_SECONDS < nbf) {
            return Err(TokenError::NotYet);
        }
        if self.exp.is_some_and(|exp| now - LEEWAY_SECONDS > exp) {
            return Err(TokenError::Expired);
        }
        if self.iat.is_some_and(|iat| now + LEEWAY_SECONDS < iat) {
            return Err(TokenError::FromTheFuture);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    fn claims() -> Claims {
        Claims {
            aud: vec!["https://kubernetes.default.svc.cluster.local".into()],
            exp: Some(5000),
            iat: Some(1000),
            nbf: Some(1000),
            iss: "https://kubernetes.default.svc.cluster.local".into(),
            sub: "system:serviceaccount:default:default".into(),
            ..Claims::default()
        }
    }

    #[test]
    fn a_signed_token_verifies_and_a_changed_one_does_not() {
        let keys = ServiceAccountKeys::generate().unwrap();
        let token = keys.sign(&claims()).unwrap();
        assert_eq!(
            ServiceAccountKeys::claimed_issuer(&token).as_deref(),
            Some(claims().iss.as_str())
        );
        assert_eq!(keys.verify(&token).unwrap(), claims());
        let (body, signature) = token.rsplit_once('.').unwrap();
        let other = keys
            .sign(&Claims {
                sub: "system:admin".into(),
                ..claims()
            })
            .unwrap();
        let forged = format!("{}.{signature}", other.rsplit_once('.').unwrap().0);
        assert!(matches!(keys.verify(&forged), Err(TokenError::Invalid(_))));
        assert!(keys.verify(body).is_err());
        assert!(matches!(
            ServiceAccountKeys::generate().unwrap().verify(&token),
            Err(TokenError::UnknownKey)
        ));
    }

    #[test]
    fn keys_are_taken_from_certificates_and_private_keys_as_upstream_does_and_others_are_refused() {
        let (own, other) = (
            Authority::generate("own").unwrap(),
            Authority::generate("other").unwrap(),
        );
        let token = ServiceAccountKeys::of_key(&own.key_pem())
            .unwrap()
            .sign(&claims())
            .unwrap();
        let taken = [own.cert_pem().to_string(), other.key_pem()];
        let keys = ServiceAccountKeys::with(&other.key_pem(), &taken).unwrap();
        assert_eq!(
            keys.verify(&token).unwrap(),
            claims(),
            "by the certificate of the key that signed"
        );
        assert_eq!(keys.jwks()["keys"].as_array().unwrap().len(), 2);
        assert!(
            ServiceAccountKeys::of_key(&other.key_pem())
                .unwrap()
                .verify(&token)
                .is_err()
        );
        let rsa = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----\n".to_string();
        for wrong in [rsa, "no key".into()] {
            assert!(ServiceAccountKeys::of_key(&wrong).is_err(), "{wrong}");
            assert!(
                ServiceAccountKeys::with(&own.key_pem(), std::slice::from_ref(&wrong)).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn time_is_checked_with_leeway() {
        let c = claims();
        assert!(c.check_time(1000).is_ok() && c.check_time(941).is_ok() && c.check_time(5059).is_ok());
        assert!(matches!(c.check_time(900), Err(TokenError::NotYet)));
        assert!(matches!(c.check_time(5061), Err(TokenError::Expired)));
    }

    #[test]
    fn the_key_set_names_the_signing_key() {
        let keys = ServiceAccountKeys::generate().unwrap();
        let header = jsonwebtoken::decode_header(keys.sign(&claims()).unwrap()).unwrap();
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(keys.jwks()).unwrap();
        let jwk = set.find(header.kid.as_deref().unwrap()).unwrap();
        let mut v = Validation::new(Algorithm::ES256);
        v.validate_exp = false;
        v.validate_aud = false;
        let token = keys.sign(&claims()).unwrap();
        jsonwebtoken::decode::<Claims>(&token, &DecodingKey::from_jwk(jwk).unwrap(), &v).unwrap();
    }
}
