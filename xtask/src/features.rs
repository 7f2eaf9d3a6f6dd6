//! `docs/features.md`, the table of what 1.37 does by default: each gate of the list stands in it once, with the stage and the mark that
//! the list has for it, marks are counted rightly, and every file that is named to show it is there.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/features.md";
const LIST: &str = "crates/base/api/src/gates.txt";
/// Where the files are that rows name.
const PLACES: [&str; 2] = ["crates", "testkit"];
const MARKS: [&str; 3] = ["●", "◐", "–"];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let read = |file: &str| fs::read_to_string(root.join(file)).context(file.to_owned());
    let mut files = Vec::new();
    for place in PLACES {
        walk(&root.join(place), &mut files)?;
    }
    let is_there = |path: &str| files.iter().any(|file| names(file, path));
    Ok(problems(&read(PAGE)?, &read(LIST)?, is_there))
}

fn walk(dir: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path: PathBuf = entry?.path();
        match path.is_dir() {
            true => walk(&path, files)?,
            false => files.push(path.to_string_lossy().into_owned()),
        }
    }
    Ok(())
}

/// Whether the path ends a file's, or is a directory that it is in.
fn names(file: &str, path: &str) -> bool {
    file.ends_with(&format!("/{path}")) || file.contains(&format!("/{path}/"))
}

fn problems(page: &str, list: &str, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    let rows = page
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| gate "));
    let rows: Vec<Vec<&str>> = rows
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let gates: Vec<Vec<&str>> = list.lines().map(|l| l.split(' ').collect()).collect();
    let on = gates.iter().filter(|gate| gate.get(2) == Some(&"on"));
    for gate in on.clone() {
        match rows.iter().filter(|row| row[0] == gate[0]).count() {
            1 => {}
            n => problems.push(format!("{PAGE}: {} stands there {n} times", gate[0])),
        }
    }
    let marked = |mark: &str| rows.iter().filter(|row| row.get(3) == Some(&mark)).count();
    let [here, partly, absent] = MARKS.map(marked);
    let counted = format!("{here}, {partly} and {absent} of {}", rows.len());
    if !page.contains(&counted) {
        problems.push(format!("{PAGE}: it doesn't say that it has {counted}"));
    }
    for row in rows {
        let [name, stage, _, mark, shown] = row[..] else {
            problems.push(format!("{PAGE}: {}: a row has five cells", row[0]));
            continue;
        };
        let Some(gate) = on.clone().find(|gate| gate[0] == name) else {
            problems.push(format!("{PAGE}: {name} is no gate that is on by default"));
            continue;
        };
        let said = stage.split(',').next().unwrap_or_default().to_lowercase();
        if gate.get(1) != Some(&said.as_str()) {
            problems.push(format!(
                "{PAGE}: {name} is said to be {stage}, {LIST} has {}",
                gate.join(" ")
            ));
        }
        let is_here = gate.get(3) == Some(&"on");
        if !MARKS.contains(&mark) || is_here != (mark != "–") {
            problems.push(format!(
                "{PAGE}: {name} is marked {mark}, {LIST} has {}",
                gate.join(" ")
            ));
        }
        let paths = shown.split('`').skip(1).step_by(2).filter(|text| is_path(text));
        let gone = paths.filter(|path| !is_there(path));
        problems.extend(gone.map(|path| format!("{PAGE}: {name}: there is no {path}")));
    }
    problems
}

fn is_path(text: &str) -> bool {
    text.contains('/') && !text.starts_with('/') && !text.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_that_are_missing_and_files_that_are_gone_are_told() {
        let list = "A ga on on\nB beta on off\nC alpha off off\nD ga on on\n";
        let page = "1, 0 and 1 of 3.\n| gate | stage | component | | shown by |\n|---|---|---|---|---|\n\
                    | A | GA, locked | all | ● | `a/b.rs` |\n| B | GA | all | ● | |\n| C | alpha | all | – | |\n";
        assert_eq!(
            problems(page, list, |path| names("crates/x/a.rs", path)),
            [
                "docs/features.md: D stands there 0 times",
                "docs/features.md: it doesn't say that it has 2, 0 and 1 of 3",
                "docs/features.md: A: there is no a/b.rs",
                "docs/features.md: B is said to be GA, crates/base/api/src/gates.txt has B beta on off",
                "docs/features.md: B is marked ●, crates/base/api/src/gates.txt has B beta on off",
                "docs/features.md: C is no gate that is on by default",
            ]
        );
        assert!(
            names("crates/x/a/b.rs", "a/b.rs") && names("crates/x/a/b.rs", "x/a") && !names("crates/x/a.rs", "b.rs")
        );
    }
}
