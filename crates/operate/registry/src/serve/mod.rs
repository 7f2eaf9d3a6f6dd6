//! The distribution API over HTTP: a request's way from its path to its answer, a line a step.
//!
//! Nothing of a body is in memory but the piece that is being written or sent, and manifests that come. Bounds: connections, heads and
//! idleness are `keelson_listen`'s; an answer that isn't read for a while is ended there; a body that is silent or too slow is
//! ended here ([`body`]); at most [`MANIFESTS`] come at a time, from clients and from registries behind each, and as many are looked up.

mod blobs;
mod body;
mod listing;
mod manifests;
pub mod route;
mod uploads;

use crate::access::{Access, Right, Who};
use crate::error::{Code, Refused, Result, refuse, refused};
use crate::measured::Measured;
use crate::names::Repository;
use crate::store::Store;
use crate::upstream::{Upstream, Upstreams};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use keelson_client::reviews::Shown;
use keelson_pki::verify::{self, Live};
use route::{Query, Route};
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;
pub type Reply = Response<Body>;

/// Manifests at a time, of each kind of work.
const MANIFESTS: usize = 32;

/// What answers.
pub struct Registry {
    pub store: Arc<Store>,
    pub access: Access,
    /// Whose client certificates count.
    pub authorities: Live,
    pub upstreams: Upstreams,
    pub measured: Measured,
    manifests: Places,
}

/// Who brings manifests, and what they come from, don't keep those waiting that ask for what is here.
struct Places {
    given: Semaphore,
    taken: Semaphore,
    fetched: Semaphore,
}

/// Limits of its connections.
pub fn limits() -> keelson_listen::Limits {
    keelson_listen::Limits {
        connections: 1024,
        head_bytes: 64 << 10,
        unread: Some(Duration::from_secs(60)),
        ..keelson_listen::Limits::default()
    }
}

impl keelson_listen::Server for Registry {
    type Peer = Option<Shown>;
    type Body = Body;

    fn connected(
        &self,
        _: SocketAddr,
        certificates: Option<&[CertificateDer<'_>]>,
        ended: &CancellationToken,
    ) -> Self::Peer {
        let judged = verify::tls::client(certificates?, &self.authorities.now()).ok();
        Some(Shown::new(judged, self.access.revocations(), ended))
    }

    async fn answer(&self, peer: &Arc<Self::Peer>, request: Request<Incoming>) -> Reply {
        let began = Instant::now();
        let method = request.method().clone();
        let mut kind = "none";
        let reply = match self.handle(peer.as_ref().as_ref(), request, &mut kind).await {
            Ok(reply) => reply,
            Err((refused, challenges)) => refusal(&refused, challenges, &method),
        };
        self.measured.answered(&method, kind, reply.status(), began.elapsed());
        reply
    }
}

type Refusal = (Refused, Vec<HeaderValue>);

fn plain(refused: Refused) -> Refusal {
    (refused, Vec::new())
}

impl Registry {
    pub fn new(
        store: Arc<Store>,
        access: Access,
        authorities: Live,
        upstreams: Upstreams,
        measured: Measured,
    ) -> Registry {
        Registry {
            store,
            access,
            authorities,
            upstreams,
            measured,
            manifests: Places {
                given: Semaphore::new(MANIFESTS),
                taken: Semaphore::new(MANIFESTS),
                fetched: Semaphore::new(MANIFESTS),
            },
        }
    }

    async fn handle(
        &self,
        peer: Option<&Shown>,
        request: Request<Incoming>,
        kind: &mut &'static str,
    ) -> std::result::Result<Reply, Refusal> {
        let query = Query::parse(request.uri().query());
        let stands_for = query.get("ns").and_then(|ns| self.upstreams.name_of(ns));
        let route = route::route(request.uri().path(), stands_for).map_err(plain)?;
        *kind = route.kind();
        let right = right(&route, request.method()).map_err(plain)?;
        let challenged = |refused: Refused| match refused.code {
            Code::Unauthorized => (refused, self.access.challenges(route.repository(), right)),
            _ => plain(refused),
        };
        if route == Route::Token {
            let token = self.access.token(peer, request.headers()).await.map_err(challenged)?;
            return Ok(json(StatusCode::OK, "application/json", token.to_string()));
        }
        let who = self.access.who(peer, request.headers()).await.map_err(challenged)?;
        match route {
            Route::Ping => self.access.known(&who),
            _ => self.access.check(&who, right, route.repository()).await,
        }
        .map_err(challenged)?;
        self.act(route, who, query, request).await.map_err(plain)
    }

    async fn act(&self, route: Route, who: Who, query: Query, request: Request<Incoming>) -> Result<Reply> {
        let head = request.method() == Method::HEAD;
        match (route, request.method().as_str()) {
            (Route::Ping, _) => Ok(json(StatusCode::OK, "application/json", "{}".into())),
            (Route::Catalog, _) => self.catalog(&query).await,
            (Route::Tags(repository), _) => self.tags(repository, &query).await,
            (Route::Referrers(repository, of), _) => self.referrers(repository, of, &query).await,
            (Route::Manifest(repository, reference), "PUT") => {
                self.put_manifest(repository, reference, &query, request).await
            }
            (Route::Manifest(repository, reference), "DELETE") => self.delete_manifest(repository, reference).await,
            (Route::Manifest(repository, reference), _) => self.get_manifest(repository, reference, head).await,
            (Route::Blob(repository, digest), "DELETE") => self.delete_blob(repository, digest).await,
            (Route::Blob(repository, digest), _) => self.get_blob(repository, digest, head, request.headers()).await,
            (Route::Begin(repository), _) => self.begin(repository, &who, &query, request).await,
            (Route::Upload(repository, id), "PATCH") => self.append(repository, &id, request).await,
            (Route::Upload(repository, id), "PUT") => self.finish(repository, &id, &query, request).await,
            (Route::Upload(repository, id), "DELETE") => self.cancel(repository, &id).await,
            (Route::Upload(repository, id), _) => self.progress(repository, &id).await,
            (Route::Token, _) => refuse(Code::NotFound, "there is nothing at this path"),
        }
    }

    /// A registry behind is asked only; what is said of it is its own.
    fn check_own(&self, repository: &Repository) -> Result<()> {
        match self.upstreams.of(repository) {
            Some(Upstream { name, registry }) => refuse(
                Code::Denied,
                format!("what stands under {name} is what {registry} has: push there"),
            ),
            None => Ok(()),
        }
    }
}

/// What a request takes. A method that isn't there for a resource is refused here.
fn right(route: &Route, method: &Method) -> Result<Right> {
    let right = match (route, method.as_str()) {
        (Route::Catalog, "GET") => Right::List,
        (Route::Ping | Route::Tags(_) | Route::Referrers(..), "GET" | "HEAD") => Right::Pull,
        (Route::Token, "GET") => Right::Pull,
        (Route::Manifest(..) | Route::Blob(..), "GET" | "HEAD") => Right::Pull,
        (Route::Manifest(..), "PUT") => Right::Push,
        (Route::Manifest(..) | Route::Blob(..), "DELETE") => Right::Delete,
        (Route::Begin(_), "POST") => Right::Push,
        (Route::Upload(..), "GET" | "PATCH" | "PUT" | "DELETE") => Right::Push,
        _ => return refuse(Code::Unsupported, "this method isn't there for this path"),
    };
    Ok(right)
}

/// Work on files, beside the threads that serve.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            tracing::error!(%error, "a request's work ended in a panic");
            refuse(Code::Unknown, "the registry failed")
        }
    }
}

/// A place among those who are at the same work with manifests.
pub async fn turn(places: &Semaphore) -> Result<SemaphorePermit<'_>> {
    let wait = tokio::time::timeout(body::SILENCE, places.acquire());
    let busy = || refused(Code::TooManyRequests, "too many manifests at a time");
    wait.await.map_err(|_| busy())?.map_err(|_| busy())
}

pub fn whole(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()).map_err(|e| match e {}).boxed_unsync());
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        "docker-distribution-api-version",
        HeaderValue::from_static("registry/2.0"),
    );
    reply
}

pub fn empty(status: StatusCode) -> Reply {
    whole(status, Bytes::new())
}

pub fn json(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut reply = whole(status, body);
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

/// Sets a header whose value is made of names that were checked, or of numbers.
pub fn set(reply: &mut Reply, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(reply.headers_mut().append(name, value)),
        Err(_) => tracing::error!(%name, "a header that can't be sent"),
    }
}

pub const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

fn refusal(refused: &Refused, challenges: Vec<HeaderValue>, method: &Method) -> Reply {
    let mut reply = json(refused.code.status(), "application/json", refused.body());
    if *method == Method::HEAD {
        *reply.body_mut() = Empty::new().map_err(|e| match e {}).boxed_unsync();
    }
    for challenge in challenges {
        reply.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
    }
    if refused.code == Code::TooManyRequests || refused.code == Code::Unavailable {
        reply
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    reply
}
