//! A request's span, as upstream's server tells it; and the first of a pod's.

use crate::request::{Request, RequestContext, RequestInfo, Response};
use crate::state::ServerState;
use keelson_api::Object;
use keelson_trace::{Kind, Origin, Span};

/// Whose word counts for which trace a request is of. Anybody else's would make this server tell what it needn't.
const BELIEVED: [&str; 2] = ["system:masters", "system:monitoring"];

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
    let span = tracer.begin(Kind::Server, name(&context.info, request.method().as_str()), origin);
    span.tell("http.request.method", || request.method().to_string());
    span.tell("http.target", || context.uri.to_string());
    span.tell("user_agent.original", || context.user_agent.to_string());
    span.tell("audit-id", || context.audit_id.to_string());
    span
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
