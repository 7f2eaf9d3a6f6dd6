//! Exec, attach and port-forward.
//!
//! The kubelet and the API server pass upgraded connections straight through, so this is the only place that knows the
//! protocols clients speak: SPDY/3.1 and WebSocket, and one of our own for [`datagrams`]. A CRI call yields an address with a token that works once, for a
//! minute; whoever has it may connect, so the server listens on loopback only. The other side, for commands on the node and any runtime's
//! streams, is [`client`].

mod channel;
pub mod client;
mod command;
pub mod datagrams;
mod forward;
mod negotiate;
mod spdy;
mod sync;
mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming as RequestBody;
use hyper_util::rt::TokioIo;
use keelson_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::Status;

pub use sync::exec_sync;

use crate::runtime::Inner;
use negotiate::{Carrier, Offer};
use websocket::Encoding;

/// How long a token works, and how many may wait; both as upstream.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const MAX_TOKENS: usize = 1000;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 2000;
/// How long a client may take to open all the streams it needs.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What a token stands for.
#[derive(Clone, Debug)]
enum Job {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

type Tokens = Arc<Mutex<HashMap<String, (Job, Instant)>>>;

/// The server, and what its tokens stand for.
pub struct Streaming {
    address: SocketAddr,
    listener: Mutex<Option<TcpListener>>,
    tokens: Tokens,
}

impl Streaming {
    pub async fn bind(address: SocketAddr) -> std::io::Result<Streaming> {
        if !address.ip().is_loopback() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "exec, attach and port-forward are served on loopback only",
            ));
        }
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Streaming {
            address,
            listener: Mutex::new(Some(listener)),
            tokens: Tokens::default(),
        })
    }

    /// Serves until the runtime is gone.
    pub fn serve(&self, runtime: Weak<Inner>) {
        let Some(listener) = self.listener.lock().take() else {
            return;
        };
        let tokens = self.tokens.clone();
        let room = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        tokio::spawn(async move {
            loop {
                let Ok(permit) = room.clone().acquire_owned().await else {
                    return;
                };
                let connection = match listener.accept().await {
                    Ok((connection, _)) => connection,
                    Err(error) => {
                        tracing::warn!(%error, "streaming connection not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                if runtime.strong_count() == 0 {
                    return;
                }
                let (runtime, tokens) = (runtime.clone(), tokens.clone());
                tokio::spawn(async move {
                    let permit = Arc::new(permit);
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answer(runtime.upgrade(), &tokens, request, permit.clone());
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .timer(hyper_util::rt::TokioTimer::new())
                        .header_read_timeout(Duration::from_secs(30))
                        .serve_connection(TokioIo::new(connection), service)
                        .with_upgrades()
                        .await;
                    if let Err(error) = served {
                        tracing::debug!(%error, "streaming connection");
                    }
                });
            }
        });
    }

    pub fn exec(&self, request: ExecRequest) -> Result<String, Status> {
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        some_stream(request.stdin, request.stdout, request.stderr)?;
        self.address_for("exec", Job::Exec(request))
    }

    pub fn attach(&self, request: AttachRequest) -> Result<String, Status> {
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        some_stream(request.stdin, request.stdout, request.stderr)?;
        self.address_for("attach", Job::Attach(request))
    }

    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, Status> {
        self.address_for("portforward", Job::PortForward(request))
    }

    fn address_for(&self, kind: &str, job: Job) -> Result<String, Status> {
        let mut tokens = self.tokens.lock();
        let now = Instant::now();
        tokens.retain(|_, (_, since)| now.duration_since(*since) < TOKEN_LIFE);
        if tokens.len() >= MAX_TOKENS {
            return Err(Status::resource_exhausted(
                "maximum number of in-flight requests exceeded",
            ));
        }
        let token = hex::encode(rand::random::<[u8; 16]>());
        tokens.insert(token.clone(), (job, now));
        Ok(format!("http://{}/{kind}/{token}", self.address))
    }
}

fn some_stream(stdin: bool, stdout: bool, stderr: bool) -> Result<(), Status> {
    if stdin || stdout || stderr {
        return Ok(());
    }
    Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"))
}

type Answer = http::Response<Full<Bytes>>;

fn plain(status: http::StatusCode, text: &str) -> Answer {
    let mut answer = Answer::new(Full::from(format!("{text}\n")));
    *answer.status_mut() = status;
    answer
}

/// Spends the token and takes over the connection.
fn answer(
    runtime: Option<Arc<Inner>>,
    tokens: &Tokens,
    mut request: http::Request<RequestBody>,
    permit: Arc<tokio::sync::OwnedSemaphorePermit>,
) -> Answer {
    let Some(runtime) = runtime else {
        return plain(http::StatusCode::SERVICE_UNAVAILABLE, "the runtime is stopping");
    };
    let token = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let job = match tokens.lock().remove(&token) {
        Some((job, since)) if since.elapsed() < TOKEN_LIFE => job,
        _ => return plain(http::StatusCode::NOT_FOUND, "invalid or expired token"),
    };
    let offer = match job {
        Job::PortForward(_) => Offer::of_port_forward(request.headers()),
        _ => Offer::of_command(request.headers()),
    };
    let offer = match offer {
        Ok(offer) => offer,
        Err((status, why)) => return plain(status, &why),
    };
    let response = offer.response();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _permit = permit;
        match upgrade.await {
            Ok(connection) => run(runtime, job, offer.carrier, TokioIo::new(connection)).await,
            Err(error) => tracing::debug!(%error, "connection not upgraded"),
        }
    });
    response
}

async fn run(runtime: Arc<Inner>, job: Job, carrier: Carrier, io: TokioIo<hyper::upgrade::Upgraded>) {
    match job {
        Job::Exec(request) => {
            let wanted = [request.stdin, request.stdout, request.stderr];
            if let Some(streams) = negotiate::open(carrier, io, wanted, request.tty, OPEN_TIMEOUT).await {
                command::exec(&runtime, request, streams).await;
            }
        }
        Job::Attach(request) => {
            let wanted = [request.stdin, request.stdout, request.stderr];
            if let Some(streams) = negotiate::open(carrier, io, wanted, request.tty, OPEN_TIMEOUT).await {
                command::attach(&runtime, request, streams).await;
            }
        }
        Job::PortForward(request) => match carrier {
            Carrier::Spdy { .. } => forward::spdy(runtime, request.pod_sandbox_id, spdy::serve(io)).await,
            Carrier::Tunnel => {
                let io = websocket::tunnel(io).await;
                forward::spdy(runtime, request.pod_sandbox_id, spdy::serve(io)).await;
            }
            Carrier::WebSocket { encoding, .. } => {
                let channels = websocket::channels(io, 2 * request.port.len(), encoding).await;
                forward::websocket(runtime, request.pod_sandbox_id, request.port, channels, forward::stream).await;
            }
            Carrier::Datagrams => {
                let channels = websocket::channels(io, 2 * request.port.len(), Encoding::Binary).await;
                forward::websocket(
                    runtime,
                    request.pod_sandbox_id,
                    request.port,
                    channels,
                    datagrams::forward,
                )
                .await;
            }
        },
    }
}
