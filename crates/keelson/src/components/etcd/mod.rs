//! The store alone, as etcd: its API on addresses of its own, beside a server or as a program under etcd's name and flags.
//!
//! Whoever is let in may read and change everything, so beside a server only who shows a certificate of etcd's authority is; alone
//! the flags say who, as etcd's do.

pub mod beside;
mod options;

pub use options::{Options, main};

use crate::supervise::Supervisor;
use anyhow::Context;
use hyper::body::Incoming;
use keelson_apiserver::serve::tls::{ServingCert, server_config};
use keelson_listen::{Limits, Server};
use keelson_pki::verify::tls::Heeded;
use keelson_pki::verify::{self, Live};
use keelson_store::serve::{self, Api, Body};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What is answered at an address, and to whom.
#[derive(Clone)]
pub struct Front {
    api: Api,
    /// Only who shows a certificate of these.
    clients: Option<Live>,
    /// Only whether the store is well.
    health_only: bool,
}

impl Front {
    pub fn new(api: Api, clients: Option<Live>) -> Front {
        Front {
            api,
            clients,
            health_only: false,
        }
    }
    pub fn of_health(api: Api) -> Front {
        Front {
            health_only: true,
            ..Front::new(api, None)
        }
    }
}

/// Who is connected.
pub struct Client {
    /// Whether it is let in.
    known: bool,
    /// The connection ends when nobody vouches for its certificate any more.
    _heeded: Option<Heeded>,
}

impl Server for Front {
    type Peer = Client;
    type Body = Body;

    fn connected(
        &self,
        _: SocketAddr,
        certificates: Option<&[CertificateDer<'_>]>,
        ended: &CancellationToken,
    ) -> Client {
        let Some(roots) = &self.clients else {
            return Client {
                known: true,
                _heeded: None,
            };
        };
        let good = certificates.filter(|chain| verify::tls::client(chain, &roots.now()).is_ok());
        let heeded = good.map(|chain| {
            let ended = ended.clone();
            verify::tls::heed(chain, roots, move || ended.cancel())
        });
        Client {
            known: heeded.is_some(),
            _heeded: heeded,
        }
    }

    async fn answer(&self, peer: &Arc<Client>, request: http::Request<Incoming>) -> http::Response<Body> {
        if !peer.known {
            return serve::unknown_client();
        }
        match self.health_only {
            true => self.api.answer_plain(&request).await,
            false => self.api.answer(request).await,
        }
    }
}

/// A client holds few connections, and many watches on each. What it has asked for and doesn't read is as large as the store, or a
/// snapshot's thread and file: it is kept for a while, not for ever.
fn limits() -> Limits {
    Limits {
        connections: 1024,
        streams: 10_000,
        unread: Some(Duration::from_secs(300)),
        drain: Duration::from_secs(1),
        ..Limits::default()
    }
}

/// Listens from now on, or says why not. `option` names the address.
pub async fn listen(
    components: &mut Supervisor,
    name: &'static str,
    addresses: &[SocketAddr],
    tls: Option<Arc<ServingCert>>,
    front: Front,
    option: &str,
) -> anyhow::Result<()> {
    for address in addresses {
        let address = *address;
        let bind = move || async move { TcpListener::bind(super::front::everywhere(address)).await };
        let first = bind().await.with_context(|| {
            format!("etcd's API cannot listen on {address}: is the port taken (ss -ltnp)? Give another {option}")
        })?;
        let first = Arc::new(parking_lot::Mutex::new(Some(first)));
        let (front, tls) = (Arc::new(front.clone()), tls.clone());
        components.spawn(name, move |stop| {
            let (first, front, tls) = (first.clone(), front.clone(), tls.clone());
            async move {
                let kept = first.lock().take();
                let socket = match kept {
                    Some(socket) => socket,
                    None => bind().await?,
                };
                match tls {
                    Some(cert) => {
                        let hints = front.clients.as_ref().map(Live::now).unwrap_or_default();
                        let tls = server_config(cert, &hints)?;
                        keelson_listen::run(socket, tls, front, limits(), stop).await
                    }
                    None => keelson_listen::run_plain(socket, front, limits(), stop).await,
                }
            }
        });
    }
    Ok(())
}
