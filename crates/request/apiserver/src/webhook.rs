//! Calling webhooks: admission's and conversion's. A service is resolved to one of its ready endpoints, the certificate
//! is judged by the configured bundle or else the machine's, and the whole call is bounded by its timeout.

mod path;

use crate::admission::Lookup;
use crate::connect::{ClientTls, Kept, Several, Target, Trust};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use keelson_api::codec::{Strictness, json};
use keelson_api::{Map, Str, Value};
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

/// The most that a webhook may answer.
const MAX_ANSWER: usize = 16 << 20;

/// What is answered where somebody else would have to be asked, and [`crate::Config::alone`] forbids it.
pub const ALONE: &str = "this API server is over a copy of a cluster, and asks nobody else";

/// So many requests are made of one, as Go's client makes them; then an answer leads on no more.
const MAX_REQUESTS: usize = 10;

/// Where a webhook is, as `clientConfig` says.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    place: Place,
    /// Shared with the connections that it made.
    ca_pem: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Place {
    Url(String),
    Service {
        namespace: Str,
        name: Str,
        path: String,
        port: i64,
    },
    Nowhere,
}

impl ClientConfig {
    pub fn parse(m: Option<&Map>) -> ClientConfig {
        let Some(m) = m else {
            return ClientConfig {
                place: Place::Nowhere,
                ca_pem: None,
            };
        };
        let ca = m
            .str("caBundle")
            .filter(|c| !c.is_empty())
            .and_then(|c| STANDARD.decode(c).ok());
        let place = match (m.str("url"), m.obj("service")) {
            (Some(url), _) => Place::Url(path::cleaned_url(url)),
            (None, Some(s)) => Place::Service {
                namespace: s.str("namespace").unwrap_or_default().into(),
                name: s.str("name").unwrap_or_default().into(),
                path: path::cleaned(s.str("path").unwrap_or_default()),
                port: s.int("port").unwrap_or(443),
            },
            (None, None) => Place::Nowhere,
        };
        ClientConfig {
            place,
            ca_pem: ca.and_then(|c| String::from_utf8(c).ok()).map(Arc::from),
        }
    }

    /// The address as messages show it.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Url(u) => u.clone(),
            Place::Service {
                namespace,
                name,
                path,
                port,
            } => format!("https://{name}.{namespace}.svc:{port}{path}"),
            Place::Nowhere => String::new(),
        }
    }
}

/// Connections to webhooks, by who is dialled under what name, and by whose word.
pub type Webhooks = Several<(String, String, bool, Option<Arc<str>>)>;

/// Sends the review to the webhook and reads the answer. The error is what follows `failed to call webhook: `.
pub async fn call(
    lookup: &Lookup,
    config: &ClientConfig,
    review: &Value,
    timeout: Duration,
    with_timeout: bool,
) -> Result<Value, String> {
    let query = if with_timeout {
        format!("timeout={}s", timeout.as_secs())
    } else {
        String::new()
    };
    let mut url = config.url();
    if with_timeout {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&query);
    }
    let said = |why: String| format!("Post \"{url}\": {why}");
    match tokio::time::timeout(timeout, exchange(lookup, config, review, &query)).await {
        Ok(Ok(v)) => Ok(v),
        Ok(Err(Failure::Transport(why))) => Err(said(why)),
        Ok(Err(Failure::Answer(why))) => Err(why),
        Err(_) => Err(said("context deadline exceeded".into())),
    }
}

enum Failure {
    Transport(String),
    Answer(String),
}

async fn exchange(lookup: &Lookup, config: &ClientConfig, review: &Value, query: &str) -> Result<Value, Failure> {
    let (webhook, mut path) = resolve(lookup, config).await.map_err(Failure::Transport)?;
    if !query.is_empty() {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(query);
    }
    let body = bytes::Bytes::from(serde_json::to_vec(review).map_err(|e| Failure::Answer(e.to_string()))?);
    let mut answer = post(&webhook, &path, body.clone()).await?;
    let mut requests = 1;
    while let Some(location) = leads_on(&answer) {
        // A server may lead from `/hook` to `/hook/`. What another host is asked for would be said in our name, so that isn't followed.
        let url = config.url();
        let Some(next) = path::within(origin(&url), &location) else {
            let shown = shortened(&location);
            let why =
                format!("the webhook leads on to {shown:?}, which is no path of its own server and isn't followed");
            return Err(Failure::Answer(why));
        };
        if requests == MAX_REQUESTS {
            return Err(Failure::Transport(format!("stopped after {MAX_REQUESTS} redirects")));
        }
        requests += 1;
        answer = post(&webhook, &next, body.clone()).await?;
    }
    let status = answer.status();
    let limited = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
    let bytes = limited
        .collect()
        .await
        .map_err(|e| Failure::Transport(e.to_string()))?
        .to_bytes();
    if !status.is_success() {
        return Err(Failure::Answer(refusal(status, &bytes)));
    }
    json::decode(&bytes, None, Strictness::Lenient)
        .map(|d| d.value)
        .map_err(|e| Failure::Answer(format!("the webhook's answer is no JSON: {e}")))
}

async fn post(webhook: &Kept, path: &str, body: bytes::Bytes) -> Result<http::Response<Incoming>, Failure> {
    let says = |text| HeaderValue::from_static(text);
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, says("application/json")),
        (header::ACCEPT, says("application/json, */*")),
        (header::USER_AGENT, says("kube-apiserver-admission")),
    ]);
    let answer = webhook.post(path, headers, body).await;
    answer.map_err(|e| Failure::Transport(format!("{e:#}")))
}

/// Where to ask the same again: only these two keep method and body.
fn leads_on(answer: &http::Response<Incoming>) -> Option<String> {
    use http::StatusCode;
    let follows = matches!(
        answer.status(),
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    );
    let location = answer.headers().get(http::header::LOCATION).filter(|_| follows)?;
    location.to_str().ok().map(String::from)
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    &url[..url[start..].find('/').map_or(url.len(), |at| start + at)]
}

/// What a client says of an answer that is no success: the status that it is, or its text.
pub fn refusal(status: http::StatusCode, body: &[u8]) -> String {
    let told: Option<Value> = serde_json::from_slice(body).ok();
    if let Some(told) = told.filter(|v| v.get("kind").and_then(Value::as_str) == Some("Status"))
        && let Some(message) = told.get("message").and_then(Value::as_str).filter(|m| !m.is_empty())
    {
        return message.to_string();
    }
    let text = String::from_utf8_lossy(body);
    match text.trim() {
        "" => format!(
            "the server responded with the status code {} but did not return more information",
            status.as_u16()
        ),
        _ if status == http::StatusCode::NOT_FOUND => "the server could not find the requested resource".into(),
        text => format!(
            "an error on the server ({}) has prevented the request from succeeding",
            shortened(text)
        ),
    }
}

/// As much of an answer as fits into a message.
fn shortened(text: &str) -> &str {
    match text.char_indices().nth(1024) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

async fn resolve(lookup: &Lookup, config: &ClientConfig) -> Result<(Kept, String), String> {
    if lookup.is_alone {
        return Err(ALONE.into());
    }
    // Where to dial, what its certificate names, and what the request calls it.
    let (address, name, host, path, secure) = match &config.place {
        Place::Nowhere => return Err("neither a URL nor a service is configured".into()),
        Place::Url(url) => {
            let uri: http::Uri = url.parse().map_err(|e| format!("{url:?} is no URL: {e}"))?;
            let name = uri.host().unwrap_or_default().to_string();
            let host = uri.port().map_or_else(|| name.clone(), |port| format!("{name}:{port}"));
            let secure = uri.scheme_str() != Some("http");
            let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
            let path = uri
                .path_and_query()
                .map_or_else(|| "/".to_string(), ToString::to_string);
            (format!("{name}:{port}"), name, host, path, secure)
        }
        Place::Service {
            namespace,
            name,
            path,
            port,
        } => {
            let address = endpoint(lookup, namespace, name, *port).await?;
            let name = format!("{name}.{namespace}.svc");
            let host = format!("{name}:{port}");
            (address, name, host, path.clone(), true)
        }
    };
    let key = (address.clone(), host.clone(), secure, config.ca_pem.clone());
    let webhook = lookup.webhooks.to(key, || {
        let tls = if secure { Some(trust(config, &name)?) } else { None };
        Ok::<_, String>(Target { address, host, tls })
    })?;
    Ok((webhook, path))
}

fn trust(config: &ClientConfig, host: &str) -> Result<ClientTls, String> {
    let said = |e: anyhow::Error| format!("tls: {e:#}");
    let built = ClientTls::config(Trust::bundle(config.ca_pem.as_deref()), None).map_err(said)?;
    ClientTls::to(built, host).map_err(said)
}

/// A ready endpoint of a service, as `address:port`.
async fn endpoint(lookup: &Lookup, namespace: &str, name: &str, port: i64) -> Result<String, String> {
    let service = lookup
        .cached("", "services", namespace, name)
        .await
        .map_err(|e| e.message)?;
    let service = service.ok_or_else(|| format!("service \"{name}\" not found"))?;
    if service.at(&["spec", "type"]).and_then(Value::as_str) == Some("ExternalName") {
        let host = service
            .at(&["spec", "externalName"])
            .and_then(Value::as_str)
            .unwrap_or_default();
        return Ok(format!("{host}:{port}"));
    }
    let ports = service.at(&["spec", "ports"]).and_then(Value::as_array);
    let found = ports
        .into_iter()
        .flatten()
        .find(|p| p.get("port").and_then(Value::as_i64) == Some(port));
    let found = found.ok_or_else(|| format!("no service port {port} found for service \"{name}\""))?;
    let port_name = found.get("name").and_then(Value::as_str).unwrap_or_default();
    let slices = lookup
        .list("discovery.k8s.io", "endpointslices", namespace)
        .await
        .map_err(|e| e.message)?;
    let mut ready = Vec::new();
    for slice in &slices {
        let of = slice.labels().and_then(|l| l.str("kubernetes.io/service-name"));
        if of != Some(name) {
            continue;
        }
        let list = |key: &str| slice.arr(key).into_iter().flatten();
        let port = list("ports")
            .find(|p| p.get("name").and_then(Value::as_str).unwrap_or_default() == port_name)
            .and_then(|p| p.get("port")?.as_i64());
        let Some(port) = port else { continue };
        for e in list("endpoints").filter(|e| e.at(&["conditions", "ready"]).and_then(Value::as_bool) != Some(false)) {
            if let Some(ip) = e
                .get("addresses")
                .and_then(Value::as_array)
                .and_then(|a| a.first()?.as_str())
            {
                ready.push(if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                });
            }
        }
    }
    if ready.is_empty() {
        return Err(format!("no endpoints available for service \"{name}\""));
    }
    Ok(ready.swap_remove(rand::rng().random_range(0..ready.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn places_are_read_and_shown() {
        let parse = |v: Value| ClientConfig::parse(v.as_object());
        let c = parse(value!({"service": {"namespace": "n", "name": "s", "path": "p"}, "caBundle": "YQ=="}));
        assert_eq!(c.url(), "https://s.n.svc:443/p");
        assert_eq!(c.ca_pem.as_deref(), Some("a"));
        assert_eq!(parse(value!({"url": "https://x//y/"})).url(), "https://x/y");
        assert_eq!(origin("https://x:1/y"), "https://x:1");
        assert_eq!(ClientConfig::parse(None).place, Place::Nowhere);
    }
}
