//! Which plug-ins of a profile are on, in which order, and with which weights: upstream's defaults, and what the file says of them.

use super::args::Args;
use super::errors::Errors;
use crate::plugins::all;
use crate::profile::Enabled;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plugins {
    #[serde(default)]
    multi_point: Set,
    #[serde(default)]
    filter: Set,
    #[serde(default)]
    score: Set,
    #[serde(default)]
    post_filter: Set,
    /// Whatever else is there.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Set {
    #[serde(default)]
    enabled: Vec<Named>,
    #[serde(default)]
    disabled: Vec<Named>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    #[serde(default)]
    weight: i64,
}

/// They are how this scheduler works, and can't be left out.
const ALWAYS: &[&str] = &["SchedulingGates", "PrioritySort", "DefaultBinder"];
const PREEMPTION: &str = "DefaultPreemption";
const REMOVED: &[&str] = &["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

/// What is on in a profile.
#[derive(Default)]
pub struct Chosen {
    pub plugins: Vec<On>,
    pub preempts: bool,
}

pub struct On {
    name: String,
    filters: bool,
    weight: i64,
}

impl On {
    pub fn make(self, args: &Args) -> Option<Enabled> {
        let standard = all().into_iter().find(|e| e.plugin.name() == self.name)?;
        Some(Enabled {
            plugin: args.plugin(&self.name).unwrap_or(standard.plugin),
            filters: self.filters,
            weight: self.weight,
        })
    }
}

impl Set {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|p| p.name == name || p.name == "*")
    }
}

fn standard() -> Vec<Named> {
    let named = |name: &str, weight| Named {
        name: name.into(),
        weight,
    };
    let ours = all();
    let ours = ours.iter().map(|e| named(e.plugin.name(), e.weight));
    ours.chain(ALWAYS.iter().chain(&[PREEMPTION]).map(|name| named(name, 0)))
        .collect()
}

impl Plugins {
    pub fn choose(&self, path: &str, errors: &mut Errors) -> Chosen {
        for stage in self.others.keys() {
            let why = "plug-ins are enabled and disabled at multiPoint, filter, score and postFilter only";
            errors.forbidden(&format!("{path}.{stage}"), why);
        }
        let known = standard();
        for (stage, set) in [
            ("multiPoint", &self.multi_point),
            ("filter", &self.filter),
            ("score", &self.score),
            ("postFilter", &self.post_filter),
        ] {
            for (i, plugin) in set.enabled.iter().enumerate() {
                let name = &plugin.name;
                if REMOVED.contains(&name.as_str()) {
                    let version = super::API_VERSION;
                    let why = format!(
                        "was invalid in version {version:?} (KubeSchedulerConfiguration is version {version:?})"
                    );
                    errors.invalid(&format!("{path}.{stage}.enabled[{i}]"), name.as_str(), &why);
                } else if !known.iter().any(|k| k.name == *name) {
                    errors.other(format!("{path}.{stage}: {stage} plugin {name:?} does not exist"));
                } else if set.enabled[..i].iter().any(|other| other.name == *name) {
                    errors.other(format!(
                        "{path}.{stage}: plugin {name:?} already registered as {stage:?}"
                    ));
                }
            }
        }
        let merged = merge(&known, &self.multi_point);
        for name in ALWAYS.iter().filter(|name| !merged.iter().any(|p| p.name == **name)) {
            errors.forbidden(
                &format!("{path}.multiPoint.disabled"),
                &format!("{name} can't be left out"),
            );
        }
        let ours = all();
        let filters = stage(&merged, &self.filter, |name| {
            ours.iter().any(|e| e.filters && e.plugin.name() == name)
        });
        let scores = stage(&merged, &self.score, |name| {
            ours.iter().any(|e| e.weight > 0 && e.plugin.name() == name)
        });
        for (stage, set, can) in [("filter", &self.filter, &filters), ("score", &self.score, &scores)] {
            for name in set
                .enabled
                .iter()
                .map(|p| &p.name)
                .filter(|name| known.iter().any(|k| k.name == **name))
            {
                if !can.iter().any(|p| p.name == *name) {
                    errors.other(format!(
                        "{path}.{stage}: plugin {name:?} does not extend {stage} plugin"
                    ));
                }
            }
        }
        let weight = |name: &str| scores.iter().find(|p| p.name == name).map_or(0, |p| p.weight.max(1));
        let on = |name: &str, filters| On {
            name: name.to_owned(),
            filters,
            weight: weight(name),
        };
        let mut plugins: Vec<On> = filters.iter().map(|p| on(&p.name, true)).collect();
        let only = scores.iter().filter(|s| !filters.iter().any(|f| f.name == s.name));
        plugins.extend(only.map(|p| on(&p.name, false)));
        Chosen {
            plugins,
            preempts: !stage(&merged, &self.post_filter, |name| name == PREEMPTION).is_empty(),
        }
    }
}

/// The defaults without those that are disabled, and with those that are configured anew in their place; then all others.
fn merge(defaults: &[Named], set: &Set) -> Vec<Named> {
    let anew = |name: &str| set.enabled.iter().find(|p| p.name == name);
    let kept = defaults.iter().filter(|p| !set.disables(&p.name));
    let mut merged: Vec<Named> = kept.map(|p| anew(&p.name).unwrap_or(p).clone()).collect();
    for plugin in &set.enabled {
        if !merged.iter().any(|p| p.name == plugin.name) {
            merged.push(plugin.clone());
        }
    }
    merged
}

/// What is on at one extension point: what the file says of the point goes before what it says of all.
fn stage(all: &[Named], set: &Set, can: impl Fn(&str) -> bool) -> Vec<Named> {
    let is_general = |plugin: &&Named| all.iter().any(|p| p.name == plugin.name);
    let is_own = |plugin: &&Named| set.enabled.iter().any(|p| p.name == plugin.name);
    let overridden = set.enabled.iter().filter(is_general);
    let general = all.iter().filter(|p| !is_own(p) && !set.disables(&p.name));
    let own = set.enabled.iter().filter(|p| !is_general(p));
    let on = overridden.chain(general).chain(own);
    on.filter(|p| can(&p.name)).cloned().collect()
}
