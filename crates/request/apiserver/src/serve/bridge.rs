//! Upgrades within the process: hyper makes upgraded connections only out of real ones, so a request that asks for one
//! travels over a pair of pipes with hyper at both ends.

use super::{Handle, InProcessIdentity};
use crate::request::{Body, Request, Response, response};
use http::header;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_api::ApiError;
use std::convert::Infallible;
use std::sync::Arc;

const PIPE: usize = 64 * 1024;

pub fn wants_upgrade(request: &Request) -> bool {
    request.headers().contains_key(header::UPGRADE)
}

pub async fn call(target: Arc<dyn Handle>, mut request: Request) -> Response {
    let identity = request.extensions_mut().remove::<InProcessIdentity>();
    let (near, far) = tokio::io::duplex(PIPE);
    tokio::spawn(async move {
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            if let Some(identity) = &identity {
                request.extensions_mut().insert(identity.clone());
            }
            let target = target.clone();
            async move { Ok::<_, Infallible>(target.handle(request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
        if let Err(e) = served.with_upgrades().await {
            tracing::debug!("an upgraded call within the process ended: {e}");
        }
    });
    match send(near, request).await {
        Ok(answer) => answer,
        Err(e) => response::error(&ApiError::internal(e)),
    }
}

async fn send(near: tokio::io::DuplexStream, mut request: Request) -> Result<Response, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!("an upgraded call within the process ended: {e}");
        }
    });
    if !request.headers().contains_key(header::HOST) {
        request
            .headers_mut()
            .insert(header::HOST, header::HeaderValue::from_static("kubernetes.default.svc"));
    }
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| http::Uri::from_static("/"), http::Uri::from);
    Ok(sender.send_request(request).await?.map(Body::new))
}
