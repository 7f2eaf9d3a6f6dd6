//! `pods/exec`, `pods/attach` and `pods/portforward`: handed to the kubelet with its own path and parameters.

use super::{container, forward, pod};
use crate::request::{Query, Request, RequestContext, RequestInfo, Response};
use crate::state::ServerState;
use keelson_api::{ApiError, ApiResult, Value, value};

/// The options object that admission sees.
pub fn options(info: &RequestInfo) -> Value {
    let q = &info.query;
    let kind = match info.subresource.as_str() {
        "exec" => "PodExecOptions",
        "attach" => "PodAttachOptions",
        _ => "PodPortForwardOptions",
    };
    let mut o = value!({"apiVersion": "v1", "kind": kind});
    if info.subresource == "portforward" {
        let ports: Vec<Value> = q
            .all("ports")
            .filter_map(|p| p.parse::<i64>().ok())
            .map(Value::from)
            .collect();
        if !ports.is_empty() {
            o.set_at(&["ports"], ports);
        }
        return o;
    }
    let stream = |name: &str, default: bool| if q.has(name) { q.flag(name) } else { default };
    for (name, default) in [("stdin", false), ("stdout", true), ("stderr", true), ("tty", false)] {
        if stream(name, default) {
            o.set_at(&[name], true);
        }
    }
    if let Some(container) = q.get("container").filter(|c| !c.is_empty()) {
        o.set_at(&["container"], container);
    }
    let command: Vec<Value> = q.all("command").map(Value::from).collect();
    if info.subresource == "exec" && !command.is_empty() {
        o.set_at(&["command"], command);
    }
    o
}

pub async fn serve(server: &ServerState, context: &RequestContext, request: Request) -> ApiResult<Response> {
    let info = &context.info;
    let pod = pod(server, &info.namespace, &info.name).await?;
    let forwarding = info.subresource == "portforward";
    let what = if forwarding {
        String::new()
    } else {
        format!("/{}", container(&pod, info.query.get("container").unwrap_or_default())?)
    };
    if !forwarding && let Some(phase @ ("Succeeded" | "Failed")) = pod.str_at(&["status", "phase"]) {
        return Err(ApiError::bad_request(format!(
            "cannot {} into a container in a completed pod; current phase is {phase}",
            info.subresource
        )));
    }
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            info.name
        )));
    }
    let target = server.kubelet.target(node).await?;
    let verb = if forwarding {
        "portForward"
    } else {
        info.subresource.as_str()
    };
    let path = format!("/{verb}/{}/{}{what}{}", info.namespace, info.name, parameters(info));
    forward(&target, &path, request, context.remote, None)
        .await
        .map_err(|e| ApiError::internal(format!("error dialing backend: {e:#}")))
}

/// The kubelet's names of the streams.
fn parameters(info: &RequestInfo) -> String {
    let q: &Query = &info.query;
    let mut out = form_urlencoded::Serializer::new(String::new());
    if info.subresource == "portforward" {
        let ports: Vec<&str> = q.all("ports").collect();
        if !ports.is_empty() {
            out.append_pair("port", &ports.join(","));
        }
    } else {
        for (name, default, kubelets) in [
            ("stdin", false, "input"),
            ("stdout", true, "output"),
            ("stderr", true, "error"),
            ("tty", false, "tty"),
        ] {
            if if q.has(name) { q.flag(name) } else { default } {
                out.append_pair(kubelets, "1");
            }
        }
        if info.subresource == "exec" {
            for part in q.all("command") {
                out.append_pair("command", part);
            }
        }
    }
    let text = out.finish();
    if text.is_empty() { text } else { format!("?{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_get_the_kubelets_names() {
        let info = |path: &str| RequestInfo::parse(&http::Method::POST, &path.parse().unwrap()).unwrap();
        let exec = info("/api/v1/namespaces/a/pods/p/exec?command=sh&command=-c&container=c&stdin=true&stderr=false");
        assert_eq!(parameters(&exec), "?input=1&output=1&command=sh&command=-c");
        assert_eq!(options(&exec).get("command").unwrap().as_array().unwrap().len(), 2);
        assert_eq!(
            parameters(&info("/api/v1/namespaces/a/pods/p/portforward?ports=80&ports=81")),
            "?port=80%2C81"
        );
        assert_eq!(parameters(&info("/api/v1/namespaces/a/pods/p/portforward")), "");
    }
}
