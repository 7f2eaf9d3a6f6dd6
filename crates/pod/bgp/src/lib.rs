//! A BGP speaker (RFC 4271) that only announces: routes to addresses which this machine takes in. It knows neither the API nor services.
//!
//! It calls its peers and lets nobody call it: so there is one connection a peer at most, no port is open, and collisions of connections
//! don't arise. What a peer announces is checked as far as a session depends on it, counted, and thrown away; nothing of it is kept, so memory
//! doesn't depend on peers. [`wire`] reads and writes messages, [`table`] knows what a peer was told, [`session`] is the state machine, all
//! three without I/O; [`speaker`] connects them to sockets.
//!
//! Messages are read and written here and not by a library: of those that are kept up, `netgauze-bgp-pkt` reads a capability's value without
//! keeping to the capability's own length, so that an unknown family makes the rest of an OPEN something else, and `routecore` and `bgpkit-parser` are made
//! for collectors, which keep all of it. What an announcer needs is five messages.

mod session;
mod speaker;
mod table;
mod wire;

pub use session::State;
pub use speaker::{Told, run};

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

/// Families of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(net: &IpNet) -> Family {
        match net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }
}

/// What is said of a route beside where it leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attributes {
    /// Told within one autonomous system only.
    pub local_preference: u32,
    pub communities: BTreeSet<u32>,
    pub large_communities: BTreeSet<[u32; 3]>,
}

pub type Routes = BTreeMap<IpNet, Attributes>;

/// How far away a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// On the same link if it is of another autonomous system; anywhere else.
    Usual,
    /// As many hops at most, by what is sent.
    Multihop(u8),
    /// As many hops at most, by what is heard; what is sent has all hops, so that the other side can tell as much (RFC 5082).
    Secured(u8),
}

/// A secret of a session. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    /// As long as the kernel takes it.
    pub const LONGEST: usize = keelson_sys::tcp::LONGEST_PASSWORD;

    pub fn new(text: &[u8]) -> Option<Password> {
        let fits = !text.is_empty() && text.len() <= Password::LONGEST;
        fits.then(|| Password(text.to_vec()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// One with whom this machine has a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: IpAddr,
    pub port: u16,
    /// From which it is called; the kernel's choice else.
    pub source: Option<IpAddr>,
    pub local_asn: u32,
    pub peer_asn: u32,
    /// This speaker's name for all peers.
    pub router_id: Ipv4Addr,
    /// After which a silent peer is given up; zero: never. The smaller one of both sides' counts.
    pub hold: Duration,
    /// How often this side says that it is there; a third of the time that counts is the most.
    pub keepalive: Duration,
    /// The longest time between two attempts.
    pub retry: Duration,
    pub distance: Distance,
    pub password: Option<Password>,
    /// For how long a peer is asked to keep routes while this program starts anew.
    pub graceful: Option<Duration>,
    /// Where routes lead, unless the session's own address is of their family.
    pub next_hop_v4: Option<Ipv4Addr>,
    pub next_hop_v6: Option<Ipv6Addr>,
}

impl Peer {
    fn is_external(&self) -> bool {
        self.local_asn != self.peer_asn
    }

    /// Where routes lead if this side's end of the session has this address.
    fn next_hop(&self, family: Family, local: IpAddr) -> Option<IpAddr> {
        match (family, local) {
            (Family::V4, IpAddr::V4(_)) => Some(local),
            (Family::V6, IpAddr::V6(ip)) if !ip.is_unicast_link_local() => Some(local),
            (Family::V4, _) => self.next_hop_v4.map(IpAddr::V4),
            (Family::V6, _) => self.next_hop_v6.map(IpAddr::V6),
        }
    }
}

/// The sessions that there are to be, by name, and what each peer is to be told.
pub type Sessions = BTreeMap<String, (Peer, Arc<Routes>)>;
