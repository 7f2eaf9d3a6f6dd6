//! Exponential back-off by key: how long to wait before the next try. Pure; the caller says what time it is.

use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    wait: Duration,
    since: Instant,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Backoff {
            first,
            max,
            entries: HashMap::new(),
        }
    }

    /// How long `key` still has to wait, counted from `event` (when the last run ended, or failed).
    pub fn remaining(&self, key: &str, event: Option<Instant>, now: Instant) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        let event = event.unwrap_or(entry.since);
        if self.forgiven(entry, event) {
            return None;
        }
        entry
            .wait
            .checked_sub(now.saturating_duration_since(event))
            .filter(|d| !d.is_zero())
    }

    /// Twice the longest wait without trouble forgives everything.
    fn forgiven(&self, entry: &Entry, event: Instant) -> bool {
        event.saturating_duration_since(entry.since) > self.max * 2
    }

    /// The present wait of a key, for messages.
    pub fn wait(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |e| e.wait)
    }

    /// Notes another try after the run that ended at `event`: the next wait is twice as long.
    pub fn next(&mut self, key: &str, event: Instant, now: Instant) {
        let wait = match self.entries.get(key) {
            Some(e) if !self.forgiven(e, event) => (e.wait * 2).min(self.max),
            _ => self.first,
        };
        self.entries.insert(key.to_owned(), Entry { wait, since: now });
    }

    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }

    /// Whether anything is remembered of this key.
    pub fn knows(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.entries.retain(|k, _| keep(k));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_up_to_the_maximum_and_forgives() {
        let mut b = Backoff::new(Duration::from_secs(10), Duration::from_secs(40));
        let mut waits = Vec::new();
        for _ in 0..4 {
            b.next("k", Instant::now(), Instant::now());
            waits.push(b.wait("k").as_secs());
            tokio::time::advance(b.wait("k")).await;
            assert_eq!(b.remaining("k", None, Instant::now()), None);
        }
        assert_eq!(waits, [10, 20, 40, 40]);
        tokio::time::advance(Duration::from_secs(100)).await;
        b.next("k", Instant::now(), Instant::now());
        assert_eq!(b.wait("k").as_secs(), 10);
    }
}
