//! When a copy's controllers have nothing more to do.

use keelson_store::{KeyRange, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// So long nothing is written: controllers that wait for each other's writes take less, pods of jobs a second.
const QUIET: Duration = Duration::from_secs(3);
/// Written while nothing happens: nodes are heard, and who waits complains again.
const ALWAYS: [&str; 2] = ["/registry/leases/", "/registry/events/"];

/// Whether it came to rest within that time.
pub async fn settled(store: &Arc<dyn Store>, longest: Duration) -> anyhow::Result<bool> {
    let end = Instant::now() + longest;
    let mut quiet = Instant::now() + QUIET;
    let mut changes = store.watch(KeyRange::all(), store.current_revision().await?).await?;
    while Instant::now() < end {
        match timeout(quiet.min(end) - Instant::now(), changes.next()).await {
            Err(_) => return Ok(quiet <= end),
            Ok(Some(Ok(batch))) => {
                let counts = |key: &[u8]| !ALWAYS.iter().any(|always| key.starts_with(always.as_bytes()));
                if batch.events.iter().any(|event| counts(&event.kv.key)) {
                    quiet = Instant::now() + QUIET;
                }
            }
            // More was written than a watch holds: it goes on from here.
            Ok(_) => changes = store.watch(KeyRange::all(), store.current_revision().await?).await?,
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_store::{Expect, Memory};

    #[tokio::test(start_paused = true)]
    async fn leases_are_no_work_and_the_rest_is_waited_for() {
        let store: Arc<dyn Store> = Memory::new();
        let writer = store.clone();
        let writing = tokio::spawn(async move {
            for n in 0..20u64 {
                let key = if n < 5 {
                    "/registry/pods/a/b"
                } else {
                    "/registry/leases/a/b"
                };
                let written = writer.put(key.into(), n.to_string().into(), Expect::Any, None).await;
                written.unwrap();
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        let began = Instant::now();
        assert!(settled(&store, Duration::from_secs(60)).await.unwrap());
        let took = began.elapsed();
        assert!(
            took >= Duration::from_secs(11) && took < Duration::from_secs(14),
            "{took:?}"
        );
        writing.abort();
        let busy = store.clone();
        let writing = tokio::spawn(async move {
            loop {
                let written = busy
                    .put("/registry/pods/a/b".into(), "x".into(), Expect::Any, None)
                    .await;
                written.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert!(!settled(&store, Duration::from_secs(10)).await.unwrap());
        writing.abort();
    }
}
