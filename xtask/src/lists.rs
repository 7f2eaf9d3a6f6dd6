//! The conformance lists: ratchets. `passing.txt`, the lists of SIGs and that of the Gateway API's suite only grow, and so does what clients passed.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const DIR: &str = "conformance/lists";
const PASSING: &str = "passing.txt";
/// Of another suite: its tests are of no SIG.
const GATEWAY: &str = "gateway.txt";
/// What real programs passed as clients, `PROGRAM: WHAT` a line.
const CLIENTS: &str = "tests/clients/passing.txt";
/// Where their checks are: scripts, and what those run.
const CHECKS: [&str; 2] = ["tests/clients", "tests/clients/python"];

fn names(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_string)
        .collect()
}

pub fn check(root: &Path) -> Result<Vec<String>> {
    let dir = root.join(DIR);
    let read = |file: &str| {
        fs::read_to_string(dir.join(file))
            .map(|t| names(&t))
            .with_context(|| format!("cannot read {DIR}/{file}"))
    };
    let all: BTreeSet<String> = read("all.txt")?.into_iter().collect();
    let mut problems = Vec::new();
    if all.len() != 462 {
        problems.push(format!("all.txt has {} names, not 462", all.len()));
    }
    let here = fs::read_dir(&dir)?
        .map(|entry| anyhow::Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<BTreeSet<String>>>()?;
    let gone = before(root, &["ls-tree", "--name-only"], DIR)?
        .into_iter()
        .filter(|file| !here.contains(file));
    problems.extend(gone.map(|file| format!("{file}: the list is gone")));
    for file in here {
        let list = read(&file)?;
        if !list.is_sorted_by(|a, b| a < b) {
            problems.push(format!("{file}: not sorted, or a name stands in it twice"));
        }
        problems.extend(strangers(&file, &list, &all).map(|n| format!("{file}: no such test: {n}")));
        if !matches!(file.as_str(), "all.txt" | "quick.txt") {
            let now: BTreeSet<String> = list.into_iter().collect();
            let was = before(root, &["show"], &format!("{DIR}/{file}"))?;
            let lost = was.into_iter().filter(|n| !now.contains(n));
            problems.extend(lost.map(|n| format!("{file}: lost {n}")));
        }
    }
    let clients = fs::read_to_string(root.join(CLIENTS)).with_context(|| format!("cannot read {CLIENTS}"))?;
    let was = before(root, &["show"], CLIENTS)?;
    problems.extend(clients_problems(&names(&clients), &was, |program| {
        root.join(format!("tests/clients/{program}.sh")).exists()
    }));
    for dir in CHECKS {
        for entry in fs::read_dir(root.join(dir)).with_context(|| format!("cannot read {dir}"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "sh" || kind == "py") {
                let text = fs::read_to_string(&path)?;
                let shown = path.strip_prefix(root).unwrap_or(&path).display();
                problems.extend(
                    twice(&text)
                        .into_iter()
                        .map(|n| format!("{shown}: two checks are called {n:?}")),
                );
            }
        }
    }
    Ok(problems)
}

/// The names of checks that a script has twice: one that fails would pass by the other's line. Names made when it runs can't be told.
fn twice(script: &str) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let calls = ["check \"", "check(\""].into_iter().flat_map(|call| {
        let begins = |at: &usize| !script[..*at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-'));
        script
            .match_indices(call)
            .filter(move |(at, _)| begins(at))
            .map(move |(at, _)| at + call.len())
    });
    calls
        .filter_map(|at| script[at..].split_once('"').map(|(name, _)| name))
        .filter(|name| !name.contains(['$', '`', '{']))
        .filter(|name| !seen.insert(*name))
        .collect()
}

fn clients_problems(now: &[String], was: &[String], is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let program = |line: &str| line.split_once(": ").map_or("", |(program, _)| program).to_string();
    let lost = was.iter().filter(|n| !now.contains(n));
    let mut problems: Vec<String> = lost.map(|n| format!("{CLIENTS}: lost {n}")).collect();
    let strange = now.iter().filter(|n| !is_there(&program(n)));
    problems.extend(strange.map(|n| format!("{CLIENTS}: no script has the check: {n}")));
    problems
}

/// Names that can't stand in a list: in `gateway.txt` those of SIGs, in `network.txt` are tests of sig-network that aren't conformance tests, in others those that are.
fn strangers<'a>(file: &'a str, list: &'a [String], all: &'a BTreeSet<String>) -> impl Iterator<Item = &'a String> {
    let sig = match file {
        "all.txt" | "quick.txt" | PASSING => None,
        _ => Some(format!("[sig-{}] ", file.trim_end_matches(".txt"))),
    };
    list.iter().filter(move |n| match &sig {
        _ if file == GATEWAY => n.starts_with('['),
        None => !all.contains(*n),
        Some(sig) => !n.starts_with(sig) || all.contains(*n),
    })
}

/// What git has of the last commit, a line each: nothing, if it is new.
fn before(root: &Path, command: &[&str], path: &str) -> Result<Vec<String>> {
    let shown = Command::new("git")
        .args(command)
        .arg(format!("HEAD:{path}"))
        .current_dir(root)
        .output()?;
    match shown.status.success() {
        true => Ok(names(&String::from_utf8_lossy(&shown.stdout))),
        false => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_passed_stays() {
        let list = |lines: &[&str]| lines.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let problems = |now: &[&str], was: &[&str]| clients_problems(&list(now), &list(was), |p| p == "helm");
        assert_eq!(
            problems(&["helm: install", "helm: test"], &["helm: install"]),
            list(&[])
        );
        assert_eq!(problems(&["helm: test"], &["helm: install"]).len(), 1);
        assert_eq!(problems(&["flux: install", "helm"], &[]).len(), 2);
    }

    #[test]
    fn two_checks_of_one_name_are_found() {
        let script = "check \"installs\" c helm || exit 1\nfor x in a b; do check \"of $x\" t; check \"of $x\" t; done\n\
                      recheck \"installs\" x; [ -e y ] && check \"upgrades\" t";
        assert_eq!(twice(script), [""; 0]);
        assert_eq!(twice(&format!("{script}\n(check \"installs\" again)")), ["installs"]);
        assert_eq!(
            twice("@check(\"lists\")\n@check(\"gets\")\n@check(\"lists\")"),
            ["lists"]
        );
    }

    #[test]
    fn a_sigs_list_has_its_own_tests_and_no_conformance_tests() {
        let all = BTreeSet::from(["[sig-apps] Job works [Conformance]".to_string()]);
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let cases: [(&str, &[&str], usize); 5] = [
            ("apps.txt", &["[sig-apps] Job waits"], 0),
            ("apps.txt", &["[sig-apps] Job works [Conformance]"], 1),
            ("apps.txt", &["[sig-network] Services [sig-apps] too"], 1),
            (PASSING, &["[sig-apps] Job works [Conformance]"], 0),
            (PASSING, &["[sig-apps] Job waits"], 1),
        ];
        for (file, tests, strange) in cases {
            assert_eq!(
                strangers(file, &list(tests), &all).count(),
                strange,
                "{file}: {tests:?}"
            );
        }
    }
}
