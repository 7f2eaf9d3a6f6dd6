//! Passing a request on to a backend and its answer back; after `101 Switching Protocols`, bytes both ways.

use super::dial::Target;
use super::{hop, html};
use crate::authn::revoked::Cut;
use crate::request::{Body, Request, Response};
use anyhow::Result;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;

/// How a proxied page is shown under another path.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// What stands before the backend's paths: `/api/v1/namespaces/n/pods/p/proxy`.
    pub prefix: String,
    /// Scheme and host by which the client knows this server.
    pub scheme: String,
    pub host: String,
    /// The backend's `host:port`.
    pub backend: String,
}

const PIPE: usize = 32 * 1024;
/// The longest page whose links are rewritten.
const LONGEST_PAGE: usize = 16 * 1024 * 1024;

/// Sends a request on. `path` is the backend's path with its query.
pub async fn forward(
    target: &Target,
    path: &str,
    mut request: Request,
    remote: Option<SocketAddr>,
    rewrite: Option<&Rewrite>,
) -> Result<Response> {
    let client = request.extensions_mut().remove::<OnUpgrade>();
    let cut = request.extensions_mut().remove::<Cut>();
    let (mut head, body) = request.into_parts();
    let original_host = head
        .headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .map(str::to_string);
    let original_host = original_host
        .or_else(|| head.uri.authority().map(|a| a.to_string()))
        .unwrap_or_default();
    hop::pass_on(&mut head.headers);
    head.uri = Uri::try_from(path)?;
    if let Some(remote) = remote {
        append_forwarded(&mut head.headers, remote);
    }
    if let Some(r) = rewrite {
        let uri = format!("{}{}", r.prefix, head.uri.path());
        for (name, value) in [
            ("x-forwarded-uri", &uri),
            ("x-forwarded-host", &r.host),
            ("x-forwarded-proto", &r.scheme),
        ] {
            if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
                head.headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
    head.extensions = http::Extensions::new();
    let sent = http::Request::from_parts(head, body);
    let mut answer = target.send(sent).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let backend = answer.extensions_mut().remove::<OnUpgrade>();
        return Ok(switch(answer.map(|_| Body::empty()), client, backend, cut));
    }
    if answer.status().is_informational() {
        anyhow::bail!("the backend answered {}", answer.status());
    }
    let mut answer = answer.map(Body::new);
    hop::strip(answer.headers_mut());
    if let Some(rewrite) = rewrite {
        rewrite_location(answer.headers_mut(), rewrite, &original_host);
        if is_page(answer.headers()) {
            return rewrite_page(answer, rewrite, &original_host).await;
        }
    }
    Ok(answer)
}

/// Joins both upgraded connections when the 101 has gone out, until one ends or what the client came by is taken back.
fn switch(answer: Response, client: Option<OnUpgrade>, backend: Option<OnUpgrade>, cut: Option<Cut>) -> Response {
    let joined = async move {
        let (Some(client), Some(backend)) = (client, backend) else {
            tracing::warn!("a connection was to be upgraded that can't be");
            return;
        };
        match tokio::try_join!(client, backend) {
            Ok((client, backend)) => {
                let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
                let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, PIPE, PIPE).await;
                if let Err(e) = copied {
                    tracing::debug!("an upgraded connection ended: {e}");
                }
            }
            Err(e) => tracing::debug!("upgrading a connection failed: {e}"),
        }
    };
    tokio::spawn(Cut::or(cut, joined));
    answer
}

fn append_forwarded(headers: &mut HeaderMap, remote: SocketAddr) {
    let name = HeaderName::from_static("x-forwarded-for");
    let earlier = headers.get(&name).and_then(|v| v.to_str().ok());
    let value = earlier.map_or(remote.ip().to_string(), |e| format!("{e}, {}", remote.ip()));
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
}

/// Whether links are to be rewritten: a page that is no redirect, not compressed, and of a length that can be held.
fn is_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = text(header::CONTENT_TYPE)
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("text/html");
    let fits = text(header::CONTENT_LENGTH)
        .parse::<usize>()
        .map_or(true, |n| n <= LONGEST_PAGE);
    kind && fits && !headers.contains_key(header::LOCATION) && !headers.contains_key(header::CONTENT_ENCODING)
}

async fn rewrite_page(answer: Response, r: &Rewrite, original_host: &str) -> Result<Response> {
    let (mut head, body) = answer.into_parts();
    let bytes = body.collect(LONGEST_PAGE).await?;
    // A HEAD request's answer has no page to rewrite, and a page in another encoding is left alone.
    let page = match std::str::from_utf8(&bytes) {
        Ok(page) if !page.is_empty() => page,
        _ => return Ok(Response::from_parts(head, Body::from(bytes))),
    };
    let page = html::rewrite(page, |address| rewritten(address, r, original_host));
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, Body::from(page)))
}

/// A redirect within the backend becomes one below the proxy's path.
fn rewrite_location(headers: &mut HeaderMap, r: &Rewrite, original_host: &str) {
    let Some(location) = headers.get(header::LOCATION).and_then(|v| v.to_str().ok()) else {
        return;
    };
    if let Ok(value) = HeaderValue::from_str(&rewritten(location, r, original_host)) {
        headers.insert(header::LOCATION, value);
    }
}

fn rewritten(location: &str, r: &Rewrite, original_host: &str) -> String {
    let Ok(uri) = location.parse::<Uri>() else {
        return location.to_string();
    };
    let host = uri.authority().map(|a| a.as_str()).unwrap_or_default();
    let elsewhere = !host.is_empty() && host != r.backend && host != original_host;
    if elsewhere || !uri.path().starts_with('/') || (host.is_empty() && !location.starts_with('/')) {
        return location.to_string();
    }
    let path = if uri.path().starts_with(&r.prefix) {
        uri.path().to_string()
    } else {
        format!("{}{}", r.prefix, uri.path())
    };
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let origin = if r.host.is_empty() {
        String::new()
    } else {
        format!("{}://{}", r.scheme, r.host)
    };
    format!("{origin}{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_below_the_proxy() {
        let r = Rewrite {
            prefix: "/p/proxy".into(),
            backend: "10.0.0.1:80".into(),
            ..Rewrite::default()
        };
        for (given, expected) in [
            ("/a/", "/p/proxy/a/"),
            ("/p/proxy/a", "/p/proxy/a"),
            ("http://10.0.0.1:80/a?b=c", "/p/proxy/a?b=c"),
            ("http://api:6443/a", "/p/proxy/a"),
            ("http://elsewhere/a", "http://elsewhere/a"),
            ("relative", "relative"),
        ] {
            assert_eq!(rewritten(given, &r, "api:6443"), expected, "{given}");
        }
    }
}
