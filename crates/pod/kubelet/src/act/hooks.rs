//! Lifecycle hooks: a command in the container, an HTTP request, or a pause.

use crate::kubelet::Kubelet;
use crate::pods;
use crate::probes::http;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use keelson_cri::v1 as cri;
use std::time::Duration;

/// How long an HTTP hook may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a hook to its end. The error is what stands in the container's status.
pub async fn run(
    kl: &Kubelet,
    pod: &Pod,
    c: &Container,
    container_id: &str,
    pod_ip: Option<&str>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    let who = format!("for Container \"{}\" in Pod \"{}\" failed", c.name, pods::describe(pod));
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        let request = cri::ExecSyncRequest {
            container_id: container_id.to_owned(),
            cmd: command,
            timeout: 0,
        };
        return match kl.cri.runtime.clone().exec_sync(request).await {
            Err(e) => Err(format!(
                "Exec lifecycle hook ([{shown}]) {who} - error: {}, message: \"\"",
                crate::rpc_text(&e)
            )),
            Ok(answer) => {
                let answer = answer.into_inner();
                if answer.exit_code == 0 {
                    return Ok(());
                }
                let mut out = answer.stdout.to_vec();
                out.extend(answer.stderr);
                let text = super::fields::quote(&String::from_utf8_lossy(&out));
                Err(format!(
                    "Exec lifecycle hook ([{shown}]) {who} - error: command '{shown}' exited with {}: , message: {text}",
                    answer.exit_code
                ))
            }
        };
    }
    if let Some(get) = &hook.http_get {
        let path = get.path.clone().unwrap_or_default();
        let fail = |e: String| format!("HTTP lifecycle hook ({path}) {who} - error: {e}");
        let host = get
            .host
            .clone()
            .filter(|h| !h.is_empty())
            .or_else(|| pod_ip.map(str::to_owned));
        let host = host.ok_or_else(|| fail("failed to find networking container".into()))?;
        let mut request = http::Request::from_action(get, c, &host, "lifecycle").map_err(fail)?;
        let first = http::get(&request, HTTP_TIMEOUT).await;
        let answer = match first {
            // The server speaks plain HTTP on a port that was said to be HTTPS.
            Err(e) if request.tls && e.contains(http::NOT_TLS) => {
                request.tls = false;
                request
                    .headers
                    .retain(|(k, _)| !k.eq_ignore_ascii_case("authorization"));
                let second = http::get(&request, HTTP_TIMEOUT).await;
                if second.is_ok() {
                    let text = format!(
                        "request to HTTPS lifecycle hook {}:{} got HTTP response, retry with HTTP succeeded",
                        request.host, request.port
                    );
                    kl.warn(pod, None, "LifecycleHTTPFallback", text);
                    Ok(())
                } else {
                    Err(e)
                }
            }
            other => other.map(|_| ()),
        };
        return answer.map_err(fail);
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err("Cannot run handler: invalid handler".into())
}
