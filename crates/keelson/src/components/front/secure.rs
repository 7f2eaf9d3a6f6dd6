//! By TLS, for whom the API server knows and lets: health for everybody, the rest for who may `get` the path.
//!
//! Client certificates count if `--client-ca-file` vouches for them, or else who the cluster's ConfigMap
//! `kube-system/extension-apiserver-authentication` names; tokens are reviewed by the API server.

use super::tls::{TlsOptions, followed, text as pem};
use super::{Front, Reply, reply, text};
use crate::supervise::Supervisor;
use anyhow::Context;
use clap::Args;
use http::StatusCode;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use k8s_openapi::api::core::v1::ConfigMap;
use keelson_apiserver::serve::tls::ServingCert;
use keelson_client::reviews::{Remember, Reviews, Shown, User};
use keelson_client::{Informer, InformerOptions, Rest, from_kubeconfig};
use keelson_pki::authority::{Authority, CertSpec};
use keelson_pki::verify::{self, Roots};
use keelson_pki::{San, files};
use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const CONFIG_MAP: &str = "extension-apiserver-authentication";

#[derive(Args, Clone, Debug)]
#[group(id = "secure")]
pub struct Options {
    /// Address on which health and metrics are served; 0.0.0.0 or ::, all of both families
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind_address: IpAddr,
    /// Port on which they are served; 0: they aren't [default: 10257 for controllers, 10259 for the scheduler]
    #[arg(long, value_name = "PORT")]
    secure_port: Option<u16>,
    /// Certificate by which this server is known [default: one that nobody vouches for, made anew at each start]
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Authorities of client certificates [default: those that the cluster names]
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Who asks the API server about tokens [default: --kubeconfig]
    #[arg(long, value_name = "FILE")]
    authentication_kubeconfig: Option<PathBuf>,
    /// Who asks the API server what is allowed [default: --kubeconfig]
    #[arg(long, value_name = "FILE")]
    authorization_kubeconfig: Option<PathBuf>,
    /// Paths that are open to everybody; with * at the end all that begin so
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "/healthz,/readyz,/livez"
    )]
    authorization_always_allow_paths: Vec<String>,
    #[command(flatten)]
    tls: TlsOptions,
}

impl Options {
    /// Listens from now on, or says why not.
    pub async fn start(
        &self,
        components: &mut Supervisor,
        kubeconfig: &Path,
        port: u16,
        front: Front,
    ) -> anyhow::Result<()> {
        let address = SocketAddr::new(self.bind_address, self.secure_port.unwrap_or(port));
        if address.port() == 0 {
            return Ok(());
        }
        let rest = async |given: &Option<PathBuf>| {
            let client = from_kubeconfig(given.as_deref().unwrap_or(kubeconfig), None).await?;
            anyhow::Ok(Rest::new(client, "keelson"))
        };
        let authentication = rest(&self.authentication_kubeconfig)
            .await
            .context("--authentication-kubeconfig")?;
        let authorization = rest(&self.authorization_kubeconfig)
            .await
            .context("--authorization-kubeconfig")?;
        let known = match &self.client_ca_file {
            Some(file) => roots(&read(file)?).with_context(|| format!("--client-ca-file {}", file.display()))?,
            None => Roots::default(),
        };
        let server = Arc::new(Server {
            front,
            open: self.authorization_always_allow_paths.clone(),
            tokens: Reviews::remembering(authentication.clone(), true, Remember::SHORTLY),
            rights: Reviews::remembering(authorization, true, Remember::SHORTLY),
            authorities: RwLock::new(known),
        });
        let (cert, offer) = (self.certificate(address.ip())?, self.tls.offer()?);
        let own = self.tls_cert_file.clone().zip(self.tls_private_key_file.clone());
        self.tls.follow(components, own.map(Into::into), &cert);
        let address = super::everywhere(address);
        let listen = move || async move {
            let bound = TcpListener::bind(address).await;
            bound.with_context(|| format!("cannot listen on {address}: is the port taken? Give another --secure-port"))
        };
        let first = Arc::new(parking_lot::Mutex::new(Some(listen().await?)));
        let serving = server.clone();
        components.spawn("secure-serving", move |stop| {
            let (first, server, cert, offer) = (first.clone(), serving.clone(), cert.clone(), offer.clone());
            async move {
                let kept = first.lock().take();
                let socket = match kept {
                    Some(socket) => socket,
                    None => listen().await?,
                };
                let tls = offer.config(cert, &Roots::default())?;
                keelson_listen::run(socket, tls, server, limits(), stop).await
            }
        });
        const NAME: &str = "client-authorities";
        match &self.client_ca_file {
            Some(file) => followed(components, NAME, vec![file.clone()], move |found| {
                *server.authorities.write() = roots(pem(&found[0])?)?;
                Ok(())
            }),
            None => components.spawn(NAME, move |stop| {
                let server = server.clone();
                let take = move |roots| *server.authorities.write() = roots;
                follow_authorities(authentication.clone(), take, stop)
            }),
        }
        Ok(())
    }

    fn certificate(&self, address: IpAddr) -> anyhow::Result<Arc<ServingCert>> {
        if let (Some(cert), Some(key)) = (&self.tls_cert_file, &self.tls_private_key_file) {
            let own = self.tls.certificate(&read(cert)?, &read(key)?);
            return own.context("--tls-cert-file, --tls-private-key-file");
        }
        let host = crate::config::host_name()?;
        let sans = vec![San::Dns(host.clone()), San::Dns("localhost".into()), San::Ip(address)];
        let own = Authority::generate(&format!("{host}-ca"))?.issue(&CertSpec::server(&host, sans))?;
        self.tls.certificate(&own.cert_pem, &own.key_pem)
    }
}

fn limits() -> keelson_listen::Limits {
    keelson_listen::Limits {
        connections: 256,
        answer: Some(Duration::from_secs(30)),
        drain: Duration::ZERO,
        ..keelson_listen::Limits::default()
    }
}

pub fn read(file: &Path) -> anyhow::Result<String> {
    files::read(file)?.with_context(|| format!("there is no file {}", file.display()))
}

pub fn roots(pem: &str) -> anyhow::Result<Roots> {
    keelson_apiserver::serve::tls::roots(pem)
}

/// Takes the authorities that the cluster names, and what it names later.
pub async fn follow_authorities(
    rest: Rest,
    take: impl Fn(Roots) + Send + Sync + 'static,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let options = InformerOptions {
        namespace: "kube-system".into(),
        fields: format!("metadata.name={CONFIG_MAP}"),
        ..InformerOptions::default()
    };
    let maps: Informer<ConfigMap> = Informer::start(&rest, options, &stop);
    maps.on_change(move |change| {
        let data = change.object().data.as_ref();
        let Some(pem) = data.and_then(|data| data.get("client-ca-file")) else {
            return;
        };
        match roots(pem) {
            Ok(found) => take(found),
            Err(error) => tracing::warn!("the authorities that {CONFIG_MAP} names can't be read: {error:#}"),
        }
    });
    stop.cancelled().await;
    Ok(())
}

struct Server {
    front: Front,
    open: Vec<String>,
    tokens: Reviews,
    rights: Reviews,
    authorities: RwLock<Roots>,
}

impl keelson_listen::Server for Server {
    type Peer = Option<Shown>;
    type Body = Full<Bytes>;

    fn connected(
        &self,
        _: SocketAddr,
        certificates: Option<&[CertificateDer<'_>]>,
        ended: &CancellationToken,
    ) -> Self::Peer {
        let cert = verify::tls::client(certificates?, &self.authorities.read()).ok();
        Some(Shown::new(cert, None, ended))
    }

    async fn answer(&self, peer: &Arc<Self::Peer>, request: http::Request<Incoming>) -> Reply {
        let path = request.uri().path();
        if !is_open(&self.open, path) {
            let who = self
                .tokens
                .authenticate(peer.as_ref().as_ref(), request.headers())
                .await;
            let user = match who {
                Ok(Some(user)) => user,
                Ok(None) => return refusal(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".into()),
                Err(error) => {
                    tracing::warn!("a request could not be authenticated: {error}");
                    return refusal(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".into());
                }
            };
            let verb = request.method().as_str().to_lowercase();
            match self.may(&user, &verb, path).await {
                Ok(true) => {}
                Ok(false) => {
                    let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
                    return refusal(StatusCode::FORBIDDEN, "Forbidden", message);
                }
                Err(error) => {
                    return text(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        format!("Internal Server Error: {error}\n"),
                    );
                }
            }
        }
        self.front.answer(request.method(), request.uri(), request.headers())
    }
}

impl Server {
    async fn may(&self, user: &User, verb: &str, path: &str) -> Result<bool, String> {
        if user.groups.iter().any(|group| group == "system:masters") {
            return Ok(true);
        }
        let attributes = json!({"nonResourceAttributes": {"path": path, "verb": verb}});
        self.rights.allowed(user, &attributes).await
    }
}

fn is_open(open: &[String], path: &str) -> bool {
    let path = path.trim_start_matches('/');
    open.iter()
        .map(|o| o.trim_start_matches('/'))
        .any(|o| match o.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == o,
        })
}

fn refusal(code: StatusCode, reason: &str, message: String) -> Reply {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16()});
    reply(code, "application/json", status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_open() {
        let open = ["/healthz".to_string(), "livez*".to_string()];
        assert!(is_open(&open, "/healthz") && is_open(&open, "/livez/ping"));
        assert!(!is_open(&open, "/metrics") && !is_open(&open, "/healthz/x"));
    }
}
