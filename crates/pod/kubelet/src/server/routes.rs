//! From a path to what answers it.

use super::auth::{Auth, Shown};
use super::way::{self, Way};
use super::{Reply, full, json, log_stream, metrics, stats, stream, text};
use crate::gc::attic::Gone;
use crate::kubelet::Kubelet;
use crate::node::status::VERSION;
use crate::observe::State;
use crate::pods;
use crate::worker::{Handle, Stage};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use keelson_zpages::{Asked, Flags, Pages};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) type Query = Vec<(String, String)>;

/// `application/x-www-form-urlencoded`, as query strings are.
pub(super) fn query(uri: &http::Uri) -> Query {
    let decode = |s: &str| {
        let s = s.replace('+', " ");
        percent_encoding::percent_decode_str(&s)
            .decode_utf8_lossy()
            .into_owned()
    };
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(k), decode(v))
        })
        .collect()
}

pub(super) fn first<'a>(q: &'a Query, name: &str) -> Option<&'a str> {
    q.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

pub(super) fn flag(q: &Query, name: &str) -> bool {
    first(q, name).is_some_and(|v| matches!(v, "1" | "true" | "True" | "t" | "T" | "TRUE"))
}

pub(super) async fn handle(kl: &Arc<Kubelet>, auth: &Auth, peer: Option<&Shown>, request: Request<Incoming>) -> Reply {
    let m = kl.metrics.clone();
    let way = way::of(request.uri());
    let path = match &way {
        Way::To(path) => path.as_str(),
        _ => request.uri().path(),
    };
    let labels = counted_as(request.method(), path);
    m.requests.with_label_values(&labels).inc();
    let inflight = Inflight(m.requests_inflight.with_label_values(&labels));
    inflight.0.inc();
    let took = m.request_durations.with_label_values(&labels).start_timer();
    let reply = match way {
        Way::To(path) => answer(kl, auth, peer, request, path).await,
        Way::Elsewhere(to) => way::elsewhere(request.method(), &to),
        Way::Nowhere => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Way::Malformed => text(StatusCode::BAD_REQUEST, "400 Bad Request"),
    };
    took.observe_duration();
    reply
}

/// A request that is being answered, also when it is given up.
struct Inflight(prometheus::IntGauge);

impl Drop for Inflight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Method, path, server and whether it may last, as upstream's metrics name them.
fn counted_as(method: &Method, path: &str) -> [&'static str; 4] {
    const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    const PATHS: [&str; 19] = [
        "attach",
        "checkpoint",
        "configz",
        "containerLogs",
        "exec",
        "flagz",
        "healthz",
        "logs",
        "metrics",
        "metrics/cadvisor",
        "metrics/probes",
        "metrics/resource",
        "metrics/slis",
        "pods",
        "portForward",
        "run",
        "runningpods",
        "stats",
        "statusz",
    ];
    let method = METHODS.into_iter().find(|m| *m == method.as_str()).unwrap_or("other");
    let path = path.trim_matches('/');
    let root = path.split('/').next().unwrap_or_default();
    let exact = PATHS.into_iter().find(|p| *p == path);
    let path = exact
        .or_else(|| PATHS.into_iter().find(|p| *p == root))
        .unwrap_or("other");
    let lasts = ["exec", "attach", "portForward"].contains(&path);
    [method, path, "readwrite", if lasts { "true" } else { "false" }]
}

async fn answer(
    kl: &Arc<Kubelet>,
    auth: &Auth,
    peer: Option<&Shown>,
    request: Request<Incoming>,
    path: String,
) -> Reply {
    let user = match auth.authenticate(peer, &request).await {
        Ok(Some(user)) => user,
        Ok(None) => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        Err(e) => {
            tracing::warn!("a request to the kubelet's server could not be authenticated: {e}");
            return text(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
    };
    let method = request.method().clone();
    if path == super::archives::PATH && kl.cfg.archives.is_some() {
        // No right to anything of the node: it is for nodes, which know what their registries let them have.
        return super::archives::serve(kl, &user, &method, &query(request.uri())).await;
    }
    match auth.allowed(&user, &method, &path).await {
        Ok(true) => {}
        Ok(false) => {
            let message = format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])\n",
                user.name,
                super::auth::verb(&method),
                super::auth::subresources(&path).join(" "),
            );
            return text(StatusCode::FORBIDDEN, message);
        }
        Err(unable) => {
            let verb = super::auth::verb(&method);
            let (name, sub) = (&user.name, unable.sub);
            tracing::warn!("whether {name} may {verb} nodes/{sub} isn't known: {}", unable.why);
            let message = format!("Authorization error (user={name}, verb={verb}, resource=nodes, subresource={sub})");
            return text(StatusCode::INTERNAL_SERVER_ERROR, message);
        }
    }
    route(kl, request, &method, &path).await
}

async fn route(kl: &Arc<Kubelet>, request: Request<Incoming>, method: &Method, path: &str) -> Reply {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let get = *method == Method::GET;
    let allowed = way::methods(&parts);
    let asked = Asked::of(request.uri(), request.headers());
    if let Some(answer) = kl.pages.answer(&asked).filter(|_| get) {
        return Response::<String>::from(answer).map(|body| full(body.into()));
    }
    match parts.as_slice() {
        // What upstream leaves out then, with its words where it has some.
        [
            "containerLogs" | "deletedLogs" | "exec" | "attach" | "portForward" | "run" | "logs" | "checkpoint"
            | "runningpods",
            ..,
        ] if !kl.cfg.debugging_handlers => text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n"),
        ["logs", ..] if !kl.cfg.system_logs => text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n"),
        ["healthz", ..] if get => text(StatusCode::OK, "ok"),
        _ if allowed.is_some_and(|allowed| !allowed.contains(method)) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed")
        }
        ["pods"] => json(&pod_list(kl)),
        ["runningpods"] => json(&running_pods(kl).await),
        ["configz"] if get => json(&crate::configuration::configz(&kl.cfg)),
        ["stats", "summary"] => match stats::summary(kl).await {
            Ok(summary) => json(&summary),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {e}")),
        },
        ["metrics"] if get => exposition(metrics::kubelet(kl).await),
        ["metrics", "resource"] if get => exposition(metrics::resource::text(kl).await),
        ["metrics", "cadvisor"] if get => match metrics::cadvisor::text(kl).await {
            Ok(page) => exposition(page),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e),
        },
        ["metrics", "probes"] if get => exposition(metrics::probes(kl)),
        ["metrics", "slis"] if get => exposition(metrics::slis()),
        ["containerLogs", ns, pod, container] => log_stream::serve(kl, ns, pod, container, &query(request.uri())).await,
        ["deletedLogs", ns, pod, uid, container] => {
            let (namespace, name) = (*ns, *pod);
            let gone = Gone { namespace, name, uid };
            log_stream::deleted(kl, &gone, container, &query(request.uri()))
        }
        ["exec", ns, pod, container] | ["exec", ns, pod, _, container] => {
            stream::exec(kl, ns, pod, container, request).await
        }
        ["attach", ns, pod, container] | ["attach", ns, pod, _, container] => {
            stream::attach(kl, ns, pod, container, request).await
        }
        ["portForward", ns, pod] | ["portForward", ns, pod, _] => stream::port_forward(kl, ns, pod, request).await,
        ["run", ns, pod, container] | ["run", ns, pod, _, container] => {
            stream::run(kl, ns, pod, container, &query(request.uri())).await
        }
        ["checkpoint", ns, pod, container] => {
            super::checkpoint::serve(kl, ns, pod, container, &query(request.uri())).await
        }
        ["logs", rest @ ..] => super::journal::serve(kl, rest, &query(request.uri())).await,
        _ => text(StatusCode::NOT_FOUND, "404: Page Not Found"),
    }
}

/// What the kubelet is and was told. Its listener has these paths.
pub(crate) fn pages(flags: Option<Arc<Flags>>) -> Pages {
    const PATHS: [&str; 15] = [
        "/attach",
        "/checkpoint",
        "/configz",
        "/containerLogs",
        "/exec",
        "/healthz",
        "/logs",
        "/metrics",
        "/pods",
        "/portForward",
        "/run",
        "/runningpods",
        "/stats",
        "/deletedLogs",
        "/statusz",
    ];
    Pages::new("kubelet", VERSION, PATHS, flags)
}

fn exposition(page: String) -> Reply {
    let kind = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    super::reply(StatusCode::OK, kind, page.into())
}

/// The pod of this name, or the answer that there is none.
pub(super) fn find(kl: &Kubelet, ns: &str, pod: &str) -> Result<Arc<Handle>, Reply> {
    kl.workers.by_name(ns, pod).ok_or_else(|| {
        text(
            StatusCode::NOT_FOUND,
            format!("pod \"{pod}\" in namespace \"{ns}\" does not exist"),
        )
    })
}

/// The container's running instance.
pub(super) async fn running(kl: &Kubelet, handle: &Handle, container: &str) -> Result<String, Reply> {
    let pod = handle.pod();
    if pods::find_container(&pod, container).is_none() {
        let message = format!(
            "container \"{container}\" not found in pod \"{}\"",
            pods::describe(&pod)
        );
        return Err(text(StatusCode::NOT_FOUND, message));
    }
    match crate::act::start::observe(kl, &handle.uid, &mut HashMap::new()).await {
        Ok(observed) => match observed.find(container).filter(|v| v.state == State::Running) {
            Some(view) => Ok(view.id.clone()),
            None => Err(text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("container not found (\"{container}\")"),
            )),
        },
        Err(e) => Err(text(StatusCode::INTERNAL_SERVER_ERROR, crate::rpc_text(&e))),
    }
}

fn pod_list(kl: &Kubelet) -> Value {
    let items: Vec<Value> = kl
        .workers
        .all()
        .iter()
        .filter(|h| h.stage() != Stage::Finished || !pods::is_terminal(&h.pod()))
        .filter_map(|h| {
            let mut pod = (*h.pod()).clone();
            if let Some(status) = kl.status.get(&h.uid) {
                pod.status = Some(status);
            }
            serde_json::to_value(pod).ok()
        })
        .collect();
    serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

async fn running_pods(kl: &Kubelet) -> Value {
    let mut items = Vec::new();
    for h in kl.workers.all() {
        let Ok(observed) = crate::act::start::observe(kl, &h.uid, &mut HashMap::new()).await else {
            continue;
        };
        let containers: Vec<Value> = observed
            .running()
            .map(|v| serde_json::json!({"name": v.name, "image": v.image, "resources": {}}))
            .collect();
        if !containers.is_empty() {
            let pod = h.pod();
            items.push(serde_json::json!({
                "metadata": {"name": pods::name(&pod), "namespace": pods::namespace(&pod), "uid": h.uid},
                "spec": {"containers": containers}, "status": {}}));
        }
    }
    serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let q = query(
            &"/x?command=sh&command=-c&command=echo%20a+b&input=1&tty=false"
                .parse()
                .unwrap(),
        );
        assert_eq!(
            q.iter()
                .filter(|(k, _)| k == "command")
                .map(|(_, v)| v.as_str())
                .collect::<Vec<_>>(),
            ["sh", "-c", "echo a b"]
        );
        assert!(flag(&q, "input") && !flag(&q, "tty"));
    }

    #[test]
    fn requests_are_counted_under_few_names() {
        let of = |path| counted_as(&Method::GET, path);
        assert_eq!(
            of("/metrics/cadvisor"),
            ["GET", "metrics/cadvisor", "readwrite", "false"]
        );
        assert_eq!(of("/exec/ns/pod/c")[1..], ["exec", "readwrite", "true"]);
        assert_eq!(of("/stats/summary")[1], "stats");
        assert_eq!(of("/nothing/here")[1], "other");
    }
}
