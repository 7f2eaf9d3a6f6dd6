//! TLS to backends: who they have to be ([`Trust`]).

use crate::table::{AltName, Trust};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use webpki::EndEntityCert;

/// What is spoken in it.
pub const HTTP2: &[u8] = b"h2";

fn config(trust: &Trust) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in &trust.authorities {
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
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(shown))
        .with_no_client_auth())
}

fn name(trust: &Trust) -> Result<ServerName<'static>, String> {
    ServerName::try_from(trust.host.clone()).map_err(|e| e.to_string())
}

/// What makes connections for HTTP/1.1.
pub fn connector(trust: &Trust, reach: HttpConnector) -> Result<HttpsConnector<HttpConnector>, String> {
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config(trust)?)
        .https_only()
        .with_server_name_resolver(FixedServerNameResolver::new(name(trust)?))
        .enable_http1()
        .wrap_connector(reach))
}

/// `alpn`: what is to be spoken in it; empty where nobody looks into it.
pub async fn connect(stream: TcpStream, trust: &Trust, alpn: &[u8]) -> Result<TlsStream<TcpStream>, String> {
    let mut config = config(trust)?;
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
