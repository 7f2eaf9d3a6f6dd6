//! How far the server's own following has got: which resources it has in memory, and what can't be judged before.
//!
//! Nothing is admitted by rules that aren't read yet: who needs them waits, for a time, and refuses then. Reads need no
//! admission, so the followers themselves never wait for one another.

use crate::aggregation::SERVICES_PATH;
use crate::crd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Upstream's patience of admission with its informers.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The followed paths. Nothing is synced before [`started`](Self::started).
#[derive(Default)]
pub struct Following {
    followers: OnceLock<Vec<(&'static str, watch::Receiver<bool>)>>,
    paths_known: AtomicBool,
}

impl Following {
    /// Takes on what the server follows; the receivers turn true with their first lists.
    pub fn started(&self, followers: Vec<(&'static str, watch::Receiver<bool>)>) {
        let known_already = self.followers.set(followers).is_err();
        debug_assert!(!known_already, "a server starts once");
    }
    pub fn has_started(&self) -> bool {
        self.followers.get().is_some()
    }

    fn of<'a>(&'a self, paths: &'a [&str]) -> impl Iterator<Item = &'a watch::Receiver<bool>> {
        let all = self.followers.get().into_iter().flatten();
        all.filter(|(path, _)| paths.contains(path)).map(|(_, synced)| synced)
    }
    /// Whether all these paths are in memory.
    pub fn has(&self, paths: &[&str]) -> bool {
        self.has_started() && self.of(paths).all(|synced| *synced.borrow())
    }
    /// Waits for these paths; false when they didn't come in time.
    pub async fn wait(&self, paths: &[&str], patience: Duration) -> bool {
        let until = Instant::now() + patience;
        for synced in self.of(paths) {
            let mut synced = synced.clone();
            if !matches!(timeout_at(until, synced.wait_for(|s| *s)).await, Ok(Ok(_))) {
                return false;
            }
        }
        self.has(paths)
    }
    /// Waits for these paths, however long it takes.
    pub async fn wait_for(&self, paths: &[&str]) {
        for synced in self.of(paths) {
            // An end of the follower is the server's end.
            let _ = synced.clone().wait_for(|s| *s).await;
        }
    }
    /// Waits for everything that is followed, however long it takes.
    pub async fn wait_for_all(&self) {
        for (_, synced) in self.followers.get().into_iter().flatten() {
            // An end of the follower is the server's end.
            let _ = synced.clone().wait_for(|s| *s).await;
        }
    }
    /// What isn't in memory yet.
    pub fn missing(&self) -> Vec<&'static str> {
        let all = self.followers.get().into_iter().flatten();
        all.filter(|(_, synced)| !*synced.borrow())
            .map(|(path, _)| *path)
            .collect()
    }

    /// Whether it is known which paths are served: definitions and extension servers have been read.
    pub fn paths_known(&self) -> bool {
        if !self.paths_known.load(Ordering::Relaxed) && self.has(&[crd::PATH, SERVICES_PATH]) {
            self.paths_known.store(true, Ordering::Relaxed);
        }
        self.paths_known.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_needs_rules_waits_for_them_and_no_longer_than_that() {
        let following = Following::default();
        assert!(!following.has(&[]) && !following.wait(&["/a"], PATIENCE).await);
        let (a, seen) = watch::channel(false);
        let (b, other) = watch::channel(false);
        following.started(vec![("/a", seen), ("/b", other)]);
        let began = Instant::now();
        assert!(!following.wait(&["/a"], PATIENCE).await);
        assert_eq!(began.elapsed(), PATIENCE);
        a.send_replace(true);
        assert!(following.wait(&["/a"], PATIENCE).await && !following.has(&["/a", "/b"]));
        assert_eq!(following.missing(), ["/b"]);
        b.send_replace(true);
        following.wait_for_all().await;
    }
}
