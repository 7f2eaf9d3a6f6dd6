//! What is served besides resources: discovery, OpenAPI, version, health, metrics, the issuer's documents, what the server is and was told,
//! the index.

use crate::authorities;
use crate::config::Config;
use crate::encryption;
use crate::joining;
use crate::nowhere::{self, Nowhere};
use crate::request::{Body, Request, RequestContext, Response, response};
use crate::snapshots;
use crate::state::ServerState;
use crate::upgrades;
use crate::version;
use http::{HeaderValue, Method, StatusCode, header};
use keelson_api::value;
use keelson_zpages::{Asked, Pages};
use std::time::Duration;

/// How long the page of metrics waits for the size of the store.
const STORE_PATIENCE: Duration = Duration::from_secs(1);

pub async fn serve(server: &ServerState, context: &RequestContext, request: Request) -> Response {
    if let Some(answer) = server.health.serve(&context.info).await {
        return answer;
    }
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let nowhere = |nowhere: Nowhere| nowhere.answer(request.headers(), context);
    if let Some(answer) = server.discovery.serve(context, &request) {
        return if is_told(&context.info.path, request.method()) {
            answer
        } else {
            nowhere(Nowhere::method())
        };
    }
    if let Some(answer) = server.openapi.serve(server, context, &request).await {
        return answer;
    }
    if let Some(answer) = encryption::serve(server, context, &request).await {
        return answer;
    }
    if let Some(answer) = joining::serve(server, context, &request).await {
        return answer;
    }
    if let Some(answer) = authorities::serve(server, context, &request).await {
        return answer;
    }
    if let Some(answer) = snapshots::serve(server, context, &request).await {
        return answer;
    }
    if upgrades::is_asked(server, context) {
        return upgrades::serve(server, context, request).await;
    }
    if let Some(answer) = server.pages.answer(&Asked::of(request.uri(), request.headers())) {
        return http::Response::<String>::from(answer).map(Body::from);
    }
    match context.info.path.trim_end_matches('/') {
        "/metrics" | "/metrics/slis" => metrics(server).await,
        "" | "/index.html" => index(server),
        "/version" | "/.well-known/openid-configuration" | "/openid/v1/jwks" if !reading => nowhere(Nowhere::method()),
        "/version" => response::indented(StatusCode::OK, &version::version()),
        "/.well-known/openid-configuration" => {
            let config = &server.config;
            let document = server
                .tokens
                .keys
                .openid_configuration(&config.issuer, &config.jwks_uri);
            issuer_document(document, "application/json")
        }
        "/openid/v1/jwks" => issuer_document(server.tokens.keys.jwks(), "application/jwk-set+json"),
        _ => nowhere(Nowhere::path(server, &context.info)),
    }
}

/// Whether a document of discovery is told by a method. Upstream has several servers: the one that tells of a whole group, and the one that has the
/// groups that aren't built in, ask for none.
fn is_told(path: &str, method: &Method) -> bool {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        _ if !nowhere::below_built_in(path) => true,
        ["apis", _group] => true,
        ["api", _version] | ["apis", _, _version] => *method == Method::GET,
        _ => matches!(*method, Method::GET | Method::HEAD),
    }
}

async fn metrics(server: &ServerState) -> Response {
    // A store that doesn't answer must not keep the page; nor is its size of yesterday told.
    let status = tokio::time::timeout(STORE_PATIENCE, server.engine.store().status()).await;
    let size = status.ok().and_then(Result::ok).map(|status| status.bytes);
    let text = server
        .metrics
        .told(&server.flow.usage(), &server.engine.counts(), &server.services, size);
    response::bytes_of(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}

fn issuer_document(document: serde_json::Value, content_type: &'static str) -> Response {
    let mut answer = response::bytes_of(StatusCode::OK, content_type, document.to_string().into());
    answer
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    answer
}

/// What is there whatever kinds there are.
const PATHS: [&str; 12] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

/// By upstream's name of the server.
pub fn pages(config: &Config) -> Pages {
    Pages::new("apiserver", version::GIT_VERSION, PATHS, config.flags.clone())
}

/// The paths that are served.
fn index(server: &ServerState) -> Response {
    let table = server.table.snapshot();
    let mut paths: Vec<String> = PATHS
        .into_iter()
        .chain(server.pages.own_paths())
        .map(String::from)
        .collect();
    for group in server.discovery.groups(&table) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    paths.sort();
    response::indented(StatusCode::OK, &value!({ "paths": paths }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_by_the_methods_of_who_has_them() {
        for (path, told) in [
            ("/api", [true, true, false]),
            ("/apis", [true, true, false]),
            ("/api/v1", [true, false, false]),
            ("/apis/apps/v1", [true, false, false]),
            ("/apis/apps", [true; 3]),
            ("/apis/x.example.com", [true; 3]),
            ("/apis/x.example.com/v1", [true; 3]),
        ] {
            let methods = [Method::GET, Method::HEAD, Method::POST];
            assert_eq!(methods.map(|method| is_told(path, &method)), told, "{path}");
        }
    }
}
