//! The connections to etcd's members: one to each, kept up; which of them gets the next request.
//!
//! Requests go round among the members that are connected. One that lost a request is connected to anew, and one that says
//! it can't serve (it has no leader, say) gets none for a while, unless nobody else is there. One HTTP/2 connection carries
//! everything: its window is as large as can be, so that watches which nobody reads hold back themselves only, each with at
//! most [`STREAM_WINDOW`] bytes.

use crate::{Error, Result};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use socket2::SockRef;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// Upstream's time: how long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// When a silent connection is asked whether it is alive, and for how long. Upstream's 30 s and 10 s would leave a server that long
/// with watches at a member that is cut off. etcd takes what comes more often than each 5 s for an attack.
const ALIVE_AFTER: Duration = Duration::from_secs(6);
const ALIVE_WITHIN: Duration = Duration::from_secs(3);
/// Bytes of one answer or watch that may be on their way unread.
const STREAM_WINDOW: u32 = 256 << 10;
/// The most that HTTP/2 allows.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Between attempts to connect.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(5);
/// So long a member that can't serve is left alone.
const SHUNNED: Duration = Duration::from_secs(5);

pub(super) struct Members {
    members: RwLock<Vec<Arc<Member>>>,
    tls: Option<Arc<ClientConfig>>,
    next: AtomicUsize,
    /// Counts connections made, so that who waits for one hears of it.
    connected: watch::Sender<u64>,
}

pub(super) struct Member {
    name: String,
    state: Mutex<State>,
    /// The newest connection that somebody found broken.
    broken: AtomicU64,
    lost: Notify,
    /// Ends its connection, when nobody goes to it any more.
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    /// Counts connections, so that a late report doesn't end a newer one.
    generation: u64,
    channel: Option<Channel>,
    shunned: Option<Instant>,
    /// Why there is no connection.
    trouble: String,
}

/// A member that a request may go to.
pub(super) struct Picked {
    pub channel: Channel,
    member: Arc<Member>,
    generation: u64,
}

impl Picked {
    /// The connection is of no use any more; nobody gets it from now on.
    pub fn broken(&self) {
        let mut state = self.member.state.lock();
        if state.generation == self.generation {
            state.channel = None;
            state.trouble = "the connection broke".into();
        }
        drop(state);
        self.member.broken.fetch_max(self.generation, Ordering::SeqCst);
        self.member.lost.notify_one();
    }
    /// The member answers, but can't serve.
    pub fn shun(&self) {
        self.member.state.lock().shunned = Some(Instant::now() + SHUNNED);
    }
    pub fn name(&self) -> &str {
        &self.member.name
    }
}

impl Members {
    /// Begins to connect to each. Needs a tokio runtime.
    pub fn new(endpoints: &[String], tls: Option<&Arc<ClientConfig>>) -> Result<Members> {
        if endpoints.is_empty() {
            return Err(invalid("no etcd server is named"));
        }
        let members = Members {
            members: RwLock::default(),
            tls: tls.cloned(),
            next: AtomicUsize::new(0),
            connected: watch::Sender::new(0),
        };
        members.replace(endpoints)?;
        Ok(members)
    }

    /// Goes to these from now on; connections to those that stay, stay. Needs a tokio runtime.
    pub fn replace(&self, endpoints: &[String]) -> Result<()> {
        if endpoints.is_empty() {
            return Err(invalid("no etcd server is named"));
        }
        // All are read before any is gone to.
        let places: Vec<(Place, Endpoint)> = endpoints
            .iter()
            .map(|given| {
                let place = Place::parse(given, self.tls.as_ref())?;
                let endpoint = endpoint(&place)?;
                Ok((place, endpoint))
            })
            .collect::<Result<_>>()?;
        let mut members = self.members.write();
        let before = std::mem::take(&mut *members);
        for (given, (place, endpoint)) in endpoints.iter().zip(places) {
            if let Some(known) = before.iter().find(|m| m.name == *given) {
                members.push(known.clone());
                continue;
            }
            let member = Arc::new(Member {
                name: given.clone(),
                state: Mutex::default(),
                broken: AtomicU64::new(0),
                lost: Notify::new(),
                stop: CancellationToken::new(),
            });
            members.push(member.clone());
            let connected = self.connected.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = member.stop.cancelled() => {}
                    () = keep(&member, &endpoint, place, &connected) => {}
                }
            });
        }
        for gone in before.iter().filter(|m| !endpoints.contains(&m.name)) {
            gone.stop.cancel();
        }
        Ok(())
    }

    /// A connected member, the next in turn; waits for one until then.
    pub async fn pick(&self, until: Instant) -> Result<Picked> {
        let mut connected = self.connected.subscribe();
        loop {
            connected.mark_unchanged();
            if let Some(picked) = self.connected_now() {
                return Ok(picked);
            }
            if tokio::time::timeout_at(until, connected.changed()).await.is_err() {
                return Err(Error::Unavailable { what: self.trouble() });
            }
        }
    }

    fn connected_now(&self) -> Option<Picked> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut shunned = None;
        let members = self.members.read();
        for at in 0..members.len() {
            let member = &members[(first.wrapping_add(at)) % members.len()];
            let state = member.state.lock();
            let Some(channel) = &state.channel else { continue };
            let picked = Picked {
                channel: channel.clone(),
                member: member.clone(),
                generation: state.generation,
            };
            if state.shunned.is_none_or(|until| until <= now) {
                return Some(picked);
            }
            shunned = shunned.or(Some(picked));
        }
        shunned
    }

    fn trouble(&self) -> String {
        let of = |member: &Arc<Member>| match member.state.lock().trouble.as_str() {
            "" => format!("{}: it hasn't answered yet", member.name),
            trouble => format!("{}: {trouble}", member.name),
        };
        let each: Vec<String> = self.members.read().iter().map(of).collect();
        format!("no etcd server is connected ({})", each.join("; "))
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.members.read().iter().for_each(|member| member.stop.cancel());
    }
}

/// Keeps a member connected for as long as it is polled.
async fn keep(member: &Member, endpoint: &Endpoint, place: Place, connected: &watch::Sender<u64>) {
    let place = Arc::new(place);
    let mut pause = LEAST_PAUSE;
    loop {
        let place = place.clone();
        let connector = tower::service_fn(move |_: Uri| place.clone().connect());
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => {
                let generation = {
                    let mut state = member.state.lock();
                    state.generation += 1;
                    state.channel = Some(channel);
                    state.generation
                };
                connected.send_modify(|count| *count += 1);
                pause = LEAST_PAUSE;
                while member.broken.load(Ordering::SeqCst) < generation {
                    member.lost.notified().await;
                }
            }
            Err(error) => {
                let text = chain(&error);
                let before = std::mem::replace(&mut member.state.lock().trouble, text.clone());
                if before != text {
                    tracing::warn!(
                        member = member.name,
                        error = text,
                        "etcd can't be reached; trying again"
                    );
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MOST_PAUSE);
            }
        }
    }
}

fn endpoint(place: &Place) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{}", place.authority)).map_err(|e| invalid(&e.to_string()))?;
    Ok(endpoint
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(ALIVE_AFTER)
        .keep_alive_timeout(ALIVE_WITHIN)
        // etcd takes pings of a connection without a request for an attack.
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// Where a member listens.
struct Place {
    authority: String,
    tls: Option<(ServerName<'static>, TlsConnector)>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Place {
    /// `https://host:port`, `http://host:port`; without a scheme TLS is used if there are certificates for it.
    fn parse(given: &str, tls: Option<&Arc<ClientConfig>>) -> Result<Place> {
        let (scheme, rest) = match given.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, given),
        };
        let tls = match (scheme, tls) {
            (Some("http"), _) | (None, None) => None,
            (Some("https") | None, Some(tls)) => Some(tls),
            (Some("https"), None) => {
                return Err(invalid(&format!("{given}: nobody said whose certificates to trust")));
            }
            (Some(_), _) => return Err(invalid(&format!("{given}: an etcd server is http://… or https://…"))),
        };
        let uri: Uri = format!("http://{rest}")
            .parse()
            .map_err(|e| invalid(&format!("{given} is not an address: {e}")))?;
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
            return Err(invalid(&format!("{given}: an etcd server has a host and a port")));
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid(&format!("{given}: an etcd server has no path")));
        }
        let name = host.trim_start_matches('[').trim_end_matches(']').to_string();
        let tls = match tls {
            Some(config) => {
                let name = ServerName::try_from(name).map_err(|e| invalid(&format!("{given}: {e}")))?;
                let mut config = ClientConfig::clone(config);
                config.alpn_protocols = vec![b"h2".to_vec()];
                Some((name, TlsConnector::from(Arc::new(config))))
            }
            None => None,
        };
        let authority = format!("{host}:{port}");
        Ok(Place { authority, tls })
    }

    fn connect(self: Arc<Self>) -> BoxFuture<'static, std::io::Result<TokioIo<Box<dyn Io>>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(self.authority.as_str()).await?;
            stream.set_nodelay(true)?;
            // What is sent and not even received ends the connection, without a ping.
            SockRef::from(&stream).set_tcp_user_timeout(Some(ALIVE_WITHIN))?;
            let io: Box<dyn Io> = match &self.tls {
                Some((name, connector)) => Box::new(connector.connect(name.clone(), stream).await?),
                None => Box::new(stream),
            };
            Ok(TokioIo::new(io))
        })
    }
}

/// An error with all its causes: "transport error" alone says nothing.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn invalid(what: &str) -> Error {
    Error::Invalid { what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let authority = |given: &str| Place::parse(given, None).map(|p| p.authority);
        assert_eq!(authority("http://127.0.0.1:2379").unwrap(), "127.0.0.1:2379");
        assert_eq!(authority("http://[::1]:2379/").unwrap(), "[::1]:2379");
        assert_eq!(authority("db:2379").unwrap(), "db:2379");
        for wrong in [
            "https://db:2379",
            "http://db",
            "ftp://db:1",
            "http://db:1/etcd",
            "http://",
            "a b:1",
        ] {
            assert!(authority(wrong).is_err(), "{wrong}");
        }
    }
}
