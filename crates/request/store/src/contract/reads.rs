//! Reads of the present and the past.

use super::*;
use crate::{Error, ListRequest};

pub async fn the_past_stays_readable(store: &dyn Store) {
    let first = put(store, "/a", "1").await;
    let second = put(store, "/a", "2").await;
    let gone = delete(store, "/a").await;
    let again = put(store, "/a", "3").await;
    for (revision, expected) in [
        (1, None),
        (first, Some("1")),
        (second, Some("2")),
        (gone, None),
        (again, Some("3")),
    ] {
        assert_eq!(
            value(store, "/a", Some(revision)).await.as_deref(),
            expected,
            "at {revision}"
        );
    }
}

pub async fn the_future_is_refused(store: &dyn Store) {
    let future = Error::FutureRevision { asked: 9, current: 1 };
    assert_eq!(store.get(b"/a", Some(9)).await, Err(future.clone()));
    assert_eq!(store.list(ListRequest::new(all()).at(9)).await, Err(future.clone()));
    assert_eq!(store.watch(all(), 9).await.err(), Some(future));
}

async fn keys(store: &dyn Store, request: ListRequest) -> (String, bool, u64) {
    let listed = store.list(request).await.unwrap();
    let keys: Vec<_> = listed
        .kvs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect();
    (keys.join(" "), listed.more, listed.count)
}

pub async fn lists_are_in_order(store: &dyn Store) {
    for key in ["/b/2", "/a/1", "/c", "/b/1", "/b", "/b0"] {
        put(store, key, key).await;
    }
    let list = |range| keys(store, ListRequest::new(range));
    assert_eq!(list(all()).await, ("/a/1 /b /b/1 /b/2 /b0 /c".into(), false, 6));
    assert_eq!(list(KeyRange::prefix("/b/")).await, ("/b/1 /b/2".into(), false, 2));
    assert_eq!(list(KeyRange::new("/b", "/b/2")).await, ("/b /b/1".into(), false, 2));
    assert_eq!(list(KeyRange::new("/b1", "")).await, ("/c".into(), false, 1));
    assert_eq!(list(KeyRange::key("/b")).await, ("/b".into(), false, 1));
    assert_eq!(list(KeyRange::new("/c", "/a")).await, (String::new(), false, 0));
    delete(store, "/b/1").await;
    put(store, "/b/2", "changed").await;
    assert_eq!(list(KeyRange::prefix("/b/")).await, ("/b/2".into(), false, 1));
}

pub async fn lists_come_in_pages_of_one_revision(store: &dyn Store) {
    for n in 0..7 {
        put(store, &format!("/a/{n}"), "1").await;
    }
    let range = KeyRange::prefix("/a/");
    let first = store.list(ListRequest::new(range.clone()).limit(3)).await.unwrap();
    assert_eq!(
        (first.kvs.len(), first.more, first.count, first.revision),
        (3, true, 7, 8)
    );
    // What happens between pages doesn't show.
    delete(store, "/a/4").await;
    put(store, "/a/5", "2").await;
    put(store, "/a/55", "1").await;
    let rest = range.after(&first.kvs[2].key);
    let second = store
        .list(ListRequest::new(rest.clone()).limit(3).at(first.revision))
        .await
        .unwrap();
    let seen: Vec<_> = second.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect();
    assert_eq!(seen, [(&b"/a/3"[..], &b"1"[..]), (b"/a/4", b"1"), (b"/a/5", b"1")]);
    assert_eq!((second.more, second.count, second.revision), (true, 4, first.revision));
    let rest = range.after(&second.kvs[2].key);
    let third = keys(store, ListRequest::new(rest).limit(3).at(first.revision)).await;
    assert_eq!(third, ("/a/6".into(), false, 1));
}

pub async fn lists_of_the_past(store: &dyn Store) {
    put(store, "/a", "1").await;
    let before = put(store, "/b", "1").await;
    delete(store, "/a").await;
    put(store, "/c", "1").await;
    assert_eq!(
        keys(store, ListRequest::new(all()).at(1)).await,
        (String::new(), false, 0)
    );
    assert_eq!(
        keys(store, ListRequest::new(all()).at(before)).await,
        ("/a /b".into(), false, 2)
    );
    assert_eq!(keys(store, ListRequest::new(all())).await, ("/b /c".into(), false, 2));
}
