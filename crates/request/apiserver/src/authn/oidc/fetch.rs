//! Documents of issuers, over HTTPS: bounded in size, time and redirections.

use crate::connect::{ClientTls, Target, Trust};
use crate::request::Body;
use http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use std::sync::Arc;
use std::time::Duration;

/// Upstream's, for all of a document, redirections included.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Key sets and discovery documents have some kilobytes.
const MAX_BYTES: usize = 1 << 20;
/// As many as Go's client follows.
const MAX_REDIRECTIONS: usize = 10;

#[derive(Clone)]
pub struct Client {
    tls: Arc<rustls::ClientConfig>,
}

pub struct Document {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Document {
    /// `200 OK`, and the body if that is all right.
    pub fn ok(self) -> Result<Document, (String, String)> {
        match self.status {
            StatusCode::OK => Ok(self),
            status => Err((
                format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default()),
                String::from_utf8_lossy(&self.body).chars().take(1024).collect(),
            )),
        }
    }
}

impl Client {
    /// Takes the word of the authorities in a bundle, or of the machine's.
    pub fn trusting(ca_pem: &str) -> anyhow::Result<Client> {
        Ok(Client {
            tls: ClientTls::config(Trust::bundle(Some(ca_pem)), None)?,
        })
    }

    /// `bearer`: what is shown to the host of the URL, and to no other.
    pub async fn get(&self, url: &str, bearer: Option<&str>) -> Result<Document, String> {
        match tokio::time::timeout(TIMEOUT, self.follow(url, bearer)).await {
            Ok(found) => found,
            Err(_) => Err(format!(
                "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )),
        }
    }

    async fn follow(&self, first: &str, bearer: Option<&str>) -> Result<Document, String> {
        let mut url = first.to_string();
        let mut bearer = bearer;
        for _ in 0..=MAX_REDIRECTIONS {
            let said = |why: String| format!("Get \"{url}\": {why}");
            let uri: Uri = url.parse().map_err(|e| said(format!("{e}")))?;
            let document = self.once(&uri, bearer).await.map_err(said)?;
            let to = document.headers.get(header::LOCATION).and_then(|l| l.to_str().ok());
            let (true, Some(to)) = (redirects(document.status), to) else {
                return Ok(document);
            };
            let next = resolved(&uri, to).map_err(|why| format!("Get \"{url}\": {why}"))?;
            if next.authority() != uri.authority() {
                bearer = None;
            }
            url = next.to_string();
        }
        Err(format!("Get \"{url}\": stopped after {MAX_REDIRECTIONS} redirects"))
    }

    async fn once(&self, uri: &Uri, bearer: Option<&str>) -> Result<Document, String> {
        let host = uri.host().unwrap_or_default();
        let (port, tls) = match uri.scheme_str() {
            Some("https") => {
                let tls = ClientTls::to(self.tls.clone(), host).map_err(|e| format!("{e:#}"))?;
                (uri.port_u16().unwrap_or(443), Some(tls))
            }
            Some("http") => (uri.port_u16().unwrap_or(80), None),
            other => return Err(format!("unsupported protocol scheme {:?}", other.unwrap_or_default())),
        };
        let authority = uri.authority().map_or(host, |a| a.as_str());
        let target = Target {
            address: format!("{host}:{port}"),
            host: authority.rsplit('@').next().unwrap_or_default().to_string(),
            tls,
        };
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = http::Request::get(path).header(header::USER_AGENT, "Go-http-client/1.1");
        if let Some(token) = bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::empty()).map_err(|e| e.to_string())?;
        let (head, body) = target.send(request).await.map_err(|e| format!("{e:#}"))?.into_parts();
        let body = Limited::new(body, MAX_BYTES).collect().await;
        Ok(Document {
            status: head.status,
            headers: head.headers,
            body: body.map_err(|e| format!("reading the body: {e}"))?.to_bytes().to_vec(),
        })
    }
}

fn redirects(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn resolved(from: &Uri, to: &str) -> Result<Uri, String> {
    let next: Uri = to
        .parse()
        .map_err(|e| format!("failed to parse Location header {to:?}: {e}"))?;
    if next.scheme().is_some() {
        return Ok(next);
    }
    let mut parts = from.clone().into_parts();
    let path = match to.starts_with('/') {
        true => to.to_string(),
        false => {
            let base = from.path().rsplit_once('/').map_or("", |(base, _)| base);
            format!("{base}/{to}")
        }
    };
    parts.path_and_query = Some(path.parse().map_err(|e| format!("{e}"))?);
    Uri::from_parts(parts).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_relative_to_where_one_is() {
        let from: Uri = "https://a.example:8443/x/y?z".parse().unwrap();
        for (to, wanted) in [
            ("https://b.example/k", "https://b.example/k"),
            ("/k?v", "https://a.example:8443/k?v"),
            ("k", "https://a.example:8443/x/k"),
        ] {
            assert_eq!(resolved(&from, to).unwrap().to_string(), wanted);
        }
    }
}
