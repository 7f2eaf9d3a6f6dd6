//! Where clients come from.

use crate::kubeconfig::{Loaded, load};
use bytes::Bytes;
use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::Path;
use tower::{BoxError, Service};

/// Gives each component, and each controller, a client that acts under its own name.
pub trait ClientFactory: Send + Sync + 'static {
    /// A client that acts as `identity`, for example `system:serviceaccount:kube-system:job-controller`.
    fn client(&self, identity: &str) -> kube::Client;
}

/// A client whose transport is the given service: no socket, no TLS. Must be called within a tokio runtime.
///
/// `body` turns the client's request body into the service's own (`|b| b` if it takes any).
pub fn in_process<S, ReqBody, ResBody>(service: S, default_namespace: &str, body: fn(Body) -> ReqBody) -> kube::Client
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    ReqBody: 'static,
    ResBody: http_body::Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    let service = tower::util::MapRequest::new(service, move |request: Request<Body>| request.map(body));
    kube::Client::new(service, default_namespace)
}

/// `host:port` of the API server that a kubeconfig names.
pub async fn host(path: &Path) -> anyhow::Result<String> {
    let config = load(path, None).await?.now();
    let host = config.cluster_url.authority().map(|a| a.as_str().to_owned());
    Ok(host.unwrap_or_default())
}

/// A client from a kubeconfig file: client certificate or token, TLS by rustls with ring. Files that it names are followed.
pub async fn from_kubeconfig(path: &Path, context: Option<&str>) -> anyhow::Result<kube::Client> {
    load(path, context).await?.client(|_| {})
}

/// Clients from one kubeconfig file: the same for every identity, or acting as each.
pub struct KubeconfigFactory {
    default: kube::Client,
    /// By which clients that act as somebody are made, if they are.
    loaded: Option<Loaded>,
    made: Mutex<HashMap<String, kube::Client>>,
}

impl KubeconfigFactory {
    /// Whoever asks acts as the file's user.
    pub async fn new(path: &Path) -> anyhow::Result<Self> {
        let default = from_kubeconfig(path, None).await?;
        Ok(KubeconfigFactory {
            default,
            loaded: None,
            made: Mutex::default(),
        })
    }

    /// Each acts under its own name, by impersonation, which the file's user must be allowed.
    pub async fn impersonating(path: &Path) -> anyhow::Result<Self> {
        let loaded = load(path, None).await?;
        Ok(KubeconfigFactory {
            default: loaded.client(|_| {})?,
            loaded: Some(loaded),
            made: Mutex::default(),
        })
    }
}

impl ClientFactory for KubeconfigFactory {
    fn client(&self, identity: &str) -> kube::Client {
        let Some(loaded) = &self.loaded else {
            return self.default.clone();
        };
        let mut made = self.made.lock();
        if let Some(client) = made.get(identity) {
            return client.clone();
        }
        let who = identity.to_string();
        let acting = move |config: &mut kube::Config| config.auth_info.impersonate = Some(who.clone());
        match loaded.client(acting) {
            Ok(client) => made.entry(identity.to_string()).or_insert(client).clone(),
            Err(error) => {
                // The same file made a client before; without one of its own the component acts as the file's user.
                tracing::error!(identity, %error, "no client can be made for this identity");
                self.default.clone()
            }
        }
    }
}

/// One client for every identity.
impl ClientFactory for kube::Client {
    fn client(&self, _identity: &str) -> kube::Client {
        self.clone()
    }
}
