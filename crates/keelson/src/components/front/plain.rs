//! Without TLS and without questions, as upstream has it on a node's own ports. Bounds: [`CONNECTIONS`] at a time on a listener,
//! each for at most [`PATIENCE`]; one more is closed.

use super::Front;
use crate::supervise::Supervisor;
use anyhow::Context;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const CONNECTIONS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);

/// Listens from now on, or says why not. Port 0: nothing is served.
pub async fn start(
    components: &mut Supervisor,
    name: &'static str,
    address: SocketAddr,
    front: Front,
) -> anyhow::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let address = super::everywhere(address);
    let listen = move || async move {
        let bound = TcpListener::bind(address).await;
        bound.with_context(|| format!("cannot listen on {address}: is the port taken?"))
    };
    let first = Arc::new(parking_lot::Mutex::new(Some(listen().await?)));
    components.spawn(name, move |stop| {
        let (first, front) = (first.clone(), front.clone());
        async move {
            let kept = first.lock().take();
            let socket = match kept {
                Some(socket) => socket,
                None => listen().await?,
            };
            serve(socket, front, stop).await;
            Ok(())
        }
    });
    Ok(())
}

async fn serve(socket: TcpListener, front: Front, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory: a pause lets connections end.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            continue;
        };
        let front = front.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let reply = front.answer(request.method(), request.uri(), request.headers());
                async move { Ok::<_, Infallible>(reply) }
            });
            let mut served = http1::Builder::new();
            served.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let _ = tokio::time::timeout(PATIENCE, served.serve_connection(TokioIo::new(stream), answer)).await;
            drop(place);
        });
    }
}
