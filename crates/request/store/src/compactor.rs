//! Gives up the past in regular steps, as the API server does: every interval, what is older than the last interval.
//!
//! Several servers on one store agree through one key, so that only one of them compacts in each interval.

use crate::{Expect, Outcome, Result, Revision, Store};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The key and the interval are upstream's: servers of both kinds may share a store.
pub const KEY: &str = "compact_rev_key";
pub const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Runs until `stop`. A failure is said and the next interval tries again.
pub async fn auto_compact(store: Arc<dyn Store>, interval: Duration, stop: CancellationToken) {
    let mut state = Seen::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        match step(&*store, &mut state).await {
            Ok(Some(revision)) => tracing::debug!(revision, "compacted the store"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the store could not be compacted; the next interval tries again"),
        }
    }
}

/// What this server saw an interval ago.
#[derive(Default)]
struct Seen {
    /// The key's revision then; 0: it wasn't there.
    key: Revision,
    /// The store's revision then; 0: none seen yet.
    store: Revision,
}

/// Whoever manages to write the key, unchanged since its own last look, compacts to what it saw then. The key is the clock
/// that the servers share: each write of it is a tick, whether by one of ours or by kube-apiserver, which looks at its
/// version instead. What stands under it is the revision that is being compacted to, 0 at first.
async fn step(store: &dyn Store, seen: &mut Seen) -> Result<Option<Revision>> {
    let expected = if seen.key == 0 {
        Expect::Absent
    } else {
        Expect::ModRevision(seen.key)
    };
    let to = seen.store;
    let (key, value) = (Bytes::from_static(KEY.as_bytes()), Bytes::from(to.to_string()));
    match store.put(key, value, expected, None).await? {
        Outcome::Conflict { revision, current } => {
            *seen = Seen {
                key: current.map_or(0, |kv| kv.mod_revision),
                store: revision,
            };
            return Ok(None);
        }
        Outcome::Done { revision, .. } => {
            *seen = Seen {
                key: revision,
                store: revision,
            };
        }
    }
    if to == 0 {
        return Ok(None);
    }
    match store.compact(to).await {
        Ok(()) => Ok(Some(to)),
        Err(e) if e.is_compacted() => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_an_interval_is_given_up() {
        let store: Arc<dyn Store> = Memory::new();
        let stop = CancellationToken::new();
        for _ in 0..2 {
            tokio::spawn(auto_compact(store.clone(), INTERVAL, stop.clone()));
        }
        let put = |n: u32| store.put("/a".into(), n.to_string().into(), Expect::Any, None);
        put(1).await.unwrap();
        put(2).await.unwrap();
        let before = store.current_revision().await.unwrap();
        tokio::time::sleep(INTERVAL + Duration::from_secs(1)).await;
        assert_eq!(
            store.status().await.unwrap().compact_revision,
            0,
            "nothing is old enough yet"
        );
        tokio::time::sleep(INTERVAL * 2).await;
        assert!(store.status().await.unwrap().compact_revision >= before);
        assert!(store.get(b"/a", Some(before - 1)).await.unwrap_err().is_compacted());
        assert_eq!(store.get(b"/a", None).await.unwrap().kv.unwrap().value, "2");
        stop.cancel();
    }

    /// What kube-apiserver, and whoever looks for the oldest revision kept, reads there.
    #[tokio::test]
    async fn the_key_holds_what_was_compacted_to_and_one_tick_has_one_winner() {
        let store = Memory::new();
        let written = async || {
            let kv = store.get(KEY.as_bytes(), None).await.unwrap().kv.unwrap();
            (String::from_utf8(kv.value.to_vec()).unwrap(), kv.version)
        };
        let put = async || store.put("/a".into(), "1".into(), Expect::Any, None).await.unwrap();
        let (mut one, mut other) = (Seen::default(), Seen::default());
        put().await;
        assert_eq!(step(&*store, &mut one).await, Ok(None));
        assert_eq!(written().await, ("0".into(), 1), "nothing is compacted at a start");
        assert_eq!(step(&*store, &mut other).await, Ok(None), "the other was first");
        assert_eq!(written().await.1, 1);
        for _ in 0..3 {
            put().await;
        }
        assert_eq!(step(&*store, &mut one).await, Ok(Some(3)));
        assert_eq!(written().await, ("3".into(), 2));
        assert_eq!(step(&*store, &mut other).await, Ok(None), "the other was first again");
        // The first is gone: the other goes on from what it saw.
        put().await;
        assert_eq!(step(&*store, &mut other).await, Ok(Some(7)));
        assert_eq!(written().await, ("7".into(), 3));
        assert_eq!(store.status().await.unwrap().compact_revision, 7);
    }
}
