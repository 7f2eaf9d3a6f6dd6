//! TLS to backends: who they have to be ([`Trust`]).

use super::Certificates;
use crate::table::{AltName, Trust};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use keelson_client::ObjectKey;
use parking_lot::RwLock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::fmt;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use webpki::EndEntityCert;

/// What is spoken in it.
pub const HTTP2: &[u8] = b"h2";

fn config(trust: &Trust, ours: &Ours) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in trust.authorities.certificates.iter() {
        roots.add(authority.clone()).map_err(|e| e.to_string())?;
    }
    let shown = Shown {
        roots,
        names: trust.names.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| e.to_string())?;
    // Dangerous would be to verify less than what is asked for.
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(shown));
    let Some(secret) = &trust.shows else {
        return Ok(builder.with_no_client_auth());
    };
    let showing = Showing {
        secret: secret.clone(),
        ours: ours.clone(),
    };
    let mut config = builder.with_client_cert_resolver(Arc::new(showing));
    // A session that is taken up again would go on with a certificate that isn't ours any more.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn name(trust: &Trust) -> Result<ServerName<'static>, String> {
    ServerName::try_from(trust.host.clone()).map_err(|e| e.to_string())
}

/// What makes connections for HTTP/1.1.
pub fn connector(trust: &Trust, ours: &Ours, reach: HttpConnector) -> Result<HttpsConnector<HttpConnector>, String> {
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config(trust, ours)?)
        .https_only()
        .with_server_name_resolver(FixedServerNameResolver::new(name(trust)?))
        .enable_http1()
        .wrap_connector(reach))
}

/// `alpn`: what is to be spoken in it; empty where nobody looks into it.
pub async fn connect(
    stream: TcpStream,
    trust: &Trust,
    ours: &Ours,
    alpn: &[u8],
) -> Result<TlsStream<TcpStream>, String> {
    let mut config = config(trust, ours)?;
    if !alpn.is_empty() {
        config.alpn_protocols = vec![alpn.to_vec()];
    }
    let made = TlsConnector::from(Arc::new(config)).connect(name(trust)?, stream).await;
    let made = made.map_err(|e| e.to_string())?;
    match alpn.is_empty() || made.get_ref().1.alpn_protocol() == Some(alpn) {
        true => Ok(made),
        false => Err("it doesn't speak HTTP/2".into()),
    }
}

/// The certificates of the moment.
#[derive(Clone, Default)]
pub struct Ours(Arc<RwLock<Arc<Certificates>>>);

impl Ours {
    pub fn set(&self, all: Arc<Certificates>) {
        *self.0.write() = all;
    }
}

/// What is shown of ourselves.
struct Showing {
    secret: ObjectKey,
    ours: Ours,
}

impl fmt::Debug for Showing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Showing")
    }
}

impl ResolvesClientCert for Showing {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.ours.0.read().get(&self.secret).cloned()
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// What certificates are held against.
#[derive(Debug)]
struct Shown {
    roots: RootCertStore,
    names: Vec<AltName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(shown)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)?;
        if self.names.is_empty() {
            verify_server_name(&parsed, host)?;
            return Ok(ServerCertVerified::assertion());
        }
        let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let certificate = EndEntityCert::try_from(shown).map_err(bad)?;
        let fits = |name: &AltName| match name {
            AltName::Uri(uri) => certificate.valid_uri_names().any(|shown| shown == uri),
            // A wildcard is asked for as it stands.
            AltName::Host(host) if host.starts_with('*') => certificate
                .valid_dns_names()
                .any(|shown| shown.eq_ignore_ascii_case(host)),
            AltName::Host(host) => {
                ServerName::try_from(host.as_str()).is_ok_and(|host| verify_server_name(&parsed, &host).is_ok())
            }
        };
        match self.names.iter().any(fits) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, shown, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
