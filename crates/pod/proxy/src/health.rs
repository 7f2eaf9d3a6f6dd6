//! `healthCheckNodePort`: how a load balancer outside learns which nodes have an endpoint of a service whose external
//! traffic stays local. One listener a port; 200 while there is a ready local endpoint, else 503, with upstream's body.
//!
//! Bounds: [`CONNECTIONS`] at a time over all ports, each for at most [`PATIENCE`]: what asks here asks once and goes.

use crate::model::ServicePort;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use keelson_client::ObjectKey;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

const CONNECTIONS: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to get a port that another program has, or a connection without descriptors.
const RETRY: Duration = Duration::from_secs(5);

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
const NO_SNIFFING: HeaderName = HeaderName::from_static("x-content-type-options");

/// A service that has such a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub namespace: String,
    pub name: String,
    /// Ready endpoints of this node.
    pub local: usize,
}

impl Check {
    /// Whether the service asks for one, on which port, and what it says.
    pub fn of(service: &ObjectKey, facts: &[ServicePort]) -> Option<(u16, Check)> {
        let port = facts.iter().find_map(|s| s.health_port)?;
        // Pods, each once however many ports it serves and addresses it has.
        let local = facts.iter().flat_map(|s| s.local_ready.iter().copied());
        let (four, six): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = local.partition(IpAddr::is_ipv4);
        let check = Check {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            local: four.len().max(six.len()),
        };
        Some((port, check))
    }
}

struct Listening {
    check: Arc<Mutex<Check>>,
    _stop: DropGuard,
}

/// The listeners, by port.
pub struct Health {
    listening: BTreeMap<u16, Listening>,
    ports: BTreeMap<ObjectKey, u16>,
    room: Arc<Semaphore>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            listening: BTreeMap::new(),
            ports: BTreeMap::new(),
            room: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

impl Health {
    /// Listens for this service on its port, if it has one, and on no other. No two services have the same: the API sees to it.
    pub fn follow(&mut self, service: &ObjectKey, check: Option<(u16, Check)>) {
        if let Some(old) = self.ports.remove(service)
            && check.as_ref().is_none_or(|(port, _)| *port != old)
            && !self.ports.values().any(|port| *port == old)
        {
            self.listening.remove(&old);
        }
        let Some((port, check)) = check else { return };
        self.ports.insert(service.clone(), port);
        match self.listening.get(&port) {
            Some(known) => *known.check.lock() = check,
            None => {
                let check = Arc::new(Mutex::new(check));
                let stop = CancellationToken::new();
                tokio::spawn(listen(port, check.clone(), self.room.clone(), stop.clone()));
                let _stop = stop.drop_guard();
                self.listening.insert(port, Listening { check, _stop });
            }
        }
    }
}

/// On every address of both families, or of IPv4 where there is no other.
async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

async fn listen(port: u16, check: Arc<Mutex<Check>>, room: Arc<Semaphore>, stop: CancellationToken) {
    let listener = loop {
        match bind(port).await {
            Ok(listener) => break listener,
            Err(error) => tracing::warn!(%error, port, "the health check's node port can't be opened yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    };
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, port, "a health check's connection was not accepted");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        // Beyond the bound a check is closed unanswered: waiting here would keep other services' checks waiting too.
        let Ok(place) = room.clone().try_acquire_owned() else {
            continue;
        };
        let check = check.clone();
        tokio::spawn(async move {
            if tokio::time::timeout(PATIENCE, serve(stream, check)).await.is_err() {
                tracing::debug!(port, "a health check took too long");
            }
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, check: Arc<Mutex<Check>>) {
    let answer = service_fn(move |_: Request<Incoming>| {
        let response = respond(&check.lock());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "health check");
    }
}

fn respond(check: &Check) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if check.local == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(NO_SNIFFING, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(check.local));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(port: u16) -> Option<String> {
        for _ in 0..1000 {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                return Some(text);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }

    #[tokio::test]
    async fn a_node_is_healthy_while_it_has_an_endpoint() {
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let check = |local| Check {
            namespace: "shop".into(),
            name: "web".into(),
            local,
        };
        let mut health = Health::default();
        let web = ObjectKey::new("shop", "web");
        health.follow(&web, Some((port, check(2))));
        let well = ask(port).await.unwrap();
        assert!(
            well.starts_with("HTTP/1.1 200 OK") && well.contains("x-load-balancing-endpoint-weight: 2"),
            "{well}"
        );
        assert!(
            well.ends_with(
                r#"{"localEndpoints":2,"service":{"name":"web","namespace":"shop"},"serviceProxyHealthy":true}"#
            ),
            "{well}"
        );
        health.follow(&web, Some((port, check(0))));
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 503"), "nothing here");
        health.follow(&web, None);
        for _ in 0..1000 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the port is still open");
    }
}
