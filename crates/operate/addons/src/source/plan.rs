//! From what a server's directories say and what it has told before to what it has to tell. Pure.

use super::Source;
use super::tree::Tree;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Tell(Box<Source>),
    /// Of this name: the file is gone.
    Withdraw(String),
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Why something that may be gone isn't taken for it.
    pub kept: Vec<String>,
}

/// `told`: all that this server has told.
pub fn plan(server: &str, trees: &[Tree], told: &[Source]) -> Plan {
    let mut plan = Plan::default();
    let mut before: BTreeMap<String, &Source> = told.iter().map(|s| (s.secret_name(), s)).collect();
    for tree in trees {
        let directory = tree.directory.display().to_string();
        for found in &tree.files {
            let source = Source {
                server: server.into(),
                file: found.file.display().to_string(),
                path: found.path.clone(),
                directory: directory.clone(),
                place: found.place.clone(),
                hash: found.hash.clone(),
                content: found.content.clone(),
            };
            let known = before.remove(&source.secret_name());
            if !found.is_young && known != Some(&source) {
                plan.steps.push(Step::Tell(Box::new(source)));
            }
        }
    }
    let mut why: BTreeMap<&str, String> = BTreeMap::new();
    // What is new is told first: an object that went from one file to another is never in none.
    for (name, source) in before {
        match is_gone(source, trees) {
            Ok(()) => plan.steps.push(Step::Withdraw(name)),
            Err(reason) => {
                why.entry(&source.directory).or_insert(reason);
            }
        }
    }
    plan.kept = why.into_values().collect();
    plan
}

/// Whether a file that isn't found was removed, or why that can't be said.
fn is_gone(source: &Source, trees: &[Tree]) -> Result<(), String> {
    let directory = &source.directory;
    let Some(tree) = trees.iter().find(|t| t.directory.as_os_str() == directory.as_str()) else {
        return Err(format!(
            "{directory} is no directory of add-ons of this server any more: what it said stays, until `keelson addons forget` takes it back"
        ));
    };
    if let Some(why) = &tree.incomplete {
        return Err(format!(
            "not all of {directory} can be read ({why}): nothing is taken for removed"
        ));
    }
    let other = |which: &str| {
        Err(format!(
            "{which} is another directory than it was, and empty: nothing is taken for removed; `keelson addons forget` does so"
        ))
    };
    if let Some(young) = tree.files.iter().find(|f| f.is_young) {
        return Err(format!(
            "{} is being written: nothing of {directory} is taken for removed",
            young.file.display()
        ));
    }
    // Where a disk isn't mounted there is an empty directory.
    if tree.files.is_empty() && source.place.split(' ').next() != Some(tree.place.as_str()) {
        return other(directory);
    }
    let mut below = String::new();
    for (part, was) in source.path.split('/').zip(source.place.split(' ').skip(1)) {
        below.push_str(part);
        below.push('/');
        let Some(is) = tree.places.get(&below) else { break };
        if is != was && !tree.files.iter().any(|f| f.path.starts_with(&below)) {
            return other(&format!("{directory}/{below}"));
        }
    }
    Ok(())
}
