//! `kill -9` in the middle of a write storm, again and again, on one directory: no acknowledged write is lost, nothing is torn.
//!
//! This program is both sides: the parent starts itself as a child that writes and tells what was acknowledged, kills it at a
//! random moment, opens the store and compares. `cargo test -p keelson-store --test crash -- 100` does a hundred rounds
//! (10 without a number); `KEELSON_SEED` repeats a run's choices.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use keelson_store::embedded::{Embedded, Options};
use keelson_store::{Expect, KeyRange, ListRequest, Revision, Store};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const WRITERS: u64 = 16;
/// A writer's counter begins anew with each round, above all of the rounds before.
const ROUND: u64 = 1_000_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["child", directory, base] => runtime.block_on(storm(Path::new(directory), base.parse().unwrap())),
        _ => {
            let given = args.iter().find_map(|arg| arg.parse().ok());
            runtime.block_on(rounds(given.unwrap_or(10)));
        }
    }
}

/// Writes until it is killed.
async fn storm(directory: &Path, base: u64) {
    let store = Embedded::open(directory, small()).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in base + 1.. {
                write(&*store, writer, n).await;
            }
        })
    });
    futures::future::join_all(writers).await;
}

async fn write(store: &dyn Store, writer: u64, n: u64) {
    let key = key(writer);
    let ttl = n.is_multiple_of(3).then_some(Duration::from_secs(3600));
    let outcome = match is_deletion(n) {
        true => store.delete(key, Expect::Any).await.unwrap(),
        false => store.put(key, content(writer, n), Expect::Any, ttl).await.unwrap(),
    };
    let revision = outcome.done().unwrap();
    // One write call a line: a line is whole or missing.
    let line = format!("ack {writer} {n} {revision}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    if writer == 0 && n.is_multiple_of(25) {
        let current = store.current_revision().await.unwrap();
        store.compact(current.saturating_sub(100).max(2)).await.ok();
    }
}

fn key(writer: u64) -> Bytes {
    format!("/storm/{writer}").into()
}

fn is_deletion(n: u64) -> bool {
    // A round begins with a put: there is always something to delete.
    (n % ROUND).is_multiple_of(7)
}

/// Known from writer and number, of all sizes.
fn content(writer: u64, n: u64) -> Bytes {
    let mut rng = StdRng::seed_from_u64(writer << 40 | n);
    let size = if rng.random_bool(0.1) {
        rng.random_range(0..60_000)
    } else {
        rng.random_range(0..3_000)
    };
    let mut content = format!("{n} ").into_bytes();
    let filler = content.len();
    content.resize(filler + size, 0);
    rng.fill(&mut content[filler..]);
    content.into()
}

/// Small bounds, so that flushes, compactions and rotations happen all the time.
fn small() -> Options {
    Options {
        cache_bytes: 1 << 20,
        memtable_bytes: 256 << 10,
        ..Options::default()
    }
}

/// What was acknowledged last.
#[derive(Clone, Copy, Default)]
struct Acknowledged {
    n: u64,
    revision: Revision,
}

async fn rounds(count: u64) {
    let seed = std::env::var("KEELSON_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| rand::rng().random());
    println!("KEELSON_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = HashMap::new();
    let (mut total, mut slowest) = (0, Duration::ZERO);
    let begun = Instant::now();
    for round in 0..count {
        let base = round * ROUND;
        // In the storm; from time to time while it starts.
        let storm = rng.random_bool(0.9);
        let patience = Duration::from_millis(rng.random_range(0..if storm { 200 } else { 20 }));
        total += one_round(directory.path(), base, storm, patience, &mut acknowledged);
        let opening = Instant::now();
        let store = Embedded::open(directory.path(), small()).await.unwrap();
        slowest = slowest.max(opening.elapsed());
        check(&*store, base, &mut acknowledged).await;
        store.close().await.unwrap();
    }
    println!(
        "{count} kills, {total} acknowledged writes, none lost; slowest start {slowest:?}; took {:?}",
        begun.elapsed()
    );
    assert!(total > count * 5, "there was no storm");
}

/// Starts the storm, kills it, and notes what it had been told.
fn one_round(
    directory: &Path,
    base: u64,
    storm: bool,
    patience: Duration,
    acknowledged: &mut HashMap<u64, Acknowledged>,
) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", directory.to_str().unwrap(), &base.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (begun, has_begun) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let lines = output.lines().map_while(Result::ok).inspect(|_| {
            let _ = begun.send(());
        });
        lines.collect::<Vec<_>>()
    });
    if storm {
        has_begun
            .recv_timeout(Duration::from_secs(30))
            .expect("the storm doesn't begin");
    }
    std::thread::sleep(patience);
    child.kill().unwrap();
    child.wait().unwrap();
    let lines = reader.join().unwrap();
    let mut count = 0;
    for line in lines {
        let numbers: Vec<u64> = line.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
        let [writer, n, revision] = numbers[..] else {
            panic!("{line:?}")
        };
        acknowledged.insert(writer, Acknowledged { n, revision });
        count += 1;
    }
    count
}

/// Afterwards `acknowledged` also has what was written without an answer.
async fn check(store: &dyn Store, base: u64, acknowledged: &mut HashMap<u64, Acknowledged>) {
    let status = store.status().await.unwrap();
    let newest = acknowledged.values().map(|a| a.revision).max().unwrap_or(1);
    assert!(
        status.revision >= newest,
        "revision {newest} was acknowledged, the store stands at {}",
        status.revision
    );
    for writer in 0..WRITERS {
        let last = acknowledged.get(&writer).copied().unwrap_or_default();
        // At most one more write of each writer was under way.
        let next = last.n.max(base) + 1;
        match store.get(&key(writer), None).await.unwrap().kv {
            Some(kv) => {
                let n = if kv.mod_revision == last.revision { last.n } else { next };
                assert!(
                    kv.mod_revision >= last.revision,
                    "writer {writer}: {} is older than {}",
                    kv.mod_revision,
                    last.revision
                );
                assert!(
                    kv.value == content(writer, n),
                    "writer {writer}: not what number {n} wrote"
                );
                assert!(!is_deletion(n));
                acknowledged.insert(
                    writer,
                    Acknowledged {
                        n,
                        revision: kv.mod_revision,
                    },
                );
            }
            None if last.n == 0 || is_deletion(last.n) => {}
            None => {
                assert!(is_deletion(next), "writer {writer} lost {}", last.n);
                acknowledged.insert(
                    writer,
                    Acknowledged {
                        n: next,
                        revision: last.revision,
                    },
                );
            }
        }
    }
    whole(store, status.compact_revision.max(1), status.revision).await;
}

/// The past tells of each revision, and leads to the present.
async fn whole(store: &dyn Store, from: Revision, to: Revision) {
    let start = store.list(ListRequest::new(KeyRange::all()).at(from)).await.unwrap();
    let mut state: HashMap<Bytes, _> = start.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    let mut watch = store.watch(KeyRange::all(), from).await.unwrap();
    let mut position = from;
    watch.request_progress();
    while position < to {
        for event in watch.next().await.unwrap().unwrap().events {
            position += 1;
            assert_eq!(event.revision(), position);
            assert_eq!(event.prev.as_ref(), state.get(&event.kv.key));
            match event.kind {
                keelson_store::EventKind::Put => state.insert(event.kv.key.clone(), event.kv),
                keelson_store::EventKind::Delete => state.remove(&event.kv.key),
            };
        }
    }
    let now = store.list(ListRequest::new(KeyRange::all())).await.unwrap();
    assert_eq!(now.kvs.len(), state.len());
    assert!(now.kvs.iter().all(|kv| state.get(&kv.key) == Some(kv)));
}
