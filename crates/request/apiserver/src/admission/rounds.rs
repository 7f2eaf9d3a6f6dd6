//! A second round of mutation: whoever changed an object late gives those before the chance to see it.

use keelson_api::Object;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

/// The rounds of one request. There are two at most.
#[derive(Default)]
pub struct Rounds {
    second: AtomicBool,
    wanted: AtomicBool,
    plugins: Mutex<BTreeMap<&'static str, Plugin>>,
}

/// What a plug-in did so far.
#[derive(Default)]
struct Plugin {
    /// The object as the plug-in left it.
    left: Option<Object>,
    /// What ran and may run again.
    ran: BTreeSet<String>,
    /// What has to run again, since the object changed after it.
    due: BTreeSet<String>,
}

impl Plugin {
    fn changed(&mut self) {
        self.due.append(&mut self.ran);
    }
}

impl Rounds {
    /// Begins the second round if it is wanted.
    pub fn again(&self) -> bool {
        self.wanted.swap(false, Ordering::Relaxed) && !self.second.swap(true, Ordering::Relaxed)
    }
    pub fn is_second(&self) -> bool {
        self.second.load(Ordering::Relaxed)
    }
    /// A plug-in begins with the object as others left it.
    pub fn begin(&self, plugin: &'static str, object: &Object) {
        if self.is_second() {
            let mut plugins = self.plugins.lock();
            let p = plugins.entry(plugin).or_default();
            if p.left.as_ref() != Some(object) {
                p.changed();
            }
        }
    }
    /// Whether this one runs: in the second round only what ran before a change.
    pub fn runs(&self, plugin: &'static str, key: &str) -> bool {
        !self.is_second() || self.plugins.lock().get(plugin).is_some_and(|p| p.due.contains(key))
    }
    /// One of the plug-in's ran; whether it changed the object, and whether it would like to see later changes.
    pub fn ran(&self, plugin: &'static str, key: &str, changed: bool, again: bool) {
        let mut plugins = self.plugins.lock();
        let p = plugins.entry(plugin).or_default();
        if changed {
            p.changed();
            self.wanted.store(true, Ordering::Relaxed);
        }
        if again {
            p.ran.insert(key.to_string());
        }
    }
    /// A plug-in is done in this round.
    pub fn end(&self, plugin: &'static str, object: &Object) {
        if !self.is_second() {
            self.plugins.lock().entry(plugin).or_default().left = Some(object.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ran_before_a_change_runs_again() {
        let (rounds, object) = (Rounds::default(), Object::new());
        for (key, changed) in [("a", false), ("b", true), ("c", false)] {
            assert!(rounds.runs("p", key));
            rounds.ran("p", key, changed, key != "b");
        }
        rounds.end("p", &object);
        assert!(rounds.again());
        rounds.begin("p", &object);
        assert!(rounds.runs("p", "a"));
        assert!(!rounds.runs("p", "b"));
        assert!(!rounds.runs("p", "c"));
        rounds.ran("p", "a", true, true);
        assert!(!rounds.again());
    }

    #[test]
    fn a_change_by_others_lets_all_run_again() {
        let (rounds, object) = (Rounds::default(), Object::new());
        rounds.ran("p", "a", false, true);
        rounds.ran("q", "x", true, false);
        rounds.end("p", &object);
        assert!(rounds.again());
        let mut changed = object.clone();
        changed.insert("a", 1);
        rounds.begin("p", &changed);
        assert!(rounds.runs("p", "a"));
        assert!(!rounds.runs("q", "x"));
    }
}
