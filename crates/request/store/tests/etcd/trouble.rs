//! An etcd that ends, comes back, is full, or refuses.

use crate::{Over, open_with};
use bytes::Bytes;
use keelson_store::etcd::{Cluster, Options};
use keelson_store::{Error, Etcd, Expect, KeyRange, Outcome, Revision, Store, WatchStream};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

async fn put(store: &dyn Store, key: &str, value: impl Into<Bytes>) -> keelson_store::Result<Outcome> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    store.put(key, value.into(), Expect::Any, None).await
}

/// Revisions of the events up to this one.
async fn revisions(watch: &mut WatchStream, last: Revision) -> Vec<Revision> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let batch = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        seen.extend(batch.events.iter().map(keelson_store::Event::revision));
        assert!(seen.last().is_none_or(|last| *last <= batch.synced));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_killed_and_comes_back_is_found_again() {
    let mut over = open_with(&[]).await;
    put(&*over.store, "/a", "1").await.unwrap();
    let mut watch = over.store.watch(KeyRange::all(), 1).await.unwrap();
    assert_eq!(revisions(&mut watch, 2).await, [2]);
    over.server.kill();
    let end = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(end, Err(Error::Unavailable { .. })), "{end:?}");
    assert!(watch.next().await.is_none());
    let refused = put(&*over.store, "/a", "2").await.unwrap_err();
    assert!(refused.is_transient(), "{refused:?}");
    assert!(over.store.health().await.is_err());

    over.server.run().await;
    let begun = Instant::now();
    put(&*over.store, "/a", "3").await.unwrap();
    assert!(begun.elapsed() < PATIENCE);
    let mut again = over.store.watch(KeyRange::all(), 2).await.unwrap();
    assert_eq!(revisions(&mut again, 3).await, [3]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    over.store.health().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_member_is_asked_when_one_is_gone() {
    let over = open_with(&[]).await;
    // Nobody listens there, and nobody ever did.
    let gone = format!("http://127.0.0.1:{}", crate::server::port());
    let store = Etcd::open(Options::new(vec![gone, over.server.url()])).await.unwrap();
    let begun = Instant::now();
    for n in 0..20 {
        put(&*store, "/a", n.to_string()).await.unwrap();
        store.get(b"/a", None).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// It serves nothing but what it can tell by itself, for as long as it has no vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_learner_refuses_is_asked_of_a_voter() {
    let over = open_with(&[]).await;
    let (learner, id) = over.server.learner().await;
    let both = || Options::new(vec![over.server.url(), learner.url()]);
    let store = Etcd::open(both()).await.unwrap();
    // By then there is a connection to each.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for n in 0..20 {
        put(&*store, "/a", n.to_string()).await.unwrap();
        store.get(b"/a", None).await.unwrap();
    }
    let mut watch = store.watch(KeyRange::all(), 1).await.unwrap();
    assert_eq!(revisions(&mut watch, 21).await.len(), 20);

    let cluster = Cluster::new(both()).unwrap();
    cluster.members().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    // Each round asks twice, so that it is the same member's turn in each.
    while cluster.members().await.unwrap().iter().any(|m| m.learner) {
        match cluster.promote(id).await {
            Ok(()) => break,
            Err(Error::Answered { what }) => assert!(what.contains("in sync with leader"), "{what}"),
            Err(other) => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_refuses_is_told_in_its_words() {
    let over = open_with(&["--quota-backend-bytes", "16777216"]).await;
    let store = &*over.store;
    let words = |result: keelson_store::Result<Outcome>| match result.unwrap_err() {
        Error::Answered { what } => what,
        other => panic!("{other:?}"),
    };
    // Above its bound of a request, and above that of a message.
    for size in [1800 << 10, 5 << 20] {
        assert_eq!(
            words(put(store, "/large", vec![7; size]).await),
            "etcdserver: request is too large"
        );
    }
    let full = loop {
        if let Err(error) = put(store, "/a", vec![7; 1 << 20]).await {
            break Err(error);
        }
    };
    assert_eq!(words(full), "etcdserver: mvcc: database space exceeded");
    // It can be read, and by upstream's rule is well.
    store.get(b"/a", None).await.unwrap();
    store.health().await.unwrap();
}

/// etcd splits what is too much for one message; no event is lost or doubled by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_past_of_large_values_comes_in_fragments() {
    let over = open_with(&[]).await;
    for n in 0..24u8 {
        put(&*over.store, "/a", vec![n; 1 << 20]).await.unwrap();
    }
    let mut watch = over.store.watch(KeyRange::all(), 1).await.unwrap();
    assert!(revisions(&mut watch, 25).await.into_iter().eq(2..=25));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_past_is_compacted_ends_and_says_so() {
    let over: Over = open_with(&[]).await;
    for n in 0..10 {
        put(&*over.store, "/a", n.to_string()).await.unwrap();
    }
    over.store.compact(8).await.unwrap();
    let compacted = Error::Compacted { compact_revision: 8 };
    assert_eq!(
        over.store.watch(KeyRange::all(), 3).await.err(),
        Some(compacted.clone())
    );
    assert_eq!(over.store.get(b"/a", Some(3)).await, Err(compacted));
}

/// Many keys of one time share a lease; a lease that has been revoked is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_with_a_time_to_live_share_leases() {
    let over = open_with(&[]).await;
    let write = async |n: u32| {
        let key = Bytes::from(format!("/registry/events/{n}"));
        let ttl = Some(Duration::from_secs(3600));
        over.store
            .put(key, "1".into(), Expect::Absent, ttl)
            .await
            .unwrap()
            .done()
            .unwrap()
    };
    for n in 0..1001 {
        write(n).await;
    }
    let control = |arguments: &[&str]| {
        let program = std::env::var("KEELSON_ETCDCTL").unwrap_or_else(|_| "etcdctl".into());
        let mut command = std::process::Command::new(program);
        let output = command
            .args(["--endpoints", &over.server.url()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = control(&["lease", "list"]);
    let leases: Vec<&str> = listed.lines().filter(|l| !l.starts_with("found")).collect();
    assert_eq!(leases.len(), 2, "{listed}");
    for lease in &leases {
        // A twentieth more, but no more than a minute.
        assert!(control(&["lease", "timetolive", lease]).contains("granted with TTL(3660s)"));
        control(&["lease", "revoke", lease]);
    }
    write(2000).await;
    assert!(
        over.store
            .get(b"/registry/events/2000", None)
            .await
            .unwrap()
            .kv
            .is_some()
    );
}
