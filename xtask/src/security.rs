//! The table of `docs/security.md`: each row names a test that there is, or says why what it is about can't occur.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const PAGE: &str = "docs/security.md";
/// So many rows at least: the table only grows.
const LEAST: usize = 80;
/// How a row without a test begins to say why.
const WHY: &str = "Cannot occur:";

pub fn check(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    Ok(problems(&text, |file| fs::read_to_string(root.join(file)).ok()))
}

/// `read`: the text of a file, if there is one.
fn problems(page: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    let rows: Vec<(usize, Vec<&str>)> = page
        .lines()
        .enumerate()
        .filter(|(_, l)| l.starts_with("| ") && !l.starts_with("| Class"))
        .map(|(n, l)| (n + 1, l.trim_matches('|').split(" | ").map(str::trim).collect()))
        .collect();
    if rows.len() < LEAST {
        problems.push(format!("{PAGE}: {} rows, of {LEAST} at least", rows.len()));
    }
    for (n, cells) in rows {
        let [_, _, shown] = cells[..] else {
            problems.push(format!("{PAGE}:{n}: a row has three cells"));
            continue;
        };
        let named: Vec<&str> = shown
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|t| t.contains(".rs::") || t.ends_with(".sh"))
            .collect();
        if named.is_empty() && !shown.starts_with(WHY) {
            problems.push(format!("{PAGE}:{n}: neither a test nor a reason (\"{WHY} …\")"));
        }
        for test in named {
            if let Some(why) = missing(test, &read) {
                problems.push(format!("{PAGE}:{n}: {why}"));
            }
        }
    }
    problems
}

/// `apiserver`'s tests and the like stand below `crates`, scripts and the test kit at the top.
fn missing(test: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let (file, name) = test.split_once("::").unwrap_or((test, ""));
    let place = match file.starts_with("tools/") || file.starts_with("testkit/") || file.starts_with("xtask/") {
        true => file.to_string(),
        false => format!("crates/{file}"),
    };
    match read(&place) {
        None => Some(format!("there is no file {place}")),
        Some(text) if !name.is_empty() && !text.contains(&format!("fn {name}(")) => {
            Some(format!("there is no test {name} in {place}"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_need_a_test_that_there_is_or_a_reason() {
        let read = |file: &str| (file == "crates/a/src/b.rs").then(|| "async fn it_holds() {".to_string());
        let row = |shown: &str| format!("| Class | What | Shown by |\n|---|---|---|\n| x (CVE-1) | y | {shown} |\n");
        let found = |shown: &str| problems(&row(shown), read).split_off(1);
        assert!(found("`a/src/b.rs::it_holds`").is_empty());
        assert!(found("Cannot occur: there is no Windows here").is_empty());
        assert_eq!(
            found("`a/src/b.rs::it_held`"),
            ["docs/security.md:3: there is no test it_held in crates/a/src/b.rs"]
        );
        assert_eq!(
            found("`a/src/c.rs::it_holds`"),
            ["docs/security.md:3: there is no file crates/a/src/c.rs"]
        );
        assert_eq!(found("believe us").len(), 1);
    }
}
