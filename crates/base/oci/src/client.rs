//! One registry, or a mirror, by the distribution API: manifests and blobs, and the tokens they take.
//!
//! Everything it sends is bounded: documents are read up to a length the caller names and within [`DOCUMENT`], answers to errors
//! up to [`MAX_COMPLAINT`]; silence lasts up to [`SILENCE`], and nothing comes slower than [`SLOWEST`]. Credentials are sent to the registry and to the token service that it
//! names, by TLS unless the registry itself is asked without; redirections get none, and none leads from TLS to plain
//! HTTP. Errors never quote them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use parking_lot::Mutex;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response};
use serde::Deserialize;

use crate::reference::is_digest;
use crate::registries::{Credentials, Endpoint};

/// A registry that sends nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes a second in the mean, once [`SILENCE`] has passed: who sends a byte a minute would hold a pull for ever.
const SLOWEST: u64 = 1024;
/// For all of what isn't a blob.
const DOCUMENT: Duration = Duration::from_secs(300);
const CONNECT: Duration = Duration::from_secs(15);
const MAX_REDIRECTS: usize = 10;
/// Bytes read of what is said with an error, and of a token.
const MAX_COMPLAINT: u64 = 64 << 10;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Failed(String),
}

type Result<T> = std::result::Result<T, RegistryError>;

pub struct Registry {
    endpoint: Endpoint,
    credentials: Credentials,
    client: Client,
    /// What was last accepted, or is about to be tried.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Registry {
    pub fn new(endpoint: Endpoint, credentials: Credentials) -> Result<Registry> {
        // The HTTP client takes the process's provider; a program that has chosen one keeps it.
        let _already_chosen = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("keelson/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(Policy::custom(|attempt| {
                let downgrade =
                    attempt.url().scheme() != "https" && attempt.previous().iter().any(|u| u.scheme() == "https");
                if downgrade {
                    attempt.error("a redirection from https to http")
                } else if attempt.previous().len() > MAX_REDIRECTS {
                    attempt.error("too many redirections")
                } else {
                    attempt.follow()
                }
            }))
            .tls_danger_accept_invalid_certs(endpoint.skip_verify);
        if let Some(pem) = &endpoint.ca {
            builder = builder.tls_certs_merge(Certificate::from_pem_bundle(pem).map_err(unreached)?);
        }
        if let Some(identity) = &endpoint.identity {
            builder = builder.identity(reqwest::Identity::from_pem(&identity.0).map_err(unreached)?);
        }
        let authorization = match &credentials {
            Credentials::Bearer(token) => Some(secret(format!("Bearer {token}"))?),
            _ => None,
        };
        Ok(Registry {
            client: builder.build().map_err(unreached)?,
            endpoint,
            credentials,
            authorization: Mutex::new(authorization),
        })
    }

    /// A manifest by tag or digest.
    pub async fn manifest(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        Ok(self.manifest_as_it_came(name, most).await?.1)
    }

    /// A manifest, and what it is said to be.
    pub async fn manifest_as_it_came(&self, name: &str, most: u64) -> Result<(Option<String>, Vec<u8>)> {
        let what = format!("manifests/{name}");
        let response = self.ask(Method::GET, &what, Some(MANIFESTS), Some(DOCUMENT)).await?;
        let kind = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        Ok((kind, whole(response, most, "manifest").await?))
    }

    /// The digest of a manifest, if the registry tells it.
    pub async fn manifest_digest(&self, name: &str) -> Result<Option<String>> {
        let what = format!("manifests/{name}");
        let response = self.ask(Method::HEAD, &what, Some(MANIFESTS), Some(DOCUMENT)).await?;
        let digest = response
            .headers()
            .get("docker-content-digest")
            .and_then(|v| v.to_str().ok());
        Ok(digest.filter(|d| is_digest(d)).map(str::to_owned))
    }

    /// The list of what says something of a manifest: an index.
    pub async fn referrers(&self, digest: &str, most: u64) -> Result<Vec<u8>> {
        if !is_digest(digest) {
            return Err(RegistryError::Failed(format!("{digest:?} is no digest")));
        }
        let what = format!("referrers/{digest}");
        let response = self.ask(Method::GET, &what, None, Some(DOCUMENT)).await?;
        whole(response, most, "list").await
    }

    /// A short blob.
    pub async fn document(&self, digest: &str, most: u64) -> Result<Vec<u8>> {
        let response = self.ask(Method::GET, &blob_path(digest)?, None, Some(DOCUMENT)).await?;
        whole(response, most, "document").await
    }

    /// A blob in pieces.
    pub async fn blob(&self, digest: &str) -> Result<impl Stream<Item = Result<bytes::Bytes>> + Unpin + Send + use<>> {
        Ok(self.blob_with_length(digest).await?.1)
    }

    /// A blob in pieces, and how long it is said to be.
    pub async fn blob_with_length(
        &self,
        digest: &str,
    ) -> Result<(
        Option<u64>,
        impl Stream<Item = Result<bytes::Bytes>> + Unpin + Send + use<>,
    )> {
        let response = self.ask(Method::GET, &blob_path(digest)?, None, None).await?;
        Ok((response.content_length(), pieces(response)))
    }

    /// `within`: for the answer to its last byte.
    async fn ask(
        &self,
        method: Method,
        what: &str,
        accept: Option<&'static str>,
        within: Option<Duration>,
    ) -> Result<Response> {
        let Endpoint {
            host, path, repository, ..
        } = &self.endpoint;
        let scheme = if self.endpoint.plain_http { "http" } else { "https" };
        let namespace = self.endpoint.stands_for.as_ref();
        let namespace = namespace.map(|registry| format!("?ns={registry}")).unwrap_or_default();
        let url = format!("{scheme}://{host}{path}/{repository}/{what}{namespace}");
        // Once as it is known how, and once more as the answer says.
        for again in [true, false] {
            let mut request = self.client.request(method.clone(), &url);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(within) = within {
                request = request.timeout(within);
            }
            let authorization = self.authorization.lock().clone();
            if let Some(value) = authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let response = request.send().await.map_err(unreached)?;
            let status = response.status();
            // Asked anew by whoever it was redirected to is not asked by the registry.
            let by_registry = response.url().as_str() == url;
            if status == StatusCode::UNAUTHORIZED
                && again
                && by_registry
                && let Some(value) = self.authorize(response.headers()).await?
            {
                *self.authorization.lock() = Some(value);
                continue;
            }
            if status.is_success() {
                return Ok(response);
            }
            return Err(refused(&method, &url, response).await);
        }
        Err(RegistryError::Failed(format!("{url} was not answered")))
    }

    /// What to show after a refusal; `None`: there is nothing that would help.
    async fn authorize(&self, refusal: &HeaderMap) -> Result<Option<HeaderValue>> {
        let challenges: Vec<Challenge> = refusal
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().and_then(Challenge::parse))
            .collect();
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            if matches!(self.credentials, Credentials::Bearer(_)) {
                return Ok(None);
            }
            let token = self.token(bearer).await?;
            return Ok(Some(secret(format!("Bearer {token}"))?));
        }
        match &self.credentials {
            Credentials::Basic(user, password) if challenges.iter().any(|c| c.scheme == "basic") => {
                Ok(Some(basic(user, password)?))
            }
            _ => Ok(None),
        }
    }

    /// Asks the token service that the registry names.
    async fn token(&self, challenge: &Challenge) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let realm = challenge.get("realm").unwrap_or_default();
        let url: Uri = realm
            .parse()
            .map_err(|_| RegistryError::Failed(format!("the registry's token service {realm:?} is no address")))?;
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if self.endpoint.plain_http => {}
            _ => {
                return Err(RegistryError::Failed(format!(
                    "the token service {realm:?} is not asked: the registry is asked by https"
                )));
            }
        }
        let mut fields: Vec<(&str, String)> = Vec::new();
        if let Some(service) = challenge.get("service") {
            fields.push(("service", service.to_owned()));
        }
        let scope = format!("repository:{}:pull", self.endpoint.repository);
        fields.push(("scope", challenge.get("scope").map_or(scope, str::to_owned)));
        let request = match &self.credentials {
            Credentials::Identity(token) => {
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("refresh_token", token.clone()));
                fields.push(("client_id", "keelson".to_owned()));
                self.client
                    .post(realm)
                    .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(encoded(&fields))
            }
            credentials => {
                let separator = if url.query().is_some() { '&' } else { '?' };
                let request = self.client.get(format!("{realm}{separator}{}", encoded(&fields)));
                match credentials {
                    Credentials::Basic(user, password) => request.header(AUTHORIZATION, basic(user, password)?),
                    _ => request,
                }
            }
        };
        let response = request.timeout(DOCUMENT).send().await.map_err(unreached)?;
        if !response.status().is_success() {
            return Err(match refused(&Method::GET, realm, response).await {
                // Whoever does not get a token is not let in.
                RegistryError::NotFound(text) | RegistryError::Unauthorized(text) => {
                    RegistryError::Unauthorized(format!("failed to authorize: {text}"))
                }
                other => other,
            });
        }
        let bytes = whole(response, MAX_COMPLAINT, "token").await?;
        let answer: Token = serde_json::from_slice(&bytes)
            .map_err(|e| RegistryError::Failed(format!("the token service {realm} answers something else: {e}")))?;
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        if token.is_empty() {
            return Err(RegistryError::Failed(format!(
                "the token service {realm} gives no token"
            )));
        }
        Ok(token)
    }
}

/// Digests come from manifests, which may say anything.
fn blob_path(digest: &str) -> Result<String> {
    if !is_digest(digest) {
        return Err(RegistryError::Failed(format!("{digest:?} is no digest")));
    }
    Ok(format!("blobs/{digest}"))
}

/// One challenge of a refusal: `Scheme key="value",…`.
struct Challenge {
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Challenge {
    fn parse(header: &str) -> Option<Challenge> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let mut parameters = BTreeMap::new();
        loop {
            rest = rest.trim_start_matches([' ', ',', '\t']);
            if rest.is_empty() {
                break;
            }
            let (key, after) = rest.split_once('=')?;
            let mut value = String::new();
            if let Some(quoted) = after.strip_prefix('"') {
                let mut characters = quoted.char_indices();
                loop {
                    match characters.next()? {
                        (end, '"') => {
                            rest = &quoted[end + 1..];
                            break;
                        }
                        (_, '\\') => value.push(characters.next()?.1),
                        (_, c) => value.push(c),
                    }
                }
            } else {
                let end = after.find(',').unwrap_or(after.len());
                value.push_str(after[..end].trim());
                rest = &after[end..];
            }
            parameters.insert(key.trim().to_ascii_lowercase(), value);
        }
        Some(Challenge {
            scheme: scheme.to_ascii_lowercase(),
            parameters,
        })
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.parameters.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }
}

/// Fields as a form or a query.
fn encoded(fields: &[(&str, String)]) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for (key, value) in fields {
        out.append_pair(key, value);
    }
    out.finish()
}

fn basic(user: &str, password: &str) -> Result<HeaderValue> {
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    secret(format!("Basic {pair}"))
}

fn secret(text: String) -> Result<HeaderValue> {
    let mut value =
        HeaderValue::from_str(&text).map_err(|_| RegistryError::Failed("a token that is no header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn whole(response: Response, most: u64, what: &str) -> Result<Vec<u8>> {
    let too_long = || RegistryError::Failed(format!("the {what} is longer than {most} bytes"));
    if response.content_length().is_some_and(|length| length > most) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let mut stream = pieces(response);
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() as u64 > most {
            return Err(too_long());
        }
    }
    Ok(bytes)
}

/// An answer's body as it comes; one that comes too slowly ends in an error.
fn pieces(response: Response) -> impl Stream<Item = Result<bytes::Bytes>> + Unpin + Send + use<> {
    let state = (response.bytes_stream(), 0_u64, Instant::now());
    futures::stream::try_unfold(state, |(mut stream, mut came, began)| async move {
        let Some(piece) = stream.next().await else {
            return Ok(None);
        };
        let piece = piece.map_err(unreached)?;
        came += piece.len() as u64;
        if is_too_slow(came, began.elapsed()) {
            let text = format!("it comes slower than {SLOWEST} bytes a second");
            return Err(RegistryError::Failed(text));
        }
        Ok(Some((piece, (stream, came, began))))
    })
    .boxed()
}

fn is_too_slow(came: u64, after: Duration) -> bool {
    came < after.saturating_sub(SILENCE).as_secs().saturating_mul(SLOWEST)
}

/// What a registry says when it does not give what was asked for.
async fn refused(method: &Method, url: &str, response: Response) -> RegistryError {
    let status = response.status();
    let said = whole(response, MAX_COMPLAINT, "answer").await.unwrap_or_default();
    let text = match complaint(&said) {
        Some(said) => format!("unexpected status from {method} request to {url}: {status}: {said}"),
        None => format!("unexpected status from {method} request to {url}: {status}"),
    };
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound(text),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized(text),
        _ => RegistryError::Failed(text),
    }
}

/// The errors that an answer names.
fn complaint(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let told: Vec<String> = errors
        .errors
        .iter()
        .map(|e| format!("{}: {}", e.code, e.message))
        .collect();
    let short: String = told.join(", ").chars().filter(|c| !c.is_control()).take(500).collect();
    (!short.is_empty()).then_some(short)
}

/// The outermost words of an error name only the address; its cause says what is wrong with it.
fn unreached(error: reqwest::Error) -> RegistryError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    RegistryError::Failed(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let c =
            Challenge::parse(r#"Bearer realm="https://a/t?x=1,2",service="s\"q", scope=repository:a:pull"#).unwrap();
        assert_eq!(c.scheme, "bearer");
        assert_eq!(c.get("realm"), Some("https://a/t?x=1,2"));
        assert_eq!(c.get("service"), Some("s\"q"));
        assert_eq!(c.get("scope"), Some("repository:a:pull"));
        assert_eq!(Challenge::parse("Basic").unwrap().scheme, "basic");
        assert!(Challenge::parse("Bearer realm=\"open").is_none());
    }

    #[test]
    fn who_sends_a_byte_a_minute_is_left() {
        let after = Duration::from_secs;
        assert!(!is_too_slow(1, after(60)));
        assert!(is_too_slow(3, after(180)));
        assert!(!is_too_slow(120 * SLOWEST, after(180)));
    }

    #[test]
    fn complaints_are_short() {
        let long = format!(
            r#"{{"errors":[{{"code":"DENIED","message":"{}"}}]}}"#,
            "x".repeat(10_000)
        );
        assert_eq!(complaint(long.as_bytes()).unwrap().len(), 500);
        assert_eq!(complaint(b"<html>"), None);
    }
}
