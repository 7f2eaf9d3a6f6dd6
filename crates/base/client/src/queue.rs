//! A queue of keys to work on.
//!
//! A key is in the queue once, however often it is added; while it is being worked on, adding it makes it run again
//! afterwards, never twice at once. Of several delays for a key the earliest wins. Bounded by the number of keys.
//! Time is tokio's, so tests may pause it.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const FIRST_DELAY: Duration = Duration::from_millis(5);
const LAST_DELAY: Duration = Duration::from_secs(1000);

struct State<T> {
    ready: VecDeque<T>,
    /// Waiting to be worked on, in `ready` or because it changed during its work.
    dirty: HashSet<T>,
    working: HashSet<T>,
    delayed: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    sequence: u64,
    closed: bool,
}

impl<T: Eq + Hash + Clone> State<T> {
    fn push(&mut self, key: T) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Moves what is due to the queue.
    fn release(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.push(key);
        }
    }
}

pub struct WorkQueue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

impl<T: Eq + Hash + Clone> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Eq + Hash + Clone> WorkQueue<T> {
    pub fn new() -> Self {
        WorkQueue {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                working: HashSet::new(),
                delayed: BTreeMap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
                closed: false,
            }),
            wake: Notify::new(),
        }
    }

    pub fn add(&self, key: T) {
        if self.state.lock().push(key) {
            self.wake.notify_one();
        }
    }

    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let at = Instant::now() + delay;
        if let Some(&known) = state.due.get(&key) {
            if known.0 <= at {
                return;
            }
            state.delayed.remove(&known);
        }
        state.sequence += 1;
        let slot = (at, state.sequence);
        let earliest = state.delayed.first_key_value().is_none_or(|(first, _)| slot < *first);
        state.due.insert(key.clone(), slot);
        state.delayed.insert(slot, key);
        drop(state);
        if earliest {
            self.wake.notify_one();
        }
    }

    /// Adds a key whose work failed: at once the first time, then ever later, until [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let delay = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(20)).min(LAST_DELAY);
            *failures += 1;
            delay
        };
        self.add_after(key, delay);
    }

    /// The key's work went well: its next failure is the first again.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    pub fn failures(&self, key: &T) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key to work on; [`WorkQueue::done`] must follow. `None` once the queue is closed and empty.
    pub async fn next(&self) -> Option<T> {
        loop {
            let (more, until) = {
                let mut state = self.state.lock();
                if !state.closed {
                    state.release(Instant::now());
                }
                match state.ready.pop_front() {
                    Some(key) => {
                        state.dirty.remove(&key);
                        state.working.insert(key.clone());
                        let more = !state.ready.is_empty();
                        (Some((key, more)), None)
                    }
                    None if state.closed => return None,
                    None => (None, state.delayed.first_key_value().map(|(slot, _)| slot.0)),
                }
            };
            if let Some((key, more)) = more {
                if more {
                    self.wake.notify_one();
                }
                return Some(key);
            }
            match until {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        state.working.remove(key);
        if state.dirty.contains(key) {
            let key = key.clone();
            state.ready.push_back(key);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// No key is taken in any more; waiting workers end.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.delayed.clear();
        state.due.clear();
        state.ready.clear();
        drop(state);
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Keys that wait to be worked on now (not the delayed ones).
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_never_runs_twice_at_once() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.len(), 1, "a is being worked on");
        assert_eq!(queue.next().await, Some("b"));
        queue.done(&"b");
        assert_eq!(queue.len(), 0);
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_wins() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(5));
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a");
        assert!(
            tokio::time::timeout(Duration::from_secs(60), queue.next())
                .await
                .is_err(),
            "only once"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleeping_worker_hears_of_an_earlier_delay() {
        let queue = std::sync::Arc::new(WorkQueue::new());
        queue.add_after("late", Duration::from_secs(100));
        let worker = queue.clone();
        let start = Instant::now();
        let task = tokio::spawn(async move { worker.next().await });
        tokio::task::yield_now().await;
        queue.add_after("soon", Duration::from_secs(1));
        assert_eq!(task.await.ok().flatten(), Some("soon"));
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time() {
        let queue = WorkQueue::new();
        let mut waits = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            queue.add_rate_limited(1);
            queue.next().await;
            queue.done(&1);
            waits.push(start.elapsed().as_millis());
        }
        assert_eq!(waits, [5, 10, 20, 40]);
        queue.forget(&1);
        assert_eq!(queue.failures(&1), 0);
    }

    #[tokio::test]
    async fn closing_ends_all_workers() {
        let queue = std::sync::Arc::new(WorkQueue::<u8>::new());
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let q = queue.clone();
                tokio::spawn(async move { q.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.close();
        for task in tasks {
            assert_eq!(task.await.ok(), Some(None));
        }
    }
}
