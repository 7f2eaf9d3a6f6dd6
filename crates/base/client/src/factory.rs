//! Where clients come from.

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{Request, Response};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
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

/// A client from a kubeconfig file: client certificate or token, TLS by rustls with ring.
pub async fn from_kubeconfig(path: &Path, context: Option<&str>) -> anyhow::Result<kube::Client> {
    let config = load(path, context, None).await?;
    build(config, path)
}

async fn load(path: &Path, context: Option<&str>, impersonate: Option<&str>) -> anyhow::Result<kube::Config> {
    let file = Kubeconfig::read_from(path).with_context(|| {
        format!(
            "reading the kubeconfig {} (it names the server and the credentials)",
            path.display()
        )
    })?;
    let options = KubeConfigOptions {
        context: context.map(Into::into),
        ..Default::default()
    };
    let mut config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .with_context(|| format!("the kubeconfig {} can't be used", path.display()))?;
    if let Some(user) = impersonate {
        config.auth_info.impersonate = Some(user.to_string());
    }
    // Watches stay silent for minutes; a dead peer is found by the watch's own time limit.
    config.read_timeout = None;
    Ok(config)
}

fn build(config: kube::Config, path: &Path) -> anyhow::Result<kube::Client> {
    kube::Client::try_from(config).with_context(|| format!("building a client from {}", path.display()))
}

/// Clients from kubeconfig files: one for everyone, or a file of its own for an identity.
pub struct KubeconfigFactory {
    default: kube::Client,
    own: HashMap<String, kube::Client>,
}

impl KubeconfigFactory {
    pub async fn new(path: &Path) -> anyhow::Result<Self> {
        Ok(KubeconfigFactory {
            default: from_kubeconfig(path, None).await?,
            own: HashMap::new(),
        })
    }

    /// Uses another file for one identity.
    pub async fn with(mut self, identity: &str, path: PathBuf) -> anyhow::Result<Self> {
        self.own
            .insert(identity.to_string(), from_kubeconfig(&path, None).await?);
        Ok(self)
    }

    /// Acts as each of `identities` by impersonation, with the file's own credentials.
    pub async fn impersonating(path: &Path, identities: &[&str]) -> anyhow::Result<Self> {
        let mut factory = Self::new(path).await?;
        for identity in identities {
            let client = build(load(path, None, Some(identity)).await?, path)?;
            if factory.own.insert(identity.to_string(), client).is_some() {
                return Err(anyhow!("the identity {identity} is listed twice"));
            }
        }
        Ok(factory)
    }
}

impl ClientFactory for KubeconfigFactory {
    fn client(&self, identity: &str) -> kube::Client {
        self.own.get(identity).unwrap_or(&self.default).clone()
    }
}

/// One client for every identity.
impl ClientFactory for kube::Client {
    fn client(&self, _identity: &str) -> kube::Client {
        self.clone()
    }
}
