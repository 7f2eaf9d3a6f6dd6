use super::*;
use crate::{Embedded, Error, Expect, KeyRange, ListRequest, Store, embedded};
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;

async fn open(path: &Path) -> std::sync::Arc<Embedded> {
    Embedded::open(path, embedded::Options::default()).await.unwrap()
}

async fn all(store: &Embedded) -> Vec<KeyValue> {
    store.list(ListRequest::new(KeyRange::all())).await.unwrap().kvs
}

fn key(n: u32) -> Bytes {
    format!("/registry/configmaps/a/{n:05}\0").into()
}

/// A store in which keys were made, changed, removed and made again, and one ends by itself.
async fn store(path: &Path) -> std::sync::Arc<Embedded> {
    let store = open(path).await;
    let put = async |key, value: Vec<u8>, ttl| store.put(key, value.into(), Expect::Any, ttl).await.unwrap();
    for n in 0..600 {
        put(key(n), vec![n as u8; 10 + n as usize * 20], None).await;
    }
    for n in (0..600).step_by(3) {
        put(key(n), b"again".to_vec(), None).await;
    }
    for n in (0..600).step_by(7) {
        store.delete(key(n), Expect::Any).await.unwrap();
    }
    put(key(7), b"a second life".to_vec(), None).await;
    put(
        "/registry/events/e".into(),
        b"short".to_vec(),
        Some(Duration::from_secs(3600)),
    )
    .await;
    store.delete(key(8), Expect::Any).await.unwrap();
    store
}

#[tokio::test]
async fn a_store_is_the_same_after_it_was_saved_and_restored() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let before = store(&at("before")).await;
    let (is, revision) = (all(&before).await, before.current_revision().await.unwrap());
    let saved = before.save(&at("file")).await.unwrap();
    assert_eq!((saved.revision, saved.keys), (revision, is.len() as u64));
    assert_eq!(check(&at("file"), Sum::Wanted).unwrap(), saved);
    // What happens later isn't in it.
    before.delete(key(1), Expect::Any).await.unwrap();

    for (name, ahead) in [("as it was", 0), ("ahead", 1_000_000_000)] {
        embedded::restore(&at("file"), &at(name), ahead, Sum::Wanted).unwrap();
        let after = open(&at(name)).await;
        assert_eq!(all(&after).await, is, "{name}");
        assert_eq!(after.current_revision().await.unwrap(), revision + ahead);
        let early = after.watch(KeyRange::all(), revision + ahead - 1).await.err();
        assert!(early.unwrap().is_compacted(), "{name}: nobody goes on from before");
        let written = after.put(key(1), Bytes::new(), Expect::Any, None).await.unwrap();
        assert_eq!(written.done(), Some(revision + ahead + 1));
        after.compact(revision + ahead + 1).await.unwrap();
        after.close().await.unwrap();
        drop(after);
        assert_eq!(
            open(&at(name)).await.current_revision().await.unwrap(),
            revision + ahead + 1,
            "{name}: again"
        );
    }
}

/// A key's time goes on from where it was.
#[tokio::test]
async fn what_ends_by_itself_still_does() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let before = open(&at("before")).await;
    let soon = Some(Duration::from_millis(900));
    before
        .put("/soon".into(), Bytes::new(), Expect::Absent, soon)
        .await
        .unwrap();
    before
        .put(
            "/late".into(),
            Bytes::new(),
            Expect::Absent,
            Some(Duration::from_secs(900)),
        )
        .await
        .unwrap();
    before.save(&at("file")).await.unwrap();
    embedded::restore(&at("file"), &at("after"), 0, Sum::Wanted).unwrap();
    let after = open(&at("after")).await;
    let left = async || all(&after).await.into_iter().map(|kv| kv.key).collect::<Vec<_>>();
    for _ in 0..100 {
        if left().await == ["/late"] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("left: {:?}", left().await);
}

#[tokio::test]
async fn a_store_that_is_there_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let before = store(&at("before")).await;
    before.save(&at("file")).await.unwrap();
    let refused = embedded::restore(&at("file"), &at("before"), 0, Sum::Wanted);
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
    assert!(!all(&before).await.is_empty());
}

#[tokio::test]
async fn a_damaged_file_makes_no_store() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let before = store(&at("before")).await;
    before.save(&at("file")).await.unwrap();
    let whole = std::fs::read(at("file")).unwrap();
    let middle = whole.len() / 2;
    let mut flipped = whole.clone();
    flipped[middle] ^= 1;
    for bytes in [
        &flipped[..],
        &whole[..middle],
        &whole[..middle / 512 * 512],
        b"",
        b"something else",
    ] {
        std::fs::write(at("damaged"), bytes).unwrap();
        let refused = embedded::restore(&at("damaged"), &at("after"), 0, Sum::Wanted);
        assert!(
            matches!(refused, Err(Error::Corrupt { .. })),
            "{} bytes: {refused:?}",
            bytes.len()
        );
        let left: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(
            !left.iter().any(|name| name.to_string_lossy().starts_with("after")),
            "{left:?}"
        );
    }
    // A file without its sum is taken when that is said.
    std::fs::write(at("damaged"), &whole[..whole.len() - SUM]).unwrap();
    let refused = check(&at("damaged"), Sum::Wanted).unwrap_err().to_string();
    assert!(refused.contains("--skip-hash-check"), "{refused}");
    let keys = |file: &str, sum| check(&at(file), sum).unwrap().keys;
    assert_eq!(keys("damaged", Sum::Ignored), keys("file", Sum::Wanted));
    assert!(check(directory.path(), Sum::Ignored).is_err(), "a directory");
}

#[tokio::test]
async fn a_disk_with_too_little_room_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    // The store's own disk has room.
    let free = |at: &Path| Ok(if at.ends_with("store") { 1 << 40 } else { 65 << 20 });
    let free_space = embedded::FreeSpace(std::sync::Arc::new(free));
    let options = embedded::Options {
        free_space,
        ..embedded::Options::default()
    };
    let store = Embedded::open(directory.path().join("store"), options).await.unwrap();
    let file = directory.path().join("file");
    let refused = store.save(&file).await;
    assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
    assert!(!file.exists());
}

#[tokio::test]
async fn a_link_in_the_way_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let before = store(&at("before")).await;
    std::fs::write(at("theirs"), "theirs").unwrap();
    std::os::unix::fs::symlink(at("theirs"), at("file.part")).unwrap();
    before.save(&at("file")).await.unwrap();
    assert_eq!(std::fs::read(at("theirs")).unwrap(), b"theirs");
    assert!(at("file").symlink_metadata().unwrap().is_file() && !at("file.part").exists());
}
