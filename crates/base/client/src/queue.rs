//! A queue of keys to work on.
//!
//! A key is in the queue once, however often it is added; while it is being worked on, adding it makes it run again
//! afterwards, never twice at once. Of several delays for a key the earliest wins, and so of several dates. Bounded by the
//! number of keys. Delays are tokio's, so tests may pause them; dates are the calendar's and follow it when the clock is
//! set or the machine sleeps.

use crate::telling::QueueSeries;
use jiff::Timestamp;
use keelson_measure::Measures;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const FIRST_DELAY: Duration = Duration::from_millis(5);
const LAST_DELAY: Duration = Duration::from_secs(1000);

struct State<T> {
    ready: VecDeque<T>,
    /// Waiting to be worked on, in `ready` or because it changed during its work.
    dirty: HashMap<T, Instant>,
    working: HashMap<T, Instant>,
    delayed: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    dated: BTreeMap<(Timestamp, u64), T>,
    dates: HashMap<T, (Timestamp, u64)>,
    failures: HashMap<T, u32>,
    sequence: u64,
    closed: bool,
    first: Duration,
    longest: Duration,
    /// Set once somebody counts.
    told: Arc<OnceLock<QueueSeries>>,
}

impl<T: Eq + Hash + Clone> State<T> {
    fn push(&mut self, key: T) -> bool {
        if self.closed || self.dirty.contains_key(&key) {
            return false;
        }
        self.dirty.insert(key.clone(), Instant::now());
        if let Some(told) = self.told.get() {
            told.adds.inc();
            // Several queues may have one name.
            told.depth.inc();
        }
        if self.working.contains_key(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn begin(&mut self, key: &T) {
        let now = Instant::now();
        let since = self.dirty.remove(key);
        self.working.insert(key.clone(), now);
        if let Some(told) = self.told.get() {
            if since.is_some() {
                told.depth.dec();
            }
            told.waits.observe((now - since.unwrap_or(now)).as_secs_f64());
        }
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
        if self.dated.is_empty() {
            return;
        }
        let date = keelson_clock::now();
        while let Some(entry) = self.dated.first_entry() {
            if entry.key().0 > date {
                break;
            }
            let key = entry.remove();
            self.dates.remove(&key);
            self.push(key);
        }
    }
}

impl<T> Drop for State<T> {
    fn drop(&mut self) {
        if let Some(told) = self.told.get() {
            told.depth.sub(self.dirty.len() as i64);
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
                dirty: HashMap::new(),
                working: HashMap::new(),
                delayed: BTreeMap::new(),
                due: HashMap::new(),
                dated: BTreeMap::new(),
                dates: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
                closed: false,
                first: FIRST_DELAY,
                longest: LAST_DELAY,
                told: Arc::default(),
            }),
            wake: Notify::new(),
        }
    }

    /// Tells how it goes, under this name, for as long as it is there. What waits already counts as added.
    pub fn tell(self: &Arc<Self>, measures: &Measures, name: &str)
    where
        T: Send + 'static,
    {
        let state = self.state.lock();
        if state.told.set(QueueSeries::new(measures, name)).is_err() {
            return;
        }
        if let Some(told) = state.told.get() {
            told.adds.inc_by(state.dirty.len() as u64);
            told.depth.add(state.dirty.len() as i64);
        }
        drop(state);
        let queue = Arc::downgrade(self);
        measures.before(move || {
            let Some(queue) = queue.upgrade() else { return false };
            let state = queue.state.lock();
            if let Some(told) = state.told.get() {
                told.under_way(state.working.values().map(Instant::elapsed));
            }
            true
        });
    }

    /// Failed work is tried again at the latest after this time.
    pub fn set_longest_delay(&self, longest: Duration) {
        self.state.lock().longest = longest;
    }

    /// After this time it is tried again first.
    pub fn set_first_delay(&self, first: Duration) {
        self.state.lock().first = first;
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
        if let Some(told) = state.told.get() {
            told.retries.inc();
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

    /// Adds a key when the calendar shows this date.
    pub fn add_at(&self, key: T, date: Timestamp) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if let Some(&known) = state.dates.get(&key) {
            if known.0 <= date {
                return;
            }
            state.dated.remove(&known);
        }
        state.sequence += 1;
        let slot = (date, state.sequence);
        let earliest = state.dated.first_key_value().is_none_or(|(first, _)| slot < *first);
        state.dates.insert(key.clone(), slot);
        state.dated.insert(slot, key);
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
            let factor = 1 << (*failures).min(20);
            *failures += 1;
            state.first.saturating_mul(factor).min(state.longest)
        };
        self.add_after(key, delay);
    }

    /// The key's work went well: its next failure is the first again.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// What made work fail may be gone: those keys of it that wait to be tried again are tried now.
    pub fn retry_now(&self, concerned: impl Fn(&T) -> bool) {
        let mut state = self.state.lock();
        let keys: Vec<T> = state.failures.keys().filter(|key| concerned(key)).cloned().collect();
        for key in keys {
            state.failures.remove(&key);
            if let Some(slot) = state.due.remove(&key) {
                state.delayed.remove(&slot);
            }
            state.push(key);
        }
        drop(state);
        self.wake.notify_one();
    }

    pub fn failures(&self, key: &T) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key to work on; [`WorkQueue::done`] must follow. `None` once the queue is closed and empty.
    pub async fn next(&self) -> Option<T> {
        loop {
            let (more, until, date) = {
                let mut state = self.state.lock();
                if !state.closed {
                    state.release(Instant::now());
                }
                match state.ready.pop_front() {
                    Some(key) => {
                        state.begin(&key);
                        let more = !state.ready.is_empty();
                        (Some((key, more)), None, None)
                    }
                    None if state.closed => return None,
                    None => {
                        let until = state.delayed.first_key_value().map(|(slot, _)| slot.0);
                        (None, until, state.dated.first_key_value().map(|(slot, _)| slot.0))
                    }
                }
            };
            if let Some((key, more)) = more {
                if more {
                    self.wake.notify_one();
                }
                return Some(key);
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = async { tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await }, if until.is_some() => {}
                () = async { keelson_clock::sleep_until(date.unwrap_or_default()).await }, if date.is_some() => {}
            }
        }
    }

    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        let began = state.working.remove(key);
        if let (Some(began), Some(told)) = (began, state.told.get()) {
            told.works.observe(began.elapsed().as_secs_f64());
        }
        if state.dirty.contains_key(key) {
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
        state.dated.clear();
        state.dates.clear();
        for key in std::mem::take(&mut state.ready) {
            let waited = state.dirty.remove(&key).is_some();
            if let (true, Some(told)) = (waited, state.told.get()) {
                told.depth.dec();
            }
        }
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
    async fn what_waits_and_what_is_worked_on_is_told() {
        let (queue, measures) = (Arc::new(WorkQueue::new()), Measures::default());
        queue.add("early");
        queue.tell(&measures, "deployment");
        queue.add("late");
        queue.add("late");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let key = queue.next().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        queue.add(key);
        let line = |name: &str, value: &str| {
            let (page, line) = (
                measures.page(),
                format!("workqueue_{name}{{name=\"deployment\"}} {value}"),
            );
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        };
        line("adds_total", "3");
        line("depth", "2");
        line("queue_duration_seconds_sum", "2");
        line("unfinished_work_seconds", "3");
        line("longest_running_processor_seconds", "3");
        queue.done(&key);
        queue.add_rate_limited("other");
        line("work_duration_seconds_sum", "3");
        line("unfinished_work_seconds", "0");
        line("retries_total", "1");
        let list = include_str!("telling/queues.txt");
        let wrong = keelson_measure::golden::differences(&measures.page(), list, &[]);
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[tokio::test]
    async fn queues_of_one_name_add_up() {
        let measures = Measures::default();
        let queues: Vec<_> = (0..2).map(|_| Arc::new(WorkQueue::new())).collect();
        let depth = |expected: i64| {
            let (page, line) = (
                measures.page(),
                format!("workqueue_depth{{name=\"certificate\"}} {expected}"),
            );
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        };
        for queue in &queues {
            queue.tell(&measures, "certificate");
            (0..3).for_each(|key| queue.add(key));
        }
        depth(6);
        assert_eq!(queues[0].next().await, Some(0));
        depth(5);
        queues[0].add(0);
        queues[0].close();
        depth(4);
        drop(queues);
        depth(0);
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
    async fn a_key_comes_at_its_date() {
        let epoch: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a date");
        let _simulation = keelson_clock::simulate(epoch);
        let queue = WorkQueue::new();
        let hours = |n| epoch + jiff::SignedDuration::from_hours(n);
        queue.add_at("a", hours(5));
        queue.add_at("a", hours(2));
        queue.add_at("a", hours(3));
        queue.add_after("b", Duration::from_secs(3600));
        assert_eq!(queue.next().await, Some("b"));
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(keelson_clock::now().duration_since(hours(2)).as_secs(), 0);
        queue.done(&"a");
        let more = tokio::time::timeout(Duration::from_secs(24 * 3600), queue.next()).await;
        assert!(more.is_err(), "only once");
    }

    // Tokio's clock stands still, as it does while the machine sleeps: the date comes all the same.
    #[tokio::test]
    async fn dates_are_not_tokios() {
        tokio::time::pause();
        let queue = WorkQueue::new();
        let date = Timestamp::now() + jiff::SignedDuration::from_millis(50);
        queue.add_at(1, date);
        assert_eq!(queue.next().await, Some(1));
        assert!(Timestamp::now() >= date);
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
        queue.set_first_delay(Duration::from_secs(1));
        let start = Instant::now();
        queue.add_rate_limited(1);
        queue.next().await;
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_at_once_when_their_cause_is_gone() {
        let queue = WorkQueue::new();
        queue.set_longest_delay(Duration::from_secs(60));
        for _ in 0..20 {
            queue.add_rate_limited("a1");
            assert_eq!(queue.next().await, Some("a1"));
            queue.done(&"a1");
        }
        let start = Instant::now();
        queue.add_rate_limited("a1");
        queue.next().await;
        queue.done(&"a1");
        assert_eq!(start.elapsed().as_secs(), 60, "never longer than said");
        queue.add_rate_limited("a1");
        queue.add_rate_limited("b1");
        queue.next().await;
        queue.done(&"b1");
        queue.add_after("a2", Duration::from_secs(30));
        let start = Instant::now();
        queue.retry_now(|key| key.starts_with('a'));
        assert_eq!(queue.next().await, Some("a1"), "what failed, not what has its time");
        assert!(start.elapsed().is_zero());
        assert_eq!(queue.failures(&"a1"), 0);
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
