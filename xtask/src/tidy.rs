//! The architecture, as checks. Each says which rule of ARCHITECTURE.md it holds.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which crates of ours a crate may depend on. `keelson` (the program) may use everything.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("keelson-api", &[]),
    ("keelson-machinery", &["keelson-api"]),
    ("keelson-pki", &["keelson-clock"]),
    ("keelson-sys", &[]),
    ("keelson-grpc", &[]),
    ("keelson-cri", &["keelson-grpc", "keelson-sys", "keelson-trace"]),
    ("keelson-csi", &["keelson-grpc"]),
    ("keelson-oci", &[]),
    ("keelson-devices", &["keelson-grpc"]),
    ("keelson-clock", &[]),
    ("keelson-follow", &[]),
    ("keelson-listen", &["keelson-sys"]),
    ("keelson-measure", &[]),
    ("keelson-trace", &["keelson-grpc"]),
    ("keelson-cron", &["keelson-api"]),
    ("keelson-zpages", &["keelson-api", "keelson-clock", "keelson-sys"]),
    (
        "keelson-client",
        &[
            "keelson-clock",
            "keelson-follow",
            "keelson-measure",
            "keelson-pki",
            "keelson-trace",
        ],
    ),
    ("keelson-balancing", &["keelson-client"]),
    ("keelson-store", &[]),
    ("keelson-past", &["keelson-clock", "keelson-store"]),
    (
        "keelson-seal",
        &[
            "keelson-api",
            "keelson-clock",
            "keelson-follow",
            "keelson-pki",
            "keelson-store",
        ],
    ),
    ("keelson-cache", &["keelson-api", "keelson-store"]),
    (
        "keelson-registry",
        &[
            "keelson-api",
            "keelson-clock",
            "keelson-cron",
            "keelson-machinery",
            "keelson-pki",
            "keelson-store",
            "keelson-cache",
            "keelson-trace",
        ],
    ),
    (
        "keelson-apiserver",
        &[
            "keelson-api",
            "keelson-machinery",
            "keelson-past",
            "keelson-pki",
            "keelson-store",
            "keelson-seal",
            "keelson-cache",
            "keelson-registry",
            "keelson-client",
            "keelson-clock",
            "keelson-follow",
            "keelson-listen",
            "keelson-measure",
            "keelson-sys",
            "keelson-trace",
            "keelson-zpages",
        ],
    ),
    (
        "keelson-controllers",
        &[
            "keelson-api",
            "keelson-balancing",
            "keelson-client",
            "keelson-clock",
            "keelson-cron",
            "keelson-pki",
        ],
    ),
    (
        "keelson-scheduler",
        &[
            "keelson-api",
            "keelson-client",
            "keelson-clock",
            "keelson-machinery",
            "keelson-measure",
            "keelson-trace",
        ],
    ),
    (
        "keelson-kubelet",
        &[
            "keelson-api",
            "keelson-client",
            "keelson-cri",
            "keelson-csi",
            "keelson-devices",
            "keelson-follow",
            "keelson-grpc",
            "keelson-listen",
            "keelson-pki",
            "keelson-sys",
            "keelson-trace",
            "keelson-zpages",
        ],
    ),
    ("keelson-network", &["keelson-sys"]),
    (
        "keelson-runtime",
        &[
            "keelson-api",
            "keelson-cri",
            "keelson-oci",
            "keelson-sys",
            "keelson-network",
            "keelson-trace",
        ],
    ),
    (
        "keelson-policy",
        &["keelson-client", "keelson-measure", "keelson-sys", "keelson-network"],
    ),
    ("keelson-proxy", &["keelson-client", "keelson-measure", "keelson-sys"]),
    (
        "keelson-announce",
        &[
            "keelson-balancing",
            "keelson-bgp",
            "keelson-client",
            "keelson-network",
            "keelson-sys",
        ],
    ),
    // Sessions and routes, of no cluster.
    ("keelson-bgp", &["keelson-sys"]),
    (
        "keelson-dns",
        &["keelson-client", "keelson-follow", "keelson-measure", "keelson-sys"],
    ),
    (
        "keelson-gateway",
        &["keelson-client", "keelson-clock", "keelson-listen", "keelson-measure"],
    ),
    ("keelson-metrics", &["keelson-client", "keelson-clock"]),
    (
        "keelson-local",
        &[
            "keelson-api",
            "keelson-client",
            "keelson-clock",
            "keelson-csi",
            "keelson-grpc",
            "keelson-sys",
        ],
    ),
    // Files of a directory become objects, by the API alone.
    (
        "keelson-addons",
        &["keelson-api", "keelson-client", "keelson-clock", "keelson-follow"],
    ),
    // Files, JSON and places: whoever makes a backup brings the rest.
    ("keelson-backup", &[]),
    // Texts and JSON: whoever asks for the past brings it.
    ("keelson-history", &["keelson-api"]),
    // A registry of images: it keeps files, and asks the API server who may have them.
    (
        "keelson-distribution",
        &[
            "keelson-client",
            "keelson-listen",
            "keelson-measure",
            "keelson-oci",
            "keelson-pki",
        ],
    ),
    // What people do to a cluster: by the API alone, and by the components' pure parts.
    (
        "keelson-why",
        &["keelson-api", "keelson-client", "keelson-policy", "keelson-scheduler"],
    ),
    // A browser's way to the API, and to what `why` says.
    (
        "keelson-console",
        &["keelson-client", "keelson-clock", "keelson-listen", "keelson-why"],
    ),
    // Real kubelets over runtimes and machines in memory, for any API server.
    (
        "keelson-simulate",
        &["keelson-client", "keelson-clock", "keelson-kubelet"],
    ),
    // What is copied of a cluster, and what became of the copy: pure but for who plays the storage drivers, a client of the copy.
    ("keelson-fork", &["keelson-backup", "keelson-client"]),
    // Puts components together as the program does, but over a store in memory and fake machines: no runtime, no network.
    (
        "keelson-testkit",
        &[
            "keelson-addons",
            "keelson-apiserver",
            "keelson-balancing",
            "keelson-client",
            "keelson-clock",
            "keelson-controllers",
            "keelson-kubelet",
            "keelson-pki",
            "keelson-scheduler",
            "keelson-simulate",
            "keelson-store",
        ],
    ),
    // Asks an API server from outside, as any client does, and controllers by what they make of objects.
    (
        "keelson-differential",
        &[
            "keelson-api",
            "keelson-apiserver",
            "keelson-client",
            "keelson-clock",
            "keelson-pki",
            "keelson-store",
            "keelson-testkit",
        ],
    ),
    // Asks API servers from outside; what it needs are certificates and kubeconfigs.
    ("keelson-load", &["keelson-pki"]),
    // Plays a benchmark: a server and a scheduler in one process, or decisions alone.
    (
        "keelson-scheduler-perf",
        &[
            "keelson-api",
            "keelson-apiserver",
            "keelson-client",
            "keelson-measure",
            "keelson-pki",
            "keelson-scheduler",
            "keelson-store",
        ],
    ),
    ("xtask", &[]),
];

/// Files may not grow past this many lines; a table of facts may, and what is generated (`proto`).
const LONGEST: usize = 700;
const TABLES: &[&str] = &[];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    directions(root, &mut problems)?;
    let mut files = Vec::new();
    for top in ["bench", "crates", "testkit", "tests", "xtask"] {
        rust_files(&root.join(top), &mut files)?;
    }
    anyhow::ensure!(
        files.len() > 50,
        "found only {} Rust files: looked in the wrong place?",
        files.len()
    );
    for file in files {
        source(root, &file, &mut problems)?;
    }
    Ok(problems)
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, into)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

fn directions(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    let rules: BTreeMap<&str, &[&str]> = DIRECTIONS.iter().copied().collect();
    for manifest in manifests(root)? {
        let text = fs::read_to_string(&manifest)?;
        let value = |line: &str| line.split('"').nth(1).map(str::to_string);
        let name = text
            .lines()
            .find(|l| l.starts_with("name = "))
            .and_then(value)
            .unwrap_or_default();
        if name == "keelson" {
            continue;
        }
        let Some(allowed) = rules.get(name.as_str()) else {
            problems.push(format!(
                "{}: crate {name} has no rule in xtask's directions",
                manifest.display()
            ));
            continue;
        };
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line.trim();
            }
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let ours = dependency.starts_with("keelson-") || dependency == "keelson";
            if section == "[dependencies]" && ours && !allowed.contains(&dependency) {
                problems.push(format!(
                    "{}: {name} must not depend on {dependency}",
                    manifest.display()
                ));
            }
        }
    }
    Ok(())
}

fn manifests(root: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(root.join("Cargo.toml"))?;
    let members = text
        .lines()
        .skip_while(|l| !l.starts_with("members"))
        .skip(1)
        .take_while(|l| !l.starts_with(']'));
    Ok(members
        .filter_map(|l| l.split('"').nth(1))
        .map(|m| root.join(m).join("Cargo.toml"))
        .collect())
}

fn source(root: &Path, path: &Path, problems: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
    let lines = text.lines().count();
    if lines > LONGEST && !TABLES.contains(&shown.as_str()) && !shown.contains("/tests/") && !shown.contains("/proto/")
    {
        problems.push(format!(
            "{shown}: {lines} lines (the limit is {LONGEST}): split it by purpose"
        ));
    }
    let here = shown == "xtask/src/tidy.rs";
    let mut inside = false;
    for (n, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let mut tell = |what: &str| problems.push(format!("{shown}:{}: {what}", n + 1));
        if here {
            continue;
        }
        if !shown.starts_with("crates/base/sys/") && (code.contains("unsafe {") || code.contains("unsafe fn")) {
            tell("unsafe code belongs into crates/base/sys");
        }
        if code.contains("todo!(") || code.contains("unimplemented!(") {
            tell("unfinished code");
        }
        if code.contains("#[ignore") {
            tell("a test that doesn't run");
        }
        // What stands in a comment between two of these would be a test by its own, unless a language is named.
        let fence = line.trim_start().strip_prefix("//").and_then(|c| c.get(1..));
        if let Some(language) = fence.and_then(|c| c.trim_start().strip_prefix("```")) {
            inside = !inside;
            if inside && (language.is_empty() || ["rust", "no_run", "should_panic"].contains(&language)) {
                tell("an example that nothing runs: name its language (text), and have a test");
            }
        }
    }
    Ok(())
}
