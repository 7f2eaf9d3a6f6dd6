//! Watches.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use keelson_cache::{At, Error, Selection, Start, WatchOptions};
use keelson_store::{
    Expect, Got, KeyRange, ListRequest, Listed, Memory, Outcome, Revision, Store, StoreStatus, WatchStream,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn changes_as_they_happen() {
    let lab = lab();
    let mut watch = lab.watch(Selection::all(), Start::Now(At::Consistent)).await;
    lab.put("a/1", "x").await;
    lab.elsewhere().await;
    lab.put("a/1", "y").await;
    lab.delete("a/1").await;
    assert_eq!(next(&mut watch).await, "+a/1=x@2");
    assert_eq!(next(&mut watch).await, "~a/1=y@4");
    assert_eq!(next(&mut watch).await, "-a/1=y@5");
    assert_eq!(next(&mut watch).await, "-");
}

#[tokio::test(start_paused = true)]
async fn from_a_revision() {
    let lab = lab();
    lab.cache.ready().await;
    lab.put("a/1", "x").await;
    let seen = lab.put("a/2", "x").await;
    lab.delete("a/1").await;
    let last = lab.put("a/3", "x").await;
    lab.cache.get(b"/texts/a/3", At::NotOlderThan(last)).await.unwrap();
    let mut watch = lab.watch(Selection::all(), Start::After(seen)).await;
    assert_eq!(next(&mut watch).await, "-a/1=x@4");
    assert_eq!(next(&mut watch).await, "+a/3=x@5");
    // One that is ahead of the cache gets what comes after.
    let mut ahead = lab.watch(Selection::all(), Start::After(last + 1)).await;
    lab.put("a/3", "early").await;
    lab.put("a/3", "y").await;
    assert_eq!(next(&mut ahead).await, "~a/3=y@7");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_begins_or_ceases_to_match() {
    let lab = lab();
    let selection = Selection::all().with_predicate(app("web"));
    let mut watch = lab.watch(selection, Start::Now(At::Consistent)).await;
    lab.put("a/1", "app=db 1").await;
    lab.put("a/1", "app=web 2").await;
    lab.put("a/1", "app=web 3").await;
    lab.put("a/1", "app=db 4").await;
    lab.put("a/1", "app=db 5").await;
    lab.delete("a/1").await;
    assert_eq!(next(&mut watch).await, "+a/1=app=web 2@3");
    assert_eq!(next(&mut watch).await, "~a/1=app=web 3@4");
    // What it was when it still matched, at the revision at which it ceased to.
    assert_eq!(next(&mut watch).await, "-a/1=app=web 3@5");
    assert_eq!(next(&mut watch).await, "-");
}

#[tokio::test(start_paused = true)]
async fn an_index_finds_the_watchers() {
    let lab = lab();
    let mut n1 = lab.watch(on_node("n1"), Start::Now(At::Consistent)).await;
    let mut n2 = lab.watch(on_node("n2"), Start::Now(At::Consistent)).await;
    let mut one = lab
        .watch(
            Selection::scope(keelson_cache::Scope::Key("/texts/a/1".into())),
            Start::Now(At::Any),
        )
        .await;
    let mut other = lab.watch(namespace("b"), Start::Now(At::Any)).await;
    lab.put("a/1", "node=").await;
    lab.put("a/1", "node=n1").await;
    lab.put("a/1", "node=n1 again").await;
    lab.put("a/1", "node=n2").await;
    lab.put("b/1", "node=n3").await;
    for expected in ["+a/1=node=n1@3", "~a/1=node=n1 again@4", "-a/1=node=n1 again@5", "-"] {
        assert_eq!(next(&mut n1).await, expected);
    }
    for expected in ["+a/1=node=n2@5", "-"] {
        assert_eq!(next(&mut n2).await, expected);
    }
    for expected in [
        "+a/1=node=@2",
        "~a/1=node=n1@3",
        "~a/1=node=n1 again@4",
        "~a/1=node=n2@5",
        "-",
    ] {
        assert_eq!(next(&mut one).await, expected);
    }
    assert_eq!(next(&mut other).await, "+b/1=node=n3@6");
    assert_eq!(lab.cache.watchers(), 4);
    drop((n1, n2, one, other));
    assert_eq!(lab.cache.watchers(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_state_first_then_a_bookmark_then_changes() {
    let lab = lab();
    for n in 0..600 {
        lab.put(&format!("a/{n:03}"), "x").await;
    }
    let mut options = WatchOptions::new(Selection::all(), Start::State(At::Consistent));
    options.end_bookmark = true;
    options.bookmarks = true;
    let mut watch = lab.cache.watch(options).await.unwrap();
    for n in 0..600 {
        if n == 300 {
            lab.put("a/599", "changed meanwhile").await;
        }
        assert_eq!(next(&mut watch).await, format!("+a/{n:03}=x@{}", n + 2));
    }
    assert_eq!(next(&mut watch).await, "bookmark 601 end");
    assert_eq!(next(&mut watch).await, "~a/599=changed meanwhile@602");
}

#[tokio::test(start_paused = true)]
async fn bookmarks_tell_of_progress_elsewhere() {
    let lab = lab();
    let mut options = WatchOptions::new(Selection::all(), Start::Now(At::Consistent));
    options.bookmarks = true;
    options.timeout = Some(Duration::from_secs(100));
    let begun = tokio::time::Instant::now();
    let mut watch = lab.cache.watch(options).await.unwrap();
    lab.elsewhere().await;
    let mut seen = Vec::new();
    while begun.elapsed() < Duration::from_secs(110) {
        let event = next(&mut watch).await;
        if event != "-" {
            seen.push((event, begun.elapsed().as_secs()));
            lab.elsewhere().await;
        }
    }
    // One a minute, and one two seconds before the end.
    assert_eq!(seen, [("bookmark 2".to_owned(), 60), ("bookmark 3".to_owned(), 98)]);
}

#[tokio::test(start_paused = true)]
async fn too_far_back_is_expired() {
    let lab = lab();
    lab.put("a/1", "x").await;
    let revision = lab.put("a/1", "y").await;
    lab.cache.ready().await;
    let options = WatchOptions::new(Selection::all(), Start::After(revision - 1));
    let Err(error) = lab.cache.watch(options).await else {
        panic!("the ring can't know")
    };
    assert_eq!(error.to_string(), "too old resource version: 2 (3)");
    assert!(error.is_expired());
}

/// A burst is remembered while it is fresh; when all is quiet, the latest hundred events are.
#[tokio::test(start_paused = true)]
async fn old_events_are_given_up_when_all_is_quiet() {
    let lab = lab();
    let first = lab.put("a/1", "first").await;
    lab.cache.ready().await;
    let mut last = first;
    for n in 0..500 {
        last = lab.put("a/1", &n.to_string()).await;
    }
    lab.cache.get(b"/texts/a/1", At::Consistent).await.unwrap();
    let from = |revision| {
        lab.cache
            .watch(WatchOptions::new(Selection::all(), Start::After(revision)))
    };
    assert!(from(first).await.is_ok());
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(from(first).await.is_ok());
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(from(first).await.is_err_and(|e| e.is_expired()));
    assert!(from(last - 101).await.is_err_and(|e| e.is_expired()));
    assert!(from(last - 100).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_slow_watcher_is_cut() {
    let lab = lab();
    let mut slow = lab.watch(Selection::all(), Start::Now(At::Consistent)).await;
    for n in 0..9000 {
        lab.put("a/1", &n.to_string()).await;
        if n % 500 == 0 {
            lab.cache.get(b"/texts/a/1", At::Consistent).await.unwrap();
        }
    }
    lab.cache.get(b"/texts/a/1", At::Consistent).await.unwrap();
    let error = loop {
        match slow.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Slow { .. }));
    assert!(slow.next().await.is_none());
}

/// A store whose watches break.
struct Breaking {
    store: Arc<Memory>,
    broken: Arc<AtomicBool>,
}

struct BreakingWatch {
    watch: WatchStream,
    broken: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl keelson_store::WatchSource for BreakingWatch {
    async fn next(&mut self) -> Option<keelson_store::Result<keelson_store::WatchBatch>> {
        let batch = self.watch.next().await;
        match self.broken.load(Ordering::SeqCst) {
            true => Some(Err(keelson_store::Error::Unavailable { what: "cut".into() })),
            false => batch,
        }
    }
    fn request_progress(&mut self) {
        self.watch.request_progress();
    }
}

#[async_trait::async_trait]
impl Store for Breaking {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> keelson_store::Result<Got> {
        self.store.get(key, revision).await
    }
    async fn list(&self, request: ListRequest) -> keelson_store::Result<Listed> {
        self.store.list(request).await
    }
    async fn put(
        &self,
        k: bytes::Bytes,
        v: bytes::Bytes,
        e: Expect,
        t: Option<Duration>,
    ) -> keelson_store::Result<Outcome> {
        self.store.put(k, v, e, t).await
    }
    async fn delete(&self, key: bytes::Bytes, expected: Expect) -> keelson_store::Result<Outcome> {
        self.store.delete(key, expected).await
    }
    async fn watch(&self, range: KeyRange, after: Revision) -> keelson_store::Result<WatchStream> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(keelson_store::Error::Unavailable { what: "cut".into() });
        }
        let watch = self.store.watch(range, after).await?;
        Ok(Box::new(BreakingWatch {
            watch,
            broken: self.broken.clone(),
        }))
    }
    async fn compact(&self, revision: Revision) -> keelson_store::Result<()> {
        self.store.compact(revision).await
    }
    async fn current_revision(&self) -> keelson_store::Result<Revision> {
        self.store.current_revision().await
    }
    async fn status(&self) -> keelson_store::Result<StoreStatus> {
        self.store.status().await
    }
    async fn health(&self) -> keelson_store::Result<()> {
        self.store.health().await
    }
}

fn breaking() -> (Lab, Arc<AtomicBool>) {
    let (store, broken) = (Memory::new(), Arc::new(AtomicBool::new(false)));
    let codec = Arc::new(Texts::default());
    let breaking = Breaking {
        store: store.clone(),
        broken: broken.clone(),
    };
    let cache = cache(Arc::new(breaking), codec.clone());
    (Lab { store, cache, codec }, broken)
}

#[tokio::test(start_paused = true)]
async fn a_broken_watch_on_the_store_loses_nothing() {
    let (lab, broken) = breaking();
    let mut watch = lab.watch(Selection::all(), Start::Now(At::Consistent)).await;
    lab.put("a/1", "x").await;
    assert_eq!(next(&mut watch).await, "+a/1=x@2");
    broken.store(true, Ordering::SeqCst);
    lab.put("a/1", "y").await;
    lab.put("a/2", "y").await;
    assert_eq!(next(&mut watch).await, "-");
    broken.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(next(&mut watch).await, "~a/1=y@3");
    assert_eq!(next(&mut watch).await, "+a/2=y@4");
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_lost_track_starts_anew() {
    let (lab, broken) = breaking();
    let mut watch = lab.watch(Selection::all(), Start::Now(At::Consistent)).await;
    lab.put("a/1", "x").await;
    assert_eq!(next(&mut watch).await, "+a/1=x@2");
    broken.store(true, Ordering::SeqCst);
    lab.put("a/1", "y").await;
    lab.delete("a/1").await;
    let last = lab.put("a/2", "y").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    lab.store.compact(last).await.unwrap();
    broken.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(lab.list(Selection::all(), At::Consistent).await, ["a/2=y@5"]);
    let ended = next(&mut watch).await;
    assert!(ended.starts_with("error the watch cache was started anew"), "{ended}");
    assert_eq!(next(&mut watch).await, "over");
}
