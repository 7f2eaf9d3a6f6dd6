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

/// An expiry is a deletion like any other.
pub async fn keys_expire(store: &dyn Store) {
    let mut watch = store.watch(all(), 1).await.unwrap();
    put_for(store, "/long", Duration::from_secs(3600)).await;
    put_for(store, "/later", Duration::from_millis(400)).await;
    put_for(store, "/soon", Duration::from_millis(100)).await;
    put(store, "/ever", "1").await;
    let mut seen = Vec::new();
    while seen.len() < 6 {
        seen.extend(next(&mut watch).await.events.iter().map(shown));
    }
    assert_eq!(seen[4..], ["6:/soon-(1)", "7:/later-(1)"]);
    assert_eq!(value(store, "/later", None).await, None);
    assert!(value(store, "/long", None).await.is_some() && value(store, "/ever", None).await.is_some());
}

pub async fn a_later_write_outlives_the_deadline(store: &dyn Store) {
    let ttl = Duration::from_millis(100);
    put_for(store, "/kept", ttl).await;
    put(store, "/kept", "2").await;
    put_for(store, "/renewed", ttl).await;
    put_for(store, "/renewed", Duration::from_secs(3600)).await;
    put_for(store, "/gone", ttl).await;
    delete(store, "/gone").await;
    put(store, "/gone", "again").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for key in ["/kept", "/renewed", "/gone"] {
        assert!(value(store, key, None).await.is_some(), "{key}");
    }
}
