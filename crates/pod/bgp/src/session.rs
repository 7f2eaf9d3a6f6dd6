//! A session's state machine (RFC 4271, section 8), without I/O and without a clock: what happens is told with the time, and what is to be done is
//! asked for. As this side alone connects there is no state Active.

use crate::table::Table;
use crate::wire::{self, Fault, Graceful, HEADER, LONGEST, Message, Open, Origin};
use crate::{Family, Peer, Routes};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Until the peer has said how long it may be silent.
const PATIENCE: Duration = Duration::from_secs(240);
/// After a first failure; doubled by each that follows.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How long a session must have lasted for its end to count as a first failure again.
const LASTING: Duration = Duration::from_secs(10);
/// How often a peer may have everything told anew: more often it waits.
const REPEAT: Duration = Duration::from_secs(1);
/// For how long a peer may read nothing of what waits for it (RFC 9687), at least.
const SEND_HOLD: Duration = Duration::from_secs(480);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Idle,
    Connect,
    OpenSent,
    OpenConfirm,
    Established,
}

/// What both sides agreed on.
struct Agreed {
    table: Table,
    hold: Duration,
    graceful: bool,
    since: Instant,
}

pub struct Session {
    peer: Peer,
    state: State,
    /// What came of a message that isn't whole yet.
    input: Vec<u8>,
    /// What goes out before routes: at most an OPEN, a KEEPALIVE and a NOTIFICATION.
    urgent: Vec<u8>,
    /// Nothing more is read; what is urgent still goes out.
    ends: bool,
    local: Option<IpAddr>,
    agreed: Option<Agreed>,
    retry_at: Instant,
    hold_at: Option<Instant>,
    keepalive_at: Option<Instant>,
    /// Since when something waits to be sent.
    waits_since: Option<Instant>,
    /// Of which families the peer wants all again, and from when on it gets that.
    asked: BTreeSet<Family>,
    repeat_at: Option<Instant>,
    failures: u32,
    /// Whether the peer may have routes of an earlier process, which led packets on since.
    resumes: bool,
    /// Whether this process had a session with it.
    known: bool,
    /// UPDATE messages that came.
    heard: u64,
    error: Option<String>,
    /// A number from 0.75 to 1 by which times between attempts are shortened: many machines shouldn't come at once.
    jitter: f64,
}

impl Session {
    pub fn new(peer: Peer, resumes: bool, jitter: f64, now: Instant) -> Session {
        Session {
            peer,
            state: State::Idle,
            input: Vec::with_capacity(LONGEST),
            urgent: Vec::new(),
            ends: false,
            local: None,
            agreed: None,
            retry_at: now,
            hold_at: None,
            keepalive_at: None,
            waits_since: None,
            asked: BTreeSet::new(),
            repeat_at: None,
            failures: 0,
            resumes,
            known: false,
            heard: 0,
            error: None,
            jitter,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }
    /// Why it isn't established, if it was tried.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
    pub fn heard(&self) -> u64 {
        self.heard
    }
    pub fn told(&self) -> usize {
        self.agreed.as_ref().map_or(0, |agreed| agreed.table.told())
    }
    /// Whether the connection is to be closed when what is urgent has been sent.
    pub fn ends(&self) -> bool {
        self.ends
    }
    /// When to connect, if there is no connection.
    pub fn retry_at(&self) -> Instant {
        self.retry_at
    }
    /// Whether the peer keeps routes when the connection just goes.
    pub fn is_graceful(&self) -> bool {
        self.agreed.as_ref().is_some_and(|agreed| agreed.graceful)
    }

    pub fn connecting(&mut self) {
        self.state = State::Connect;
    }

    pub fn connected(&mut self, local: IpAddr, now: Instant) {
        self.local = Some(local);
        self.state = State::OpenSent;
        self.hold_at = Some(now + PATIENCE);
        self.urgent = wire::open(&self.own());
    }

    /// What this side says of itself.
    fn own(&self) -> Open {
        let hops = self.hops(&Family::ALL);
        let graceful = self.peer.graceful.map(|time| Graceful {
            restarted: self.resumes,
            seconds: u16::try_from(time.as_secs()).unwrap_or(u16::MAX),
            families: hops
                .keys()
                .map(|family| (*family, self.resumes || self.known))
                .collect(),
        });
        Open {
            asn: self.peer.local_asn,
            hold: u16::try_from(self.peer.hold.as_secs()).unwrap_or(u16::MAX),
            id: self.peer.router_id,
            families: hops.into_keys().collect(),
            four_octets: true,
            refresh: true,
            graceful,
        }
    }

    fn hops(&self, families: &[Family]) -> BTreeMap<Family, IpAddr> {
        let hop = |family: &Family| Some((*family, self.peer.next_hop(*family, self.local?)?));
        families.iter().filter_map(hop).collect()
    }

    /// There is no connection any more, or there was none. What stands as error already is nearer to the cause.
    pub fn closed(&mut self, why: &str, now: Instant) {
        if !self.ends {
            self.error = Some(why.to_string());
        }
        let lasted = self.agreed.take().is_some_and(|agreed| now - agreed.since >= LASTING);
        self.failures = if lasted { 0 } else { self.failures.saturating_add(1) };
        let pause = FIRST_RETRY * 2_u32.pow(self.failures.saturating_sub(1).min(16));
        self.retry_at = now + pause.min(self.peer.retry).mul_f64(self.jitter);
        self.state = State::Idle;
        (self.hold_at, self.keepalive_at, self.waits_since) = (None, None, None);
        (self.local, self.ends, self.repeat_at) = (None, false, None);
        self.asked.clear();
        self.input.clear();
        self.urgent.clear();
    }

    /// Ends the session by telling why.
    fn refuse(&mut self, fault: &Fault, why: String) {
        self.error = Some(why);
        self.end(fault);
    }

    /// Ends it because it is wanted no more.
    pub fn end(&mut self, fault: &Fault) {
        self.ends = true;
        // Without a connection there is nobody to tell.
        if self.local.is_some() {
            self.urgent.extend(wire::notification(fault));
        }
    }

    /// Bytes from the peer, however they are cut.
    pub fn received(&mut self, mut bytes: &[u8], now: Instant) {
        while !self.ends && !bytes.is_empty() {
            match self.take(&mut bytes) {
                Ok(Some(message)) => self.hear(message, now),
                Ok(None) => {}
                Err(fault) => self.fault(&fault),
            }
        }
    }

    /// Takes what is missing of a header or of a message, which is read when it is whole.
    fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Message>, Fault> {
        let missing = self.wanted()? - self.input.len();
        let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
        self.input.extend(taken);
        *bytes = rest;
        if self.input.len() < self.wanted()? {
            return Ok(None);
        }
        let message = wire::read(&self.input);
        self.input.clear();
        message.map(Some)
    }

    /// How long the input is to be: a header says how much follows.
    fn wanted(&self) -> Result<usize, Fault> {
        self.input.first_chunk::<HEADER>().map_or(Ok(HEADER), wire::length)
    }

    fn fault(&mut self, fault: &Fault) {
        let why = format!("the peer was told: {}", fault.describe());
        self.refuse(fault, why);
    }

    fn hear(&mut self, message: Message, now: Instant) {
        match (self.state, message) {
            (_, Message::Notification(fault)) => {
                self.error = Some(format!("the peer says: {}", fault.describe()));
                self.ends = true;
            }
            (State::OpenSent, Message::Open(open)) => self.opened(&open, now),
            (State::OpenConfirm, Message::Keepalive) => {
                self.state = State::Established;
                (self.error, self.known) = (None, true);
                self.listened(now);
            }
            (State::Established, Message::Keepalive) => self.listened(now),
            (State::Established, Message::Update) => {
                self.heard += 1;
                self.listened(now);
            }
            (State::Established, Message::Refresh(family)) => {
                self.listened(now);
                self.asked.extend(family);
            }
            (state, _) => {
                let subcode = match state {
                    State::OpenSent => 1,
                    State::OpenConfirm => 2,
                    _ => 3,
                };
                self.fault(&Fault::new(5, subcode, &[]));
            }
        }
    }

    fn opened(&mut self, open: &Open, now: Instant) {
        if open.asn != self.peer.peer_asn {
            let why = format!(
                "the peer is of AS {}, and AS {} is expected",
                open.asn, self.peer.peer_asn
            );
            return self.refuse(&Fault::bad_peer(), why);
        }
        if open.id == self.peer.router_id {
            let why = format!("the peer has the BGP identifier of this node, {}", open.id);
            return self.refuse(&Fault::bad_id(), why);
        }
        let hops = self.hops(&open.families);
        if hops.is_empty() {
            let why = "the peer takes routes of no family of this node's addresses".to_string();
            return self.refuse(&Fault::new(2, 7, &[]), why);
        }
        let hold = self.peer.hold.min(Duration::from_secs(open.hold.into()));
        let origin = Origin {
            asn: self.peer.local_asn,
            external: self.peer.is_external(),
            four_octets: open.four_octets,
        };
        self.agreed = Some(Agreed {
            table: Table::new(origin, hops),
            graceful: self.peer.graceful.is_some() && open.graceful.is_some(),
            hold,
            since: now,
        });
        self.state = State::OpenConfirm;
        self.urgent.extend(wire::keepalive());
        self.spoke(now);
        self.listened(now);
        // Who may be silent for ever when it stands still has to say that it does.
        self.hold_at.get_or_insert(now + PATIENCE);
    }

    fn listened(&mut self, now: Instant) {
        let hold = self.agreed.as_ref().map(|agreed| agreed.hold);
        self.hold_at = hold.filter(|hold| !hold.is_zero()).map(|hold| now + hold);
    }

    fn spoke(&mut self, now: Instant) {
        let hold = self.agreed.as_ref().map(|agreed| agreed.hold);
        let pause = hold
            .filter(|hold| !hold.is_zero())
            .map(|hold| match self.peer.keepalive {
                Duration::ZERO => hold / 3,
                own => own.min(hold / 3),
            });
        self.keepalive_at = pause.map(|pause| now + pause);
    }

    /// When [`Session::tick`] has something to do, of a session that has a connection.
    pub fn next(&self) -> Option<Instant> {
        let stalled = self.waits_since.map(|since| since + self.send_hold());
        let repeat = self.repeat_at.filter(|_| !self.asked.is_empty() && stalled.is_none());
        [self.hold_at, self.keepalive_at, stalled, repeat]
            .into_iter()
            .flatten()
            .min()
    }

    fn send_hold(&self) -> Duration {
        let hold = self.agreed.as_ref().map_or(PATIENCE, |agreed| agreed.hold);
        SEND_HOLD.max(hold * 2)
    }

    pub fn tick(&mut self, now: Instant) {
        if self.ends {
            return;
        }
        if self.hold_at.is_some_and(|at| at <= now) {
            let why = "nothing was heard from the peer for the hold time".to_string();
            return self.refuse(&Fault::hold_timer(), why);
        }
        if self.waits_since.is_some_and(|since| since + self.send_hold() <= now) {
            let why = "the peer reads nothing".to_string();
            return self.refuse(&Fault::new(8, 0, &[]), why);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            // Of those that wait one is enough.
            if self.urgent.is_empty() {
                self.urgent = wire::keepalive();
            }
            self.spoke(now);
        }
    }

    /// What is to be sent next, when all before has been.
    pub fn send(&mut self, wanted: &Arc<Routes>, now: Instant) -> Option<Vec<u8>> {
        self.waits_since = None;
        if let Some(agreed) = &mut self.agreed
            && !self.asked.is_empty()
            && self.repeat_at.is_none_or(|at| at <= now)
        {
            let asked = std::mem::take(&mut self.asked);
            asked.into_iter().for_each(|family| agreed.table.repeat(family));
            self.repeat_at = Some(now + REPEAT);
        }
        let urgent = std::mem::take(&mut self.urgent);
        let message = match (&mut self.agreed, self.state) {
            _ if !urgent.is_empty() => Some(urgent),
            (Some(agreed), State::Established) if !self.ends => {
                let message = agreed.table.next(wanted);
                // What was from before has been confirmed or withdrawn now.
                self.resumes &= !agreed.table.is_finished();
                message
            }
            _ => None,
        };
        self.waits_since = message.is_some().then_some(now);
        message
    }
}

#[cfg(test)]
mod tests;
