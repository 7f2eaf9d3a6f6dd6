//! Extension API servers: the APIService objects, requests passed on to those servers, their availability.
//!
//! Group versions served here have APIServices too ([`register`]), as clients expect; they are always available.

mod availability;
pub mod register;
mod services;

pub use availability::run as watch_availability;
pub use services::{Remote, Services};

use crate::authn::take_identity;
use crate::connect::{ClientTls, Target, Trust, forward, hop};
use crate::request::{Body, Request, RequestContext, RequestInfo, Response, UserInfo, response};
use crate::state::ServerState;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use keelson_api::{ApiError, ApiResult, Object, Reason, Value};
use rand::Rng;
use std::sync::Arc;

/// Where APIServices are followed.
pub const SERVICES_PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// The extension server that a path is for.
pub fn route(server: &ServerState, info: &RequestInfo) -> Option<Arc<Remote>> {
    let rest = info.path.strip_prefix("/apis/")?;
    let mut parts = rest.trim_end_matches('/').splitn(3, '/');
    let (group, version) = (parts.next()?, parts.next()?);
    server.services.find(group, version)
}

/// Passes a request on as its user.
pub async fn proxy(server: &ServerState, service: &Remote, context: &RequestContext, mut request: Request) -> Response {
    if !service.available {
        return response::error(&ApiError::new(Reason::ServiceUnavailable, "service unavailable"));
    }
    // The hop ends before the identity is set: the client's `Connection` header may name what it likes.
    hop::pass_on(request.headers_mut());
    if let Err(why) = set_identity(request.headers_mut(), &context.user) {
        return response::error(&ApiError::internal(why));
    }
    if let Some(here) = server.services.here(service) {
        return here.handle(request).await;
    }
    let target = match target(server, service).await {
        Ok(target) => target,
        Err(e) => return response::error(&e),
    };
    let path = request
        .uri()
        .path_and_query()
        .map_or_else(|| "/".to_string(), ToString::to_string);
    match forward(&target, &path, request, context.remote, None).await {
        Ok(answer) => unredirected(answer),
        Err(e) => response::error(&ApiError::new(
            Reason::ServiceUnavailable,
            format!("error trying to reach service: {e:#}"),
        )),
    }
}

/// A server that is asked on somebody's behalf must not send him elsewhere: clients follow with their credentials.
fn unredirected(answer: Response) -> Response {
    if !answer.status().is_redirection() || !answer.headers().contains_key(header::LOCATION) {
        return answer;
    }
    let why = "the backend attempted to redirect this request, which is not permitted";
    let mut refused = Response::new(Body::from(why));
    *refused.status_mut() = StatusCode::BAD_GATEWAY;
    refused
}

/// The headers of a front proxy, in place of any that came with the request. Nobody is told by halves: who has a name, a group or a field
/// that no header can have isn't passed on.
fn set_identity(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), String> {
    take_identity(headers);
    let value =
        |s: &str| HeaderValue::from_str(s).map_err(|_| format!("{s:?} can't be told to the server of this API"));
    // Spaces around a value are lost on the way, and without them it may be another's.
    let name = |s: &str| match s.trim_matches([' ', '\t']) == s {
        true => value(s),
        false => Err(format!(
            "{s:?} can't be told to the server of this API: it has spaces around it"
        )),
    };
    headers.insert("x-remote-user", name(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", name(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", name(group)?);
    }
    for (key, values) in &user.extra {
        let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string();
        let name = format!("x-remote-extra-{}", key.replace("%2D", "-").replace("%2E", "."));
        let name = HeaderName::try_from(name).map_err(|e| format!("{key:?}: {e}"))?;
        for v in values {
            headers.append(name.clone(), value(v)?);
        }
    }
    Ok(())
}

/// One of the service's endpoints.
pub async fn target(server: &ServerState, service: &Remote) -> ApiResult<Target> {
    let (namespace, name) = (&service.namespace, &service.service);
    let unavailable = |text: String| ApiError::new(Reason::ServiceUnavailable, text);
    if server.config.alone {
        return Err(unavailable(crate::webhook::ALONE.into()));
    }
    let none = || unavailable(format!("no endpoints available for service {name:?}"));
    let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
    let found = server
        .loopback
        .object(&path)
        .await?
        .ok_or_else(|| unavailable(format!("service {name:?} not found")))?;
    let address = if found.str_at(&["spec", "type"]) == Some("ExternalName") {
        let host = found.str_at(&["spec", "externalName"]).unwrap_or_default();
        format!("{host}:{}", service.port)
    } else {
        let ports = found.at(&["spec", "ports"]).and_then(Value::as_array);
        let port = ports
            .into_iter()
            .flatten()
            .find(|p| p.get("port").and_then(Value::as_i64) == Some(service.port));
        let port =
            port.ok_or_else(|| unavailable(format!("no service port {} found for service {name:?}", service.port)))?;
        let port_name = port.get("name").and_then(Value::as_str).unwrap_or_default().to_string();
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}"
        );
        let slices = server.loopback.send(http::Method::GET, &path, None).await?;
        let mut ready = ready_addresses(&slices, &port_name);
        if ready.is_empty() {
            return Err(none());
        }
        ready.swap_remove(rand::rng().random_range(0..ready.len()))
    };
    let host = format!("{name}.{namespace}.svc");
    let front_proxy = server.front_proxy_identity();
    let trust = match service.insecure {
        true => Trust::Anyone,
        false => Trust::bundle(Some(&service.ca_pem)),
    };
    let identity = front_proxy.as_ref().map(|(c, k)| (c.as_str(), k.as_str()));
    let config = ClientTls::config(trust, identity).map_err(ApiError::internal)?;
    let tls = ClientTls::to(config, &host).map_err(ApiError::internal)?;
    Ok(Target {
        address,
        host,
        tls: Some(tls),
    })
}

fn ready_addresses(slices: &Object, port_name: &str) -> Vec<String> {
    let mut out = Vec::new();
    for slice in slices.arr("items").into_iter().flatten() {
        let list = |key: &str| slice.get(key).and_then(Value::as_array).into_iter().flatten();
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
                out.push(if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                });
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_by_a_server_that_is_asked_for_him() {
        let answer = |status: StatusCode, location: Option<&'static str>| {
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = status;
            if let Some(location) = location {
                answer
                    .headers_mut()
                    .insert(header::LOCATION, HeaderValue::from_static(location));
            }
            unredirected(answer)
        };
        let elsewhere = Some("https://example.org/");
        for status in [StatusCode::FOUND, StatusCode::PERMANENT_REDIRECT, StatusCode::SEE_OTHER] {
            let refused = answer(status, elsewhere);
            assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
            assert!(!refused.headers().contains_key(header::LOCATION));
        }
        for (status, location) in [(StatusCode::CREATED, elsewhere), (StatusCode::NOT_MODIFIED, None)] {
            assert_eq!(answer(status, location).status(), status);
        }
    }

    #[test]
    fn a_client_neither_names_nor_removes_the_identity() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "connection",
            "x-remote-user, x-remote-group, x-remote-uid, upgrade".parse().unwrap(),
        );
        headers.insert("upgrade", "SPDY/3.1".parse().unwrap());
        headers.insert("x-remote-group", "system:masters".parse().unwrap());
        headers.insert("x-remote-extra-scopes", "all".parse().unwrap());
        hop::pass_on(&mut headers);
        set_identity(&mut headers, &UserInfo::new("bob", &["people"])).unwrap();
        // Once more, as it is sent.
        hop::pass_on(&mut headers);
        let mut shown: Vec<_> = headers
            .iter()
            .map(|(k, v)| format!("{k}: {}", v.to_str().unwrap()))
            .collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "connection: Upgrade",
                "upgrade: SPDY/3.1",
                "x-remote-group: people",
                "x-remote-user: bob"
            ]
        );
    }
    #[test]
    fn nobody_is_passed_on_as_less_than_he_is() {
        let mut headers = HeaderMap::new();
        set_identity(&mut headers, &UserInfo::new("j\u{fc}rgen", &["b\u{fc}ro"])).unwrap();
        assert_eq!(headers["x-remote-user"].as_bytes(), "j\u{fc}rgen".as_bytes());
        assert_eq!(headers["x-remote-group"].as_bytes(), "b\u{fc}ro".as_bytes());
        for user in [
            UserInfo::new("a\nb", &[]),
            UserInfo::new("bob", &["fired\r\n"]),
            UserInfo::new("bob", &[" system:masters"]),
            UserInfo::new("admin ", &[]),
        ] {
            assert!(set_identity(&mut headers, &user).is_err());
        }
    }
}
