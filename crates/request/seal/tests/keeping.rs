//! What is stored becomes sealed, keys are rotated and given up, a lost key makes no new one, files are followed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{by_file, config, get, own, place, put, secretbox, until};
use keelson_seal::own::FILE;
use keelson_seal::{Sealing, Source};
use keelson_store::{KeyRange, Memory, Store, compactor, unopened};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn run(sealing: &Arc<Sealing>) -> CancellationToken {
    let (sealing, stop) = (sealing.clone(), CancellationToken::new());
    let stopped = stop.clone();
    tokio::spawn(async move { sealing.run(stopped).await });
    stop
}

async fn settled(sealing: &Sealing) {
    until("everything is written anew", async || {
        !sealing.report().await.unwrap().under_way
    })
    .await;
}

#[tokio::test]
async fn what_was_plain_is_sealed_and_an_older_key_is_given_up_with_the_revisions_it_sealed() {
    let keys = tempfile::tempdir().unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    put(&*beneath, "/plain", "one").await;
    let sealing = own(&beneath, keys.path()).await.unwrap();
    let store = sealing.store();
    put(&*store, "/sealed", "two").await;
    let stop = run(&sealing);
    settled(&sealing).await;
    assert!(
        get(&*beneath, "/plain")
            .await
            .starts_with(b"k8s:enc:secretbox:v1:key1:")
    );

    assert_eq!(sealing.rotate().await.unwrap(), "key2");
    settled(&sealing).await;
    let before = beneath.current_revision().await.unwrap();
    for (key, value) in [("/plain", "one"), ("/sealed", "two")] {
        assert!(
            get(&*beneath, key).await.starts_with(b"k8s:enc:secretbox:v1:key2:"),
            "{key}"
        );
        assert_eq!(get(&*store, key).await, value);
    }
    let report = sealing.report().await.unwrap();
    assert_eq!(report.keys, ["key2", "key1"], "the past is still sealed by the first");
    assert_eq!((report.stored.values["secretbox/key2"], report.stored.stale), (2, 0));
    // As the compactor does it: the key, then the compaction; and the key again, an interval later.
    put(&*beneath, compactor::KEY, "1").await;
    beneath.compact(before).await.unwrap();
    put(&*beneath, compactor::KEY, "2").await;
    until("the older key is given up", async || {
        sealing.report().await.unwrap().keys == ["key2"]
    })
    .await;
    stop.cancel();

    // A restart opens it.
    let again = own(&beneath, keys.path()).await.unwrap();
    assert_eq!(get(&*again.store(), "/plain").await, "one");
    assert!(
        !std::fs::read_to_string(keys.path().join(FILE))
            .unwrap()
            .contains("key1")
    );
}

#[tokio::test]
async fn a_pass_that_was_cut_short_is_made_again_and_what_cannot_be_opened_stays() {
    let keys = tempfile::tempdir().unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    for i in 0..500 {
        put(&*beneath, &format!("/{i:03}"), &format!("value {i}")).await;
    }
    // Ended at a moment that a clock draws, again and again.
    for moment in 1..20 {
        let sealing = own(&beneath, keys.path()).await.unwrap();
        let stop = CancellationToken::new();
        let all = tokio::time::timeout(Duration::from_micros(moment * 100), sealing.run(stop));
        assert!(all.await.is_err(), "it runs on");
        for i in [0, 100, 250, 499] {
            assert_eq!(get(&*sealing.store(), &format!("/{i:03}")).await, format!("value {i}"));
        }
    }
    let lost = "k8s:enc:secretbox:v1:key1:nonsense";
    put(&*beneath, "/lost", lost).await;
    let sealing = own(&beneath, keys.path()).await.unwrap();
    let stop = run(&sealing);
    sealing.rotate().await.unwrap();
    settled(&sealing).await;
    let report = sealing.report().await.unwrap();
    assert_eq!(
        (report.stored.values["secretbox/key2"], report.stored.unreadable),
        (500, 1)
    );
    assert_eq!(report.stored.unreadable_keys, ["/lost"]);
    assert_eq!(get(&*beneath, "/lost").await, lost);
    stop.cancel();
}

#[tokio::test]
async fn a_write_under_way_is_not_left_behind_by_a_rotation() {
    let keys = tempfile::tempdir().unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    let sealing = own(&beneath, keys.path()).await.unwrap();
    let store = sealing.store();
    let stop = run(&sealing);
    let mut writers = Vec::new();
    for i in 0..50 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for round in 0..20 {
                put(&*store, &format!("/{i}"), &format!("{round}")).await;
                tokio::task::yield_now().await;
            }
        }));
    }
    for _ in 0..5 {
        sealing.rotate().await.unwrap();
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    settled(&sealing).await;
    let report = sealing.report().await.unwrap();
    assert_eq!((report.stored.values["secretbox/key6"], report.stored.stale), (50, 0));
    for i in 0..50 {
        assert_eq!(get(&*store, &format!("/{i}")).await, "19");
    }
    stop.cancel();
}

#[tokio::test]
async fn no_new_key_is_made_where_one_was_lost() {
    let keys = tempfile::tempdir().unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    let sealing = own(&beneath, keys.path()).await.unwrap();
    put(&*sealing.store(), "/a", "one").await;
    let file = keys.path().join(FILE);
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let refused = own(&beneath, keys.path()).await.err().unwrap().to_string();
    assert!(refused.contains("/a by k8s:enc:secretbox:v1:key1"), "{refused}");
    assert!(
        refused.contains("--encryption-provider-config none") && refused.contains("backup"),
        "{refused}"
    );
    assert!(!file.exists());

    // The way out that leaves the values: all else works.
    let plain = Sealing::open(beneath.clone(), Source::Plain, place(keys.path()))
        .await
        .unwrap();
    put(&*plain.store(), "/b", "two").await;
    assert_eq!(get(&*beneath, "/b").await, "two");
    assert!(unopened::reason(&get(&*plain.store(), "/a").await).is_some());

    // The file put back opens it.
    std::fs::write(&file, kept).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(
        get(&*own(&beneath, keys.path()).await.unwrap().store(), "/a").await,
        "one"
    );

    // And without sealing, what it had sealed is written plainly again.
    let plain = Sealing::open(beneath.clone(), Source::Plain, place(keys.path()))
        .await
        .unwrap();
    plain.settle().await.unwrap();
    assert_eq!(get(&*beneath, "/a").await, "one");
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_broken_one_is_not_and_watchers_hear_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let beneath: Arc<dyn Store> = Memory::new();
    let (one, two) = (secretbox("one", 1), secretbox("two", 2));
    std::fs::write(&file, config(&format!("[{two}]"))).unwrap();
    let theirs = by_file(&beneath, &file, false).await.unwrap();
    put(&*theirs.store(), "/a", "theirs").await;

    std::fs::write(&file, config(&format!("[{one}]"))).unwrap();
    let sealing = by_file(&beneath, &file, true).await.unwrap();
    let store = sealing.store();
    let stop = run(&sealing);
    assert!(unopened::reason(&get(&*store, "/a").await).is_some());
    let mut watch = store
        .watch(KeyRange::all(), store.current_revision().await.unwrap())
        .await
        .unwrap();

    std::fs::write(&file, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    put(&*store, "/b", "still").await;
    assert!(get(&*beneath, "/b").await.starts_with(b"k8s:enc:secretbox:v1:one:"));

    std::fs::write(&file, config(&format!("[{two}, {one}]"))).unwrap();
    until("the file is taken", async || {
        sealing.report().await.unwrap().writes_by == [("secrets".to_string(), "secretbox/two".to_string())]
    })
    .await;
    assert_eq!(get(&*store, "/a").await, "theirs");
    assert_eq!(get(&*store, "/b").await, "still");
    // Who watched had been told that it can't be opened: he has to list again.
    let end = async {
        loop {
            match watch.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    };
    let end = tokio::time::timeout(Duration::from_secs(10), end).await.unwrap();
    assert!(end.is_compacted(), "{end}");

    // Writing anew is the user's to ask for.
    assert_eq!(sealing.report().await.unwrap().stored.stale, 1);
    assert!(
        sealing
            .rotate()
            .await
            .unwrap_err()
            .to_string()
            .contains("a file of yours")
    );
    sealing.rewrite();
    settled(&sealing).await;
    assert!(get(&*beneath, "/b").await.starts_with(b"k8s:enc:secretbox:v1:two:"));
    let mut page = String::new();
    sealing.metrics().write(&mut page);
    assert!(
        page.contains("apiserver_encryption_config_controller_automatic_reloads_total{status=\"success\"} 1"),
        "{page}"
    );
    assert!(page.contains("apiserver_storage_transformation_operations_total{resource=\"secrets\",status=\"OK\",transformation_type=\"from_storage\",transformer_prefix=\"k8s:enc:secretbox:v1:\"}"), "{page}");
    stop.cancel();
}
