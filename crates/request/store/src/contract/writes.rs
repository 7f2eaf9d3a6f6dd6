//! Compare-and-set, revisions, versions.

use super::*;
use crate::{Error, KeyValue, MAX_KEY, Outcome};

pub async fn a_new_store_stands_at_one(store: &dyn Store) {
    assert_eq!(store.current_revision().await.unwrap(), 1);
    let got = store.get(b"/none", None).await.unwrap();
    assert_eq!((got.kv, got.revision), (None, 1));
}

pub async fn revisions_count_every_change(store: &dyn Store) {
    assert_eq!(put(store, "/a", "1").await, 2);
    assert_eq!(put(store, "/b", "1").await, 3);
    assert_eq!(put(store, "/a", "2").await, 4);
    assert_eq!(delete(store, "/b").await, 5);
    assert_eq!(store.current_revision().await.unwrap(), 5);
    let kv = store.get(b"/a", None).await.unwrap().kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 4, 2));
    assert_eq!(store.status().await.unwrap().revision, 5);
}

pub async fn creating_fails_if_the_key_is_there(store: &dyn Store) {
    let first = store.put(bytes("/a"), bytes("1"), Expect::Absent, None).await.unwrap();
    assert_eq!(
        first,
        Outcome::Done {
            revision: 2,
            prev: None
        }
    );
    let second = store.put(bytes("/a"), bytes("2"), Expect::Absent, None).await.unwrap();
    let there = KeyValue {
        key: bytes("/a"),
        value: bytes("1"),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        lease: 0,
    };
    assert_eq!(
        second,
        Outcome::Conflict {
            revision: 2,
            current: Some(there)
        }
    );
    assert_eq!(value(store, "/a", None).await.as_deref(), Some("1"));
}

pub async fn updating_needs_the_revision(store: &dyn Store) {
    let missing = store
        .put(bytes("/a"), bytes("1"), Expect::ModRevision(2), None)
        .await
        .unwrap();
    assert!(is_conflict(&missing, None));
    let first = put(store, "/a", "1").await;
    let second = store
        .put(bytes("/a"), bytes("2"), Expect::ModRevision(first), None)
        .await
        .unwrap();
    let Outcome::Done { revision, prev } = second else {
        panic!("{second:?}")
    };
    assert_eq!((revision, prev.unwrap().value), (3, bytes("1")));
    let stale = store
        .put(bytes("/a"), bytes("3"), Expect::ModRevision(first), None)
        .await
        .unwrap();
    assert!(is_conflict(&stale, Some(3)), "{stale:?}");
    assert_eq!(value(store, "/a", None).await.as_deref(), Some("2"));
}

pub async fn deleting_needs_the_revision(store: &dyn Store) {
    let missing = store.delete(bytes("/a"), Expect::Any).await.unwrap();
    assert!(is_conflict(&missing, None));
    let first = put(store, "/a", "1").await;
    let second = put(store, "/a", "2").await;
    let stale = store.delete(bytes("/a"), Expect::ModRevision(first)).await.unwrap();
    assert!(is_conflict(&stale, Some(second)));
    let done = store.delete(bytes("/a"), Expect::ModRevision(second)).await.unwrap();
    let Outcome::Done { revision, prev } = done else {
        panic!("{done:?}")
    };
    assert_eq!((revision, prev.unwrap().value), (4, bytes("2")));
    assert_eq!(value(store, "/a", None).await, None);
    assert_eq!(store.current_revision().await.unwrap(), 4, "what failed left no trace");
}

pub async fn a_deleted_key_begins_anew(store: &dyn Store) {
    put(store, "/a", "1").await;
    put(store, "/a", "2").await;
    delete(store, "/a").await;
    let again = store.put(bytes("/a"), bytes("3"), Expect::Absent, None).await.unwrap();
    assert_eq!(
        again,
        Outcome::Done {
            revision: 5,
            prev: None
        }
    );
    let kv = store.get(b"/a", None).await.unwrap().kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

pub async fn keys_and_values_are_any_bytes(store: &dyn Store) {
    let keys: [&[u8]; 7] = [b"\0", b"\0\0", b"a", b"a\0", b"a\0\xff", b"a\x01", b"\xff\xff"];
    for key in keys.iter().rev() {
        let value = [&key[..], &[0, 1, 255]].concat();
        store
            .put(Bytes::from_static(key), value.into(), Expect::Absent, None)
            .await
            .unwrap();
    }
    let listed = store.list(crate::ListRequest::new(all())).await.unwrap();
    assert_eq!(listed.kvs.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), keys);
    for kv in &listed.kvs {
        assert_eq!(kv.value, [&kv.key[..], &[0, 1, 255]].concat());
        assert_eq!(store.get(&kv.key, None).await.unwrap().kv.as_ref(), Some(kv));
    }
    put(store, "/empty", "").await;
    assert_eq!(value(store, "/empty", None).await.as_deref(), Some(""));
    let large = Bytes::from(vec![7; 3 << 20]);
    store
        .put(bytes("/large"), large.clone(), Expect::Absent, None)
        .await
        .unwrap();
    assert_eq!(store.get(b"/large", None).await.unwrap().kv.unwrap().value, large);
}

pub async fn odd_keys_are_refused(store: &dyn Store) {
    for key in [Bytes::new(), Bytes::from(vec![b'a'; MAX_KEY + 1])] {
        let refused = store.put(key.clone(), bytes("1"), Expect::Any, None).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        assert!(matches!(
            store.delete(key, Expect::Any).await,
            Err(Error::Invalid { .. })
        ));
    }
}

pub async fn one_of_many_wins(store: &dyn Store) {
    let attempts = (0..20).map(|n| store.put(bytes("/a"), bytes(&n.to_string()), Expect::Absent, None));
    let outcomes = futures::future::join_all(attempts).await;
    let won = outcomes
        .into_iter()
        .filter(|o| o.as_ref().unwrap().done().is_some())
        .count();
    assert_eq!(won, 1);
    assert_eq!(store.current_revision().await.unwrap(), 2);
}

pub async fn a_put_and_its_deletion_are_two_changes(store: &dyn Store) {
    let first = put(store, "/a", "1").await;
    let expected = Expect::ModRevision(first);
    let ended = store.put_then_delete(bytes("/a"), bytes("2"), expected).await.unwrap();
    assert_eq!(ended.0.done(), Some(first + 1));
    assert_eq!(ended.1.and_then(|deleted| deleted.done()), Some(first + 2));
    assert_eq!(value(store, "/a", None).await, None);
    assert_eq!(value(store, "/a", Some(first + 1)).await.as_deref(), Some("2"));
    let mut watch = store.watch(all(), first).await.unwrap();
    let told = until(&mut watch, first + 2).await;
    assert_eq!(told.len(), 2, "{told:?}");
    // What isn't as expected stays.
    let now = put(store, "/a", "3").await;
    let (kept, removed) = store.put_then_delete(bytes("/a"), bytes("4"), expected).await.unwrap();
    assert!(is_conflict(&kept, Some(now)) && removed.is_none());
    assert_eq!(value(store, "/a", None).await.as_deref(), Some("3"));
}
