//! Servers on this machine that the API server asks: issuers of tokens, webhooks.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keelson_api::{Value, value};
use keelson_apiserver::serve::tls::{ServingCert, roots, server_config};
use keelson_pki::{Authority, CertSpec, San};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;

/// What is answered: a status, headers, a body.
pub type Answered = (u16, Vec<(&'static str, String)>, Vec<u8>);
type Handler = dyn Fn(&str, &http::HeaderMap, &[u8]) -> Answered + Send + Sync;

/// A server over TLS that counts what it is asked.
pub struct Outside {
    pub port: u16,
    pub asked: Arc<AtomicUsize>,
}

impl Outside {
    /// `handler` is given path, headers and body.
    pub async fn start(
        ca: &Authority,
        port: u16,
        handler: impl Fn(&str, &http::HeaderMap, &[u8]) -> Answered + Send + Sync + 'static,
    ) -> Outside {
        let spec = CertSpec::server("outside", vec![San::parse("127.0.0.1")]);
        let issued = ca.issue(&spec).expect("a certificate");
        let cert = ServingCert::new(&issued.cert_pem, &issued.key_pem).expect("a certificate");
        let config = server_config(cert, &roots(ca.cert_pem()).expect("roots")).expect("TLS");
        let socket = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let (asked, handler): (_, Arc<Handler>) = (Arc::new(AtomicUsize::new(0)), Arc::new(handler));
        let counter = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (acceptor, handler, counter) = (acceptor.clone(), handler.clone(), counter.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: http::Request<Incoming>| {
                        let handler = handler.clone();
                        counter.fetch_add(1, Ordering::Relaxed);
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await.expect("a body").to_bytes();
                            let (status, headers, body) = handler(head.uri.path(), &head.headers, &body);
                            let mut answer = http::Response::builder().status(status);
                            for (key, value) in headers {
                                answer = answer.header(key, value);
                            }
                            Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(body))).expect("an answer"))
                        }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A client may go away.
                    let _ = builder.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Outside { port, asked }
    }
    pub fn count(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

pub fn json(body: Value) -> Answered {
    let bytes = serde_json::to_vec(&body).expect("JSON");
    (200, vec![("content-type", "application/json".into())], bytes)
}

/// A key that signs tokens.
pub struct Key {
    pair: rcgen::KeyPair,
    id: &'static str,
}

impl Key {
    pub fn new(id: &'static str) -> Key {
        Key {
            pair: rcgen::KeyPair::generate().expect("a key"),
            id,
        }
    }
    pub fn jwk(&self) -> Value {
        use base64::Engine;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let point = self.pair.public_key_raw();
        value!({"kty": "EC", "crv": "P-256", "kid": self.id, "x": encode(&point[1..33]), "y": encode(&point[33..65])})
    }
    pub fn sign(&self, claims: Value) -> String {
        use base64::Engine;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let header = value!({"alg": "ES256", "kid": self.id});
        let [header, claims] = [header, claims].map(|part| encode(&serde_json::to_vec(&part).expect("JSON")));
        let message = format!("{header}.{claims}");
        let (random, fixed) = (
            ring::rand::SystemRandom::new(),
            &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        );
        let key = ring::signature::EcdsaKeyPair::from_pkcs8(fixed, &self.pair.serialize_der(), &random);
        let signature = key
            .expect("a key")
            .sign(&random, message.as_bytes())
            .expect("a signature");
        format!("{message}.{}", encode(signature.as_ref()))
    }
}

/// An issuer with discovery and keys, which can be exchanged.
pub struct Issuer {
    pub server: Outside,
    pub keys: Arc<Mutex<Vec<Value>>>,
}

impl Issuer {
    pub async fn start(ca: &Authority, port: u16, key: &Key) -> Issuer {
        let keys = Arc::new(Mutex::new(vec![key.jwk()]));
        let published = keys.clone();
        let handler = move |path: &str, headers: &http::HeaderMap, _: &[u8]| {
            let host = headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or_default();
            let url = format!("https://{host}");
            match path {
                "/.well-known/openid-configuration" => {
                    json(value!({"issuer": url.clone(), "jwks_uri": format!("{url}/moved")}))
                }
                "/moved" => (302, vec![("location", "/keys".into())], Vec::new()),
                "/keys" => json(value!({"keys": published.lock().clone()})),
                _ => (404, Vec::new(), Vec::new()),
            }
        };
        Issuer {
            server: Outside::start(ca, port, handler).await,
            keys,
        }
    }
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.server.port)
    }
}
