//! The verifier as `rustls` asks for it: of servers when we are the client, and of the key that a client holds when we are
//! the server. Suites with CBC are not among what `rustls` speaks; everything else that Go's TLS takes is.

use super::chain::{Purpose, verify};
use super::roots::{Live, Roots};
use crate::x509::key::{Curve, PublicKey, bit_length};
use crate::x509::signature::{self, Algorithm, Hash, Sha1Use};
use crate::x509::{self, Certificate};
use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// Checking a signature by a larger RSA key would take too long for a handshake.
const MOST_RSA_BITS: usize = 8192;

/// In the order of preference. Those with SHA-1 are gone, as in Go.
const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Checks the chains that a peer shows. Without roots everyone is trusted, who only has to hold the key.
#[derive(Debug)]
pub struct Servers(Option<Live>);

impl Servers {
    pub fn trusting(roots: impl Into<Live>) -> Arc<Servers> {
        Arc::new(Servers(Some(roots.into())))
    }
    /// For whom the user asked not to be checked.
    pub fn anyone() -> Arc<Servers> {
        Arc::new(Servers(None))
    }
}

fn read(leaf: &CertificateDer, others: &[CertificateDer]) -> x509::Result<(Certificate, Roots)> {
    let others: Vec<Certificate> = others
        .iter()
        .map(|der| Certificate::from_der(der))
        .collect::<x509::Result<_>>()?;
    Ok((Certificate::from_der(leaf)?, Roots::of(others)))
}

/// Each of a chain, since any of them may be the one whose key a signature is checked with.
fn is_bounded(leaf: &Certificate, others: &Roots) -> bool {
    let mut all = std::iter::once(leaf).chain(others.iter());
    all.all(|c| !matches!(&c.key, Some(PublicKey::Rsa { modulus, .. }) if bit_length(modulus) > MOST_RSA_BITS))
}

fn too_large(peer: &str) -> Refusal {
    Refusal(format!(
        "tls: {peer} sent certificate containing RSA key larger than {MOST_RSA_BITS} bits"
    ))
}

/// The certificate of a peer that showed this chain, judged.
pub fn check(chain: &[CertificateDer], roots: &Roots, purpose: Purpose, now: Timestamp) -> x509::Result<Certificate> {
    let (leaf, others) = chain.split_first().ok_or_else(|| x509::Error::new("no certificate"))?;
    let (leaf, others) = read(leaf, others)?;
    if !is_bounded(&leaf, &others) {
        return Err(x509::Error(too_large("client").0));
    }
    verify(&leaf, &others, roots, purpose, now)?;
    Ok(leaf)
}

/// The certificate of a client that showed this chain, if it is good now.
pub fn client(chain: &[CertificateDer], roots: &Roots) -> x509::Result<Certificate> {
    check(chain, roots, Purpose::Client, keelson_clock::now())
}

/// A client's chain that is judged again whenever others are trusted, for as long as this is kept.
#[derive(Debug)]
pub struct Heeded(tokio::task::AbortHandle);

impl Drop for Heeded {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Calls `ended` when nobody of those who are trusted vouches for a client any more. Needs a tokio runtime.
pub fn heed(chain: &[CertificateDer], roots: &Live, ended: impl FnOnce() + Send + 'static) -> Heeded {
    let chain: Vec<CertificateDer<'static>> = chain.iter().map(|der| der.clone().into_owned()).collect();
    let roots = roots.clone();
    let judging = async move {
        let mut changes = roots.changes();
        loop {
            // The first time, too: they may have been exchanged since he was let in.
            let trusted = changes.borrow_and_update().clone();
            if client(&chain, &trusted).is_err() {
                break;
            }
            // Never: `roots` is one who may exchange them.
            if changes.changed().await.is_err() {
                return;
            }
        }
        ended();
    };
    Heeded(tokio::spawn(judging).abort_handle())
}

/// The whole of what Go's TLS would say.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Refusal {}

fn refused(said: &str, why: &x509::Error) -> Error {
    Refusal(format!("tls: {said}: {why}")).into()
}

impl From<Refusal> for Error {
    fn from(why: Refusal) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
    }
}
const UNREADABLE: &str = "failed to parse certificate from server";

/// What Go says where a handshake failed: its verdict on the certificate, if it was that.
pub fn explain(failure: &std::io::Error) -> Option<String> {
    let inner = failure.get_ref()?.downcast_ref::<Error>()?;
    let Error::InvalidCertificate(CertificateError::Other(OtherError(why))) = inner else {
        return None;
    };
    why.downcast_ref::<Refusal>().map(ToString::to_string)
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.0 {
            let host = name.to_str();
            let (leaf, others) = read(leaf, others).map_err(|why| refused(UNREADABLE, &why))?;
            if !is_bounded(&leaf, &others) {
                return Err(too_large("server").into());
            }
            verify(
                &leaf,
                &others,
                &roots.now(),
                Purpose::Server(&host),
                keelson_clock::now(),
            )
            .map_err(|why| refused("failed to verify certificate", &why))?;
        }
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake(message, cert, dss, Version::Tls12)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake(message, cert, dss, Version::Tls13)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// Takes any certificate of a client that holds its key, or none: whose it is, and whether that is good enough, is for
/// authentication to say, which can still take a token.
#[derive(Debug)]
pub struct AnyClient {
    hints: Vec<DistinguishedName>,
}

impl AnyClient {
    /// Clients are told of these authorities.
    pub fn hinting(roots: &Roots) -> Arc<AnyClient> {
        let subjects = roots.iter().map(|c| DistinguishedName::from(c.raw_subject.clone()));
        Arc::new(AnyClient {
            hints: subjects.collect(),
        })
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake(message, cert, dss, Version::Tls12)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake(message, cert, dss, Version::Tls13)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Tls12,
    Tls13,
}

/// Whether the peer holds the key of its certificate.
fn handshake(
    message: &[u8],
    cert: &CertificateDer,
    signed: &DigitallySignedStruct,
    version: Version,
) -> Result<HandshakeSignatureValid, Error> {
    let cert = Certificate::from_der(cert).map_err(|why| refused(UNREADABLE, &why))?;
    let wrong = || Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme);
    let (algorithm, curve) = algorithm(signed.scheme).ok_or_else(wrong)?;
    if version == Version::Tls13 && matches!(algorithm, Algorithm::Rsa(_)) {
        return Err(wrong());
    }
    match &cert.key {
        Some(PublicKey::Rsa { modulus, .. }) if bit_length(modulus) > MOST_RSA_BITS => {
            return Err(too_large("peer").into());
        }
        // From TLS 1.3 on the scheme names the curve.
        Some(PublicKey::Ecdsa(own, _)) if version == Version::Tls13 && curve != Some(*own) => return Err(wrong()),
        _ => {}
    }
    signature::check(
        algorithm,
        cert.key.as_ref(),
        message,
        signed.signature(),
        Sha1Use::Refused,
    )
    .map_err(|_| Error::InvalidCertificate(CertificateError::BadSignature))?;
    Ok(HandshakeSignatureValid::assertion())
}

fn algorithm(scheme: SignatureScheme) -> Option<(Algorithm, Option<Curve>)> {
    use Hash::{Sha256, Sha384, Sha512};
    Some(match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => (Algorithm::Ecdsa(Sha256), Some(Curve::P256)),
        SignatureScheme::ECDSA_NISTP384_SHA384 => (Algorithm::Ecdsa(Sha384), Some(Curve::P384)),
        SignatureScheme::ECDSA_NISTP521_SHA512 => (Algorithm::Ecdsa(Sha512), Some(Curve::P521)),
        SignatureScheme::ED25519 => (Algorithm::Ed25519, None),
        SignatureScheme::RSA_PSS_SHA256 => (Algorithm::RsaPss(Sha256), None),
        SignatureScheme::RSA_PSS_SHA384 => (Algorithm::RsaPss(Sha384), None),
        SignatureScheme::RSA_PSS_SHA512 => (Algorithm::RsaPss(Sha512), None),
        SignatureScheme::RSA_PKCS1_SHA256 => (Algorithm::Rsa(Sha256), None),
        SignatureScheme::RSA_PKCS1_SHA384 => (Algorithm::Rsa(Sha384), None),
        SignatureScheme::RSA_PKCS1_SHA512 => (Algorithm::Rsa(Sha512), None),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::pem;
    use crate::{Authority, CertSpec};

    #[tokio::test]
    async fn a_client_is_let_go_when_nobody_vouches_for_it_any_more() {
        let old = Authority::generate("kubernetes").unwrap();
        let new = old.successor().unwrap();
        let roots = |pem: &str| Roots::from_pem(pem.as_bytes()).unwrap();
        let issued = old.issue(&CertSpec::client("ana", None)).unwrap();
        let chain: Vec<CertificateDer> = pem::certificates(issued.cert_pem.as_bytes())
            .map(CertificateDer::from)
            .collect();
        let live = Live::from(roots(old.cert_pem()));
        let (told, heard) = tokio::sync::oneshot::channel();
        let _heeded = heed(&chain, &live, || {
            let _ = told.send(());
        });
        let (gone, nothing) = tokio::sync::oneshot::channel::<()>();
        drop(heed(&chain, &live, || {
            let _ = gone.send(());
        }));
        assert!(nothing.await.is_err(), "its connection ended");
        let (still, mut quiet) = tokio::sync::oneshot::channel();
        let _still = heed(&chain, &live, || {
            let _ = still.send(());
        });
        live.replace(roots(&format!("{}{}", new.cert_pem(), old.cert_pem())));
        tokio::task::yield_now().await;
        assert!(quiet.try_recv().is_err(), "the old one is trusted beside the new one");
        live.replace(roots(new.cert_pem()));
        heard.await.unwrap();
        quiet.await.unwrap();
    }
}
