//! HTTP requests to pods: for probes and hooks. Certificates aren't verified, redirects are followed on the same host
//! only, and no connection is kept.

use super::check;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::net::TcpStream;

/// Part of the error when a server answers TLS with plain text.
pub const NOT_TLS: &str = "server gave HTTP response to HTTPS client";

const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// Path and query, beginning with a slash.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    location: Option<String>,
}

impl Request {
    pub fn from_action(get: &HTTPGetAction, c: &Container, host: &str, purpose: &str) -> Result<Self, String> {
        let mut headers: Vec<(String, String)> = get
            .http_headers
            .iter()
            .flatten()
            .map(|h| (h.name.clone(), h.value.clone()))
            .collect();
        let has = |h: &[(String, String)], name: &str| h.iter().any(|(k, _)| k.eq_ignore_ascii_case(name));
        if !has(&headers, "user-agent") {
            headers.push(("User-Agent".into(), format!("kube-{purpose}/1.37")));
        }
        if !has(&headers, "accept") {
            headers.push(("Accept".into(), "*/*".into()));
        } else {
            headers.retain(|(k, v)| !(k.eq_ignore_ascii_case("accept") && v.is_empty()));
        }
        let path = get.path.clone().unwrap_or_default();
        Ok(Request {
            tls: get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host: host.to_owned(),
            port: check::port(&get.port, c)?,
            path: if path.starts_with('/') {
                path
            } else {
                format!("/{path}")
            },
            headers,
        })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self) -> String {
        format!(
            "{}://{}{}",
            if self.tls { "https" } else { "http" },
            self.authority(),
            self.path
        )
    }
}

/// A GET, with its redirects, within `timeout`.
pub async fn get(request: &Request, timeout: Duration) -> Result<Answer, String> {
    let url = request.url();
    match tokio::time::timeout(timeout, follow(request.clone())).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(format!("Get \"{url}\": {e}")),
        Err(_) => Err(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn follow(mut request: Request) -> Result<Answer, String> {
    for _ in 0..MAX_REDIRECTS {
        let answer = once(&request).await?;
        let redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        match answer
            .location
            .as_deref()
            .filter(|_| redirect)
            .map(|l| resolve(&request, l))
        {
            None | Some(None) => return Ok(answer),
            Some(Some(next)) if next.host == request.host => request = next,
            // Another host is not ours to ask.
            Some(Some(_)) => return Ok(answer),
        }
    }
    Err("stopped after 10 redirects".into())
}

fn resolve(from: &Request, location: &str) -> Option<Request> {
    let uri: http::Uri = location.parse().ok()?;
    let mut next = from.clone();
    let Some(host) = uri.host() else {
        let path = uri.path_and_query()?.as_str();
        next.path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("{}/{path}", from.path.rsplit_once('/').map_or("", |(dir, _)| dir))
        };
        return Some(next);
    };
    next.tls = uri.scheme_str() == Some("https");
    next.host = host.trim_matches(['[', ']']).to_owned();
    next.port = uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
    next.path = uri.path_and_query().map_or("/".into(), |p| p.as_str().to_owned());
    Some(next)
}

async fn once(request: &Request) -> Result<Answer, String> {
    let tcp = connect(&request.host, request.port).await?;
    if request.tls {
        let name = ServerName::try_from(request.host.clone())
            .or_else(|_| ServerName::try_from("localhost".to_owned()))
            .map_err(|e| e.to_string())?;
        let tls = tokio_rustls::TlsConnector::from(TLS.clone())
            .connect(name, tcp)
            .await
            .map_err(|e| {
                let text = e.to_string();
                if text.contains("corrupt message") || text.contains("InvalidContentType") {
                    NOT_TLS.into()
                } else {
                    text
                }
            })?;
        exchange(request, TokioIo::new(tls)).await
    } else {
        exchange(request, TokioIo::new(tcp)).await
    }
}

async fn exchange<T>(request: &Request, io: TokioIo<T>) -> Result<Answer, String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let text = |e: hyper::Error| {
        if e.is_incomplete_message() {
            "EOF".to_owned()
        } else {
            e.to_string()
        }
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
    let driver = tokio::spawn(connection);
    let mut builder = http::Request::get(&request.path);
    let mut host_set = false;
    for (k, v) in &request.headers {
        host_set |= k.eq_ignore_ascii_case("host");
        builder = builder.header(k, v);
    }
    if !host_set {
        builder = builder.header(http::header::HOST, request.authority());
    }
    builder = builder.header(http::header::CONNECTION, "close");
    let message = builder.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(message).await.map_err(text)?;
        let status = response.status().as_u16();
        let location = response
            .headers()
            .get(http::header::LOCATION)
            .and_then(|l| l.to_str().ok())
            .map(str::to_owned);
        // A long body is cut: the status is what counts.
        let body = match Limited::new(response.into_body(), MAX_BODY).collect().await {
            Ok(b) => String::from_utf8_lossy(&b.to_bytes()).into_owned(),
            Err(_) => String::new(),
        };
        Ok(Answer { status, body, location })
    }
    .await;
    driver.abort();
    answer
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
            _ => e.to_string(),
        };
        format!("dial tcp {host}:{port}: connect: {why}")
    })
}

/// Opens and closes a connection.
pub async fn dial(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, connect(host, port)).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

static TLS: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    // The ring provider has all default versions; without any there would be no TLS at all.
    let builder = match builder {
        Ok(b) => b,
        Err(e) => unreachable!("ring supports TLS 1.2 and 1.3: {e}"),
    };
    let verifier = Arc::new(AcceptAny(provider));
    Arc::new(
        builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth(),
    )
});

/// Takes any certificate, as probes must: pods sign their own.
#[derive(Debug)]
struct AcceptAny(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_their_host() {
        let r = Request {
            tls: false,
            host: "10.0.0.1".into(),
            port: 8080,
            path: "/a/b".into(),
            headers: vec![],
        };
        assert_eq!(resolve(&r, "/x?q=1").unwrap().path, "/x?q=1");
        assert_eq!(resolve(&r, "http://10.0.0.1:81/y").unwrap().port, 81);
        assert_eq!(resolve(&r, "https://example.com/").unwrap().host, "example.com");
    }

    #[tokio::test]
    async fn a_real_server_is_asked() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut s, _) = listener.accept().await.unwrap();
            let mut b = [0; 1024];
            let n = s.read(&mut b).await.unwrap();
            assert!(String::from_utf8_lossy(&b[..n]).starts_with("GET /healthz HTTP/1.1"));
            s.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")
                .await
                .unwrap();
        });
        let r = Request {
            tls: false,
            host: "127.0.0.1".into(),
            port,
            path: "/healthz".into(),
            headers: vec![],
        };
        let a = get(&r, Duration::from_secs(5)).await.unwrap();
        assert_eq!((a.status, a.body.as_str()), (503, "no"));
        let e = get(&r, Duration::from_secs(5)).await.unwrap_err();
        assert!(e.contains("connection refused"), "{e}");
    }
}
