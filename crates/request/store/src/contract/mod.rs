//! What every [`Store`] promises, as a suite that every implementation runs.
//!
//! An implementation's tests call [`contract!`](crate::contract!) with an expression that makes an empty store; each case
//! becomes a test. Cases know only the trait. Random cases print their seed; `KEELSON_SEED` repeats one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod compaction;
mod random;
mod reads;
mod ttl;
mod watches;
mod writes;

pub use compaction::*;
pub use random::*;
pub use reads::*;
pub use ttl::*;
pub use watches::*;
pub use writes::*;

use crate::{Expect, KeyRange, Outcome, Revision, Store, WatchBatch, WatchStream};
use bytes::Bytes;
use std::time::Duration;

/// Runs every case as a test of its own: `contract!(async { Memory::new() as Arc<dyn Store> });`
#[macro_export]
macro_rules! contract {
    ($open:expr) => {
        $crate::contract!(@cases $open,
            a_new_store_stands_at_one, revisions_count_every_change, creating_fails_if_the_key_is_there,
            updating_needs_the_revision, deleting_needs_the_revision, a_deleted_key_begins_anew,
            keys_and_values_are_any_bytes, odd_keys_are_refused, one_of_many_wins, a_put_and_its_deletion_are_two_changes,
            the_past_stays_readable, the_future_is_refused, lists_are_in_order, lists_come_in_pages_of_one_revision,
            lists_of_the_past, a_watch_sees_everything_once_and_in_order, a_watch_begins_in_the_past,
            a_watch_sees_only_its_range, progress_is_told_in_order, a_watch_sees_what_happens_while_it_catches_up,
            a_dropped_next_loses_nothing, a_slow_watcher_holds_nobody_up,
            compaction_gives_up_the_past, compaction_keeps_the_present, compaction_of_nonsense_is_refused,
            compaction_in_steps, keys_expire, a_later_write_outlives_the_deadline,
            random_operations_match_a_model, random_writers_never_lose_an_update,
        );
    };
    (@cases $open:expr, $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::contract::$case(&*$open.await).await;
            }
        )*
    };
}

/// What a case gets. Long waits fail instead of hanging.
const PATIENCE: Duration = Duration::from_secs(20);

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let outcome = store.put(bytes(key), bytes(value), Expect::Any, None).await.unwrap();
    outcome.done().expect("nothing was expected")
}

async fn delete(store: &dyn Store, key: &str) -> Revision {
    store
        .delete(bytes(key), Expect::Any)
        .await
        .unwrap()
        .done()
        .expect("the key is there")
}

async fn value(store: &dyn Store, key: &str, revision: Option<Revision>) -> Option<String> {
    let got = store.get(key.as_bytes(), revision).await.unwrap();
    got.kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

async fn next(watch: &mut WatchStream) -> WatchBatch {
    let next = tokio::time::timeout(PATIENCE, watch.next()).await;
    next.expect("the watch tells nothing")
        .expect("the watch has ended")
        .expect("the watch has failed")
}

/// Everything up to `revision`, as short texts.
async fn until(watch: &mut WatchStream, revision: Revision) -> Vec<String> {
    let mut seen = Vec::new();
    watch.request_progress();
    loop {
        let batch = next(watch).await;
        seen.extend(batch.events.iter().map(shown));
        if batch.synced >= revision {
            return seen;
        }
        watch.request_progress();
    }
}

/// `revision:key=value(was before)`
fn shown(event: &crate::Event) -> String {
    let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
    let prev = event
        .prev
        .as_ref()
        .map_or(String::new(), |p| format!("({})", text(&p.value)));
    let key = text(&event.kv.key);
    match event.kind {
        crate::EventKind::Put => format!("{}:{key}={}{prev}", event.revision(), text(&event.kv.value)),
        crate::EventKind::Delete => format!("{}:{key}-{prev}", event.revision()),
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn all() -> KeyRange {
    KeyRange::all()
}

fn is_conflict(outcome: &Outcome, mod_revision: Option<Revision>) -> bool {
    matches!(outcome, Outcome::Conflict { current, .. } if current.as_ref().map(|kv| kv.mod_revision) == mod_revision)
}
