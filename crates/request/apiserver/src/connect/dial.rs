//! Connections to backends: TCP, TLS where wanted, HTTP/1.1 on top. One request a connection, so that any of them can be
//! upgraded and none outlives its use; who asks one backend often keeps them ([`super::Kept`]).

use crate::request::Body;
use crate::serve::tls;
use anyhow::{Context, Result};
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keelson_pki::verify::Roots;
use keelson_pki::verify::tls::{Servers, explain};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request goes.
#[derive(Clone)]
pub struct Target {
    /// `host:port` to dial; an IPv6 address in brackets.
    pub address: String,
    /// What the `Host` header says.
    pub host: String,
    pub tls: Option<ClientTls>,
}

/// How to speak TLS to a backend.
#[derive(Clone)]
pub struct ClientTls {
    pub config: Arc<ClientConfig>,
    pub server_name: ServerName<'static>,
}

/// Whose word on a backend's certificate is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust<'a> {
    /// Nobody vouches for it: pods behind `https:` proxies and what users exempt, as upstream takes them.
    Anyone,
    /// The machine's own list of authorities.
    Machine,
    /// A bundle in PEM.
    Bundle(&'a str),
}

impl<'a> Trust<'a> {
    /// Kubelets make their own certificates unless somebody says who signs them.
    pub fn of_kubelets(ca_pem: Option<&'a str>) -> Trust<'a> {
        ca_pem.map_or(Trust::Anyone, Trust::Bundle)
    }
    /// A bundle that may be absent or empty: then the machine's list counts.
    pub fn bundle(pem: Option<&'a str>) -> Trust<'a> {
        pem.filter(|pem| !pem.is_empty()).map_or(Trust::Machine, Trust::Bundle)
    }
}

impl ClientTls {
    /// A configuration that trusts as given, and proves itself by the certificate given.
    pub fn config(trust: Trust, identity: Option<(&str, &str)>) -> Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let verifier = match trust {
            Trust::Anyone => Servers::anyone(),
            Trust::Machine => Servers::trusting(Roots::of_machine()),
            Trust::Bundle(pem) => Servers::trusting(Arc::new(tls::roots(pem)?)),
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            Some((cert, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?;
                builder.with_client_auth_cert(tls::certificates(cert)?, key)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
    pub fn to(config: Arc<ClientConfig>, server_name: &str) -> Result<Self> {
        let server_name = ServerName::try_from(server_name.trim_matches(['[', ']']).to_string())
            .with_context(|| format!("{server_name:?} is no server name"))?;
        Ok(ClientTls { config, server_name })
    }
}

impl Target {
    /// A connection.
    pub(super) async fn open(&self) -> Result<Stream> {
        let opened = async {
            let stream = TcpStream::connect(&self.address)
                .await
                .with_context(|| format!("dial tcp {}", self.address))?;
            stream.set_nodelay(true)?;
            Ok(match &self.tls {
                None => Stream::Plain(stream),
                Some(tls) => {
                    let connector = TlsConnector::from(tls.config.clone());
                    let stream = connector.connect(tls.server_name.clone(), stream).await;
                    let stream = stream.map_err(|e| match explain(&e) {
                        Some(why) => anyhow::anyhow!(why),
                        None => anyhow::Error::new(e).context(format!("TLS with {}", self.address)),
                    })?;
                    Stream::Tls(Box::new(stream))
                }
            })
        };
        let opened = tokio::time::timeout(DIAL_TIMEOUT, opened).await;
        opened.map_err(|_| anyhow::anyhow!("dial tcp {}: i/o timeout", self.address))?
    }

    /// Sends a request; `uri` of it has to be path and query only.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>> {
        keelson_trace::headers::inject(request.headers_mut());
        let stream = self.open().await?;
        let host = HeaderValue::from_str(&self.host).context("the host is no header value")?;
        request.headers_mut().insert(header::HOST, host);
        *request.version_mut() = http::Version::HTTP_11;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream))
            .await?;
        let address = self.address.clone();
        tokio::spawn(async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!("the connection to {address} ended: {e}");
            }
        });
        Ok(sender.send_request(request).await?)
    }
}

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}
