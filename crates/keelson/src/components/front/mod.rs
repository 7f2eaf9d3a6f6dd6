//! How a component alone tells how it is: health and metrics, on upstream's ports and paths.
//!
//! [`plain`] serves whoever reaches the address, [`secure`] by TLS who the API server knows and lets. What is told is whether anything
//! of the component has failed and doesn't run again yet, what the component counts, what the process uses, and what it was told.

pub mod plain;
pub mod secure;
pub mod tls;

use crate::supervise::Health;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Bytes;
use keelson_measure::Measures;
use keelson_zpages::{Asked, Pages};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a program of Kubernetes listens that is told `0.0.0.0` or `::`: on all addresses of both families, if the machine has both.
pub fn everywhere(address: SocketAddr) -> SocketAddr {
    let both = || -> nix::Result<bool> {
        let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(!getsockopt(&socket, sockopt::Ipv6V6Only)?)
    };
    match address.ip().is_unspecified() && both().unwrap_or(false) {
        true => SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port())),
        false => address,
    }
}

pub type Reply = Response<Full<Bytes>>;

const METRICS: &str = "/metrics";
const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// What a listener answers.
#[derive(Clone)]
pub struct Front {
    health: Health,
    /// Paths of health, the same for each unless one is `ready`'s.
    paths: Vec<&'static str>,
    /// A path that is well only when this says so, too.
    ready: Option<(&'static str, Arc<AtomicBool>)>,
    measures: Option<Measures>,
    /// `/statusz` and `/flagz`.
    pages: Option<Pages>,
}

impl Front {
    /// Health under all its names, and metrics.
    pub fn whole(health: Health, measures: &Measures) -> Front {
        Front::of(health, &HEALTH).with_metrics(measures)
    }

    pub fn of(health: Health, paths: &[&'static str]) -> Front {
        Front {
            health,
            paths: paths.to_vec(),
            ready: None,
            measures: None,
            pages: None,
        }
    }

    pub fn with_metrics(self, measures: &Measures) -> Front {
        Front {
            measures: Some(measures.clone()),
            ..self
        }
    }

    /// With what the component is and was told, under upstream's name of it.
    pub fn with_pages(self, component: &'static str) -> Front {
        let metrics = self.measures.as_ref().map(|_| METRICS);
        let paths: Vec<&str> = self.paths.iter().copied().chain(metrics).collect();
        Front {
            pages: Some(crate::flagz::pages(component, paths)),
            ..self
        }
    }

    pub fn with_readiness(self, path: &'static str, ready: Arc<AtomicBool>) -> Front {
        Front {
            ready: Some((path, ready)),
            ..self
        }
    }

    pub fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Reply {
        let path = uri.path();
        if *method != Method::GET && *method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n".into());
        }
        if let Some((_, ready)) = self.ready.as_ref().filter(|(own, _)| *own == path) {
            return match ready.load(Ordering::Acquire) {
                true => self.healthy(path),
                false => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
            };
        }
        if self.paths.contains(&path) {
            return self.healthy(path);
        }
        if let Some(measures) = self.measures.as_ref().filter(|_| path == METRICS) {
            let mut page = measures.page();
            keelson_apiserver::write_process_metrics(&mut page);
            return reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page);
        }
        let asked = Asked::of(uri, headers);
        if let Some(answer) = self.pages.as_ref().and_then(|pages| pages.answer(&asked)) {
            return guarded(Response::<String>::from(answer).map(|body| Full::new(Bytes::from(body))));
        }
        text(StatusCode::NOT_FOUND, "404 page not found\n".into())
    }

    fn healthy(&self, path: &str) -> Reply {
        match self.health.failing().as_slice() {
            [] => text(StatusCode::OK, "ok".into()),
            failing => {
                let mut said: String = failing.iter().map(|name| format!("[-]{name} failed\n")).collect();
                said.push_str(&format!("{} check failed\n", path.trim_start_matches('/')));
                text(StatusCode::INTERNAL_SERVER_ERROR, said)
            }
        }
    }
}

pub fn text(status: StatusCode, body: String) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

pub fn reply(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    guarded(response)
}

fn guarded(mut response: Reply) -> Reply {
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Supervisor;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn nowhere_in_particular_is_everywhere_by_both_families() {
        let reached = |told: &str| {
            let listener = TcpListener::bind(everywhere(told.parse().unwrap())).unwrap();
            let port = listener.local_addr().unwrap().port();
            ["127.0.0.1", "::1"].map(|ip| TcpStream::connect((ip, port)).is_ok())
        };
        let ipv6 = TcpListener::bind("[::1]:0").is_ok();
        assert_eq!(reached("0.0.0.0:0"), [true, ipv6]);
        assert_eq!(reached("127.0.0.1:0"), [true, false]);
        if ipv6 {
            assert_eq!(reached("[::]:0"), [true, true]);
            assert_eq!(reached("[::1]:0"), [false, true]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_told_until_it_runs_again_and_what_is_not_served_is_404() {
        let mut components = Supervisor::default();
        let ready = Arc::new(AtomicBool::new(false));
        let measures = Measures::default();
        measures.counter("some_total", "Some.").inc();
        let front = Front::whole(components.health(), &measures).with_readiness("/ready", ready.clone());
        let ask = |method: Method, path: &str| front.answer(&method, &path.parse().unwrap(), &HeaderMap::new());
        let code = |path: &str| ask(Method::GET, path).status().as_u16();
        assert_eq!(
            ["/healthz", "/livez", "/readyz", "/metrics", "/x"].map(code),
            [200, 200, 200, 200, 404]
        );
        assert_eq!(code("/ready"), 503);
        ready.store(true, Ordering::Release);
        assert_eq!(code("/ready"), 200);
        components.spawn("scheduler", |_| async { anyhow::bail!("it can't") });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(["/healthz", "/ready", "/metrics"].map(code), [500, 500, 200]);
        let page = ask(Method::GET, "/metrics").into_body();
        let page = http_body_util::BodyExt::collect(page).await.unwrap().to_bytes();
        let page = String::from_utf8_lossy(&page);
        assert!(
            page.contains("\nsome_total 1\n") && page.contains("\nprocess_open_fds "),
            "{page}"
        );
        assert_eq!(ask(Method::POST, "/healthz").status(), 405);
        components.stop().await;
    }

    #[test]
    fn a_component_tells_what_it_is_and_was_told() {
        let front = Front::whole(Supervisor::default().health(), &Measures::default()).with_pages("kube-scheduler");
        let ask = |path: &str, accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            front.answer(&Method::GET, &path.parse().unwrap(), &headers)
        };
        let old = ask(
            "/statusz?pretty=1",
            "application/json;as=Statusz;v=v1alpha1;g=config.k8s.io",
        );
        assert!(old.headers()[header::WARNING].to_str().unwrap().contains("deprecated"));
        assert_eq!(
            old.headers()[header::CONTENT_TYPE],
            "application/json;g=config.k8s.io;v=v1alpha1;as=Statusz"
        );
        assert_eq!(ask("/flagz", "*/*").status(), 200);
        assert_eq!(ask("/flagz", "application/json").status(), 406);
        let plain = Front::of(Supervisor::default().health(), &["/healthz"]);
        let reply = plain.answer(&Method::GET, &"/statusz".parse().unwrap(), &HeaderMap::new());
        assert_eq!(reply.status(), 404);
    }
}
