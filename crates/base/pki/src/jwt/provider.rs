//! The cryptography of JWTs, by ring: the library that TLS uses anyway, in place of a second set of curves and hashes.
//!
//! Verifies what issuers of OpenID Connect sign with (RSA, RSA-PSS, P-256, P-384, Ed25519). Signs with P-256, which is
//! what service-account keys are, and with HMAC-SHA256, by which bootstrap tokens vouch for the cluster's address. A
//! secret that is shared verifies nothing here.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{self as algorithms, RsaParameters, VerificationAlgorithm};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    // Only what makes a JWK out of a private key asks for these; our key set is written from the public point.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring the provider of this process. To be called before the first token is signed or checked; again is harmless.
pub fn install() {
    // An error says that one is installed: by an earlier call, for nothing else installs any.
    let _installed = PROVIDER.install_default();
}

/// How a signature of an algorithm is checked.
enum Check {
    Rsa(&'static RsaParameters),
    Point(&'static dyn VerificationAlgorithm),
}

fn check(algorithm: Algorithm) -> Option<Check> {
    Some(match algorithm {
        Algorithm::RS256 => Check::Rsa(&algorithms::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Check::Rsa(&algorithms::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Check::Rsa(&algorithms::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Check::Rsa(&algorithms::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Check::Rsa(&algorithms::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Check::Rsa(&algorithms::RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => Check::Point(&algorithms::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Check::Point(&algorithms::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Check::Point(&algorithms::ED25519),
        _ => return None,
    })
}

struct RingVerifier {
    algorithm: Algorithm,
    check: Check,
    key: DecodingKey,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let check = check(*algorithm).ok_or(ErrorKind::InvalidAlgorithm)?;
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        check,
        key: key.clone(),
    }))
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let verdict = match (&self.check, self.key.kind()) {
            (Check::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                algorithms::RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Check::Rsa(parameters), DecodingKeyKind::SecretOrDer(der)) => {
                algorithms::UnparsedPublicKey::new(*parameters, der).verify(message, signature)
            }
            (Check::Point(algorithm), DecodingKeyKind::SecretOrDer(point)) => {
                algorithms::UnparsedPublicKey::new(*algorithm, point).verify(message, signature)
            }
            (Check::Point(_), DecodingKeyKind::RsaModulusExponent { .. }) => return Err(SignatureError::new()),
        };
        verdict.map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

struct P256Signer(EncodingKey);

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    match algorithm {
        Algorithm::ES256 => Ok(Box::new(P256Signer(key.clone()))),
        Algorithm::HS256 => Ok(Box::new(HmacSigner(key.clone()))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

struct HmacSigner(EncodingKey);

impl Signer<Vec<u8>> for HmacSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.0.as_bytes());
        Ok(ring::hmac::sign(&key, message).as_ref().to_vec())
    }
}

impl JwtSigner for HmacSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Signer<Vec<u8>> for P256Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let random = SystemRandom::new();
        let algorithm = &algorithms::ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = algorithms::EcdsaKeyPair::from_pkcs8(algorithm, self.0.as_bytes(), &random)
            .map_err(|_| SignatureError::new())?;
        let signature = key.sign(&random, message).map_err(|_| SignatureError::new())?;
        Ok(signature.as_ref().to_vec())
    }
}

impl JwtSigner for P256Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Validation, decode};

    /// Tokens that another implementation has signed (PyJWT over OpenSSL), with the public keys as issuers publish them.
    const FOREIGN: &str = include_str!("foreign.json");

    #[test]
    fn tokens_of_other_issuers_verify_and_changed_ones_do_not() {
        install();
        let cases: Vec<serde_json::Value> = serde_json::from_str(FOREIGN).unwrap();
        assert_eq!(cases.len(), 5);
        for case in &cases {
            let algorithm: Algorithm = case["alg"].as_str().unwrap().parse().unwrap();
            let jwk = serde_json::from_value(case["jwk"].clone()).unwrap();
            let key = DecodingKey::from_jwk(&jwk).unwrap();
            let mut validation = Validation::new(algorithm);
            validation.required_spec_claims.clear();
            validation.validate_exp = false;
            let token = case["token"].as_str().unwrap();
            let claims = decode::<serde_json::Value>(token, &key, &validation).unwrap().claims;
            assert_eq!(claims["sub"], "jane", "{algorithm:?}");

            let (body, signature) = token.rsplit_once('.').unwrap();
            let flipped = if signature.starts_with('A') { "B" } else { "A" };
            let forged = format!("{body}.{flipped}{}", &signature[1..]);
            assert!(
                decode::<serde_json::Value>(&forged, &key, &validation).is_err(),
                "{algorithm:?}"
            );
        }
    }

    #[test]
    fn a_shared_secret_signs_and_verifies_nothing() {
        install();
        // RFC 4231, test case 2.
        let key = EncodingKey::from_secret(b"Jefe");
        let signed = signer(&Algorithm::HS256, &key)
            .unwrap()
            .sign(b"what do ya want for nothing?");
        let wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex::encode(signed), wanted);
        assert!(signer(&Algorithm::ES256, &key).is_err());
        assert!(verifier(&Algorithm::HS256, &DecodingKey::from_secret(b"secret")).is_err());
    }
}
