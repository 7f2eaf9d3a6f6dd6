//! What clients have had of the processor, and who therefore comes after the others.
//!
//! Work is counted for a name as soon as one is known, whatever its connections, and for an address until then. Who had more than
//! [`Limits::share`](crate::Limits::share) lately comes behind until he has had half of that; nothing else is held back from him. It costs him nothing while
//! nobody else has something to do.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// What counts is what was had within it.
const WHILE: Duration = Duration::from_secs(1);
/// Who asked nothing for so long begins anew.
const FORGOTTEN: Duration = Duration::from_secs(5);
const LOOK_AFTER: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Address(IpAddr),
    Name(Arc<str>),
}

/// What one client has had.
pub(crate) struct Share {
    who: Who,
    most: Duration,
    behind: AtomicBool,
    had: Mutex<Had>,
}

struct Had {
    since: Instant,
    before: Duration,
    now: Duration,
}

impl Had {
    fn turn(&mut self, now: Instant) {
        let whiles = now.saturating_duration_since(self.since).as_nanos() / WHILE.as_nanos();
        if whiles > 0 {
            self.before = if whiles == 1 { self.now } else { Duration::ZERO };
            self.now = Duration::ZERO;
            self.since = now;
        }
    }
    /// Of the while before counts what would still be within one.
    fn lately(&self, now: Instant) -> Duration {
        let part = now.saturating_duration_since(self.since).as_secs_f64() / WHILE.as_secs_f64();
        self.now + self.before.mul_f64((1.0 - part).max(0.0))
    }
}

impl Share {
    fn new(who: Who, most: Duration) -> Arc<Share> {
        let had = Had {
            since: Instant::now(),
            before: Duration::ZERO,
            now: Duration::ZERO,
        };
        Arc::new(Share {
            who,
            most,
            behind: AtomicBool::new(false),
            had: Mutex::new(had),
        })
    }
    pub fn spend(&self, time: Duration, now: Instant) {
        let mut had = self.had.lock();
        had.turn(now);
        had.now += time;
        if had.lately(now) > self.most {
            self.behind.store(true, Relaxed);
        }
    }
    pub fn is_behind(&self) -> bool {
        if !self.behind.load(Relaxed) {
            return false;
        }
        let (now, mut had) = (Instant::now(), self.had.lock());
        had.turn(now);
        let behind = had.lately(now) > self.most / 2;
        self.behind.store(behind, Relaxed);
        behind
    }
    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.had.lock().since) > FORGOTTEN
    }
}

/// Those of all clients of a listener.
pub(crate) struct Shares {
    most: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    of: HashMap<Who, Arc<Share>>,
    look_at: usize,
}

impl Shares {
    pub fn new(most: Duration) -> Arc<Shares> {
        let known = Known {
            look_at: LOOK_AFTER,
            ..Known::default()
        };
        Arc::new(Shares {
            most,
            known: Mutex::new(known),
        })
    }
    fn of(&self, who: Who) -> Arc<Share> {
        let mut known = self.known.lock();
        if let Some(share) = known.of.get(&who) {
            return share.clone();
        }
        if known.of.len() >= known.look_at {
            let now = Instant::now();
            known
                .of
                .retain(|_, share| Arc::strong_count(share) > 1 || !share.is_forgotten(now));
            known.look_at = (known.of.len() * 2).max(LOOK_AFTER);
        }
        let share = Share::new(who.clone(), self.most);
        known.of.insert(who, share.clone());
        share
    }
}

/// Whom a connection's work is counted for at the moment; an extension of its requests.
#[derive(Clone)]
pub struct Asker(Arc<Asks>);

struct Asks {
    shares: Arc<Shares>,
    of: Mutex<Arc<Share>>,
}

impl Asker {
    /// `peer` as connections are counted by.
    pub(crate) fn at(shares: &Arc<Shares>, peer: IpAddr) -> Asker {
        Asker(Arc::new(Asks {
            of: Mutex::new(shares.of(Who::Address(peer))),
            shares: shares.clone(),
        }))
    }
    pub(crate) fn is_behind(&self) -> bool {
        self.0.of.lock().is_behind()
    }
    pub(crate) fn spend(&self, time: Duration, now: Instant) {
        self.0.of.lock().spend(time, now);
    }
    /// From now on all is counted for this name.
    pub fn is(&self, name: &str) {
        let mut of = self.0.of.lock();
        if matches!(&of.who, Who::Name(known) if **known == *name) {
            return;
        }
        *of = self.0.shares.of(Who::Name(name.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(100);

    async fn after(millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_had_too_much_lately_comes_behind_until_he_has_had_half() {
        let share = Share::new(Who::Name("a".into()), MOST);
        for _ in 0..50 {
            share.spend(Duration::from_millis(5), Instant::now());
            assert!(!share.is_behind(), "a twentieth is less than a tenth");
            after(100).await;
        }
        share.spend(Duration::from_millis(60), Instant::now());
        assert!(share.is_behind());
        after(900).await;
        share.spend(Duration::from_millis(60), Instant::now());
        after(900).await;
        assert!(share.is_behind());
        after(2000).await;
        assert!(!share.is_behind());
    }

    #[tokio::test(start_paused = true)]
    async fn all_connections_of_a_name_count_together_and_nobody_elses() {
        let shares = Shares::new(MOST);
        let here = IpAddr::from([127, 0, 0, 1]);
        let (one, two, other) = (
            Asker::at(&shares, here),
            Asker::at(&shares, here),
            Asker::at(&shares, here),
        );
        one.spend(Duration::from_millis(10), Instant::now());
        for (asker, name) in [(&one, "a"), (&two, "a"), (&other, "b")] {
            asker.is(name);
        }
        one.spend(Duration::from_millis(60), Instant::now());
        assert!(!two.is_behind());
        two.spend(Duration::from_millis(60), Instant::now());
        assert!(one.is_behind() && two.is_behind() && !other.is_behind());
        assert!(!Asker::at(&shares, here).is_behind());
        // Who goes and comes again is still known.
        drop((one, two));
        let again = Asker::at(&shares, here);
        again.is("a");
        assert!(again.is_behind());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_forgotten() {
        let shares = Shares::new(MOST);
        let asker = Asker::at(&shares, [127, 0, 0, 1].into());
        for n in 0..LOOK_AFTER * 10 {
            asker.is(&format!("user {n}"));
            after(100).await;
        }
        assert!(shares.known.lock().of.len() <= LOOK_AFTER);
    }
}
