//! The conformance lists: a ratchet. `passing.txt` only grows.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const PASSING: &str = "conformance/lists/passing.txt";

fn names(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_string)
        .collect()
}

pub fn check(root: &Path) -> Result<Vec<String>> {
    let read = |file: &str| {
        fs::read_to_string(root.join(file))
            .map(|t| names(&t))
            .with_context(|| format!("cannot read {file}"))
    };
    let all: BTreeSet<String> = read("conformance/lists/all.txt")?.into_iter().collect();
    let mut problems = Vec::new();
    if all.len() != 462 {
        problems.push(format!("conformance/lists/all.txt has {} names, not 462", all.len()));
    }
    for file in [PASSING, "conformance/lists/quick.txt"] {
        let list = read(file)?;
        let unique: BTreeSet<&String> = list.iter().collect();
        if unique.len() != list.len() {
            problems.push(format!("{file}: a name stands in it twice"));
        }
        problems.extend(
            unique
                .iter()
                .filter(|n| !all.contains(**n))
                .map(|n| format!("{file}: no such test: {n}")),
        );
    }
    let now: BTreeSet<String> = read(PASSING)?.into_iter().collect();
    let before = Command::new("git")
        .args(["show", &format!("HEAD:{PASSING}")])
        .current_dir(root)
        .output()?;
    if before.status.success() {
        let before = names(&String::from_utf8_lossy(&before.stdout));
        problems.extend(
            before
                .iter()
                .filter(|n| !now.contains(*n))
                .map(|n| format!("{PASSING}: lost {n}")),
        );
    }
    Ok(problems)
}
