//! Giving up the past.

use super::*;
use crate::{Error, ListRequest};

pub async fn compaction_gives_up_the_past(store: &dyn Store) {
    put(store, "/a", "1").await;
    put(store, "/a", "2").await;
    let kept = put(store, "/b", "1").await;
    put(store, "/a", "3").await;
    store.compact(kept).await.unwrap();
    let compacted = Error::Compacted { compact_revision: kept };
    assert_eq!(store.get(b"/a", Some(kept - 1)).await, Err(compacted.clone()));
    assert_eq!(
        store.list(ListRequest::new(all()).at(kept - 1)).await,
        Err(compacted.clone())
    );
    assert_eq!(store.watch(all(), kept - 1).await.err(), Some(compacted));
    assert_eq!(value(store, "/a", Some(kept)).await.as_deref(), Some("2"));
    let mut watch = store.watch(all(), kept).await.unwrap();
    assert_eq!(until(&mut watch, kept + 1).await, ["5:/a=3(2)"]);
    assert_eq!(store.status().await.unwrap().compact_revision, kept);
}

pub async fn compaction_keeps_the_present(store: &dyn Store) {
    for n in 0..50 {
        put(store, &format!("/a/{}", n % 10), &n.to_string()).await;
    }
    for n in 0..5 {
        delete(store, &format!("/a/{n}")).await;
    }
    let current = store.current_revision().await.unwrap();
    store.compact(current).await.unwrap();
    // Time for what happens in the background.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let listed = store.list(ListRequest::new(all())).await.unwrap();
    let values: Vec<_> = listed
        .kvs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
        .collect();
    assert_eq!(values, ["45", "46", "47", "48", "49"]);
    assert_eq!(listed.revision, current);
    assert_eq!(put(store, "/a/0", "again").await, current + 1);
    let kv = store.get(b"/a/0", None).await.unwrap().kv.unwrap();
    assert_eq!((kv.create_revision, kv.version), (current + 1, 1));
    let mut watch = store.watch(all(), current).await.unwrap();
    assert_eq!(
        until(&mut watch, current + 1).await,
        [format!("{}:/a/0=again", current + 1)]
    );
}

pub async fn compaction_of_nonsense_is_refused(store: &dyn Store) {
    let last = put(store, "/a", "1").await;
    assert_eq!(
        store.compact(last + 1).await,
        Err(Error::FutureRevision {
            asked: last + 1,
            current: last
        })
    );
    store.compact(last).await.unwrap();
    let compacted = Err(Error::Compacted { compact_revision: last });
    assert_eq!(store.compact(last).await, compacted);
    assert_eq!(store.compact(last - 1).await, compacted);
}

pub async fn compaction_in_steps(store: &dyn Store) {
    for step in 0..8 {
        for n in 0..40 {
            put(store, &format!("/a/{}", n % 9), &format!("{step}-{n}")).await;
        }
        let current = store.current_revision().await.unwrap();
        store.compact(current - 20).await.unwrap();
        for back in 0..20 {
            let at = current - back;
            let listed = store.list(ListRequest::new(all()).at(at)).await.unwrap();
            assert_eq!(listed.count, 9, "at {at}");
            let newest = listed.kvs.iter().max_by_key(|kv| kv.mod_revision).unwrap();
            assert_eq!(
                (newest.mod_revision, &newest.value),
                (at, &bytes(&format!("{step}-{}", 39 - back)))
            );
        }
    }
}
