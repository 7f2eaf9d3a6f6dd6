//! How fast something may be done: so many a second, and so many at once after a pause. Who comes too soon waits, in the order of
//! those who come.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    burst: f64,
    /// What may be done at once at a moment; below nothing: those who wait.
    left: Mutex<(f64, Instant)>,
}

impl Pace {
    /// Both are at least one.
    pub fn new(per_second: u32, burst: u32) -> Pace {
        let burst = f64::from(burst.max(1));
        Pace {
            per_second: f64::from(per_second.max(1)),
            burst,
            left: Mutex::new((burst, Instant::now())),
        }
    }

    /// Waits until it is one's turn. Whoever gives up before has taken nothing from those who come after him.
    pub async fn turn(&self) {
        let wait = self.take(Instant::now());
        if !wait.is_zero() {
            let mut waiting = Waiting(Some(self));
            tokio::time::sleep(wait).await;
            waiting.0 = None;
        }
    }

    fn take(&self, now: Instant) -> Duration {
        let mut left = self.left.lock();
        let grown = now.saturating_duration_since(left.1).as_secs_f64() * self.per_second;
        left.0 = (left.0 + grown).min(self.burst) - 1.0;
        // Who waited for the lock may come with an earlier time, which isn't to be counted twice.
        left.1 = left.1.max(now);
        Duration::from_secs_f64((-left.0).max(0.0) / self.per_second)
    }
}

/// Somebody who hasn't had his turn yet.
struct Waiting<'a>(Option<&'a Pace>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(pace) = self.0 {
            pace.left.lock().0 += 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_holds_up_nobody() {
        let pace = Pace::new(1, 1);
        pace.turn().await;
        for _ in 0..100 {
            let gone = tokio::time::timeout(Duration::from_millis(1), pace.turn()).await;
            assert!(gone.is_err());
        }
        let began = Instant::now();
        pace.turn().await;
        assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_burst_everyone_waits_for_his_turn() {
        let (pace, began) = (Arc::new(Pace::new(2, 3)), Instant::now());
        let all = (0..7).map(|_| {
            let pace = pace.clone();
            tokio::spawn(async move {
                pace.turn().await;
                began.elapsed().as_millis() as u64
            })
        });
        let mut at = Vec::new();
        for turn in all.collect::<Vec<_>>() {
            at.push(turn.await.unwrap());
        }
        // The clock has milliseconds.
        at.iter_mut().for_each(|t| *t = *t / 10 * 10);
        assert_eq!(at, [0, 0, 0, 500, 1000, 1500, 2000]);
        // What nobody took is saved up to the burst.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let began = Instant::now();
        for _ in 0..3 {
            pace.turn().await;
        }
        assert!(began.elapsed().is_zero());
        pace.turn().await;
        assert!(!began.elapsed().is_zero());
        // A time that lies before the last one adds nothing.
        let (pace, began) = (Pace::new(1, 1), Instant::now());
        let later = began + Duration::from_secs(1);
        assert!(pace.take(later).is_zero());
        assert_eq!(pace.take(began), Duration::from_secs(1));
        assert_eq!(pace.take(later), Duration::from_secs(2));
    }
}
