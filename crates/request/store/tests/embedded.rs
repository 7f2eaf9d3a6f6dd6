//! What only the store on disk promises: restarts, locks, full disks, directories that aren't its own.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use futures::StreamExt;
use keelson_store::embedded::{Embedded, FreeSpace, Options};
use keelson_store::{Error, Expect, KeyRange, ListRequest, Outcome, Store};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

async fn open(path: &Path) -> Arc<Embedded> {
    Embedded::open(path, Options::default()).await.unwrap()
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Outcome {
    store
        .put(key.to_owned().into(), value.to_owned().into(), Expect::Any, None)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    for n in 0..50 {
        put(&*store, &format!("/a/{}", n % 5), &n.to_string()).await;
    }
    store.compact(30).await.unwrap();
    let before = store.list(ListRequest::new(KeyRange::all())).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(
        store.put("/a".into(), "1".into(), Expect::Any, None).await,
        Err(Error::Closed)
    );

    let store = open(directory.path()).await;
    assert_eq!(store.list(ListRequest::new(KeyRange::all())).await.unwrap(), before);
    assert_eq!(
        store.get(b"/a/1", Some(29)).await,
        Err(Error::Compacted { compact_revision: 30 })
    );
    assert_eq!(store.get(b"/a/4", Some(36)).await.unwrap().kv.unwrap().value, "34");
    assert_eq!(put(&*store, "/a/1", "x").await.done(), Some(before.revision + 1));
}

/// What was written lately isn't read from the tables; what has been pushed out is, and both are the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_lately_is_at_hand_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let value = Bytes::from(vec![7u8; 100]);
    let puts = store.put("/a".into(), value.clone(), Expect::Absent, None).await;
    assert_eq!(puts.unwrap().done(), Some(2));
    let got = store.get(b"/a", None).await.unwrap();
    let now = got.kv.clone().unwrap();
    assert_eq!((now.value.as_ptr(), got.revision), (value.as_ptr(), 2));
    put(&*store, "/b", "1").await;
    store.delete("/b".into(), Expect::Any).await.unwrap();
    let gone = store.get(b"/b", None).await.unwrap();
    assert_eq!((gone.kv, gone.revision), (None, 4));
    for n in 0..10 {
        let large = Bytes::from(vec![n; 1 << 20]);
        store
            .put(format!("/c/{n}").into(), large, Expect::Absent, None)
            .await
            .unwrap();
    }
    let read = store.get(b"/a", None).await.unwrap().kv.unwrap();
    assert_ne!(read.value.as_ptr(), value.as_ptr(), "it should have been pushed out");
    assert_eq!(read, now);
    assert_eq!(store.get(b"/b", None).await.unwrap().kv, None);
    let again = store.put("/b".into(), "2".into(), Expect::Absent, None).await;
    assert_eq!(again.unwrap().done(), Some(15));
    store.close().await.unwrap();
    assert!(store.get(b"/b", None).await.is_err(), "a closed store answers nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_revision_survives_a_compaction_of_everything() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    put(&*store, "/a", "1").await;
    store.delete("/a".into(), Expect::Any).await.unwrap();
    store.compact(3).await.unwrap();
    store.close().await.unwrap();
    let store = open(directory.path()).await;
    assert_eq!(store.current_revision().await.unwrap(), 3);
    assert_eq!(put(&*store, "/a", "2").await.done(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let ttl = Some(Duration::from_millis(200));
    store.put("/soon".into(), "1".into(), Expect::Any, ttl).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let store = open(directory.path()).await;
    let mut watch = store.watch(KeyRange::all(), 2).await.unwrap();
    let batch = tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(batch.events[0].kv.key, "/soon");
    assert_eq!(batch.events[0].revision(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_is_told_who_has_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let Err(error) = Embedded::open(directory.path(), Options::default()).await else {
        panic!("it opened twice")
    };
    let shown = error.to_string();
    assert!(matches!(error, Error::Locked { .. }), "{shown}");
    assert!(
        shown.contains(&format!("stop process {}", std::process::id())),
        "{shown}"
    );
    put(&*store, "/a", "the first one goes on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_directory_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("thesis.tex"), "precious").unwrap();
    let Err(error) = Embedded::open(directory.path(), Options::default()).await else {
        panic!("it opened")
    };
    assert!(error.to_string().contains("isn't empty"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_directory_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    put(&*store, "/a", "1").await;
    store.close().await.unwrap();
    drop(store);
    std::fs::write(directory.path().join("version"), "something else").unwrap();
    let Err(error) = Embedded::open(directory.path(), Options::default()).await else {
        panic!("it opened")
    };
    let shown = error.to_string();
    assert!(
        matches!(error, Error::Corrupt { .. }) && shown.contains("Restore") && shown.contains("mv "),
        "{shown}"
    );
}

/// A store of 100 acknowledged changes, closed, whose journal was changed around the middle; and its revision.
async fn damaged(damage: impl FnOnce(&mut Vec<u8>, usize)) -> (tempfile::TempDir, u64) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    for n in 0..100 {
        put(&*store, "/counter", &format!("value {n}")).await;
    }
    let revision = store.current_revision().await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let mut files = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().path());
    let journal = files.find(|p| p.extension().is_some_and(|e| e == "jnl")).unwrap();
    let mut bytes = std::fs::read(&journal).unwrap();
    let middle = bytes.windows(8).position(|w| w == b"value 50").unwrap();
    damage(&mut bytes, middle);
    std::fs::write(&journal, bytes).unwrap();
    (directory, revision)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_not_taken_for_one_that_was_cut_short() {
    for (garbage, before) in [(0xEE, 4), (0xEE, 16), (0xEE, 200), (0, 4), (0, 16), (0, 200)] {
        let (directory, _) = damaged(|bytes, middle| bytes[middle - before..middle].fill(garbage)).await;
        let Err(error) = Embedded::open(directory.path(), Options::default()).await else {
            panic!("it opened with {before} bytes of {garbage}")
        };
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

/// To the engine it looks like a write that was cut short.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_lost_its_end_is_noticed() {
    let (directory, revision) = damaged(|bytes, middle| bytes.truncate(middle)).await;
    // Not at the first try only.
    for _ in 0..2 {
        let Err(error) = Embedded::open(directory.path(), Options::default()).await else {
            panic!("it opened")
        };
        let shown = error.to_string();
        assert!(matches!(error, Error::Corrupt { .. }), "{shown}");
        assert!(shown.contains(&format!("{revision} was acknowledged")), "{shown}");
    }
    // The way out that the message names: go on with what is left.
    std::fs::remove_file(directory.path().join("acknowledged")).unwrap();
    let store = open(directory.path()).await;
    let left = store.current_revision().await.unwrap();
    assert!(left < revision);
    put(&*store, "/counter", "again").await;
    store.close().await.unwrap();
    drop(store);
    assert_eq!(open(directory.path()).await.current_revision().await.unwrap(), left + 1);
}

/// A mark that isn't one (a power failure can leave it empty) says nothing, and is written anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_noted_again() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("acknowledged");
    for torn in ["", "000", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "\u{fffd}"] {
        let store = open(directory.path()).await;
        put(&*store, "/a", "1").await;
        let revision = store.current_revision().await.unwrap();
        store.close().await.unwrap();
        drop(store);
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), format!("{revision:020}\n"));
        std::fs::write(&mark, torn).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_until_there_is_space() {
    let directory = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let told = free.clone();
    let free_space = FreeSpace(Arc::new(move |_| Ok(told.load(Ordering::Relaxed))));
    let options = Options {
        free_space,
        reserve_bytes: 64 << 20,
        ..Options::default()
    };
    let store = Embedded::open(directory.path(), options).await.unwrap();
    put(&*store, "/a", "1").await;

    free.store(20 << 20, Ordering::Relaxed);
    let refused = store.put("/b".into(), "1".into(), Expect::Any, None).await.unwrap_err();
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
    assert!(refused.to_string().contains("20 MiB are free"), "{refused}");
    assert_eq!(
        store.get(b"/a", None).await.unwrap().kv.unwrap().value,
        "1",
        "reads go on"
    );
    assert!(
        store.delete("/a".into(), Expect::Any).await.unwrap().done().is_some(),
        "deletions make room"
    );

    free.store(1 << 20, Ordering::Relaxed);
    assert!(matches!(
        store.delete("/a".into(), Expect::Any).await,
        Err(Error::NoSpace { .. })
    ));
    free.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(put(&*store, "/b", "1").await.done(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_share_a_commit() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    // The best of a few rounds each: any single one may meet a disk that is busy with something else.
    let (mut one_by_one, mut together) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        let begin = Instant::now();
        for n in 0..100 {
            put(&*store, "/a", &n.to_string()).await;
        }
        one_by_one = one_by_one.min(begin.elapsed());
        let begin = Instant::now();
        futures::future::join_all((0..100).map(|n| put(&*store, "/a", if n % 2 == 0 { "even" } else { "odd" }))).await;
        together = together.min(begin.elapsed());
    }
    assert!(
        together < one_by_one,
        "{together:?} together, {one_by_one:?} one by one"
    );
}

/// Opening takes less than a second, however many objects there are: 100,000 in release builds.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_quick() {
    let count = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let value = Bytes::from(vec![b'x'; 1024]);
    let filling = Instant::now();
    let writes = futures::stream::iter(0..count).map(|n| {
        let key = format!("/registry/configmaps/namespace-{}/object-{n}", n % 100);
        store.put(key.into(), value.clone(), Expect::Absent, None)
    });
    writes
        .buffer_unordered(256)
        .for_each(|written| async { drop(written.unwrap()) })
        .await;
    let filling = filling.elapsed();
    store.close().await.unwrap();
    drop(store);

    let mut opening = Duration::MAX;
    for _ in 0..3 {
        let begin = Instant::now();
        let store = open(directory.path()).await;
        opening = opening.min(begin.elapsed());
        store.close().await.unwrap();
    }
    let store = open(directory.path()).await;
    let listing = Instant::now();
    let listed = store.list(ListRequest::new(KeyRange::all())).await.unwrap();
    println!(
        "{count} objects: filled in {filling:?}, opened in {opening:?}, listed in {:?}",
        listing.elapsed()
    );
    assert_eq!(listed.count, count);
    // On a machine that has other things to do as well, what counts is that it reads, and doesn't write it all anew.
    let allowed = Duration::from_secs(1).max(filling * 3 / 4);
    assert!(opening < allowed, "{opening:?} of {allowed:?}");
}

/// What the API server writes leaves a store in the layout that the program before reads; the first change of several keys doesn't.
#[tokio::test]
async fn the_layout_changes_with_what_needs_it() {
    use keelson_store::{Transact, TransactRequest, Transaction, embedded};
    let directory = tempfile::tempdir().unwrap();
    let open = async || Embedded::open(directory.path(), Options::default()).await.unwrap();
    let layout = || {
        let db = fjall::Database::builder(directory.path()).open().unwrap();
        let meta = db.keyspace("meta", fjall::KeyspaceCreateOptions::default).unwrap();
        String::from_utf8(meta.get("format").unwrap().unwrap().to_vec()).unwrap()
    };
    let store = open().await;
    for key in ["/a", "/b"] {
        store
            .put(key.into(), "1".into(), Expect::Any, Some(Duration::from_secs(3600)))
            .await
            .unwrap();
    }
    store.delete("/a".into(), Expect::Any).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(layout(), "keelson-store-1");
    let noted = || embedded::kept_as(directory.path()).unwrap();
    assert_eq!(noted(), embedded::FORMAT);
    let store = open().await;
    let work = |transaction: &mut Transaction<'_>| {
        transaction.put("/c".into(), "1".into(), 0)?;
        transaction.delete(&"/b".into())?;
        Ok(())
    };
    let request = TransactRequest {
        work: Box::new(work),
        bytes: 3,
        puts: true,
        past: false,
    };
    assert_eq!(store.transact(request).await.unwrap(), 5);
    assert_eq!(noted(), "keelson-store-2", "told to who can't open it");
    let digest = store.digest(None).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(layout(), "keelson-store-2");
    std::fs::remove_file(directory.path().join("format")).unwrap();
    let store = open().await;
    assert_eq!(store.digest(None).await.unwrap(), digest);
    assert_eq!(noted(), "keelson-store-2", "what is known is noted again");
    let mut watch = store.watch(keelson_store::KeyRange::all(), 4).await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    let keys: Vec<_> = batch.events.iter().map(|e| (e.revision(), &e.kv.key[..])).collect();
    assert_eq!(keys, [(5, &b"/c"[..]), (5, b"/b")]);
    store.compact(5).await.unwrap();
    store.settled(5).await.unwrap();
    assert_eq!(store.get(b"/c", None).await.unwrap().kv.unwrap().mod_revision, 5);
    store.close().await.unwrap();
}
