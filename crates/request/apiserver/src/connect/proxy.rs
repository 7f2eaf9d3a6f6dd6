//! `pods/proxy`, `services/proxy` and `nodes/proxy`: HTTP to a pod, to one of a service's pods, or to a node's port.

use super::dial::{ClientTls, Target};
use super::kubelet::join;
use super::{Rewrite, forward, hop, pod, unreachable};
use crate::request::{Body, Request, RequestContext, RequestInfo, Response};
use crate::state::ServerState;
use http::{HeaderValue, Method, StatusCode, header};
use keelson_api::{ApiError, ApiResult, Object, Reason, Value};
use rand::Rng;
use std::net::IpAddr;

/// `scheme:name:port`, of which scheme and port may be missing.
struct Id<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (!name.is_empty() && matches!(scheme, "" | "http" | "https")).then_some(Id { scheme, name, port })
    }
}

pub async fn serve(server: &ServerState, context: &RequestContext, request: Request) -> ApiResult<Response> {
    let info = &context.info;
    let raw = request.uri().path();
    let rest = rest_of(raw, info);
    let target = locate(server, info).await?;
    if rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) && !is_upgrade(&request) {
        return with_slash(request.uri());
    }
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let path = if rest.starts_with('/') {
        format!("{rest}{query}")
    } else {
        format!("/{rest}{query}")
    };
    let rewrite = Rewrite {
        prefix: raw[..raw.len() - rest.len()].to_string(),
        backend: target.host.clone(),
        ..Rewrite::default()
    };
    forward(&target, &path, request, context.remote, Some(&rewrite))
        .await
        .map_err(|e| unreachable(format!("{e:#}")))
}

fn is_upgrade(request: &Request) -> bool {
    hop::upgrade(request.headers()).is_some()
}

/// A page's relative links need its path to end in a slash.
fn with_slash(uri: &http::Uri) -> ApiResult<Response> {
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let location = HeaderValue::from_str(&format!("{}/{query}", uri.path())).map_err(ApiError::internal)?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    answer.headers_mut().insert(header::LOCATION, location);
    Ok(answer)
}

/// What follows `…/proxy` in the path, still encoded.
pub fn rest_of<'a>(path: &'a str, info: &RequestInfo) -> &'a str {
    // /api/v1/namespaces/n/pods/p/proxy has seven segments, /api/v1/nodes/n/proxy five.
    let segments = if info.namespace.is_empty() { 5 } else { 7 };
    let mut end = 0;
    for _ in 0..segments {
        end += 1;
        end += path[end..].find('/').unwrap_or(path.len() - end);
        if end >= path.len() {
            return "";
        }
    }
    &path[end..]
}

async fn locate(server: &ServerState, info: &RequestInfo) -> ApiResult<Target> {
    let kind = info.resource.trim_end_matches('s');
    let id = Id::parse(&info.name)
        .ok_or_else(|| ApiError::bad_request(format!("invalid {kind} request {:?}", info.name.as_str())))?;
    match kind {
        "pod" => pod_target(server, &pod(server, &info.namespace, id.name).await?, &id),
        "service" => service_target(server, info, &id).await,
        _ => node_target(server, &id).await,
    }
}

fn pod_target(server: &ServerState, pod: &Object, id: &Id) -> ApiResult<Target> {
    let ip = pod
        .at(&["status", "podIPs"])
        .and_then(Value::as_array)
        .and_then(|l| l.first()?.get("ip")?.as_str())
        .or_else(|| pod.str_at(&["status", "podIP"]))
        .unwrap_or_default();
    allowed(ip)?;
    let declared = || {
        let containers = pod.at(&["spec", "containers"]).and_then(Value::as_array);
        containers.into_iter().flatten().find_map(|c| {
            c.get("ports")?
                .as_array()?
                .first()?
                .get("containerPort")?
                .as_i64()
                .map(|p| p.to_string())
        })
    };
    let port = if id.port.is_empty() {
        declared().unwrap_or_default()
    } else {
        id.port.to_string()
    };
    target(server, id.scheme, ip, &port)
}

async fn service_target(server: &ServerState, info: &RequestInfo, id: &Id<'_>) -> ApiResult<Target> {
    let unavailable = |text: String| ApiError::new(Reason::ServiceUnavailable, text);
    let none = || unavailable(format!("no endpoints available for service {:?}", id.name));
    let namespace = &info.namespace;
    let mut port = id.port.to_string();
    if let Ok(number) = id.port.parse::<i64>() {
        let service = server
            .loopback
            .object(&format!("/api/v1/namespaces/{namespace}/services/{}", id.name))
            .await?;
        let service = service.ok_or_else(|| ApiError::not_found("", "services", id.name))?;
        let ports = service.at(&["spec", "ports"]).and_then(Value::as_array);
        let found = ports
            .into_iter()
            .flatten()
            .find(|p| p.get("port").and_then(Value::as_i64) == Some(number));
        let found =
            found.ok_or_else(|| unavailable(format!("no service port {number} found for service {:?}", id.name)))?;
        port = found
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string();
    }
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{}",
        id.name
    );
    let slices = server.loopback.send(Method::GET, &path, None).await?;
    let mut candidates = endpoints(&slices, &port, namespace);
    while !candidates.is_empty() {
        let (ip, number, pod_name) = candidates.swap_remove(rand::rng().random_range(0..candidates.len()));
        // Only addresses that are really a pod's are proxied to.
        let Ok(pod) = pod(server, namespace, &pod_name).await else {
            continue;
        };
        let ips = pod.at(&["status", "podIPs"]).and_then(Value::as_array);
        if ips
            .into_iter()
            .flatten()
            .any(|p| p.get("ip").and_then(Value::as_str) == Some(&ip))
        {
            return target(server, id.scheme, &ip, &number.to_string());
        }
    }
    Err(none())
}

/// Ready endpoints with the named port: address, port, pod.
fn endpoints(slices: &Object, port: &str, namespace: &str) -> Vec<(String, i64, String)> {
    let mut out = Vec::new();
    for slice in slices.arr("items").into_iter().flatten() {
        let list = |key: &str| slice.get(key).and_then(Value::as_array).into_iter().flatten();
        let found = list("ports").find(|p| {
            let name = p.get("name").and_then(Value::as_str).unwrap_or_default();
            port.is_empty()
                || name == port
                || p.get("port")
                    .and_then(Value::as_i64)
                    .is_some_and(|n| n.to_string() == port)
        });
        let Some(number) = found.and_then(|p| p.get("port")?.as_i64()) else {
            continue;
        };
        for e in list("endpoints") {
            if e.at(&["conditions", "ready"]).and_then(Value::as_bool) == Some(false) {
                continue;
            }
            let address = e
                .get("addresses")
                .and_then(Value::as_array)
                .and_then(|a| a.first()?.as_str());
            let reference = e
                .get("targetRef")
                .filter(|r| r.get("namespace").and_then(Value::as_str) == Some(namespace));
            let pod = reference.and_then(|r| r.get("name")?.as_str());
            if let (Some(address), Some(pod)) = (address, pod) {
                out.push((address.to_string(), number, pod.to_string()));
            }
        }
    }
    out
}

async fn node_target(server: &ServerState, id: &Id<'_>) -> ApiResult<Target> {
    let node = server.loopback.object(&format!("/api/v1/nodes/{}", id.name)).await?;
    let node = node.ok_or_else(|| ApiError::not_found("", "nodes", id.name))?;
    let (host, port) = server.kubelet.endpoint(&node)?;
    allowed(&host)?;
    if id.port.is_empty() || id.port == port.to_string() {
        return server.kubelet.target(id.name).await;
    }
    target(server, id.scheme, &host, id.port)
}

/// Proxies reach pods and nodes, not what runs beside this server.
fn allowed(host: &str) -> ApiResult<()> {
    let refused = || ApiError::bad_request("address not allowed");
    let ip: IpAddr = host.parse().map_err(|_| refused())?;
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local {
        Err(refused())
    } else {
        Ok(())
    }
}

fn target(server: &ServerState, scheme: &str, ip: &str, port: &str) -> ApiResult<Target> {
    let secure = scheme == "https";
    let port = if port.is_empty() {
        if secure { "443" } else { "80" }
    } else {
        port
    };
    if port.parse::<u16>().is_err() {
        return Err(unreachable(format!("dial tcp: lookup tcp/{port}: unknown port")));
    }
    let address = join(ip, port);
    let tls = if secure {
        Some(ClientTls::to(server.proxy_tls.clone(), ip).map_err(ApiError::internal)?)
    } else {
        None
    };
    Ok(Target {
        host: address.clone(),
        address,
        tls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths_are_taken_apart() {
        let id = Id::parse("https:web:443").unwrap();
        assert_eq!((id.scheme, id.name, id.port), ("https", "web", "443"));
        assert!(Id::parse("ftp:web:21").is_none() && Id::parse("a:b:c:d").is_none() && Id::parse("").is_none());
        let rest = |path: &str| {
            let info = RequestInfo::parse(&Method::GET, &path.parse().unwrap()).unwrap();
            rest_of(path, &info).to_string()
        };
        assert_eq!(rest("/api/v1/namespaces/n/pods/p/proxy"), "");
        assert_eq!(rest("/api/v1/namespaces/n/pods/p/proxy/"), "/");
        assert_eq!(rest("/api/v1/namespaces/n/services/s:http/proxy/a%20b/c/"), "/a%20b/c/");
        assert_eq!(rest("/api/v1/nodes/n/proxy/metrics"), "/metrics");
        assert!(allowed("10.0.0.1").is_ok() && allowed("127.0.0.1").is_err() && allowed("169.254.1.1").is_err());
    }
}
