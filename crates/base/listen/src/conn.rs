//! One connection: what is under way on it, and what it is waited for until when.

use crate::answer::{LastOne, Outgoing, Slot, WriteBy};
use crate::io::Watched;
use crate::lanes::{Spawner, own_task};
use crate::peers::Place;
use crate::{Limits, Server};
use anyhow::Result;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long a client has to take notice that its connection ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// What is known of a connection from outside.
pub struct Conn {
    state: Mutex<State>,
    changed: Notify,
    ended: CancellationToken,
}

struct State {
    /// Requests whose last byte hasn't gone out.
    open: usize,
    /// Since when there are none.
    quiet_since: Instant,
    /// When the first byte came after that.
    first_byte: Option<Instant>,
    requests: u64,
    /// It has frames between requests, too.
    http2: bool,
    next: u64,
    /// For how long it may be idle.
    idle: Duration,
    /// When what is due is looked at next; `None`: when something has changed.
    looked_at: Option<Instant>,
    /// Answers by when they have to be looked at; late ones have lost their bodies, and their time is the connection's.
    answers: BTreeMap<(Instant, u64), Option<Arc<Slot>>>,
}

/// A request under way.
pub struct Open {
    conn: Arc<Conn>,
    answer: Option<(Instant, u64)>,
}

impl Open {
    pub(crate) fn timed(&mut self, key: (Instant, u64)) {
        self.answer = Some(key);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.conn.state.lock();
        state.open -= 1;
        if state.open == 0 {
            state.quiet_since = Instant::now();
            state.first_byte = None;
        }
        let next = state.quiet_since + state.idle;
        let is_new = state.open == 0 && state.is_before(next);
        if let Some(key) = self.answer.take()
            && state.answers.remove(&key).is_none()
        {
            let late = state.answers.keys().find(|(_, id)| *id == key.1).copied();
            late.map(|key| state.answers.remove(&key));
        }
        drop(state);
        if is_new {
            self.conn.changed.notify_one();
        }
    }
}

impl State {
    /// The connection's task looks later than that: it has to be told. All else it finds when it looks.
    fn is_before(&self, next: Instant) -> bool {
        self.looked_at.is_none_or(|at| next < at)
    }

    fn next_time(&self, limits: &Limits) -> Option<Instant> {
        let answer = self.answers.first_key_value().map(|((by, _), _)| *by);
        if self.open > 0 {
            return answer;
        }
        let patience = if self.requests == 0 { limits.head } else { limits.idle };
        let quiet = self.quiet_since + patience;
        let head = self.first_byte.filter(|_| !self.http2).map(|at| at + limits.head);
        [answer, Some(quiet), head].into_iter().flatten().min()
    }
}

impl Conn {
    pub(crate) fn new() -> Self {
        let state = State {
            open: 0,
            quiet_since: Instant::now(),
            first_byte: None,
            requests: 0,
            http2: false,
            next: 0,
            idle: Duration::ZERO,
            looked_at: None,
            answers: BTreeMap::new(),
        };
        Conn {
            state: Mutex::new(state),
            changed: Notify::new(),
            ended: CancellationToken::new(),
        }
    }
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }
    pub fn end(&self) {
        self.ended.cancel();
    }
    /// Since when no request is under way; `None`: one is.
    pub fn quiet_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (state.open == 0).then_some(state.quiet_since)
    }

    pub fn begin(self: &Arc<Self>) -> Open {
        let mut state = self.state.lock();
        state.open += 1;
        state.requests += 1;
        Open {
            conn: self.clone(),
            answer: None,
        }
    }
    fn may_idle(&self, time: Duration) {
        self.state.lock().idle = time;
    }
    /// From now on nobody tells of requests.
    fn upgraded(&self) {
        self.state.lock().open += 1;
    }
    /// Known from the handshake or, without one, from the first request.
    fn speaks_http2(&self) {
        self.state.lock().http2 = true;
    }
    pub(crate) fn arrived(&self) {
        let mut state = self.state.lock();
        if !state.http2 && state.open == 0 && state.first_byte.is_none() {
            state.first_byte = Some(Instant::now());
            drop(state);
            self.changed.notify_one();
        }
    }
    pub(crate) fn answer(&self, slot: &Arc<Slot>) -> (Instant, u64) {
        let now = Instant::now();
        let at = slot.next(now).unwrap_or(now);
        let mut state = self.state.lock();
        let key = (at, state.next);
        state.next += 1;
        state.answers.insert(key, Some(slot.clone()));
        let is_new = state.is_before(at);
        drop(state);
        if is_new {
            self.changed.notify_one();
        }
        key
    }

    /// When something has to happen next; whoever brings that forward tells from now on.
    fn next_time(&self, limits: &Limits) -> Option<Instant> {
        let mut state = self.state.lock();
        state.looked_at = state.next_time(limits);
        state.looked_at
    }

    /// Does what is due; an error says why the connection can't go on.
    fn due(&self, limits: &Limits, now: Instant) -> Result<(), Overdue> {
        let mut cleared = Vec::new();
        {
            let mut state = self.state.lock();
            while let Some(((by, id), _)) = state.answers.first_key_value().filter(|((by, _), _)| *by <= now) {
                let key = (*by, *id);
                match state.answers.remove(&key).flatten() {
                    Some(slot) => match slot.next(now) {
                        Some(next) => drop(state.answers.insert((next, key.1), Some(slot))),
                        None => {
                            cleared.push(slot);
                            state.answers.insert((now + limits.late, key.1), None);
                        }
                    },
                    None => return Err(Overdue::Answer),
                }
            }
        }
        cleared.iter().for_each(|slot| slot.clear());
        let state = self.state.lock();
        if state.open > 0 {
            return Ok(());
        }
        let over = |since: Instant, patience| now >= since + patience;
        match (state.requests, state.first_byte) {
            (_, Some(at)) if !state.http2 && over(at, limits.head) => Err(Overdue::Head),
            (0, _) if over(state.quiet_since, limits.head) => Err(Overdue::Head),
            (1.., _) if over(state.quiet_since, limits.idle) => Err(Overdue::Idle),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Overdue {
    Answer,
    Head,
    Idle,
}

/// Returns when the connection can't go on.
async fn watch(conn: &Conn, limits: &Limits) -> Overdue {
    loop {
        let next = conn.next_time(limits);
        tokio::select! {
            () = conn.changed.notified() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                if let Err(why) = conn.due(limits, Instant::now()) {
                    return why;
                }
            }
        }
    }
}

pub struct Connection<S> {
    pub server: Arc<S>,
    pub spawner: Spawner,
    pub limits: Arc<Limits>,
    pub stop: CancellationToken,
    pub remote: SocketAddr,
    pub place: Place,
    pub without_http2: bool,
}

impl<S: Server> Connection<S> {
    pub async fn serve<T>(self, io: T, peer: S::Peer, http2: bool) -> Result<()>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = Arc::new(peer);
        let streams = self.server.streams(&peer).unwrap_or(self.limits.streams);
        let (conn, limits) = (self.place.conn().clone(), self.limits);
        conn.may_idle(limits.idle);
        if http2 {
            conn.speaks_http2();
        }
        let (server, ours, default, unread) = (self.server, conn.clone(), limits.answer, limits.unread);
        let leaving = self.stop.child_token();
        let leave = leaving.clone();
        let asker = self.spawner.asker().cloned();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            if let Some(asker) = &asker {
                request.extensions_mut().insert(asker.clone());
            }
            let open = ours.begin();
            if !http2 && request.version() == http::Version::HTTP_2 {
                ours.speaks_http2();
            }
            let (server, peer, conn, leave) = (server.clone(), peer.clone(), ours.clone(), leave.clone());
            async move {
                if !S::AT_ONCE {
                    own_task().await;
                }
                let answer = server.answer(&peer, request).await;
                if answer.extensions().get::<LastOne>().is_some() {
                    leave.cancel();
                }
                let by = answer.extensions().get::<WriteBy>().map(|by| by.0);
                let by = by.or_else(|| default.map(|time| Instant::now() + time));
                Ok::<_, Infallible>(answer.map(|body| Outgoing::new(body, by, unread, &conn, open)))
            }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(self.spawner);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(limits.head_bytes)
            .half_close(false);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(64 * 1024)
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024)
            .keep_alive_interval(limits.ping.0)
            .keep_alive_timeout(limits.ping.1);
        let io = TokioIo::new(Watched::new(io, self.place, self.without_http2));
        let mut serving = pin!(builder.serve_connection_with_upgrades(io, service));
        let mut watching = pin!(watch(&conn, &limits));
        let why = tokio::select! {
            served = serving.as_mut() => {
                // An upgraded one lives on, and is nobody's idle connection.
                conn.upgraded();
                return served.map_err(|e| anyhow::anyhow!(e));
            }
            why = watching.as_mut() => why,
            () = leaving.cancelled() => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    served = serving.as_mut() => return served.map_err(|e| anyhow::anyhow!(e)),
                    why = watching.as_mut() => why,
                }
            }
        };
        if why == Overdue::Idle {
            serving.as_mut().graceful_shutdown();
            let ended = tokio::time::timeout(GOODBYE, serving).await;
            return ended.unwrap_or(Ok(())).map_err(|e| anyhow::anyhow!(e));
        }
        anyhow::bail!("the client is too slow: {why:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn conn(limits: &Limits) -> Arc<Conn> {
        let conn = Arc::new(Conn::new());
        conn.may_idle(limits.idle);
        conn.speaks_http2();
        conn.next_time(limits);
        conn
    }

    fn is_told(conn: &Conn) -> bool {
        conn.changed.notified().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_wakes_its_connection_only_for_what_is_due_sooner() {
        let limits = Limits::default();
        let conn = conn(&limits);
        let due_in = |time| Slot::empty(Some(Instant::now() + time));
        let mut open = conn.begin();
        conn.arrived();
        open.timed(conn.answer(&due_in(Duration::from_secs(60))));
        drop(open);
        assert!(!is_told(&conn), "it looks after 32 s in any case");
        let mut open = conn.begin();
        open.timed(conn.answer(&due_in(Duration::from_secs(1))));
        assert!(is_told(&conn));
        assert_eq!(conn.next_time(&limits), Some(Instant::now() + Duration::from_secs(1)));
        drop(open);
        assert!(!is_told(&conn));
        // Nothing is due while a request without a time is under way.
        let open = conn.begin();
        assert_eq!(conn.next_time(&limits), None);
        drop(open);
        assert!(is_told(&conn));
        assert_eq!(conn.next_time(&limits), Some(Instant::now() + limits.idle));
    }
}
