//! Who has how many connections.
//!
//! There is no bound for one peer: behind one address may be a proxy with all of a cluster's nodes. But when all places
//! are taken, a newcomer gets one of the peer that has most, unless that is itself: first a connection without requests,
//! the one that has been so for longest; failing that, the youngest. So whoever takes all places loses them to those who
//! come. Where every peer has a single one, the newcomer's takes the place of one of those.

use crate::conn::Conn;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The connections of a listener.
pub struct Peers {
    room: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    count: usize,
    next: u64,
    of: HashMap<IpAddr, HashMap<u64, Arc<Conn>>>,
}

/// A connection's place; given up when dropped.
pub struct Place {
    peers: Arc<Peers>,
    peer: IpAddr,
    id: u64,
    conn: Arc<Conn>,
}

impl Place {
    pub fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.peers.table.lock().remove(self.peer, self.id);
    }
}

/// One household has a /64 of IPv6 to itself.
pub(crate) fn peer_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) >> 64 << 64).into(),
        ip => ip,
    }
}

impl Peers {
    pub fn new(room: usize) -> Arc<Self> {
        Arc::new(Peers {
            room: room.max(1),
            table: Mutex::default(),
        })
    }
    pub fn len(&self) -> usize {
        self.table.lock().count
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A place for a new connection. `None`: there is none for this peer.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let peer = peer_of(ip);
        let mut table = self.table.lock();
        if table.count >= self.room {
            let (from, id) = table.victim(peer)?;
            if let Some(conn) = table.remove(from, id) {
                conn.end();
            }
        }
        let id = table.next;
        table.next += 1;
        table.count += 1;
        let conn = Arc::new(Conn::new());
        table.of.entry(peer).or_default().insert(id, conn.clone());
        Some(Place {
            peers: self.clone(),
            peer,
            id,
            conn,
        })
    }

    pub fn end_all(&self) {
        self.table
            .lock()
            .of
            .values()
            .flat_map(HashMap::values)
            .for_each(|c| c.end());
    }
}

impl Table {
    fn remove(&mut self, peer: IpAddr, id: u64) -> Option<Arc<Conn>> {
        let all = self.of.get_mut(&peer)?;
        let removed = all.remove(&id)?;
        if all.is_empty() {
            self.of.remove(&peer);
        }
        self.count -= 1;
        Some(removed)
    }

    /// Whose place a newcomer gets.
    fn victim(&self, newcomer: IpAddr) -> Option<(IpAddr, u64)> {
        let own = self.of.get(&newcomer).map_or(0, HashMap::len);
        let (largest, all) = self.of.iter().max_by_key(|(_, all)| all.len())?;
        // Who would have as many as the largest has is the largest itself.
        let (peer, all) = if own + 1 >= all.len() && own > 0 {
            (newcomer, self.of.get(&newcomer)?)
        } else {
            (*largest, all)
        };
        let idle = all.iter().filter_map(|(id, c)| Some((c.quiet_since()?, *id)));
        if let Some((_, id)) = idle.min() {
            return Some((peer, id));
        }
        let youngest = all.keys().max().copied();
        youngest.filter(|_| peer != newcomer).map(|id| (peer, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn who_takes_all_places_loses_them_to_those_who_come() {
        let peers = Peers::new(4);
        let greedy: Vec<_> = (0..4).filter_map(|_| peers.admit(ip("10.0.0.1"))).collect();
        let busy: Vec<_> = greedy.iter().map(|p| p.conn().begin()).collect();
        // With requests on all of them it gets no more.
        assert!(peers.admit(ip("10.0.0.1")).is_none());
        let other = peers.admit(ip("10.0.0.2")).unwrap();
        let third = peers.admit(ip("10.0.0.3")).unwrap();
        assert!(!other.conn().ended().is_cancelled() && !third.conn().ended().is_cancelled());
        let ended: Vec<bool> = greedy.iter().map(|p| p.conn().ended().is_cancelled()).collect();
        assert_eq!(ended, [false, false, true, true], "the youngest go first");
        // A second one of a peer that has as many as the greedy would then have is not for it to take.
        assert!(peers.admit(ip("10.0.0.1")).is_none());
        drop(busy);
        // Idle ones it may exchange for new ones.
        assert!(peers.admit(ip("10.0.0.1")).is_some());
        assert_eq!(peers.len(), 3);
        drop((greedy, other, third));
        assert!(peers.is_empty());
    }

    #[test]
    fn a_prefix_of_ipv6_is_one_peer() {
        assert_eq!(peer_of(ip("2001:db8::1")), peer_of(ip("2001:db8::ffff")));
        assert_ne!(peer_of(ip("2001:db8::1")), peer_of(ip("2001:db8:0:1::1")));
        assert_eq!(peer_of(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }
}
