//! A sealed store keeps the contract of stores; what stands beneath is sealed, also what was plain or by an older key.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use keelson_seal::reload::{Then, follow, report_path};
use keelson_seal::{GroupResource, Sealed, config, own};
use keelson_store::{Expect, KeyRange, Memory, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Over `beneath`, every key a secret, by our own configuration in `data_dir`.
fn sealed(beneath: Arc<dyn Store>, data_dir: &Path) -> Arc<Sealed> {
    let (read, hash) = config::read(&own::ensure(data_dir).unwrap()).unwrap();
    let rules = config::build(&read, hash).unwrap();
    Sealed::new(beneath, rules, Arc::new(|_| Some(GroupResource::parse("secrets"))))
}

mod memory {
    use super::*;

    keelson_store::contract!(async {
        let data_dir = tempfile::tempdir().unwrap();
        sealed(Memory::new(), data_dir.path()) as Arc<dyn Store>
    });
}

async fn put(store: &dyn Store, key: &'static str, value: &'static str) {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
    store.put(key, value, Expect::Any, None).await.unwrap();
}

async fn get(store: &dyn Store, key: &str) -> Bytes {
    store.get(key.as_bytes(), None).await.unwrap().kv.unwrap().value
}

#[tokio::test]
async fn a_pass_seals_what_was_plain_and_what_an_older_key_wrote() {
    let data_dir = tempfile::tempdir().unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    put(&*beneath, "/plain", "one").await;
    put(&*sealed(beneath.clone(), data_dir.path()), "/older", "two").await;
    put(&*beneath, "/broken", "k8s:enc:secretbox:v1:key1:broken").await;
    own::rotate(data_dir.path()).unwrap();
    let store = sealed(beneath.clone(), data_dir.path());

    let tally = store.reseal(&[KeyRange::all()]).await.unwrap();
    assert_eq!((tally.current, tally.rewritten, tally.unreadable), (2, 2, 1));
    for (key, value) in [("/plain", "one"), ("/older", "two")] {
        assert!(
            get(&*beneath, key).await.starts_with(b"k8s:enc:secretbox:v1:key2:"),
            "{key}"
        );
        assert_eq!(get(&*store, key).await, value);
    }
    assert_eq!(get(&*beneath, "/broken").await, "k8s:enc:secretbox:v1:key1:broken");
    let again = store.reseal(&[KeyRange::all()]).await.unwrap();
    assert_eq!((again.current, again.rewritten, again.unreadable), (2, 0, 1));
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_broken_one_is_not() {
    let data_dir = tempfile::tempdir().unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    let store = sealed(beneath.clone(), data_dir.path());
    put(&*store, "/a", "one").await;
    let file = own::path(data_dir.path());
    let (first, good) = (store.rules().hash().to_owned(), std::fs::read(&file).unwrap());
    // One look at the file and one pass, told by the report.
    let round = async || {
        let stop = CancellationToken::new();
        let then = Then::Reseal(vec![KeyRange::all()]);
        let task = tokio::spawn(follow(store.clone(), file.clone(), true, then, stop.clone()));
        let report = report_path(&file);
        tokio::time::timeout(Duration::from_secs(20), async {
            while !report.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
        stop.cancel();
        task.await.unwrap();
        std::fs::remove_file(report).unwrap();
    };

    std::fs::write(&file, "nonsense").unwrap();
    round().await;
    assert_eq!(store.rules().hash(), first);

    std::fs::write(&file, good).unwrap();
    own::rotate(data_dir.path()).unwrap();
    round().await;
    assert_ne!(store.rules().hash(), first);
    assert!(get(&*beneath, "/a").await.starts_with(b"k8s:enc:secretbox:v1:key2:"));
    assert_eq!(get(&*store, "/a").await, "one");
}
