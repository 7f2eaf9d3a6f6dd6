//! The API server: made, served, and ended. Alone it takes kube-apiserver's options.

mod options;

pub use options::{Options, main};

use anyhow::Context;
use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{ApiServer, Config};
use keelson_store::Store;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;

/// An API server that listens.
pub struct Api {
    pub server: Arc<ApiServer>,
    listening: CancellationToken,
    ended: Mutex<oneshot::Receiver<anyhow::Error>>,
}

/// The port, before anything is made: it is what most often is taken. `option` says it.
pub async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("the API cannot listen on {address}: another program has the port (ss -ltnp); stop it, or give another {option}")
    })
}

impl Api {
    /// Listens from now on; whether what is asked can be answered yet, [`ApiServer::ready`] and `/readyz` say.
    pub fn start(
        config: Config,
        store: Arc<dyn Store>,
        cert: Arc<ServingCert>,
        socket: TcpListener,
    ) -> anyhow::Result<Api> {
        let server = Arc::new(ApiServer::new(config, store)?);
        let listening = CancellationToken::new();
        let (tell, ended) = oneshot::channel();
        let (serving, stop) = (server.clone(), listening.clone());
        tokio::spawn(async move {
            if let Err(error) = serving.serve(socket, cert, stop).await {
                // Nobody listens any more when the server is stopping.
                let _ = tell.send(error);
            }
        });
        Ok(Api {
            server,
            listening,
            ended: Mutex::new(ended),
        })
    }

    /// Resolves when it can't go on.
    pub async fn failed(&self) -> anyhow::Error {
        match (&mut *self.ended.lock().await).await {
            Ok(error) => error,
            Err(_) => anyhow::anyhow!("the API's listener ended"),
        }
    }

    /// Clients are sent elsewhere before, by [`ApiServer::leave`]; the store is closed after this.
    pub fn stop(self) {
        self.listening.cancel();
        self.server.shutdown();
    }
}
