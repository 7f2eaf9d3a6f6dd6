//! Keys with a time to live.

use super::*;

async fn put_for(store: &dyn Store, key: &str, ttl: Duration) -> Revision {
    store
        .put(bytes(key), bytes("1"), Expect::Any, Some(ttl))
        .await
        .unwrap()
        .done()
        .unwrap()
}

/// Times that every store can keep: etcd's are whole seconds, two at least, and looked after twice a second.
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// An expiry is a deletion like any other, never early.
pub async fn keys_expire(store: &dyn Store) {
    let mut watch = store.watch(all(), 1).await.unwrap();
    put_for(store, "/long", HOUR).await;
    put_for(store, "/later", LATER).await;
    put_for(store, "/soon", SOON).await;
    put(store, "/ever", "1").await;
    let begun = std::time::Instant::now();
    let mut seen = Vec::new();
    while seen.len() < 6 {
        seen.extend(next(&mut watch).await.events.iter().map(shown));
    }
    assert!(
        begun.elapsed() + Duration::from_millis(500) > LATER,
        "after {:?}",
        begun.elapsed()
    );
    assert_eq!(seen[4..], ["6:/soon-(1)", "7:/later-(1)"]);
    assert_eq!(value(store, "/later", None).await, None);
    assert!(value(store, "/long", None).await.is_some() && value(store, "/ever", None).await.is_some());
}

pub async fn a_later_write_outlives_the_deadline(store: &dyn Store) {
    put_for(store, "/kept", SOON).await;
    put(store, "/kept", "2").await;
    put_for(store, "/renewed", SOON).await;
    put_for(store, "/renewed", HOUR).await;
    put_for(store, "/gone", SOON).await;
    delete(store, "/gone").await;
    put(store, "/gone", "again").await;
    put_for(store, "/ended", SOON).await;
    let mut watch = store.watch(crate::KeyRange::key("/ended"), 8).await.unwrap();
    // Until the time is over for all of them.
    while next(&mut watch)
        .await
        .events
        .iter()
        .all(|e| e.kind == crate::EventKind::Put)
    {}
    tokio::time::sleep(SOON / 4).await;
    for key in ["/kept", "/renewed", "/gone"] {
        assert!(value(store, key, None).await.is_some(), "{key}");
    }
}
