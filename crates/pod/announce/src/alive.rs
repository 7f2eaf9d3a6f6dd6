//! Which other nodes live: those that were heard of a moment ago. Pure: the time is told.
//!
//! Who isn't known yet is taken for alive as long as it may be silent: a node that starts takes nothing over from one that it hasn't
//! had the time to hear.

use crate::beat::{Key, Word};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How often a node tells that it lives.
pub const BEAT: Duration = Duration::from_millis(300);
/// Who is silent for so long is dead: four messages may be lost.
pub const SILENCE: Duration = Duration::from_millis(1400);

#[derive(Default)]
pub struct Alive {
    peers: BTreeMap<String, Peer>,
    /// When this node looked last.
    looked: Option<Instant>,
}

struct Peer {
    key: Key,
    number: u64,
    until: Instant,
}

impl Alive {
    /// To be called before anything else is, and once a beat. Who looks later than that (stopped, without a processor, or its machine paused)
    /// can't have heard anybody meanwhile: nobody was silent for so long.
    pub fn look(&mut self, now: Instant) {
        let Some(before) = self.looked.replace(now) else { return };
        let missed = now.saturating_duration_since(before).saturating_sub(BEAT);
        // A busy machine is always a little late: silence leaves room for that, and dying would take longer with each bit of it.
        if missed < BEAT {
            return;
        }
        for peer in self.peers.values_mut().filter(|peer| peer.until > before) {
            peer.until += missed;
        }
    }

    /// The nodes that there are besides this one. One with another key has begun anew.
    pub fn know<'a>(&mut self, nodes: impl IntoIterator<Item = (&'a String, Key)>, now: Instant) {
        let mut before = std::mem::take(&mut self.peers);
        for (name, key) in nodes {
            let known = before.remove(name).filter(|peer| peer.key == key);
            let peer = known.unwrap_or(Peer {
                key,
                number: 0,
                until: now + SILENCE,
            });
            self.peers.insert(name.clone(), peer);
        }
    }

    /// By what the node's messages are known.
    pub fn key(&self, name: &str) -> Option<&Key> {
        self.peers.get(name).map(|peer| &peer.key)
    }

    /// Takes in a message that is the node's. One that isn't newer than the last counts for nothing.
    pub fn hear(&mut self, name: &str, number: u64, word: Word, now: Instant) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.number < number) else {
            return;
        };
        peer.number = number;
        peer.until = match word {
            Word::Alive => now + SILENCE,
            Word::Leaves => now,
        };
    }

    pub fn living(&self, now: Instant) -> BTreeSet<String> {
        self.names(now).cloned().collect()
    }

    /// Of those that live, in their order.
    pub fn names(&self, now: Instant) -> impl Iterator<Item = &String> {
        let living = self.peers.iter().filter(move |(_, peer)| peer.until > now);
        living.map(|(name, _)| name)
    }

    /// When the next one is dead if it stays silent.
    pub fn next_death(&self, now: Instant) -> Option<Instant> {
        self.peers
            .values()
            .map(|peer| peer.until)
            .filter(|until| *until > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_dead_and_who_speaks_lives() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let names = ["a", "b"].map(String::from);
        let keys = |key: u8| names.iter().map(move |n| (n, [key; 32]));
        let mut alive = Alive::default();
        let living = |alive: &Alive, ms: u64| alive.living(at(ms)).into_iter().collect::<Vec<_>>().join(" ");
        alive.know(keys(1), at(0));
        assert_eq!(living(&alive, 1000), "a b", "nobody has had the time to speak");
        alive.hear("a", 1, Word::Alive, at(300));
        alive.hear("stranger", 1, Word::Alive, at(300));
        assert_eq!(alive.next_death(at(300)), Some(at(1400)));
        assert_eq!(living(&alive, 1399), "a b");
        assert_eq!(living(&alive, 1400), "a");
        assert_eq!(alive.next_death(at(1400)), Some(at(1700)));
        alive.hear("a", 1, Word::Alive, at(1500));
        assert_eq!(living(&alive, 1700), "", "the same message again is nothing");
        assert_eq!(alive.next_death(at(1700)), None);
        alive.hear("b", 5, Word::Alive, at(2000));
        assert_eq!(living(&alive, 2000), "b", "it is back");
        alive.hear("b", 6, Word::Leaves, at(2100));
        assert_eq!(living(&alive, 2100), "", "it says so itself");
        alive.know(keys(2), at(3000));
        assert_eq!(living(&alive, 3000), "a b", "both begin anew");
        alive.hear("a", 1, Word::Alive, at(3100));
        alive.know(keys(2), at(4000));
        assert_eq!(living(&alive, 4450), "a", "to be known again changes nothing");
        alive.know(None, at(4450));
        assert_eq!(living(&alive, 4450), "");
    }

    #[test]
    fn who_was_stopped_itself_takes_nobody_for_dead() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let (a, b) = ("a".to_string(), "b".to_string());
        let mut alive = Alive::default();
        alive.look(at(0));
        alive.know([(&a, [1; 32]), (&b, [1; 32])], at(0));
        alive.hear("b", 1, Word::Leaves, at(100));
        for ms in [300, 600, 9600] {
            alive.look(at(ms));
        }
        let left = |alive: &Alive, ms: u64| alive.living(at(ms)).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(
            left(&alive, 9600),
            "a",
            "for nine seconds nobody listened; who had left, left"
        );
        alive.look(at(9900));
        assert_eq!(left(&alive, 10_099), "a");
        assert_eq!(left(&alive, 10_100), "", "and it is silent since");
    }
}
