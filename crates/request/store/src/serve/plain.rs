//! What etcd answers beside gRPC: whether it is well, and what it is.

use super::{CLUSTER_VERSION, Server, VERSION};
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use tonic::body::Body;

/// `None`: it is gRPC's.
pub(super) async fn answer(server: &Server, method: &Method, path: &str) -> Option<Response<Body>> {
    if !matches!(path, "/health" | "/version" | "/livez" | "/readyz") {
        return None;
    }
    if method != Method::GET {
        return Some(reply(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "Method Not Allowed\n".into(),
        ));
    }
    let json = "application/json";
    Some(match path {
        "/health" => match server.store.health().await {
            Ok(()) => reply(StatusCode::OK, json, r#"{"health":"true","reason":""}"#.into()),
            // Why is for the log: anybody who reaches the port may ask.
            Err(error) => {
                tracing::warn!(%error, "the store is not healthy");
                let text = r#"{"health":"false","reason":"the store takes no writes"}"#;
                reply(StatusCode::SERVICE_UNAVAILABLE, json, text.into())
            }
        },
        "/version" => {
            let text = format!(
                r#"{{"etcdserver":"{VERSION}","etcdcluster":"{CLUSTER_VERSION}","storage":"{CLUSTER_VERSION}"}}"#
            );
            reply(StatusCode::OK, json, text)
        }
        "/readyz" if server.store.health().await.is_err() => {
            reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n".into())
        }
        _ => reply(StatusCode::OK, "text/plain", "ok\n".into()),
    })
}

/// What the library behind it takes from anybody. A page in a browser can send much to a port of the machine that it is looked at on,
/// but not HTTP/2 without TLS, and of this type nothing without being allowed to.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    request.version() == Version::HTTP_2 && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

pub(super) fn not_found() -> Response<Body> {
    reply(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".into())
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut reply = Response::new(Body::new(Full::new(text.into())));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}
