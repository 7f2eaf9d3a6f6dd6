//! A request's span, as upstream's server tells it; and the first of a pod's.

use crate::aggregation;
use crate::request::{Request, RequestContext, RequestInfo, Response};
use crate::state::ServerState;
use keelson_api::Object;
use keelson_trace::{Kind, Origin, Span};

/// Whose word counts for which trace a request is of. Anybody else's would make this server tell what it needn't.
const BELIEVED: [&str; 2] = ["system:masters", "system:monitoring"];

/// Parameters that say what is asked for. What others hold isn't known here: it may be a command's words, or a token.
const TOLD: &[&str] = &[
    "allowWatchBookmarks",
    "container",
    "dryRun",
    "fieldManager",
    "fieldSelector",
    "fieldValidation",
    "follow",
    "force",
    "labelSelector",
    "limit",
    "previous",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "sinceSeconds",
    "tailLines",
    "timeout",
    "timeoutSeconds",
    "timestamps",
    "tty",
    "watch",
];

/// Begins when it is known who asks.
pub fn begin(server: &ServerState, context: &RequestContext, request: &Request) -> Span {
    let tracer = &server.config.tracer;
    if !tracer.is_on() {
        return Span::none();
    }
    let headers = request.headers();
    let origin = match BELIEVED.iter().any(|group| context.user.in_group(group)) {
        true => Origin::Caller(headers),
        false => Origin::Stranger(headers),
    };
    let method = method(request.method().as_str());
    let name = match is_known(server, &context.info) {
        true => name(&context.info, method),
        false => method.into(),
    };
    let span = tracer.begin(Kind::Server, name, origin);
    span.tell("http.request.method", || method);
    span.tell("http.target", || target(&context.info, &context.uri));
    span.tell("user_agent.original", || context.user_agent.to_string());
    span.tell("audit-id", || context.audit_id.to_string());
    span
}

/// One that nobody has heard of has no name: there would be as many as callers can think of.
fn method(given: &str) -> &'static str {
    const ALL: [&str; 9] = [
        "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE",
    ];
    ALL.into_iter().find(|known| *known == given).unwrap_or("_OTHER")
}

/// Whether there is such a path at all.
fn is_known(server: &ServerState, info: &RequestInfo) -> bool {
    let there = server.table.get(&info.api_group, &info.api_version, &info.resource);
    let is_served =
        there.is_some_and(|def| info.subresource.is_empty() || def.subresource(&info.subresource).is_some());
    !info.is_resource_request
        || is_served
        || (info.subresource.len() <= 63 && aggregation::route(server, info).is_some())
}

/// What was asked for, without what isn't for this server's eyes: where it goes behind a proxy, and parameters that others read.
fn target(info: &RequestInfo, uri: &str) -> String {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    if info.subresource == "proxy" || info.verb == "proxy" {
        // Decoded: as it came, the word may be written otherwise.
        let path = &*info.path;
        let front = path.split_once("/proxy/").map(|(front, _)| front);
        return format!("{}/proxy/…", front.unwrap_or(path.trim_end_matches("/proxy")));
    }
    let is_told = |pair: &&str| TOLD.contains(&pair.split('=').next().unwrap_or_default());
    let told: Vec<&str> = query.split('&').filter(is_told).collect();
    match told.is_empty() {
        true => path.into(),
        false => format!("{path}?{}", told.join("&")),
    }
}

/// A template of the path: few names, however many objects.
fn name(info: &RequestInfo, method: &str) -> String {
    if !info.is_resource_request {
        return method.into();
    }
    let mut name = format!("{method} /{}", info.api_prefix);
    let namespaced = (!info.namespace.is_empty()).then_some("namespaces/{:namespace}");
    let named = (!info.name.is_empty()).then_some("{:name}");
    let parts = [
        &*info.api_group,
        &*info.api_version,
        namespaced.unwrap_or(""),
        &*info.resource,
    ];
    for part in parts.into_iter().chain([named.unwrap_or(""), &*info.subresource]) {
        if !part.is_empty() {
            name.push('/');
            name.push_str(part);
        }
    }
    name
}

/// What a request was answered. A watch's span ends here as all others: with the head of its answer.
pub fn answered(span: &Span, answer: &Response) {
    let status = answer.status();
    span.tell("http.response.status_code", || i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.to_string());
    }
}

/// What a handler does, by upstream's names.
pub fn handler(verb: &str) -> Span {
    keelson_trace::child(match verb {
        "get" => "Get",
        "list" => "List",
        "watch" => "WatchServer.HandleHTTP",
        "create" => "Create",
        "update" => "Update",
        "patch" => "Patch",
        _ => "Delete",
    })
}

/// A pod came to be: its own trace begins, and points to the request.
pub fn created(server: &ServerState, context: &RequestContext, pod: &Object) {
    let name = || format!("pod {}/{}", pod.namespace(), pod.name());
    server
        .config
        .tracer
        .pod_created(pod.uid(), name, context.received.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_read_isnt_told() {
        let told = |uri: &str| {
            target(
                &RequestInfo::parse(&http::Method::GET, &uri.parse().unwrap()).unwrap(),
                uri,
            )
        };
        for (uri, expected) in [
            ("/api/v1/nodes", "/api/v1/nodes"),
            ("/api/v1/pods?limit=5&watch=1", "/api/v1/pods?limit=5&watch=1"),
            ("/api/v1/pods?access_token=secret&limit=5", "/api/v1/pods?limit=5"),
            ("/version?secret", "/version"),
            (
                "/api/v1/namespaces/a/pods/b/exec?command=login&command=-psecret&container=c&tty=true",
                "/api/v1/namespaces/a/pods/b/exec?container=c&tty=true",
            ),
            (
                "/api/v1/namespaces/a/services/b/proxy/reset/secret?limit=5",
                "/api/v1/namespaces/a/services/b/proxy/…",
            ),
            (
                "/api/v1/namespaces/proxy/services/b/proxy/secret",
                "/api/v1/namespaces/proxy/…",
            ),
            ("/api/v1/nodes/n/%70roxy/secret", "/api/v1/nodes/n/proxy/…"),
            ("/api/v1/nodes/n/proxy?token=secret", "/api/v1/nodes/n/proxy/…"),
        ] {
            assert_eq!(told(uri), expected, "{uri}");
        }
        assert_eq!((method("GET"), method("SECRET")), ("GET", "_OTHER"));
    }

    #[test]
    fn names_are_templates() {
        let named = |method: &str, uri: &str| {
            let method: http::Method = method.parse().unwrap();
            name(
                &RequestInfo::parse(&method, &uri.parse().unwrap()).unwrap(),
                method.as_str(),
            )
        };
        for (method, uri, expected) in [
            ("GET", "/healthz", "GET"),
            ("GET", "/api/v1/nodes", "GET /api/v1/nodes"),
            (
                "POST",
                "/api/v1/namespaces/a/pods",
                "POST /api/v1/namespaces/{:namespace}/pods",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/b/status",
                "PATCH /apis/apps/v1/namespaces/{:namespace}/deployments/{:name}/status",
            ),
        ] {
            assert_eq!(named(method, uri), expected);
        }
    }
}
