//! The store on a disk that fails at each of its operations in turn: nothing acknowledged is lost, nothing that was refused
//! appears, neither while it runs, nor when it is opened again, nor after a power failure; and `health` tells.
//!
//! `KEELSON_FAULTS=all` takes every operation for every kind of fault; else some are left out by a random stride. What is left
//! to chance comes from `KEELSON_SEED`, which is printed.
#![allow(clippy::unwrap_used)]

mod disk;
mod work;

use disk::{Disk, Fault};
use keelson_store::{Error, Expect, Store};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use work::Ledger;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn rng() -> StdRng {
    let seed = std::env::var("KEELSON_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("KEELSON_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn directory() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(directory.path()).unwrap().join("store");
    (directory, root)
}

/// Runs the workload with one fault; tells what was done, and how many operations it took.
fn run(root: &Path, disk: &Arc<Disk>, fault: Option<(u64, Fault)>, heal: bool) -> (Ledger, u64) {
    let (root, told) = (root.to_path_buf(), disk.clone());
    disk.under(move || {
        let runtime = runtime();
        let done = runtime.block_on(async {
            let mut ledger = Ledger::default();
            let store = work::open(&root).await;
            let opened = told.operations();
            if let Some((at, fault)) = fault {
                told.fail(at, fault);
            }
            work::work(&store, &mut ledger).await;
            let took = told.operations() - opened;
            if heal {
                told.heal();
                work::mended(&store, &mut ledger).await;
                ledger.check(&*store, "while it runs").await;
            }
            (ledger, took)
        });
        runtime.shutdown_timeout(Duration::from_secs(20));
        done
    })
}

/// One fault: checks the store as it runs, as it is opened again, and as the power failed at the end.
fn one(at: u64, fault: Fault, heal: bool, rng: &mut StdRng) -> Ledger {
    let (_directory, root) = directory();
    let disk = Disk::new(&root);
    let (ledger, _) = run(&root, &disk, Some((at, fault)), heal);
    let what = format!("{fault:?} at operation {at}, {:?}", disk.failed());
    let image = disk.after_power_failure(rng);
    disk.heal();
    runtime().block_on(async {
        for (path, when) in [(image.path(), "after a power failure"), (&root, "opened again")] {
            let what = format!("{what}, {when}");
            println!("{what}");
            let store = work::open(path).await;
            ledger.check(&*store, &what).await;
            let more = store.put("/more".into(), "1".into(), Expect::Any, None).await;
            assert!(more.unwrap().done().is_some(), "{what}");
            store.close().await.unwrap();
        }
    });
    ledger
}

/// How many operations the workload takes when nothing fails.
fn operations() -> u64 {
    let (_directory, root) = directory();
    let disk = Disk::new(&root);
    let (ledger, took) = run(&root, &disk, None, true);
    assert!(ledger.acknowledged() > 50 && ledger.is_undisturbed());
    took
}

fn every_operation(fault: Fault, heal: bool) {
    let (mut rng, all) = (rng(), std::env::var("KEELSON_FAULTS").is_ok_and(|v| v == "all"));
    let (count, begun) = (operations(), Instant::now());
    let (mut at, mut runs, mut harmed) = (1, 0, 0);
    while at <= count {
        let ledger = one(at, fault, heal, &mut rng);
        runs += 1;
        harmed += u64::from(!ledger.is_undisturbed());
        at += if all { 1 } else { rng.random_range(1..24) };
    }
    println!(
        "{fault:?}: {runs} of {count} operations, {harmed} runs with failed writes, {:?}",
        begun.elapsed()
    );
    assert!(harmed > runs / 10, "the faults did no harm");
}

#[test]
fn errors() {
    every_operation(Fault::Eio, true);
}

#[test]
fn no_space() {
    every_operation(Fault::NoSpace, true);
}

#[test]
fn writes_that_are_cut_short() {
    every_operation(Fault::Torn, true);
}

/// From some operation on nothing works any more; then it does again.
#[test]
fn a_dead_disk() {
    every_operation(Fault::Dead, true);
}

/// The power fails at some operation.
#[test]
fn power_failures() {
    every_operation(Fault::Dead, false);
}

/// A disk that hangs: writes wait, health says so meanwhile, reads go on, and nothing is lost.
#[test]
fn a_disk_that_hangs() {
    let (_directory, root) = directory();
    let disk = Disk::new(&root);
    let (told, path) = (disk.clone(), root.clone());
    let ledger = disk.under(move || {
        let runtime = runtime();
        let ledger = runtime.block_on(async {
            let mut ledger = Ledger::default();
            let store = work::open(&path).await;
            store.put("/a".into(), "1".into(), Expect::Any, None).await.unwrap();
            store.health().await.unwrap();
            let time = Duration::from_secs(10);
            told.fail(1, Fault::Stall(time));
            let begun = Instant::now();
            let writing = store.put("/a".into(), "2".into(), Expect::Any, None);
            let asking = async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                let health = store.health().await;
                assert!(matches!(health, Err(Error::Stalled { .. })), "{health:?}");
                assert_eq!(store.get(b"/a", None).await.unwrap().kv.unwrap().value, "1");
                assert!(begun.elapsed() < Duration::from_secs(6));
            };
            let (written, ()) = tokio::join!(writing, asking);
            assert_eq!(written.unwrap().done(), Some(3));
            assert!(begun.elapsed() >= time);
            store.health().await.unwrap();
            store.delete("/a".into(), Expect::Any).await.unwrap();
            work::mended(&store, &mut ledger).await;
            ledger
        });
        runtime.shutdown_timeout(Duration::from_secs(20));
        ledger
    });
    assert_eq!(ledger.acknowledged(), 1);
}
