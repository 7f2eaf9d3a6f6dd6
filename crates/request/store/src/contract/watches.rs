//! Watches: complete, ordered, without gaps, and never in a writer's way.

use super::*;
use crate::Error;

pub async fn a_watch_sees_everything_once_and_in_order(store: &dyn Store) {
    let mut watch = store.watch(all(), 1).await.unwrap();
    put(store, "/a", "1").await;
    put(store, "/b", "1").await;
    put(store, "/a", "2").await;
    delete(store, "/a").await;
    let last = put(store, "/a", "3").await;
    let expected = ["2:/a=1", "3:/b=1", "4:/a=2(1)", "5:/a-(2)", "6:/a=3"];
    assert_eq!(until(&mut watch, last).await, expected);
    let next = put(store, "/c", "1").await;
    assert_eq!(until(&mut watch, next).await, ["7:/c=1"]);
}

pub async fn a_watch_begins_in_the_past(store: &dyn Store) {
    put(store, "/a", "1").await;
    let second = put(store, "/a", "2").await;
    put(store, "/b", "1").await;
    let last = delete(store, "/a").await;
    let mut watch = store.watch(all(), second).await.unwrap();
    assert_eq!(until(&mut watch, last).await, ["4:/b=1", "5:/a-(2)"]);
    let mut whole = store.watch(all(), 1).await.unwrap();
    assert_eq!(
        until(&mut whole, last).await,
        ["2:/a=1", "3:/a=2(1)", "4:/b=1", "5:/a-(2)"]
    );
}

pub async fn a_watch_sees_only_its_range(store: &dyn Store) {
    put(store, "/a/0", "0").await;
    put(store, "/b/0", "0").await;
    let mut watch = store.watch(KeyRange::prefix("/a/"), 1).await.unwrap();
    let mut one = store.watch(KeyRange::key("/b/1"), 1).await.unwrap();
    put(store, "/b/1", "1").await;
    put(store, "/a/1", "1").await;
    put(store, "/a", "1").await;
    let last = put(store, "/b/11", "1").await;
    assert_eq!(until(&mut watch, last).await, ["2:/a/0=0", "5:/a/1=1"]);
    assert_eq!(until(&mut one, last).await, ["4:/b/1=1"]);
}

pub async fn progress_is_told_in_order(store: &dyn Store) {
    let mut watch = store.watch(KeyRange::prefix("/a/"), 1).await.unwrap();
    for n in 0..50 {
        put(store, &format!("/b/{n}"), "1").await;
        let revision = if n % 10 == 0 { put(store, "/a/1", "1").await } else { 0 };
        let current = store.current_revision().await.unwrap();
        let seen = until(&mut watch, current).await;
        assert_eq!(seen.len(), usize::from(revision > 0), "{seen:?}");
    }
}

pub async fn a_watch_sees_what_happens_while_it_catches_up(store: &dyn Store) {
    for n in 0..300 {
        put(store, &format!("/a/{}", n % 7), &n.to_string()).await;
    }
    let mut watch = store.watch(all(), 1).await.unwrap();
    let writing = async {
        for n in 300..600 {
            put(store, &format!("/a/{}", n % 7), &n.to_string()).await;
            tokio::task::yield_now().await;
        }
    };
    let watching = async {
        let mut revisions = Vec::new();
        while revisions.last() != Some(&601) {
            revisions.extend(next(&mut watch).await.events.iter().map(crate::Event::revision));
        }
        revisions
    };
    let ((), revisions) = tokio::join!(writing, watching);
    assert!(revisions.into_iter().eq(2..=601));
}

pub async fn a_dropped_next_loses_nothing(store: &dyn Store) {
    let mut watch = store.watch(all(), 1).await.unwrap();
    let mut seen = Vec::new();
    for n in 0..40 {
        put(store, "/a", &n.to_string()).await;
        // Given up at once, or after a moment.
        let patience = Duration::from_micros(n * 20);
        if let Ok(batch) = tokio::time::timeout(patience, watch.next()).await {
            seen.extend(batch.unwrap().unwrap().events.iter().map(crate::Event::revision));
        }
    }
    while seen.last() != Some(&41) {
        seen.extend(next(&mut watch).await.events.iter().map(crate::Event::revision));
    }
    assert!(seen.into_iter().eq(2..=41));
}

/// A watch that is not looked at holds nobody up. It gets everything in the end, or learns that it missed something.
pub async fn a_slow_watcher_holds_nobody_up(store: &dyn Store) {
    let (seen, end) = overrun(store).await;
    match end {
        Some(error) => {
            assert!(matches!(error, Error::SlowWatcher { .. }), "{error}");
            assert!(seen < OVERRUN);
        }
        None => assert_eq!(seen, OVERRUN),
    }
}

/// For stores that hold events in memory for their watchers: not part of the macro's suite.
pub async fn a_slow_watcher_is_cut(store: &dyn Store) {
    let (_, end) = overrun(store).await;
    assert!(matches!(end, Some(Error::SlowWatcher { .. })), "{end:?}");
}

/// More than any watcher's queue has place for.
const OVERRUN: usize = 12_000;

/// So many writes while a watcher looks away; what it gets afterwards, in order and without a gap, and how it ends.
async fn overrun(store: &dyn Store) -> (usize, Option<Error>) {
    let mut slow = store.watch(all(), 1).await.unwrap();
    put(store, "/a", "first").await;
    assert_eq!(next(&mut slow).await.events.len(), 1);
    // It has caught up and waits for more: from here on events queue for it.
    assert!(
        tokio::time::timeout(Duration::from_millis(50), slow.next())
            .await
            .is_err()
    );
    let mut quick = store.watch(KeyRange::key("/b"), 1).await.unwrap();
    let writes = (0..OVERRUN - 1).map(|n| async move {
        put(store, "/a", &n.to_string()).await;
    });
    futures::stream::StreamExt::for_each_concurrent(futures::stream::iter(writes), 500, |write| write).await;
    let last = put(store, "/b", "1").await;
    assert_eq!(until(&mut quick, last).await.len(), 1);
    let (mut seen, mut at) = (0, 2);
    while at < last {
        match tokio::time::timeout(PATIENCE, slow.next()).await.unwrap().unwrap() {
            Ok(batch) => {
                for event in &batch.events {
                    assert_eq!(event.revision(), at + 1, "a gap");
                    at += 1;
                }
                seen += batch.events.len();
            }
            Err(error) => {
                assert!(slow.next().await.is_none(), "it is over");
                return (seen, Some(error));
            }
        }
    }
    (seen, None)
}
