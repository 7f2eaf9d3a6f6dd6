//! Gives up the past in regular steps, as the API server does: every interval, what is older than the last interval.
//!
//! Several servers on one store agree through one key, so that only one of them compacts in each interval.

use crate::{Expect, Outcome, Result, Revision, Store};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The key and the interval are upstream's: servers of both kinds may share a store.
const KEY: &str = "compact_rev_key";
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

/// Whoever manages to write the key, unchanged since its own last look, compacts to what it saw then.
async fn step(store: &dyn Store, seen: &mut Seen) -> Result<Option<Revision>> {
    let current = store.current_revision().await?;
    let expected = if seen.key == 0 {
        Expect::Absent
    } else {
        Expect::ModRevision(seen.key)
    };
    let value = Bytes::from(current.to_string());
    match store
        .put(Bytes::from_static(KEY.as_bytes()), value, expected, None)
        .await?
    {
        Outcome::Conflict { current: kv, .. } => {
            *seen = Seen {
                key: kv.map_or(0, |kv| kv.mod_revision),
                store: current,
            };
            Ok(None)
        }
        Outcome::Done { revision, .. } => {
            let to = std::mem::replace(
                seen,
                Seen {
                    key: revision,
                    store: current,
                },
            )
            .store;
            if to == 0 {
                return Ok(None);
            }
            match store.compact(to).await {
                Ok(()) => Ok(Some(to)),
                Err(e) if e.is_compacted() => Ok(None),
                Err(e) => Err(e),
            }
        }
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
}
