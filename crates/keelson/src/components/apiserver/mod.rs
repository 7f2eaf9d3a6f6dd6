//! The API server: made, served, and ended. Alone it takes kube-apiserver's options.

mod options;
mod serving;

pub use options::{Options, main};

use anyhow::Context;
use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{ApiServer, Config};
use keelson_store::Store;
use keelson_sys::handed;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An API server that listens.
pub struct Api {
    pub server: Arc<ApiServer>,
    listening: CancellationToken,
    ended: Mutex<oneshot::Receiver<anyhow::Error>>,
    task: JoinHandle<()>,
}

/// By which name the API's socket is handed to the next process.
const SOCKET: &str = "api";
/// How long those who wait at a socket that was handed over wait at most for the API to be ready. Then they are told that it isn't.
const READY: Duration = Duration::from_secs(10);

/// A port that is listened on.
pub struct Socket {
    listener: TcpListener,
    /// Clients wait at it already, who were served a moment ago.
    handed: bool,
}

/// The port, before anything is made: it is what most often is taken. `option` says it.
pub async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<Socket> {
    if let Some(listener) = handed::listener(SOCKET, address) {
        let listener = TcpListener::from_std(listener).context("the API's socket")?;
        return Ok(Socket { listener, handed: true });
    }
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("the API cannot listen on {address}: another program has the port (ss -ltnp); stop it, or give another {option}")
    })?;
    if let Err(error) = handed::keep(SOCKET, listener.as_fd()) {
        tracing::warn!(%error, "the API's socket isn't kept over a restart");
    }
    Ok(Socket {
        listener,
        handed: false,
    })
}

impl Socket {
    /// Which it is, where any was asked for.
    pub fn port(&self) -> anyhow::Result<u16> {
        Ok(self.listener.local_addr().context("the API's socket")?.port())
    }
}

impl Api {
    /// Listens from now on; whether what is asked can be answered yet, [`ApiServer::ready`] and `/readyz` say.
    pub fn start(config: Config, store: Arc<dyn Store>, cert: Arc<ServingCert>, socket: Socket) -> anyhow::Result<Api> {
        let server = Arc::new(ApiServer::new(config, store)?);
        let listening = CancellationToken::new();
        let (tell, ended) = oneshot::channel();
        let (serving, stop) = (server.clone(), listening.clone());
        let task = tokio::spawn(async move {
            if socket.handed {
                tokio::select! {
                    () = serving.ready() => {}
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(READY) => {
                        tracing::warn!("the API isn't ready after {READY:?}; who waits is told so");
                    }
                }
            }
            if let Err(error) = serving.serve(socket.listener, cert, stop).await {
                // Nobody listens any more when the server is stopping.
                let _ = tell.send(error);
            }
        });
        Ok(Api {
            server,
            listening,
            ended: Mutex::new(ended),
            task,
        })
    }

    /// Resolves when it can't go on.
    pub async fn failed(&self) -> anyhow::Error {
        match (&mut *self.ended.lock().await).await {
            Ok(error) => error,
            Err(_) => anyhow::anyhow!("the API's listener ended"),
        }
    }

    /// Clients are sent elsewhere before, by [`ApiServer::leave`]; the store is closed after this. Requests that are open are answered,
    /// within the time that the listener has for that.
    pub async fn stop(self) {
        self.listening.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the API's listener ended otherwise than it should");
        }
        // Only now: what is answered is read from caches, which follow the store until then.
        self.server.shutdown();
        self.server.state().config.tracer.clone().end().await;
    }
}
