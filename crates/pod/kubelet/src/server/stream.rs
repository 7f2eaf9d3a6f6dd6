//! exec, attach and port-forward: the runtime says where it serves the stream; the client's upgraded connection is
//! joined with one to there, byte for byte. Protocols (SPDY, WebSocket) are between client and runtime.

use super::routes::{Query, find, first, flag, query, running};
use super::{Body, Client, Reply, text};
use crate::kubelet::Kubelet;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keelson_cri::v1 as cri;
use std::sync::Arc;
use tokio::net::TcpStream;

fn rpc(e: &tonic::Status) -> Reply {
    text(StatusCode::INTERNAL_SERVER_ERROR, crate::rpc_text(e))
}

pub(super) async fn exec(kl: &Arc<Kubelet>, ns: &str, pod: &str, container: &str, request: Request<Incoming>) -> Reply {
    let q = query(request.uri());
    let id = match container_of(kl, ns, pod, container).await {
        Ok(id) => id,
        Err(reply) => return reply,
    };
    let tty = flag(&q, "tty");
    let wanted = cri::ExecRequest {
        container_id: id,
        cmd: q
            .iter()
            .filter(|(k, _)| k == "command")
            .map(|(_, v)| v.clone())
            .collect(),
        tty,
        stdin: flag(&q, "input"),
        stdout: flag(&q, "output"),
        stderr: flag(&q, "error") && !tty,
    };
    match kl.cri.runtime.clone().exec(wanted).await {
        Ok(answer) => join(request, &answer.into_inner().url).await,
        Err(e) => rpc(&e),
    }
}

pub(super) async fn attach(
    kl: &Arc<Kubelet>,
    ns: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Reply {
    let q = query(request.uri());
    let handle = match find(kl, ns, pod) {
        Ok(h) => h,
        Err(reply) => return reply,
    };
    let id = match running(kl, &handle, container).await {
        Ok(id) => id,
        Err(reply) => return reply,
    };
    // Whether there is a terminal was decided when the container was made.
    let tty = crate::pods::find_container(&handle.pod(), container)
        .and_then(|c| c.tty)
        .unwrap_or(false);
    let wanted = cri::AttachRequest {
        container_id: id,
        stdin: flag(&q, "input"),
        tty,
        stdout: flag(&q, "output"),
        stderr: flag(&q, "error") && !tty,
    };
    match kl.cri.runtime.clone().attach(wanted).await {
        Ok(answer) => join(request, &answer.into_inner().url).await,
        Err(e) => rpc(&e),
    }
}

pub(super) async fn port_forward(kl: &Arc<Kubelet>, ns: &str, pod: &str, request: Request<Incoming>) -> Reply {
    let q = query(request.uri());
    let handle = match find(kl, ns, pod) {
        Ok(h) => h,
        Err(reply) => return reply,
    };
    let observed = match crate::act::start::observe(kl, &handle.uid, &mut Default::default()).await {
        Ok(o) => o,
        Err(e) => return rpc(&e),
    };
    let Some(sandbox) = observed.sandboxes.first().filter(|s| s.ready) else {
        return text(StatusCode::NOT_FOUND, format!("pod not found (\"{pod}_{ns}\")"));
    };
    let mut port = Vec::new();
    for text_port in q.iter().filter(|(k, _)| k == "port").flat_map(|(_, v)| v.split(',')) {
        match text_port.parse::<u16>() {
            Ok(p) if p > 0 => port.push(i32::from(p)),
            _ => {
                return text(
                    StatusCode::BAD_REQUEST,
                    format!("unable to parse \"{text_port}\" as a port"),
                );
            }
        }
    }
    let wanted = cri::PortForwardRequest {
        pod_sandbox_id: sandbox.id.clone(),
        port,
    };
    match kl.cri.runtime.clone().port_forward(wanted).await {
        Ok(answer) => join(request, &answer.into_inner().url).await,
        Err(e) => rpc(&e),
    }
}

/// A command without streams: its output is the answer.
pub(super) async fn run(kl: &Arc<Kubelet>, ns: &str, pod: &str, container: &str, q: &Query) -> Reply {
    let id = match container_of(kl, ns, pod, container).await {
        Ok(id) => id,
        Err(reply) => return reply,
    };
    let cmd = first(q, "cmd")
        .unwrap_or_default()
        .split(' ')
        .map(str::to_owned)
        .collect();
    match kl
        .cri
        .runtime
        .clone()
        .exec_sync(cri::ExecSyncRequest {
            container_id: id,
            cmd,
            timeout: 0,
        })
        .await
    {
        Ok(answer) => {
            let answer = answer.into_inner();
            let mut out = answer.stdout.to_vec();
            out.extend(answer.stderr);
            if answer.exit_code != 0 {
                let why = format!(
                    "command exited with {}: {}",
                    answer.exit_code,
                    String::from_utf8_lossy(&out)
                );
                return text(StatusCode::INTERNAL_SERVER_ERROR, why);
            }
            text(StatusCode::OK, String::from_utf8_lossy(&out))
        }
        Err(e) => rpc(&e),
    }
}

async fn container_of(kl: &Kubelet, ns: &str, pod: &str, container: &str) -> Result<String, Reply> {
    let handle = find(kl, ns, pod)?;
    running(kl, &handle, container).await
}

/// What is known of a request's connection.
#[derive(Clone)]
pub(super) struct Peer(#[allow(dead_code, reason = "held for as long as the stream lasts")] pub Arc<Option<Client>>);

/// Sends the request on to where the runtime serves the stream, and joins the two connections.
async fn join(mut request: Request<Incoming>, url: &str) -> Reply {
    let bad = |e: String| {
        text(
            StatusCode::BAD_GATEWAY,
            format!("the runtime's streaming server can't be reached: {e}"),
        )
    };
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(e) => return bad(format!("{url}: {e}")),
    };
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(80)) else {
        return bad(format!("{url} names no host"));
    };
    let socket = match TcpStream::connect((host.trim_matches(['[', ']']), port)).await {
        Ok(s) => s,
        Err(e) => return bad(e.to_string()),
    };
    let (mut sender, connection) =
        match hyper::client::conn::http1::handshake::<_, Incoming>(TokioIo::new(socket)).await {
            Ok(both) => both,
            Err(e) => return bad(e.to_string()),
        };
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!("the connection to the runtime's streaming server ended: {e}");
        }
    });
    let client = hyper::upgrade::on(&mut request);
    let peer = request.extensions_mut().remove::<Peer>();
    let (mut parts, body) = request.into_parts();
    let target = uri.path_and_query().map_or("/", |p| p.as_str());
    parts.uri = match target.parse() {
        Ok(u) => u,
        Err(_) => return bad(format!("{url} has no usable path")),
    };
    parts.headers.remove(http::header::AUTHORIZATION);
    let mut response = match sender.send_request(Request::from_parts(parts, body)).await {
        Ok(r) => r,
        Err(e) => return bad(e.to_string()),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let runtime = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            // Until then the connection ends when what it was made by is revoked.
            let _peer = peer;
            let (client, runtime) = match tokio::try_join!(client, runtime) {
                Ok(both) => both,
                Err(e) => {
                    tracing::debug!("a stream could not be joined: {e}");
                    return;
                }
            };
            let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
            if let Err(e) = tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
                tracing::debug!("a joined stream ended: {e}");
            }
        });
    }
    let (parts, body) = response.into_parts();
    let body: Body = body.map_err(std::io::Error::other).boxed_unsync();
    Response::from_parts(parts, body)
}
