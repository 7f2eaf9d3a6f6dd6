//! The past of a store, asked for.

use crate::at::At;
use crate::block::Record;
use crate::log::{GATHERED, Keep, Log, Point, between};
use crate::writers::{Noting, Writers};
use crate::{Error, Result};
use bytes::Bytes;
use keelson_store::{KeyRange, KeyValue, ListRequest, Revision, Store};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the files are. Nobody else writes there.
    pub directory: PathBuf,
    pub keep: Keep,
    /// What keys begin with whose past is kept.
    pub prefix: String,
    /// Of these the beginnings of those whose past isn't.
    pub without: Vec<String>,
    /// What was noted is written after so long at most. The store has to keep its past for longer.
    pub write_within: Duration,
}

pub struct History {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) log: Arc<Log>,
    pub(crate) settings: Settings,
    pub(crate) writers: Arc<Writers>,
    /// How far the follower has come.
    pub(crate) synced: watch::Sender<Revision>,
    /// Somebody waits for it.
    pub(crate) asked: Notify,
    /// Questions are answered from the disk, and cost a processor.
    questions: Arc<Semaphore>,
}

/// Questions that are answered at a time; others wait.
const QUESTIONS: usize = 2;
/// How long the follower may take to come to where the store stands.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Somebody writes all the time: what is read in the store and in the log has to be of one moment.
const ATTEMPTS: usize = 10;
/// So many bytes of what was are in a page, and of what is gathered for it.
const PAGE: usize = 8 << 20;

/// What is known of a key, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub records: Vec<Record>,
    /// What stands there now, after the last of them.
    pub now: Option<KeyValue>,
    /// There were earlier ones that are kept, too.
    pub more: bool,
    pub since: Point,
}

#[derive(Clone, Debug, Default)]
pub struct Page {
    pub kvs: Vec<KeyValue>,
    /// The next page begins after this key.
    pub next: Option<Bytes>,
}

impl History {
    /// Opens what there is, or begins.
    pub async fn open(store: Arc<dyn Store>, settings: Settings) -> anyhow::Result<Arc<History>> {
        let now = Point {
            revision: store.current_revision().await?,
            time_ms: now_ms(),
        };
        let (directory, keep) = (settings.directory.clone(), settings.keep);
        let log = tokio::task::spawn_blocking(move || Log::open(&directory, keep, now)).await?;
        Ok(Arc::new(History {
            synced: watch::Sender::new(log.synced().revision),
            log: Arc::new(log),
            store,
            settings,
            writers: Arc::default(),
            asked: Notify::new(),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
        }))
    }

    /// The store above this one's, whose writers are noted.
    pub fn noting(&self, above: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Noting {
            inner: above,
            writers: self.writers.clone(),
        })
    }

    /// What keys begin with whose past is kept.
    pub fn prefix(&self) -> &str {
        &self.settings.prefix
    }

    /// Whether the past of this key is kept.
    pub fn keeps(&self, key: &[u8]) -> bool {
        let begins = |with: &String| key.starts_with(with.as_bytes());
        begins(&self.settings.prefix) && !self.settings.without.iter().any(begins)
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Which revision that is, and whether it is kept.
    pub async fn revision(&self, at: At) -> Result<Revision> {
        let current = self.caught_up().await?;
        let found = match at {
            At::Revision(asked) if asked > current => return Err(Error::Future { asked, current }),
            At::Revision(asked) => asked,
            At::Time(time) => {
                let ms = u64::try_from(time.as_millisecond()).unwrap_or(0);
                self.ask(move |log| log.at_time(ms)).await?
            }
        };
        let since = self.log.since();
        match found < since.revision {
            true => Err(Error::TooOld { since }),
            false => Ok(found),
        }
    }

    /// A key as it stood at a revision.
    pub async fn get(&self, key: &[u8], at: Revision) -> Result<Option<KeyValue>> {
        // In this order: whatever has happened until the store was read, the log has.
        let now = self.store.get(key, None).await?;
        self.caught_up().await?;
        let wanted = key.to_vec();
        Ok(match self.ask(move |log| log.first_after(&wanted, at)).await? {
            Some(change) => change.was(),
            None => now.kv,
        })
    }

    /// Keys that begin so (with a slash at the end), after one of them, as they stood at a revision.
    pub async fn list(&self, prefix: &str, after: Option<Bytes>, limit: usize, at: Revision) -> Result<Page> {
        let whole = KeyRange::prefix(prefix.to_string());
        let range = between(&whole, after.as_ref(), None);
        let mut listed = self
            .store
            .list(ListRequest::new(range).limit(limit).uncounted())
            .await?;
        let mut next = match listed.more {
            true => listed.kvs.last().map(|kv| kv.key.clone()),
            false => None,
        };
        // What the list doesn't know of, the log does.
        self.caught_up().await?;
        let (range, prefix) = (between(&whole, after.as_ref(), next.as_ref()), prefix.to_string());
        let (mut changed, to) = self
            .ask(move |log| log.first_of_each(prefix.as_bytes(), &range, at, PAGE))
            .await?;
        if let Some(to) = to {
            listed.kvs.retain(|kv| kv.key < to);
            // Before the first that is left out: what came only later counts here, too.
            let last = listed.kvs.last().map(|kv| &kv.key);
            next = last.max(changed.keys().next_back()).cloned();
        }
        let mut kvs = Vec::with_capacity(listed.kvs.len());
        for kv in listed.kvs {
            match changed.remove(&kv.key) {
                Some(change) => kvs.extend(change.was()),
                None => kvs.push(kv),
            }
        }
        kvs.extend(changed.into_values().filter_map(|change| change.was()));
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
        let mut size = 0;
        let fits = kvs.iter().take_while(|kv| {
            size += kv.key.len() + kv.value.len();
            size <= PAGE
        });
        let fits = fits.count().max(1);
        if fits < kvs.len() {
            kvs.truncate(fits);
            next = kvs.last().map(|kv| kv.key.clone());
        }
        Ok(Page { kvs, next })
    }

    /// The newest changes of a key.
    pub async fn changes(&self, key: &[u8], most: usize, bytes: usize) -> Result<Changes> {
        for _ in 0..ATTEMPTS {
            let now = self.store.get(key, None).await?;
            self.caught_up().await?;
            let wanted = key.to_vec();
            let (mut records, more) = self
                .ask(move |log| log.newest(&wanted, most, bytes.min(GATHERED)))
                .await?;
            let last = records.first().map_or(0, |record| record.revision);
            let stands = now.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            let deleted = records.first().is_some_and(|record| record.deleted);
            let agrees = match now.kv {
                Some(_) => last <= stands && !deleted,
                None => records.is_empty() || deleted,
            };
            if !agrees {
                continue;
            }
            // Of changes that aren't written yet.
            for record in records.iter_mut().filter(|record| record.who.is_none()) {
                record.who = self.writers.of(record.revision);
            }
            records.reverse();
            let (now, since) = (now.kv, self.log.since());
            return Ok(Changes {
                records,
                now,
                more,
                since,
            });
        }
        Err(busy())
    }

    /// Waits until everything is noted that has happened. Tells where the store stands.
    async fn caught_up(&self) -> Result<Revision> {
        let current = self.store.current_revision().await?;
        let mut synced = self.synced.subscribe();
        let wait = async {
            loop {
                if *synced.borrow_and_update() >= current {
                    return;
                }
                self.asked.notify_one();
                // The sender is ours.
                let _ = synced.changed().await;
            }
        };
        match tokio::time::timeout(CATCH_UP, wait).await {
            Ok(()) => Ok(current),
            Err(_) => Err(Error::Later {
                what: "what happened last hasn't been noted yet".into(),
            }),
        }
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Log) -> Result<T> + Send + 'static) -> Result<T> {
        let later = |what: String| Error::Later { what };
        let turn = self.questions.clone().acquire_owned().await;
        let turn = turn.map_err(|e| later(e.to_string()))?;
        let log = self.log.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            question(&log)
        });
        answer.await.map_err(|e| later(e.to_string()))?
    }
}

fn busy() -> Error {
    Error::Later {
        what: "it changes too often to be read at one moment".into(),
    }
}

pub(crate) fn now_ms() -> u64 {
    u64::try_from(keelson_clock::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Who, written_by};
    use keelson_store::{Expect, Memory};
    use tokio_util::sync::CancellationToken;

    fn settings(directory: &std::path::Path) -> Settings {
        Settings {
            directory: directory.into(),
            keep: Keep {
                age: Duration::from_secs(3600),
                bytes: 64 << 20,
            },
            prefix: "/registry/".into(),
            without: vec!["/registry/leases/".into()],
            write_within: Duration::from_secs(60),
        }
    }

    async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> Revision {
        let put = store.put(key.to_string().into(), value.to_string().into(), Expect::Any, None);
        put.await.unwrap().done().unwrap()
    }

    async fn value(history: &History, key: &str, at: Revision) -> Option<String> {
        let kv = history.get(key.as_bytes(), at).await.unwrap();
        kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn keys_are_what_they_were_over_compactions_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let below: Arc<dyn Store> = Memory::new();
        let begin = async || {
            let history = History::open(below.clone(), settings(directory.path())).await.unwrap();
            let stop = CancellationToken::new();
            (history.clone(), stop.clone(), tokio::spawn(history.run(stop)))
        };
        let old = put(&below, "/registry/maps/n/old", "never noted").await;
        let (history, stop, running) = begin().await;
        let store = history.noting(below.clone());
        let who = Who {
            user: "ana".into(),
            agent: "kubectl".into(),
            verb: "patch".into(),
        };
        let first = put(&store, "/registry/maps/n/a", "one").await;
        let second = written_by(who.clone(), put(&store, "/registry/maps/n/a", "two")).await;
        put(&store, "/registry/leases/n/a", "x").await;
        let gone = store.delete("/registry/maps/n/a".into(), Expect::Any).await.unwrap();
        let gone = gone.done().unwrap();
        // All of it is noted.
        history.revision(At::Revision(gone)).await.unwrap();
        stop.cancel();
        running.await.unwrap();
        // The store forgets, the server is another one.
        put(&below, "/registry/maps/n/late", "meanwhile").await;
        below.compact(gone).await.unwrap();
        let (history, _stop, _running) = begin().await;
        assert_eq!(
            value(&history, "/registry/maps/n/a", first).await.as_deref(),
            Some("one")
        );
        assert_eq!(
            value(&history, "/registry/maps/n/a", second + 1).await.as_deref(),
            Some("two")
        );
        assert_eq!(value(&history, "/registry/maps/n/a", gone).await, None);
        assert_eq!(
            value(&history, "/registry/maps/n/old", old).await.as_deref(),
            Some("never noted")
        );
        let page = history.list("/registry/maps/n/", None, 10, second).await.unwrap();
        let names: Vec<_> = page.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect();
        assert_eq!(
            names,
            [
                (&b"/registry/maps/n/a"[..], &b"two"[..]),
                (b"/registry/maps/n/old", b"never noted")
            ]
        );
        let changes = history.changes(b"/registry/maps/n/a", 10, 1 << 20).await.unwrap();
        let told: Vec<_> = changes
            .records
            .iter()
            .map(|record| (record.revision, record.deleted))
            .collect();
        assert_eq!(told, [(first, false), (second, false), (gone, true)]);
        assert_eq!(changes.records[1].who, Some(who));
        assert_eq!(changes.records[0].who, None);
        let late = history.changes(b"/registry/maps/n/late", 10, 1 << 20).await.unwrap();
        assert!(late.records[0].late && late.now.is_some());
        assert!(!history.keeps(b"/registry/leases/n/a") && !history.keeps(b"/elsewhere/a"));
        assert!(history.revision(At::Revision(gone + 100)).await.is_err());
        assert!(history.revision(At::Revision(old - 1)).await.is_err());
    }

    #[tokio::test]
    async fn a_page_has_what_was_deleted_since_and_not_what_came() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Memory::new();
        let history = History::open(store.clone(), settings(directory.path())).await.unwrap();
        tokio::spawn(history.clone().run(CancellationToken::new()));
        for n in 0..10 {
            put(&store, &format!("/registry/maps/n/{n}"), "x").await;
        }
        let at = store.current_revision().await.unwrap();
        for n in [1, 2, 9] {
            store
                .delete(format!("/registry/maps/n/{n}").into(), Expect::Any)
                .await
                .unwrap();
        }
        for new in ["00", "5", "8a"] {
            put(&store, &format!("/registry/maps/n/{new}"), "new").await;
        }
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = history.list("/registry/maps/n/", after.take(), 3, at).await.unwrap();
            all.extend(
                page.kvs
                    .iter()
                    .map(|kv| format!("{}={}", kv.key.escape_ascii(), kv.value.escape_ascii())),
            );
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let expected: Vec<_> = (0..10).map(|n| format!("/registry/maps/n/{n}=x")).collect();
        assert_eq!(all, expected);
    }

    #[tokio::test]
    async fn a_page_of_large_objects_is_followed_by_another() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Memory::new();
        let history = History::open(store.clone(), settings(directory.path())).await.unwrap();
        tokio::spawn(history.clone().run(CancellationToken::new()));
        let large = "x".repeat(1 << 20);
        for n in 10..30 {
            put(&store, &format!("/registry/maps/n/{n}"), &large).await;
        }
        let at = store.current_revision().await.unwrap();
        // Gone, and standing there still, by turns.
        for n in (10..30).step_by(2) {
            let key = format!("/registry/maps/n/{n}");
            store.delete(key.into(), Expect::Any).await.unwrap();
        }
        let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = history.list("/registry/maps/n/", after.take(), 500, at).await.unwrap();
            assert!(page.kvs.len() <= 8);
            all.extend(page.kvs.iter().map(|kv| kv.key.clone()));
            pages += 1;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let expected: Vec<_> = (10..30).map(|n| format!("/registry/maps/n/{n}")).collect();
        assert_eq!(all, expected);
        assert!(pages >= 3, "{pages}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_not_be_written_is_tried_again_in_its_time_and_not_at_each_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history");
        std::fs::write(&path, "a file is in the way").unwrap();
        let store: Arc<dyn Store> = Memory::new();
        let history = History::open(store.clone(), settings(&path)).await.unwrap();
        tokio::spawn(history.clone().run(CancellationToken::new()));
        let large = "x".repeat(200 << 10);
        let change = async || {
            let at = put(&store, "/registry/maps/n/a", &large).await;
            history.revision(At::Revision(at)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        for _ in 0..3 {
            change().await;
        }
        std::fs::remove_file(&path).unwrap();
        change().await;
        assert!(history.log().pending() > 0, "it was tried a second ago");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(history.log().pending(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_store_has_forgotten_unnoted_is_no_gap_but_a_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Memory::new();
        let first = put(&store, "/registry/maps/n/a", "one").await;
        let history = History::open(store.clone(), settings(directory.path())).await.unwrap();
        // Nobody follows.
        put(&store, "/registry/maps/n/a", "two").await;
        let third = put(&store, "/registry/maps/n/a", "three").await;
        store.compact(third).await.unwrap();
        tokio::spawn(history.clone().run(CancellationToken::new()));
        let told = history.get(b"/registry/maps/n/a", first).await;
        assert!(matches!(told, Err(Error::TooOld { .. })), "{told:?}");
        assert_eq!(
            value(&history, "/registry/maps/n/a", third).await.as_deref(),
            Some("three")
        );
    }
}
