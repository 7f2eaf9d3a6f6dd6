//! One check of one probe: a command, an HTTP request, a connection, or a gRPC health call.

use super::runner::Task;
use super::{Kind, grpc, http};
use crate::act::expand::expand;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_cri::v1 as cri;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Good, but with something to say.
    Warning(String),
    Failure(String),
}

/// The most of a command's output that is told.
const MAX_OUTPUT: usize = 10 << 10;

/// The number of a port that is given by number or by name.
pub fn port(port: &IntOrString, c: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => c
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    let shown = match port {
        IntOrString::Int(n) => n.to_string(),
        IntOrString::String(s) => s.clone(),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port: couldn't find port: {shown}"))
}

pub(super) async fn run(task: &Task, kind: Kind, p: &Probe) -> Result<Outcome, String> {
    let newest = task.kl.workers.get(crate::pods::uid(&task.pod)).map(|h| h.pod());
    let pod = newest.as_ref().unwrap_or(&task.pod);
    if let Some(outcome) = task.kl.host.probe(kind, pod, task.begin.elapsed()) {
        return Ok(outcome);
    }
    let timeout = Duration::from_secs(p.timeout_seconds.filter(|t| *t > 0).unwrap_or(1) as u64);
    if let Some(e) = &p.exec {
        return exec(task, e.command.as_deref().unwrap_or_default(), timeout).await;
    }
    if !task.kl.host.has_network() {
        return Ok(Outcome::Success);
    }
    let ip = |host: Option<&String>| {
        host.filter(|h| !h.is_empty())
            .cloned()
            .or_else(|| task.ip.clone())
            .ok_or_else(|| "the pod has no address".to_owned())
    };
    if let Some(get) = &p.http_get {
        let request = http::Request::from_action(get, &task.container, &ip(get.host.as_ref())?, "probe")?;
        return Ok(match http::get(&request, timeout).await {
            Ok(a) if (200..300).contains(&a.status) => Outcome::Success,
            Ok(a) if (300..400).contains(&a.status) => {
                Outcome::Warning(format!("Probe terminated redirects, Response body: {}", a.body))
            }
            Ok(a) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", a.status)),
            Err(e) => Outcome::Failure(e),
        });
    }
    if let Some(tcp) = &p.tcp_socket {
        let (host, port) = (ip(tcp.host.as_ref())?, port(&tcp.port, &task.container)?);
        return Ok(match http::dial(&host, port, timeout).await {
            Ok(_) => Outcome::Success,
            Err(e) => Outcome::Failure(e),
        });
    }
    if let Some(g) = &p.grpc {
        let port = u16::try_from(g.port).map_err(|_| format!("invalid port: {}", g.port))?;
        return Ok(grpc::check(&ip(None)?, port, g.service.as_deref().unwrap_or_default(), timeout).await);
    }
    Err(format!(
        "missing probe handler for {}:{}",
        crate::pods::describe(&task.pod),
        task.container.name
    ))
}

async fn exec(task: &Task, command: &[String], timeout: Duration) -> Result<Outcome, String> {
    // Only what the container's own list gives as plain text is filled in.
    let known = |name: &str| {
        task.container
            .env
            .iter()
            .flatten()
            .find(|e| e.name == name)?
            .value
            .clone()
    };
    let cmd: Vec<String> = command.iter().map(|c| expand(c, &known)).collect();
    let shown = cmd.join(" ");
    let request = cri::ExecSyncRequest {
        container_id: task.id.clone(),
        cmd,
        timeout: timeout.as_secs() as i64,
    };
    let call = task.kl.cri.runtime.clone();
    // The runtime ends the command in time; if it doesn't, the probe has failed all the same.
    let limit = timeout + Duration::from_secs(5);
    let timed_out = || {
        Outcome::Failure(format!(
            "command timed out: \"{shown}\" timed out after {}",
            crate::go_duration(timeout)
        ))
    };
    let mut call = call;
    match tokio::time::timeout(limit, call.exec_sync(request)).await {
        Err(_) => Ok(timed_out()),
        Ok(Err(e)) if e.code() == tonic::Code::DeadlineExceeded => Ok(timed_out()),
        Ok(Err(e)) => Err(crate::rpc_text(&e)),
        Ok(Ok(answer)) => {
            let answer = answer.into_inner();
            if answer.exit_code == 0 {
                return Ok(Outcome::Success);
            }
            let mut out = answer.stdout.to_vec();
            out.extend(answer.stderr);
            out.truncate(MAX_OUTPUT);
            Ok(Outcome::Failure(String::from_utf8_lossy(&out).into_owned()))
        }
    }
}
