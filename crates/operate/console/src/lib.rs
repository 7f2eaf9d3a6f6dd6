//! The cluster in a browser: a small server on the user's machine that hands out pages and passes their requests on to the API,
//! with the identity of the user's kubeconfig.
//!
//! * [`guard`]: who is let in. A browser opens anybody's pages, so being asked from this machine proves nothing.
//! * [`assets`]: the pages, which are part of the program. Nothing of them is built, nothing comes from elsewhere.
//! * [`forward`]: requests to the API and back; [`tunnel`]: those that become a connection of their own (a shell in a container);
//!   [`stream`]: answers without an end (watches, logs) as WebSockets; [`why`]: questions for [`keelson_why`].
//!
//! It knows the cluster by the API only, keeps nothing of it, and decides nothing: what a user may, the API says.

mod answer;
mod assets;
mod forward;
mod guard;
mod paths;
mod stream;
mod tunnel;
mod why;

use answer::Body;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use keelson_client::Rest;
use keelson_listen::{Limits, Server};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use guard::Guard;

/// The name by which the API knows who wrote a field.
const AGENT: &str = "keelson-console";

/// What the console shows of whom it speaks to.
pub struct Cluster {
    pub client: kube::Client,
    /// The API's host and port.
    pub server: String,
    /// The kubeconfig's context, if one was given.
    pub context: String,
}

pub struct Console {
    cluster: Cluster,
    rest: Rest,
    guard: Guard,
    assets: assets::Assets,
}

impl Console {
    /// `pages` is for who changes them: read from this directory in place of the program.
    pub fn new(cluster: Cluster, guard: Guard, pages: Option<PathBuf>) -> Console {
        Console {
            rest: Rest::new(cluster.client.clone(), AGENT),
            cluster,
            guard,
            assets: assets::Assets::new(pages),
        }
    }

    async fn route(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_string();
        if path == "/" && request.method() == Method::GET && self.guard.is_login(&request) {
            return self.guard.login(&request);
        }
        if let Err(refusal) = self.guard.check(&request) {
            return refusal.answer();
        }
        match path.strip_prefix("/console/") {
            Some("about") => answer::json(StatusCode::OK, &self.about()),
            Some(rest) if rest.starts_with("stream/") => stream::open(&self.cluster.client, "stream", request).await,
            Some(rest) if rest.starts_with("table/") => stream::open(&self.cluster.client, "table", request).await,
            Some(rest) if rest.starts_with("why/") => why::answer(&self.rest, &rest["why/".len()..]).await,
            Some(_) => answer::failure(StatusCode::NOT_FOUND, "NotFound", "the console has nothing there"),
            None if paths::is_api(&path) => forward::pass(&self.cluster.client, request).await,
            None => self.assets.answer(request.method(), &path, request.headers()).await,
        }
    }

    fn about(&self) -> serde_json::Value {
        json!({
            "server": self.cluster.server,
            "context": self.cluster.context,
            "namespace": self.cluster.client.default_namespace(),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

impl Server for Console {
    type Peer = SocketAddr;
    type Body = Body;

    fn connected(&self, remote: SocketAddr, _: Option<&[CertificateDer<'_>]>, _: &CancellationToken) -> SocketAddr {
        remote
    }

    async fn answer(&self, _: &Arc<SocketAddr>, request: Request<Incoming>) -> Response<Body> {
        let sandboxed = paths::is_api(request.uri().path()) || request.uri().path().starts_with("/console/");
        let mut answer = self.route(request).await;
        guard::protect(answer.headers_mut(), sandboxed);
        answer
    }
}

/// One person's browsers: six connections each, and a WebSocket for each watch. One more connection is closed at once; an answer
/// that isn't read for a minute loses its body.
fn limits() -> Limits {
    Limits {
        connections: 512,
        head_bytes: 64 << 10,
        answer: Some(Duration::from_secs(300)),
        unread: Some(Duration::from_secs(60)),
        drain: Duration::from_secs(1),
        ..Limits::default()
    }
}

/// Serves until `stop`; with `tls` by HTTPS.
pub async fn run(
    socket: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    console: Console,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let console = Arc::new(console);
    match tls {
        Some(tls) => keelson_listen::run(socket, tls, console, limits(), stop).await,
        None => keelson_listen::run_plain(socket, console, limits(), stop).await,
    }
}
