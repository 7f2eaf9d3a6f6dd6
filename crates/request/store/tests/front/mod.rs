//! Our server of etcd's API on loopback, for as long as this is held.

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use keelson_store::Transact;
use keelson_store::serve::{Api, Options};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

pub struct Front {
    pub url: String,
    listening: tokio::task::JoinHandle<()>,
}

impl Front {
    pub async fn of(store: Arc<dyn Transact>) -> Front {
        // The contract has a value of three megabytes, and nobody waits ten minutes for progress.
        let options = Options {
            max_request_bytes: 8 << 20,
            progress_interval: Duration::from_millis(200),
            ..Options::default()
        };
        let api = Api::new(store, options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let listening = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let api = api.clone();
                let service = tower::service_fn(move |request| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(api.answer(request).await) }
                });
                connections.spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let service = TowerToHyperService::new(service);
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Front { url, listening }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
