//! Backends, clients and tables for tests, all over loopback.

use bytes::Bytes;
use futures::Stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_client::ObjectKey;
use keelson_gateway::serve::{Certificates, Serving, certified, door};
use keelson_gateway::table::{
    Action, Backend, Host, Listener, PathRule, Port, Protocol, Rule, Speaks, Table, Upstream, When,
};
use keelson_measure::Measures;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

pub fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

pub fn pieces(stream: impl Stream<Item = Frame<Bytes>> + Send + 'static) -> Body {
    use futures::StreamExt;
    StreamBody::new(stream.map(Ok::<_, Infallible>)).boxed_unsync()
}

/// A backend; it ends, with its connections, when dropped.
pub struct Fake {
    pub at: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fake {
    pub async fn start<F, Fut>(answer: F) -> Fake
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        Fake::at(([127, 0, 0, 1], 0).into(), answer).await
    }

    pub async fn at<F, Fut>(at: SocketAddr, answer: F) -> Fake
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let socket = TcpListener::bind(at).await.unwrap();
        let at = socket.local_addr().unwrap();
        let (stop, connections) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let (ends, count) = (stop.clone(), connections.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = socket.accept() => accepted.unwrap().0,
                    () = ends.cancelled() => return,
                };
                count.fetch_add(1, Ordering::SeqCst);
                let (answer, ends) = (answer.clone(), ends.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer.clone();
                        async move { Ok::<_, Infallible>(answer(request).await) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    tokio::select! {
                        _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service) => {}
                        () = ends.cancelled() => {}
                    }
                });
            }
        });
        Fake { at, connections, stop }
    }
}

pub fn to(addresses: &[SocketAddr], protocol: Protocol) -> Action {
    let to = Upstream::Endpoints {
        service: ObjectKey::new("n", "s"),
        addresses: addresses.to_vec(),
        protocol,
        trust: None,
    };
    let backend = Backend {
        weight: 1,
        to: Arc::new(to),
        filters: Default::default(),
    };
    Action {
        backends: vec![backend],
        ..Action::default()
    }
}

/// A table with one port, on which one action is for all requests; certificates are for their names.
pub fn table(at: u16, action: Action, certificates: &[&str]) -> Table {
    let rule = Rule {
        route: "HTTPRoute/n/r".into(),
        order: Default::default(),
        when: When {
            path: PathRule::prefix("/"),
            ..When::default()
        },
        then: Arc::new(action),
    };
    let listener = Listener {
        name: "Gateway/n/g/web".into(),
        certificates: certificates
            .iter()
            .map(|n| (Host::new(n), ObjectKey::new("n", *n)))
            .collect(),
        hosts: [(String::new(), vec![rule])].into(),
        ..Listener::default()
    };
    let port = Port {
        number: 80,
        speaks: if certificates.is_empty() {
            Speaks::Http
        } else {
            Speaks::Https
        },
        listeners: vec![listener],
    };
    Table {
        ports: [(at, Arc::new(port))].into(),
    }
}

/// A certificate for a name, signed by itself: chain and key, and what a client has to trust.
pub fn certificate(name: &str) -> (Certificates, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed([name.to_string()]).unwrap();
    let key = certified(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    (Certificates::from([(ObjectKey::new("n", name), key)]), made)
}

/// A gateway's port.
pub struct Gate {
    pub at: SocketAddr,
    pub serving: Arc<Serving>,
    pub stop: CancellationToken,
    pub task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Gate {
    pub async fn open(speaks: Speaks) -> Gate {
        Gate::counting(speaks, &Measures::default()).await
    }

    pub async fn counting(speaks: Speaks, measures: &Measures) -> Gate {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let at = socket.local_addr().unwrap();
        let (serving, stop) = (Arc::new(Serving::new(measures)), CancellationToken::new());
        let task = tokio::spawn(door(socket, at.port(), speaks, serving.clone(), stop.clone()));
        Gate {
            at,
            serving,
            stop,
            task,
        }
    }

    pub async fn to(action: Action) -> Gate {
        let gate = Gate::open(Speaks::Http).await;
        gate.set(action);
        gate
    }

    pub fn set(&self, action: Action) {
        self.serving
            .set(table(self.at.port(), action, &[]), Certificates::new());
    }

    pub async fn http1(&self) -> hyper::client::conn::http1::SendRequest<Body> {
        let stream = TcpStream::connect(self.at).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let request = Request::get(path).header("host", "x.org").body(whole("")).unwrap();
        read(self.http1().await.send_request(request).await.unwrap()).await
    }
}

pub async fn read(answer: Response<Incoming>) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}
