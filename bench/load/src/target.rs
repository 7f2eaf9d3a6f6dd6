//! An API server as a kubeconfig names it, and connections to it: one a client, HTTP/2 or HTTP/1.1 over TLS.
//!
//! What is asked is prepared beforehand; of an answer the bytes are counted and its beginning is kept, nothing is parsed.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_pki::Kubeconfig;
use keelson_pki::kubeconfig::Auth;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What Go's client lets a server send before it has read it: on a stream, and on a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
/// So much of an answer is kept: what a list says of itself stands at its beginning, and an error is short.
const KEPT: usize = 4096;

#[derive(Clone)]
pub struct Target(Arc<Inner>);

struct Inner {
    authority: Authority,
    host: HeaderValue,
    name: ServerName<'static>,
    tls: TlsConnector,
    token: Option<HeaderValue>,
    http1: bool,
}

/// A request but for its path and body, which are other ones each time.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: Method,
    pub accept: HeaderValue,
    pub media: Option<HeaderValue>,
    pub gzip: bool,
}

pub struct Answer {
    pub code: u16,
    pub bytes: u64,
    pub beginning: Vec<u8>,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

pub struct Connection {
    sender: Sender,
    target: Target,
}

impl Target {
    pub fn read(kubeconfig: &Path, http1: bool) -> Result<Target> {
        Target::of(&Kubeconfig::read(kubeconfig)?, http1)
    }

    pub fn of(kubeconfig: &Kubeconfig, http1: bool) -> Result<Target> {
        let uri: Uri = kubeconfig.server.parse().context("the server's URL")?;
        let host = uri.host().context("the server's URL names no host")?;
        let host = host.trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(443);
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(kubeconfig.ca_pem.as_bytes()) {
            roots.add(certificate.context("the authority in the kubeconfig")?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match kubeconfig.certificate() {
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the client's key")?;
                config.with_client_auth_cert(chain.context("the client's certificate")?, key)?
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![if http1 { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
        let token = match &kubeconfig.auth {
            Auth::Token(token) => Some(HeaderValue::from_str(&format!("Bearer {token}"))?),
            Auth::Basic { .. } => bail!("a name and a password in the kubeconfig: API servers take neither"),
            Auth::Certificate { .. } | Auth::None => None,
        };
        Ok(Target(Arc::new(Inner {
            host: HeaderValue::from_str(&authority)?,
            authority: authority.parse()?,
            name: ServerName::try_from(host.to_owned())?,
            tls: TlsConnector::from(Arc::new(config)),
            token,
            http1,
        })))
    }

    pub async fn connect(&self) -> Result<Connection> {
        let inner = &self.0;
        let stream = TcpStream::connect(inner.authority.as_str()).await;
        let stream = stream.with_context(|| format!("connecting to {}", inner.authority))?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(inner.tls.connect(inner.name.clone(), stream).await?);
        // A connection that breaks off is told to whoever asks on it.
        let sender = if inner.http1 {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Sender::One(sender)
        } else {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(io)
                .await?;
            tokio::spawn(connection);
            Sender::Two(sender)
        };
        Ok(Connection {
            sender,
            target: self.clone(),
        })
    }

    /// So many connections, each of which has been asked something already.
    pub async fn connections(&self, count: usize) -> Result<Vec<Connection>> {
        let mut made = Vec::with_capacity(count);
        let version = Head::get("application/json");
        for _ in 0..count {
            let mut connection = self.connect().await?;
            connection.ask(&version, "/version", Bytes::new()).await?.expect(200)?;
            made.push(connection);
        }
        Ok(made)
    }
}

impl Head {
    pub fn get(accept: &'static str) -> Head {
        Head {
            method: Method::GET,
            accept: HeaderValue::from_static(accept),
            media: None,
            gzip: false,
        }
    }

    pub fn write(method: Method, media: &'static str) -> Head {
        Head {
            method,
            media: Some(HeaderValue::from_static(media)),
            ..Head::get("application/json")
        }
    }
}

impl Answer {
    /// An answer with another code is a failure of the row.
    pub fn expect(self, code: u16) -> Result<Answer> {
        if self.code != code {
            bail!("answered {} for {code}: {}", self.code, self.text());
        }
        Ok(self)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.beginning).chars().take(400).collect()
    }

    /// What stands behind a key in the answer's beginning, where a list says of itself what there is.
    pub fn value(&self, key: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.beginning);
        let (_, rest) = text.split_once(&format!("\"{key}\":\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    }
}

impl Connection {
    pub async fn ask(&mut self, head: &Head, path: &str, body: Bytes) -> Result<Answer> {
        let response = self.open(head, path, body).await?;
        let code = response.status().as_u16();
        let mut body = response.into_body();
        let (mut bytes, mut beginning) = (0, Vec::new());
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                let kept = data.len().min(KEPT - beginning.len());
                beginning.extend_from_slice(&data[..kept]);
                bytes += data.len() as u64;
            }
        }
        Ok(Answer { code, bytes, beginning })
    }

    /// The answer's head; its body is the caller's to read.
    pub async fn open(&mut self, head: &Head, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let inner = &self.target.0;
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = head.method.clone();
        let path: PathAndQuery = path.parse()?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, head.accept.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static("request-bench/1"));
        if let Some(media) = &head.media {
            headers.insert(CONTENT_TYPE, media.clone());
        }
        if head.gzip {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Some(token) = &inner.token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        Ok(match &mut self.sender {
            Sender::One(sender) => {
                headers.insert(HOST, inner.host.clone());
                *request.uri_mut() = path.into();
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Two(sender) => {
                let uri = Uri::builder().scheme(Scheme::HTTPS).authority(inner.authority.clone());
                *request.uri_mut() = uri.path_and_query(path).build()?;
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }
}
