//! Pods that were tried in vain, by when they have waited long enough, and by who refused them: an event is asked about those only
//! that somebody refused who hears of it. Both have the same pods.

use std::collections::{BTreeSet, HashMap};
use tokio::time::Instant;

/// When a pod has waited long enough, and its uid.
pub type Place = (Instant, String);

/// In place of a plug-in: there were no nodes.
const NOBODY: &str = "";

#[derive(Default)]
pub struct Refused {
    all: BTreeSet<Place>,
    by: HashMap<&'static str, BTreeSet<Place>>,
}

impl Refused {
    pub fn all(&self) -> &BTreeSet<Place> {
        &self.all
    }

    /// `by`: the plug-ins that refused it; none, if there were no nodes.
    pub fn put(&mut self, place: Place, by: &BTreeSet<&'static str>) {
        for plugin in plugins(by) {
            self.by.entry(plugin).or_default().insert(place.clone());
        }
        self.all.insert(place);
    }

    /// `by`: as when it was put.
    pub fn take(&mut self, place: &Place, by: &BTreeSet<&'static str>) {
        for plugin in plugins(by) {
            if let Some(pods) = self.by.get_mut(plugin) {
                pods.remove(place);
            }
        }
        self.all.remove(place);
    }

    /// Those that a plug-in refused that hears of something, and those for which there were no nodes.
    pub fn heard(&self, hears: impl Fn(&str) -> bool) -> BTreeSet<&Place> {
        let groups = self.by.iter().filter(|(plugin, _)| **plugin == NOBODY || hears(plugin));
        groups.flat_map(|(_, pods)| pods).collect()
    }
}

fn plugins(by: &BTreeSet<&'static str>) -> impl Iterator<Item = &'static str> {
    by.iter().copied().chain(by.is_empty().then_some(NOBODY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_is_found_by_each_that_refused_it_until_it_leaves() {
        let until = Instant::now();
        let mut refused = Refused::default();
        let pods = [
            ("a", vec!["size", "volumes"]),
            ("b", vec!["volumes"]),
            ("homeless", vec![]),
        ];
        let pods = pods.map(|(uid, by)| ((until, uid.to_owned()), BTreeSet::from_iter(by)));
        for (place, by) in &pods {
            refused.put(place.clone(), by);
        }
        let heard = |refused: &Refused, by: &str| -> Vec<String> {
            let found = refused.heard(|plugin| plugin == by);
            found.into_iter().map(|(_, uid)| uid.clone()).collect()
        };
        assert_eq!(heard(&refused, "volumes"), ["a", "b", "homeless"], "each once");
        assert_eq!(heard(&refused, "size"), ["a", "homeless"]);
        assert_eq!(heard(&refused, "taints"), ["homeless"]);
        for (place, by) in &pods {
            refused.take(place, by);
        }
        assert!(refused.all().is_empty() && refused.heard(|_| true).is_empty());
    }
}
