//! etcd's v3 API over a store: whoever speaks to etcd speaks to this, with the same answers and the same refusals.
//!
//! One member that leads: there is nobody to elect or to ask, so that every read is linearizable, and what is of members is
//! listed and can't be changed. Users and roles aren't kept; whoever is let in by the listener may do everything.
//!
//! Bounds are etcd's: [`Options::max_request_bytes`] of a write, [`Options::max_txn_ops`] of a list of operations. A watch holds
//! a few answers, and what the store's queue does as long as it is read; one that isn't reads the past at its own speed.
//!
//! It knows nothing of connections: an answer is made for a request, whoever took it.

mod auth;
mod check;
mod cluster;
mod header;
mod kv;
mod lease;
mod maintenance;
mod plain;
mod range;
mod status;
mod txn;
mod watch;

/// Messages and clients of the API, for who speaks it without a [`crate::Store`] between.
pub use crate::etcd::wire::{etcdserverpb as pb, mvccpb};
use crate::{Revision, Transact};
use bytes::Bytes;
use header::Member;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
pub use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt;

/// The etcd whose answers these are held to.
pub const VERSION: &str = "3.7.3";
/// As etcd writes what a cluster and a file are of.
const CLUSTER_VERSION: &str = "3.7.0";

/// Snapshots on their way at once: each has a thread, and a file as large as the store, for as long as its client takes to read it.
const SNAPSHOTS: usize = 4;

/// What a message may be longer than a write, for what is around it.
const MESSAGE_OVERHEAD: usize = 512 << 10;

#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    pub client_urls: Vec<String>,
    pub peer_urls: Vec<String>,
    /// Of a write.
    pub max_request_bytes: usize,
    /// Compares, and operations of either outcome, of a transaction.
    pub max_txn_ops: usize,
    /// How often a watch that wants to know is told how far it is.
    pub progress_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            name: "default".into(),
            client_urls: Vec::new(),
            peer_urls: Vec::new(),
            max_request_bytes: 3 << 19,
            max_txn_ops: 128,
            progress_interval: Duration::from_secs(600),
        }
    }
}

/// Answers requests, of gRPC and the few plain ones that etcd has beside it.
#[derive(Clone)]
pub struct Api {
    routes: Routes,
    server: Server,
}

/// What all services share.
#[derive(Clone)]
struct Server(Arc<Inner>);

struct Inner {
    store: Arc<dyn Transact>,
    options: Options,
    member: Member,
    /// Snapshots that may still be begun.
    snapshots: Arc<Semaphore>,
}

impl std::ops::Deref for Server {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Api {
    pub fn new(store: Arc<dyn Transact>, options: Options) -> Api {
        let most = options.max_request_bytes.saturating_add(MESSAGE_OVERHEAD);
        let member = Member::of(&options, store.place());
        let server = Server(Arc::new(Inner {
            store,
            options,
            member,
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS)),
        }));
        let kv = pb::kv_server::KvServer::new(server.clone()).max_decoding_message_size(most);
        let watch = pb::watch_server::WatchServer::new(server.clone()).max_decoding_message_size(most);
        let routes = Routes::new(kv)
            .add_service(watch)
            .add_service(pb::lease_server::LeaseServer::new(server.clone()))
            .add_service(pb::maintenance_server::MaintenanceServer::new(server.clone()))
            .add_service(pb::cluster_server::ClusterServer::new(server.clone()))
            .add_service(pb::auth_server::AuthServer::new(server.clone()));
        Api {
            routes: routes.prepare(),
            server,
        }
    }

    pub async fn answer<B>(&self, request: http::Request<B>) -> http::Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if let Some(answer) = plain::answer(&self.server, request.method(), request.uri().path()).await {
            return answer;
        }
        if !plain::is_grpc(&request) {
            return plain::not_found();
        }
        let request = request.map(Body::new);
        match self.routes.clone().oneshot(request).await {
            Ok(answer) => status::too_long(answer),
            Err(never) => match never {},
        }
    }
}

impl Api {
    /// Only what isn't gRPC.
    pub async fn answer_plain<B>(&self, request: &http::Request<B>) -> http::Response<Body> {
        let answer = plain::answer(&self.server, request.method(), request.uri().path()).await;
        answer.unwrap_or_else(plain::not_found)
    }
}

/// To whoever isn't let in.
pub fn unknown_client() -> http::Response<Body> {
    tonic::Status::unauthenticated("keelson: a client certificate of etcd's authority is needed").into_http()
}

impl Inner {
    fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        Some(self.member.header(revision))
    }

    async fn header_now(&self) -> Result<Option<pb::ResponseHeader>, tonic::Status> {
        let now = self.store.current_revision().await.map_err(status::of)?;
        Ok(self.header(now))
    }
}

#[cfg(test)]
mod tests;
