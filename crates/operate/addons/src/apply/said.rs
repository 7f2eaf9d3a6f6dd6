//! What all files say, as far as it matters to each other: which objects, and what comes before what.

use crate::addon::Addon;
use crate::choose::choose;
use crate::inventory::{Entry, ObjectId};
use crate::manifest::{self, depends_on};
use crate::source::{Source, addon_of};
use k8s_openapi::api::core::v1::Secret;
use keelson_client::Informer;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub struct Said {
    sources: Informer<Secret>,
    known: Informer<Addon>,
    /// By the hash of what was read.
    read: Mutex<HashMap<String, Arc<Gist>>>,
}

/// Of one file. `None`: nobody knows.
struct Gist {
    objects: Option<BTreeSet<ObjectId>>,
    depends_on: Vec<String>,
}

impl Said {
    pub fn new(sources: Informer<Secret>, known: Informer<Addon>) -> Said {
        Said {
            sources,
            known,
            read: Mutex::default(),
        }
    }

    /// All servers' files of one add-on.
    pub fn sources(&self, addon: &str) -> Vec<Source> {
        let of_addon = self
            .sources
            .store()
            .filter(|secret| addon_of(secret).is_some_and(|of| of == addon));
        of_addon.iter().filter_map(|s| Source::of(s)).collect()
    }

    /// What is in force, by add-on.
    fn all(&self) -> BTreeMap<String, Source> {
        let mut by_name: BTreeMap<String, Vec<Source>> = BTreeMap::new();
        for source in self.sources.store().list().iter().filter_map(|s| Source::of(s)) {
            by_name.entry(source.addon()).or_default().push(source);
        }
        let in_force = |name: &str, sources: &[Source]| {
            let addon = self.known.store().get("", name);
            let before = addon.and_then(|a| a.status.as_ref()?.source.clone());
            choose(sources, before.as_deref()).map(|c| c.chosen.clone())
        };
        let all = by_name.into_iter();
        all.filter_map(|(name, sources)| Some((name.clone(), in_force(&name, &sources)?)))
            .collect()
    }

    fn gist(&self, source: &Source) -> Arc<Gist> {
        if let Some(known) = self.read.lock().get(&source.hash) {
            return known.clone();
        }
        let manifests = source.content.text().and_then(|text| manifest::read(&text));
        let gist = Arc::new(match manifests {
            Err(_) => Gist {
                objects: None,
                depends_on: Vec::new(),
            },
            Ok(manifests) => Gist {
                depends_on: depends_on(&manifests),
                objects: Some(
                    manifests
                        .iter()
                        .map(|m| ObjectId {
                            group: m.group().into(),
                            kind: m.kind.clone(),
                            namespace: m.namespace.clone().unwrap_or_default(),
                            name: m.name.clone(),
                        })
                        .collect(),
                ),
            },
        });
        let mut read = self.read.lock();
        // Of files that were changed often the old ones go.
        if read.len() > 2 * self.sources.store().len() + 16 {
            read.clear();
        }
        read.insert(source.hash.clone(), gist.clone());
        gist
    }

    pub fn dependencies(&self) -> BTreeMap<String, Vec<String>> {
        let all = self.all().into_iter();
        all.map(|(name, source)| (name, self.gist(&source).depends_on.clone()))
            .collect()
    }

    /// Whether the file of `other` says it. One that can't be read says what it said before.
    pub fn says(&self, other: &str, id: &ObjectId) -> bool {
        let sources = self.sources(other);
        let known = self.known.store().get("", other);
        let before = known.as_ref().and_then(|a| a.status.as_ref()?.source.clone());
        let Some(choice) = choose(&sources, before.as_deref()) else {
            return false;
        };
        match &self.gist(choice.chosen).objects {
            None => known.is_some_and(|a| a.objects().iter().map(Entry::id).any(|o| o == *id)),
            Some(objects) => {
                // Where no namespace is written, it depends on the kind which it is.
                let is_default = matches!(id.namespace.as_str(), "" | "default");
                let mut without = id.clone();
                without.namespace.clear();
                objects.contains(id) || (is_default && objects.contains(&without))
            }
        }
    }

    /// Another add-on whose file says it.
    pub fn other(&self, addon: &str, id: &ObjectId) -> Option<String> {
        let all = self.sources.store().list();
        let names: BTreeSet<String> = all.iter().filter_map(|s| addon_of(s)).collect();
        names
            .into_iter()
            .filter(|name| name != addon)
            .find(|name| self.says(name, id))
    }
}
