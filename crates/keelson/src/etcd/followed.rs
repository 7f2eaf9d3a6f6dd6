//! TLS towards etcd by files that are looked at anew for each connection, as etcd itself reads its own: what is renewed, and who vouches
//! for it, is in force at once. What can't be read, as between two files' writing, leaves in force what was.

use anyhow::{Context, Result};
use keelson_apiserver::serve::tls;
use keelson_pki::verify::tls::Servers;
use keelson_pki::verify::{Live, Roots};
use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug)]
struct Followed {
    ca: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
    roots: Live,
    shown: RwLock<Option<Arc<CertifiedKey>>>,
    servers: Arc<Servers>,
}

/// What trusts, and is known, as the files say at any time. Without `ca` the machine's own list counts.
pub fn config(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>> {
    let roots = Live::default();
    let followed = Arc::new(Followed {
        ca: ca.map(Path::to_path_buf),
        identity: identity.map(|(cert, key)| (cert.into(), key.into())),
        servers: Servers::trusting(roots.clone()),
        roots,
        shown: RwLock::default(),
    });
    followed.look()?;
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(&versions)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(followed.clone());
    Ok(Arc::new(builder.with_client_cert_resolver(followed)))
}

impl Followed {
    /// What can't be read changes nothing.
    fn look_again(&self) {
        if let Err(error) = self.look() {
            tracing::debug!(
                error = format!("{error:#}"),
                "certificates for etcd; going on with those of before"
            );
        }
    }

    fn look(&self) -> Result<()> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let roots = match &self.ca {
            Some(ca) => tls::roots(&read(ca)?).with_context(|| format!("reading {}", ca.display()))?,
            None => Roots::clone(&Roots::of_machine()),
        };
        if let Some((cert, key)) = &self.identity {
            let (pem, key_pem) = (read(cert)?, read(key)?);
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?;
            let pair = CertifiedKey::from_der(tls::certificates(&pem)?, key, &tls::provider());
            let pair = pair.with_context(|| format!("{} and its key", cert.display()))?;
            *self.shown.write() = Some(Arc::new(pair));
        }
        self.roots.replace(roots);
        Ok(())
    }
}

impl ResolvesClientCert for Followed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.look_again();
        self.shown.read().clone()
    }
    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}

impl ServerCertVerifier for Followed {
    /// Before or after the other, as the version of TLS has it.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.look_again();
        self.servers.verify_server_cert(leaf, others, name, ocsp, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.servers.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::{Authority, CertSpec, San, layout};
    use std::net::Ipv4Addr;
    use tokio::net::{TcpListener, TcpStream};

    /// A server by another authority, which knows clients of another one: the same configuration reaches both.
    #[tokio::test]
    async fn what_the_files_say_counts_for_the_next_connection() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let reach = async |config: &Arc<ClientConfig>, ca: &Authority| {
            let issued = ca
                .issue(&CertSpec::server("etcd", vec![San::parse("127.0.0.1")]))
                .unwrap();
            let cert = tls::ServingCert::new(&issued.cert_pem, &issued.key_pem).unwrap();
            let roots = tls::roots(ca.cert_pem()).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(tls::server_config(cert, &roots).unwrap());
            let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = socket.local_addr().unwrap();
            let server = async {
                let stream = acceptor.accept(socket.accept().await.unwrap().0).await.ok()?;
                let shown = stream.get_ref().1.peer_certificates()?.to_vec();
                keelson_pki::verify::tls::client(&shown, &roots).ok()
            };
            let client = async {
                let stream = TcpStream::connect(address).await.unwrap();
                let name = ServerName::try_from("127.0.0.1").unwrap();
                tokio_rustls::TlsConnector::from(config.clone())
                    .connect(name, stream)
                    .await
            };
            let (known, reached) = tokio::join!(server, client);
            reached.is_ok() && known.is_some()
        };
        let ensure = |ca: &Authority| {
            keelson_pki::files::write_public(&dir.join("ca.crt"), ca.cert_pem().as_bytes()).unwrap();
            layout::ensure(dir, "client", ca, &CertSpec::client("keelson-server", None)).unwrap()
        };
        let (old, new) = (
            Authority::generate("etcd-ca").unwrap(),
            Authority::generate("etcd-ca").unwrap(),
        );
        let first = ensure(&old);
        let config = config(Some(&dir.join("ca.crt")), Some((&first.cert, &first.key))).unwrap();
        assert!(reach(&config, &old).await && !reach(&config, &new).await);
        ensure(&new);
        assert!(reach(&config, &new).await && !reach(&config, &old).await);
        // Half of what is being written changes nothing.
        std::fs::write(&first.key, "").unwrap();
        assert!(reach(&config, &new).await);
    }
}
