//! A webhook on loopback that lets everything in, so that what it costs the server to ask can be measured.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keelson_pki::{Authority, CertSpec, San};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub struct Hook {
    port: u16,
    authority: String,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Hook {
    pub async fn start() -> Result<Hook> {
        let authority = Authority::generate("load")?;
        let issued = authority.issue(&CertSpec::server("load", vec![San::parse("127.0.0.1")]))?;
        let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let asked = Arc::new(AtomicUsize::new(0));
        let serving = tokio::spawn(serve(listener, acceptor, asked.clone()));
        Ok(Hook {
            port,
            authority: authority.cert_pem().to_owned(),
            asked,
            serving,
        })
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, asked: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, asked) = (acceptor.clone(), asked.clone());
        tokio::spawn(async move {
            // As other servers have it: what is to be measured isn't how long a small answer waits for company.
            let _ = stream.set_nodelay(true);
            // Whoever doesn't shake hands is the server's matter: its request fails, and so does the row.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| {
                asked.fetch_add(1, Relaxed);
                admit(request)
            });
            let connection = auto::Builder::new(TokioExecutor::new());
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn admit(request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let body = request.into_body().collect().await?.to_bytes();
    let uid = uid(&body)?;
    let answer = format!(
        r#"{{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{{"uid":"{uid}","allowed":true}}}}"#
    );
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(Full::new(Bytes::from(answer)))?)
}

/// Of a review only what its answer has to say.
#[derive(Deserialize)]
struct Review {
    request: Asked,
}

#[derive(Deserialize)]
struct Asked {
    uid: String,
}

fn uid(review: &[u8]) -> Result<String> {
    let review: Review = serde_json::from_slice(review).context("no review")?;
    Ok(review.request.uid)
}

/// It is asked of what is made in one namespace of this run.
pub fn configuration(hook: &Hook, run: &str) -> String {
    let authority = STANDARD.encode(&hook.authority);
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": format!("load-{run}")},
        "webhooks": [{
            "name": "load.keelson.test", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 10,
            "clientConfig": {"url": format!("https://127.0.0.1:{}/admit", hook.port), "caBundle": authority},
            "namespaceSelector": {"matchLabels": {"load": format!("load-{run}-hooked")}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        }]
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_review_is_answered_by_its_own_uid_wherever_it_stands() {
        let review =
            br#"{"kind":"AdmissionReview","request":{"object":{"metadata":{"uid":"b"}},"uid":"a-1","options":null}}"#;
        assert_eq!(super::uid(review).unwrap(), "a-1");
        assert!(super::uid(b"{}").is_err());
    }
}
