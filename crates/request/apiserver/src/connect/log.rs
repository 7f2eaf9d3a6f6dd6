//! `pods/log`: the kubelet's answer, passed on as it comes.

use super::{container, forward, pod, socket};
use crate::request::socket::is_wanted;
use crate::request::{Body, Query, Request, RequestContext, Response};
use crate::state::ServerState;
use http::{HeaderValue, StatusCode, header};
use keelson_api::{ApiError, ApiResult, Cause, Object, Reason, Value};

/// How much of a kubelet's error is told.
const MAX_ERROR: usize = 50_000;

pub async fn serve(server: &ServerState, context: &RequestContext, mut request: Request) -> ApiResult<Response> {
    let info = &context.info;
    let query = log_query(&info.query)?;
    let pod = pod(server, &info.namespace, &info.name).await?;
    let container = container(&pod, info.query.get("container").unwrap_or_default())?;
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return Ok(answer);
    }
    let target = server.kubelet.target(node).await?;
    let path = format!("/containerLogs/{}/{}/{container}{query}", info.namespace, info.name);
    let ask = http::Request::get("/")
        .body(Body::empty())
        .map_err(ApiError::internal)?;
    let answer = forward(&target, &path, ask, None, None).await;
    let answer = answer.map_err(|e| ApiError::internal(format!("Get \"https://{}{path}\": {e:#}", target.address)))?;
    if !answer.status().is_success() {
        return Err(refused(answer, &info.name).await);
    }
    if is_wanted(request.headers()) {
        return socket::serve(&mut request, answer.into_body());
    }
    let mut out = Response::new(answer.into_body());
    out.headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(out)
}

/// The log of a pod that is gone, which its node may have still.
pub async fn deleted(server: &ServerState, context: &RequestContext, pod: &Object) -> ApiResult<Response> {
    let info = &context.info;
    let query = log_query(&info.query)?;
    let container = container(pod, info.query.get("container").unwrap_or_default())?;
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        let text = format!("pod {:?} was deleted before it had a node", pod.name());
        return Err(ApiError::new(Reason::NotFound, text));
    }
    let target = server.kubelet.target(node).await?;
    let uid = pod.uid();
    let path = format!("/deletedLogs/{}/{}/{uid}/{container}{query}", info.namespace, info.name);
    let ask = http::Request::get("/")
        .body(Body::empty())
        .map_err(ApiError::internal)?;
    let answer = forward(&target, &path, ask, None, None).await;
    let answer = answer.map_err(|e| ApiError::internal(format!("Get \"https://{}{path}\": {e:#}", target.address)))?;
    match answer.status() {
        StatusCode::NOT_FOUND => {
            let text = answer.into_body().collect(MAX_ERROR).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            Err(ApiError::new(Reason::NotFound, format!("node {node}: {}", text.trim())))
        }
        status if !status.is_success() => Err(refused(answer, &info.name).await),
        _ => {
            let mut out = Response::new(answer.into_body());
            out.headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            Ok(out)
        }
    }
}

/// What the kubelet refused, in upstream's words.
async fn refused(answer: Response, name: &str) -> ApiError {
    let status = answer.status();
    let text = answer.into_body().collect(MAX_ERROR).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    match status {
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => ApiError::new(
            Reason::NotFound,
            format!("the server could not find the requested resource ( pods/log {name})"),
        )
        .with_causes(vec![Cause {
            reason: "UnexpectedServerResponse".into(),
            message: text,
            field: String::new(),
        }]),
        other => ApiError::new(
            Reason::Unknown,
            format!("an error on the server ({text:?}) has prevented the request from succeeding ( pods/log {name})"),
        )
        .with_code(other.as_u16()),
    }
}

/// Checks the options and writes them for the kubelet.
fn log_query(q: &Query) -> ApiResult<String> {
    let mut causes = Vec::new();
    let mut out = form_urlencoded::Serializer::new(String::new());
    for flag in ["follow", "previous", "timestamps"] {
        if q.flag(flag) {
            out.append_pair(flag, "true");
        }
    }
    let mut number = |name: &str, least: i64, why: &str| -> ApiResult<Option<i64>> {
        let Some(n) = q.int(name) else { return Ok(None) };
        let n = n.map_err(|e| ApiError::bad_request(format!("{name}: {e}")))?;
        if n < least {
            causes.push(Cause::invalid(name, &Value::from(n), why));
        }
        Ok(Some(n))
    };
    let since = number("sinceSeconds", 1, "must be greater than 0")?;
    let tail = number("tailLines", 0, "must be greater than or equal to 0")?;
    let limit = number("limitBytes", 1, "must be greater than 0")?;
    for (name, value) in [("sinceSeconds", since), ("tailLines", tail), ("limitBytes", limit)] {
        if let Some(n) = value {
            out.append_pair(name, &n.to_string());
        }
    }
    if let Some(time) = q.get("sinceTime").filter(|t| !t.is_empty()) {
        if since.is_some() {
            causes.push(Cause::forbidden(
                "",
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        out.append_pair("sinceTime", time);
    }
    let stream = q.get("stream").filter(|s| !s.is_empty()).unwrap_or("All");
    if !matches!(stream, "All" | "Stdout" | "Stderr") {
        causes.push(Cause::not_supported(
            "stream",
            &stream.into(),
            &["All", "Stderr", "Stdout"],
        ));
    } else if stream != "All" && tail.is_some() {
        causes.push(Cause::forbidden(
            "",
            "`tailLines` and specific `stream` are mutually exclusive for now",
        ));
    }
    out.append_pair("stream", stream);
    if !causes.is_empty() {
        return Err(ApiError::invalid("", "PodLogOptions", "", causes));
    }
    Ok(format!("?{}", out.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_and_written() {
        let ok = log_query(&Query::parse(Some(
            "follow=true&tailLines=5&container=c&previous=false",
        )))
        .unwrap();
        assert_eq!(ok, "?follow=true&tailLines=5&stream=All");
        let e = log_query(&Query::parse(Some("tailLines=-1"))).unwrap_err();
        assert_eq!((e.code, e.reason), (422, Reason::Invalid));
        assert!(log_query(&Query::parse(Some("sinceSeconds=1&sinceTime=2020-01-01T00:00:00Z"))).is_err());
    }
}
