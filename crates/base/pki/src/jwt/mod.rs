//! Service-account tokens: JWTs, and the keys that sign and check them, RSA or ECDSA.
//!
//! The key in `sa.key` signs; every key in `sa.pub` (a PEM may hold several) is accepted, so that a key can be replaced
//! while old tokens live. Whether the objects a token names still exist is the API server's to find out.

pub mod keyset;
mod legacy;
mod signing;
pub mod turn;

pub use legacy::{LEGACY_ISSUER, LegacyClaims};

use crate::files;
use crate::x509::key::PublicKey as Key;
use crate::x509::{Certificate, pem};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keyset::Signed;
use rcgen::KeyPair;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use signing::{SigningKey, algorithm};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

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
#[derive(Clone, Debug)]
struct PublicKey {
    id: String,
    algorithm: &'static str,
    key: Key,
}

/// The keys of service-account tokens.
#[derive(Clone, Debug)]
pub struct ServiceAccountKeys {
    signing: Arc<SigningKey>,
    /// Of the key that signs.
    header: String,
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
        let key = SigningKey::from_pem(signing)?;
        let mut keys = Vec::new();
        for pem in taken {
            keys.extend(public_halves(pem)?);
        }
        Self::of_halves(key, keys)
    }

    fn new(key: &KeyPair, published: &str) -> Result<Self> {
        Self::of_halves(SigningKey::from_pem(&key.serialize_pem())?, public_halves(published)?)
    }

    fn of_halves(key: SigningKey, published: Vec<Key>) -> Result<Self> {
        let own = public_key(key.public.clone())?;
        let header = serde_json::json!({"alg": own.algorithm, "kid": own.id}).to_string();
        let mut public = vec![own];
        for other in published {
            let other = public_key(other)?;
            if public.iter().all(|k| k.id != other.id) {
                public.push(other);
            }
        }
        Ok(ServiceAccountKeys {
            signing: Arc::new(key),
            header: URL_SAFE_NO_PAD.encode(header),
            public,
        })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String> {
        self.signed(claims)
    }

    pub fn sign_legacy(&self, claims: &LegacyClaims) -> Result<String> {
        self.signed(claims)
    }

    fn signed(&self, claims: &impl Serialize) -> Result<String> {
        let claims = URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims)?);
        let message = format!("{}.{claims}", self.header);
        let signature = self.signing.sign(message.as_bytes()).context("signing a token")?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
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

    fn verified<T: DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
        let signed = Signed::parse(token).map_err(TokenError::Invalid)?;
        let is_named = |k: &&PublicKey| signed.key_id.is_empty() || signed.key_id == k.id;
        let mut candidates = self.public.iter().filter(is_named).peekable();
        if candidates.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        if !candidates.any(|k| signed.is_by(&k.key)) {
            return Err(TokenError::Invalid(
                "go-jose/go-jose: error in cryptographic primitive".into(),
            ));
        }
        // Times and audiences are checked by the caller, with its clock.
        serde_json::from_slice(&signed.payload).map_err(|e| TokenError::Invalid(e.to_string()))
    }

    /// The JSON Web Key Set that others check tokens with.
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self.public.iter().map(PublicKey::jwk).collect();
        serde_json::json!({ "keys": keys })
    }

    /// The OpenID provider document.
    pub fn openid_configuration(&self, issuer: &str, jwks_uri: &str) -> serde_json::Value {
        let algorithms: BTreeSet<&str> = self.public.iter().map(|k| k.algorithm).collect();
        serde_json::json!({
            "issuer": issuer, "jwks_uri": jwks_uri, "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": algorithms,
        })
    }
}

impl PublicKey {
    fn jwk(&self) -> serde_json::Value {
        let mut jwk = serde_json::json!({"use": "sig", "kid": self.id, "alg": self.algorithm});
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut set = |name: &str, value: String| jwk[name] = value.into();
        match &self.key {
            Key::Rsa { modulus, exponent } => {
                let exponent = exponent.to_be_bytes();
                let zeros = exponent.iter().take_while(|byte| **byte == 0).count();
                set("kty", "RSA".into());
                set("n", encode(modulus));
                set("e", encode(&exponent[zeros..]));
            }
            Key::Ecdsa(curve, point) => {
                let (x, y) = point[1..].split_at(curve.size());
                set("kty", "EC".into());
                set("crv", format!("P-{}", &format!("{curve:?}")[1..]));
                set("x", encode(x));
                set("y", encode(y));
            }
            // No token is signed by others.
            Key::Ed25519(_) | Key::Dsa => {}
        }
        jwk
    }
}

/// The public keys in a file, which may hold private keys or certificates in their place, as upstream takes them; what is no key may stand
/// beside them.
fn public_halves(text: &str) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((block, after)) = pem::next(rest) {
        keys.extend(match block.label.as_str() {
            "PUBLIC KEY" => Key::parse(&block.bytes).context("no public key")?,
            "CERTIFICATE" => Certificate::from_der(&block.bytes).context("the certificate")?.key,
            _ => SigningKey::from_block(&block)?.map(|key| key.public),
        });
        rest = after;
    }
    anyhow::ensure!(
        !keys.is_empty(),
        "data does not contain any valid RSA or ECDSA public keys"
    );
    Ok(keys)
}

/// A key's id is the hash of its DER, as upstream derives it.
fn public_key(key: Key) -> Result<PublicKey> {
    let signs = algorithm(&key).zip(key.to_der());
    let (algorithm, der) = signs.context("service-account keys have to be RSA, or ECDSA over P-256, P-384 or P-521")?;
    Ok(PublicKey {
        id: URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(der)),
        algorithm,
        key,
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

    /// A public key is known to everybody, and so would be a secret that it is taken for.
    #[test]
    fn a_token_without_a_signature_or_signed_by_what_is_public_is_refused() {
        let own = Authority::generate("own").unwrap();
        let keys = ServiceAccountKeys::of_key(&own.key_pem()).unwrap();
        let set = keyset::KeySet::parse(keys.jwks().to_string().as_bytes()).unwrap();
        let token = keys.sign(&claims()).unwrap();
        let (message, _) = token.rsplit_once('.').unwrap();
        let (_, payload) = message.split_once('.').unwrap();
        let id = Signed::parse(&token).unwrap().key_id;
        for kid in [id.as_str(), ""] {
            for algorithm in ["none", "None", "", "HS256", "RS256", "PS256", "ES384", "EdDSA"] {
                let head = serde_json::json!({"alg": algorithm, "kid": kid}).to_string();
                let message = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(head));
                let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, own.cert_pem().as_bytes());
                let mac = ring::hmac::sign(&secret, message.as_bytes());
                for signature in [String::new(), URL_SAFE_NO_PAD.encode(mac)] {
                    let forged = format!("{message}.{signature}");
                    assert!(keys.verify(&forged).is_err(), "{algorithm} {kid}");
                    assert!(!set.signed(&Signed::parse(&forged).unwrap()), "{algorithm} {kid}");
                }
            }
        }
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
        let set = keyset::KeySet::parse(keys.jwks().to_string().as_bytes()).unwrap();
        let token = Signed::parse(&keys.sign(&claims()).unwrap()).unwrap();
        assert!(set.signed(&token) && !token.key_id.is_empty());
    }

    /// Keys in all forms in which openssl writes them, and what upstream's own code makes of them: ids, set, document, tokens.
    #[test]
    fn keys_of_all_kinds_sign_and_are_told_of_as_upstream_does_it() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("upstream.json")).unwrap();
        let names: Vec<&str> = golden["order"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|n| n.as_str())
            .collect();
        let pem = |name: &str| golden["keys"][name].as_str().unwrap().to_string();
        let all: Vec<String> = names.iter().map(|name| pem(name)).collect();
        let keys = ServiceAccountKeys::with(&all[0], &all).unwrap();
        assert_eq!(keys.jwks(), golden["jwks"]);
        let document = keys.openid_configuration("https://issuer.example", "https://issuer.example/openid/v1/jwks");
        assert_eq!(document, golden["configuration"]);
        assert_eq!(names.len(), 5);
        for name in names {
            let theirs = golden["tokens"][name].as_str().unwrap();
            let told = keys.verify(theirs).unwrap();
            assert_eq!(told.sub, format!("system:serviceaccount:default:{name}"));
            let own = ServiceAccountKeys::of_key(&pem(name)).unwrap();
            let ours = own.sign(&told).unwrap();
            let head = |token: &str| token.split('.').next().unwrap().to_string();
            assert_eq!(head(&ours), head(theirs), "{name}: algorithm and key");
            assert_eq!(keys.verify(&ours).unwrap(), told, "{name}");
            let (body, signature) = ours.rsplit_once('.').unwrap();
            let other = if signature.starts_with('A') { "B" } else { "A" };
            let forged = format!("{body}.{other}{}", &signature[1..]);
            assert!(matches!(keys.verify(&forged), Err(TokenError::Invalid(_))), "{name}");
        }
    }
}
