//! What requests execute: instructions of user space, counted by callgrind, which counts the same on a busy machine as on a quiet one.
//!
//! `instructions.txt` holds what each row took, and of what compiler and profile: another makes other instructions of the same source, so
//! that its counts are shown and not judged. More than three hundredths off, to either side, is a failure.

use super::{Api, Request, ask, rows, runtime, server};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use tokio::runtime::Runtime;

/// Tests of this file take turns: the allocator that counts is one for all threads.
pub static ALONE: Mutex<()> = Mutex::new(());

/// Tells a process of this test that it runs under callgrind.
const COUNTED_BY_CALLGRIND: &str = "KEELSON_COUNTED_BY_CALLGRIND";
const WARM: usize = 8;
const COUNTED: usize = 16;
/// In hundredths of what is written.
const OFF: u64 = 3;
/// How often what is off is counted again.
const AGAIN: usize = 2;
/// What the server does by the clock falls into some row: 1.4 million instructions were seen, among all requests of it.
const BY_THE_CLOCK: u64 = 120_000;

/// The function below, as callgrind knows it.
const COUNTED_NAME: &str = "costs::instructions::counted_by_callgrind";

#[inline(never)]
fn counted_by_callgrind(runtime: &Runtime, api: &Api, requests: Vec<Request>) {
    runtime.block_on(ask(api, requests));
}

/// The rows one by one; callgrind writes a file after each.
fn run() {
    let runtime = runtime();
    let api = runtime.block_on(server());
    for row in rows() {
        let mut requests: Vec<Request> = (0..WARM + COUNTED).map(row.request).collect();
        let counted = requests.split_off(WARM);
        runtime.block_on(ask(&api, requests));
        counted_by_callgrind(&runtime, &api, counted);
    }
}

/// Runs this test's own program under callgrind: instructions for one request, by row.
fn counts() -> Vec<(&'static str, u64)> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("counted");
    let own = std::env::current_exe().unwrap();
    let ran = Command::new("valgrind")
        .arg("--tool=callgrind")
        // The whole name: by a pattern only one of the two would hold.
        .args([
            format!("--toggle-collect={COUNTED_NAME}"),
            format!("--dump-after={COUNTED_NAME}"),
        ])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(own)
        .args(["instructions::requests_execute_what_they_did", "--exact"])
        .env(COUNTED_BY_CALLGRIND, "1")
        .output()
        .expect("valgrind, which counts instructions: install the package of that name");
    assert!(
        ran.status.success(),
        "{}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    let total = |n: usize| total(&file.with_extension(n.to_string())) / COUNTED as u64;
    let rows = rows().into_iter().enumerate();
    rows.map(|(n, row)| (row.name, total(n + 1))).collect()
}

/// What a file of callgrind's says it counted.
fn total(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| {
        panic!(
            "{}: {e}: was the test linked without its functions' names?",
            file.display()
        )
    });
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
    line.and_then(|n| n.trim().parse().ok()).expect("a total")
}

/// The compiler and how it was told to optimise, by which counts differ.
fn build() -> String {
    let said = Command::new("rustc").arg("--version").output().expect("rustc");
    let compiler = String::from_utf8(said.stdout).expect("a version");
    let optimised = if cfg!(debug_assertions) { "dev" } else { "optimised" };
    format!("{}, {optimised}, {}", compiler.trim(), std::env::consts::ARCH)
}

#[test]
fn requests_execute_what_they_did() {
    if std::env::var_os(COUNTED_BY_CALLGRIND).is_some() {
        return run();
    }
    let _alone = ALONE.lock().unwrap();
    let found = counts();
    let build = build();
    let mut text = format!("{build}\n");
    for (name, count) in &found {
        writeln!(text, "{name:<36}{count:>10} instructions").unwrap();
    }
    println!("{text}");
    if std::env::var_os("KEELSON_WRITE_COSTS").is_some() {
        std::fs::write(
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/costs/instructions.txt"),
            &text,
        )
        .unwrap();
        return;
    }
    let written = include_str!("instructions.txt");
    let of = written.lines().next().expect("instructions.txt says nothing: write it");
    if of != build {
        eprintln!("NOT JUDGED: instructions.txt is of another build than {build}");
        return;
    }
    let wrong = |found: &[(&str, u64)]| -> Vec<String> {
        let off = found.iter().filter_map(|(name, now)| off(written, name, *now));
        off.collect()
    };
    let mut told = wrong(&found);
    // What the server does by the clock may have fallen into a row once; what a request costs is there every time.
    for _ in 0..AGAIN {
        if told.is_empty() {
            break;
        }
        let again = wrong(&counts());
        told.retain(|line| again.iter().any(|other| row_of(other) == row_of(line)));
    }
    assert!(told.is_empty(), "{}", told.join("\n"));
}

fn row_of(line: &str) -> &str {
    line.split(':').next().unwrap_or(line)
}

fn off(written: &str, name: &str, now: u64) -> Option<String> {
    let line = written.lines().find_map(|line| line.strip_prefix(name));
    let then = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let Some(then) = then else {
        return Some(format!("{name} isn't in instructions.txt"));
    };
    let off = now.abs_diff(then) > (then * OFF / 100).max(BY_THE_CLOCK);
    off.then(|| format!("{name}: {now} instructions, written are {then}"))
}
