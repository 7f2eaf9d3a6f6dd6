//! Streams into pods, and proxies: what a request to `pods/exec`, `pods/log`, `services/proxy` … is connected to.
//!
//! Upgraded connections (SPDY and WebSocket alike) are passed through byte by byte; neither protocol is known here.

mod dial;
mod forward;
pub mod hop;
mod html;
mod kept;
mod kubelet;
mod log;
mod proxy;
mod socket;
mod stream;

pub use dial::{ClientTls, Target, Trust};
pub use forward::{Rewrite, forward};
pub use kept::{Kept, Several};
pub use kubelet::{KubeletClient, join};
pub use log::deleted as deleted_log;

use crate::authz::Attributes;
use crate::handlers;
use crate::request::{Request, RequestContext, RequestInfo, Response, response};
use crate::state::ServerState;
use keelson_api::{ApiError, ApiResult, Object, Reason, Str, Value, value};
use keelson_registry::{Cx, Operation};
use std::sync::Arc;

/// Whether a request is for one of these streams.
pub fn is_connect(info: &RequestInfo) -> bool {
    info.api_group.is_empty()
        && info.api_version == "v1"
        && matches!(
            (info.resource.as_str(), info.subresource.as_str()),
            ("pods", "exec" | "attach" | "portforward" | "log" | "proxy") | ("services" | "nodes", "proxy")
        )
}

pub async fn serve(server: &Arc<ServerState>, context: RequestContext, request: Request) -> Response {
    if let Err(nowhere) = handlers::place::find(server, &context.info, request.method()) {
        return nowhere.answer(request.headers(), &context);
    }
    match connect(server, &context, request).await {
        Ok(answer) => answer,
        Err(e) => response::error(&e),
    }
}

async fn connect(server: &Arc<ServerState>, context: &RequestContext, request: Request) -> ApiResult<Response> {
    if server.config.alone {
        return Err(unreachable(crate::webhook::ALONE));
    }
    let info = &context.info;
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("pods", "log") => log::serve(server, context, request).await,
        ("pods", "exec" | "attach" | "portforward") => {
            may_create(server, context).await?;
            admit(server, context, stream::options(info)).await?;
            stream::serve(server, context, request).await
        }
        _ => {
            let kind = match info.resource.as_str() {
                "pods" => "PodProxyOptions",
                "services" => "ServiceProxyOptions",
                _ => "NodeProxyOptions",
            };
            let path = proxy::rest_of(request.uri().path(), info);
            admit(
                server,
                context,
                value!({"apiVersion": "v1", "kind": kind, "path": path}),
            )
            .await?;
            proxy::serve(server, context, request).await
        }
    }
}

/// A WebSocket comes as GET; who may only read must not run commands by it.
async fn may_create(server: &ServerState, context: &RequestContext) -> ApiResult<()> {
    if context.info.verb == "create" {
        return Ok(());
    }
    let attributes = Attributes {
        verb: "create".into(),
        ..Attributes::of(&context.user, &context.info)
    };
    let decision = server.authorizer.authorize(&attributes).await;
    if decision.is_allowed() {
        Ok(())
    } else {
        Err(attributes.forbidden(decision.reason()))
    }
}

/// Admission of the operation CONNECT.
async fn admit(server: &ServerState, context: &RequestContext, options: Value) -> ApiResult<()> {
    let info = &context.info;
    let Some(def) = server.table.get(&info.api_group, &info.api_version, &info.resource) else {
        return Err(ApiError::not_found(&info.api_group, &info.resource, &info.name));
    };
    let cx = Cx::new(def, context.user.clone(), &info.namespace, &info.name).with_subresource(&info.subresource);
    let mut object = Object::try_from(options).unwrap_or_default();
    let admitted = async {
        server
            .admission
            .mutate(&cx, Operation::Connect, Some(&mut object), None)
            .await?;
        server
            .admission
            .validate(&cx, Operation::Connect, Some(&object), None)
            .await
    };
    let result = admitted.await;
    context.seat.has_waited(cx.take_waited());
    cx.take_warnings().into_iter().for_each(|w| context.warnings.add(w));
    cx.take_annotations()
        .into_iter()
        .for_each(|(k, v)| context.audit.add(&k, v));
    result
}

/// The pod of a request.
async fn pod(server: &ServerState, namespace: &str, name: &str) -> ApiResult<Object> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    server
        .loopback
        .object(&path)
        .await?
        .ok_or_else(|| ApiError::not_found("", "pods", name))
}

/// The container that is meant: the one named, or the only one.
fn container(pod: &Object, wanted: &str) -> ApiResult<Str> {
    let names = |key: &str| -> Vec<Str> {
        let list = pod.at(&["spec", key]).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|c| c.get("name")?.as_str().map(Str::from))
            .collect()
    };
    let main = names("containers");
    let all: Vec<Str> = [names("initContainers"), main.clone(), names("ephemeralContainers")].concat();
    if !wanted.is_empty() {
        return all
            .into_iter()
            .find(|n| n == wanted)
            .ok_or_else(|| ApiError::bad_request(format!("container {wanted} is not valid for pod {}", pod.name())));
    }
    match main.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}",
            pod.name()
        ))),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.name(),
            all.join(" ")
        ))),
    }
}

/// Upstream's error for a backend that can't be reached.
fn unreachable(e: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        Reason::ServiceUnavailable,
        format!("error trying to reach service: {e}"),
    )
}
