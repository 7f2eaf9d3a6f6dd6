//! What all files say, as far as it matters to each other: which objects, and what comes before what.

use crate::addon::Addon;
use crate::choose::choose;
use crate::inventory::ObjectId;
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

    /// Whether the file of `other` says it.
    pub fn says(&self, other: &str, id: &ObjectId) -> bool {
        let sources = self.sources(other);
        let known = self.known.store().get("", other);
        let before = known.as_ref().and_then(|a| a.status.as_ref()?.source.clone());
        let Some(choice) = choose(&sources, before.as_deref()) else {
            return false;
        };
        self.gist(choice.chosen).says(known.as_deref(), id)
    }

    /// What all other files say now.
    pub fn others(&self, addon: &str) -> Others {
        let all = self.all().into_iter().filter(|(name, _)| name != addon);
        let known = self.known.store();
        Others(
            all.map(|(name, source)| (self.gist(&source), known.get("", &name), name))
                .collect(),
        )
    }
}

impl Gist {
    /// A file that can't be read says what it said before.
    fn says(&self, known: Option<&Addon>, id: &ObjectId) -> bool {
        let Some(objects) = &self.objects else {
            return known.is_some_and(|a| a.objects().iter().any(|entry| entry.is(id)));
        };
        match id.namespace.as_str() {
            // Of the whole cluster, whatever namespace is written.
            "" => objects
                .iter()
                .any(|o| o.name == id.name && o.kind == id.kind && o.group == id.group),
            // Where none is written it is this one.
            "default" => {
                let mut without = id.clone();
                without.namespace.clear();
                objects.contains(id) || objects.contains(&without)
            }
            _ => objects.contains(id),
        }
    }
}

/// Files of other add-ons, as they were when it was asked.
pub struct Others(Vec<(Arc<Gist>, Option<Arc<Addon>>, String)>);

impl Others {
    /// An add-on whose file says it.
    pub fn who(&self, id: &ObjectId) -> Option<&str> {
        let says = |(gist, known, _): &&(Arc<Gist>, Option<Arc<Addon>>, String)| gist.says(known.as_deref(), id);
        self.0.iter().find(says).map(|(_, _, name)| name.as_str())
    }
}
