//! What every stage of the server shares.

use crate::admission::Configured;
use crate::aggregation::Services;
use crate::audit::Audit;
use crate::authn::impersonation::Impersonation;
use crate::authn::revoked::Revocations;
use crate::authn::tokens::ServiceAccountTokens;
use crate::authn::vouched::Vouched;
use crate::authn::{Authenticator, TokenAuthenticator, TokenIssuer};
use crate::authz::Authorizers;
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::chain;
use crate::config::Config;
use crate::connect::KubeletClient;
use crate::discovery::Discovery;
use crate::flow::FlowControl;
use crate::health::{Health, Hooks};
use crate::metrics::Metrics;
use crate::openapi::OpenApi;
use crate::request::{Intake, Request, Response};
use crate::serve::{Handle, Loopback};
use crate::sync::Following;
use futures::future::BoxFuture;
use keelson_registry::{Admission, Engine, ResourceTable};
use keelson_zpages::Pages;
use parking_lot::RwLock;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Handed to handlers with each request.
pub struct ServerState {
    pub config: Config,
    /// What it follows of its own resources.
    pub sync: Arc<Following>,
    pub engine: Arc<Engine>,
    pub table: Arc<ResourceTable>,
    pub admission: Arc<dyn Admission>,
    /// The webhooks and policies among it.
    pub configured: Arc<Configured>,
    pub authorizer: Arc<Authorizers>,
    pub token_authenticator: Arc<dyn TokenAuthenticator>,
    pub token_issuer: Arc<dyn TokenIssuer>,
    /// The server's calls to itself.
    pub loopback: Loopback,
    pub authenticator: Arc<Authenticator>,
    pub impersonation: Impersonation,
    pub revocations: Arc<Revocations>,
    /// Whose certificates are good, and who is connected by them.
    pub vouched: Arc<Vouched>,
    pub tokens: Arc<ServiceAccountTokens>,
    pub rbac: Arc<Rbac>,
    pub node_authorizer: Arc<NodeAuthorizer>,
    pub flow: Arc<FlowControl>,
    /// What bodies hold on their way in.
    pub intake: Arc<Intake>,
    pub audit: Audit,
    pub metrics: Metrics,
    pub health: Health,
    /// What of the start is done.
    pub hooks: Arc<Hooks>,
    /// Cancelled when the server takes its leave.
    pub ending: CancellationToken,
    /// `/statusz` and `/flagz`.
    pub pages: Pages,
    pub discovery: Discovery,
    pub openapi: OpenApi,
    pub services: Arc<Services>,
    pub kubelet: KubeletClient,
    /// Certificate and key by which this server is known to extension servers.
    pub front_proxy_client: RwLock<Option<(String, String)>>,
    /// For `https:` proxies to pods and services.
    pub proxy_tls: Arc<rustls::ClientConfig>,
}

impl ServerState {
    pub fn front_proxy_identity(&self) -> Option<(String, String)> {
        self.front_proxy_client.read().clone()
    }
}

impl Handle for ServerState {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        Box::pin(async move { chain::run(&self, request).await })
    }
}
