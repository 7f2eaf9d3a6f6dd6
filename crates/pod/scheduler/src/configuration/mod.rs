//! `KubeSchedulerConfiguration` (kubescheduler.config.k8s.io/v1), as kube-scheduler reads it: from the file's content to what the
//! scheduler is told, or to everything that is wrong with it, in upstream's words.
//!
//! What is in it and can't be done here is refused, never passed over: plug-ins that aren't built in, extension points that our plug-ins don't have on their own, connections and leadership (the program's business).

mod args;
mod errors;
mod extenders;
mod plugins;
#[cfg(test)]
mod tests;

use crate::Config;
use crate::profile::Profile;
use crate::queue::Backoffs;
use errors::Errors;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    /// How many threads a decision may use: the one there is is within any bound.
    #[serde(default = "sixteen")]
    parallelism: i64,
    #[serde(default)]
    percentage_of_nodes_to_score: i64,
    #[serde(default = "one")]
    pod_initial_backoff_seconds: i64,
    #[serde(default = "ten")]
    pod_max_backoff_seconds: i64,
    #[serde(default)]
    profiles: Vec<FileProfile>,
    leader_election: Option<LeaderElection>,
    #[serde(default)]
    extenders: Vec<extenders::Extender>,
    client_connection: Option<Value>,
    enable_profiling: Option<Value>,
    enable_contention_profiling: Option<Value>,
    delay_cache_until_active: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LeaderElection {
    leader_elect: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    plugins: plugins::Plugins,
    #[serde(default)]
    plugin_config: Vec<args::PluginConfig>,
}

fn one() -> i64 {
    1
}
fn ten() -> i64 {
    10
}
fn sixteen() -> i64 {
    16
}

/// Reads the content of a file.
pub fn read(content: Value) -> anyhow::Result<Config> {
    let (version, kind) = (text(&content, "apiVersion"), text(&content, "kind"));
    anyhow::ensure!(
        version == API_VERSION && kind == KIND,
        "no kind {kind:?} is registered for version {version:?}: it must be {KIND} of {API_VERSION}"
    );
    let file: File = serde_json::from_value(content).map_err(|e| anyhow::anyhow!("strict decoding error: {e}"))?;
    let mut errors = Errors::default();
    let config = file.config(&mut errors);
    errors.result()?;
    Ok(config)
}

fn text<'a>(content: &'a Value, key: &str) -> &'a str {
    content.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl File {
    fn config(mut self, errors: &mut Errors) -> Config {
        debug_assert!(self.api_version == API_VERSION && self.kind == KIND);
        self.refuse(errors);
        if self.parallelism <= 0 {
            errors.invalid(
                "parallelism",
                self.parallelism,
                "should be an integer value greater than zero",
            );
        }
        if self.profiles.is_empty() {
            self.profiles.push(FileProfile::default());
        }
        if let [only] = self.profiles.as_mut_slice() {
            only.scheduler_name.get_or_insert_with(|| crate::DEFAULT_NAME.into());
        }
        let ignored = extenders::ignored(&self.extenders);
        let mut profiles: Vec<Profile> = Vec::new();
        for (i, profile) in self.profiles.iter().enumerate() {
            let path = format!("profiles[{i}]");
            let read = profile.read(&path, self.percentage_of_nodes_to_score, &ignored, errors);
            if let Some(at) = profiles.iter().position(|p| p.scheduler_name == read.scheduler_name) {
                errors.duplicate(
                    &format!("{path}.schedulerName"),
                    &format!("profiles[{at}].schedulerName"),
                );
            }
            profiles.push(read);
        }
        percentage("percentageOfNodesToScore", self.percentage_of_nodes_to_score, errors);
        let (first, most) = (self.pod_initial_backoff_seconds, self.pod_max_backoff_seconds);
        if first <= 0 {
            errors.invalid("podInitialBackoffSeconds", first, "must be greater than 0");
        }
        if most < first {
            let why = "must be greater than or equal to PodInitialBackoffSeconds";
            errors.invalid("podMaxBackoffSeconds", most, why);
        }
        Config {
            profiles,
            backoffs: Backoffs {
                first: Duration::from_secs(first.max(0).unsigned_abs()),
                most: Duration::from_secs(most.max(0).unsigned_abs()),
            },
            extenders: extenders::read(self.extenders, errors),
            ..Config::default()
        }
    }

    /// What can't be done here.
    fn refuse(&self, errors: &mut Errors) {
        let there = [
            ("clientConnection", self.client_connection.is_some()),
            ("enableProfiling", self.enable_profiling.is_some()),
            ("enableContentionProfiling", self.enable_contention_profiling.is_some()),
            ("delayCacheUntilActive", self.delay_cache_until_active.is_some()),
            (
                "leaderElection.leaderElect",
                self.leader_election.as_ref().is_some_and(|l| l.leader_elect),
            ),
        ];
        for (name, _) in there.iter().filter(|(_, is_there)| *is_there) {
            errors.forbidden(name, "this scheduler doesn't do that");
        }
    }
}

impl FileProfile {
    fn read(&self, path: &str, percentage_of_all: i64, ignored: &[String], errors: &mut Errors) -> Profile {
        let scheduler_name = self.scheduler_name.clone().unwrap_or_default();
        if scheduler_name.is_empty() {
            errors.required(&format!("{path}.schedulerName"), "");
        }
        let share = self.percentage_of_nodes_to_score.unwrap_or(percentage_of_all);
        if let Some(own) = self.percentage_of_nodes_to_score {
            percentage(&format!("{path}.percentageOfNodesToScore"), own, errors);
        }
        let args = args::Args::read(&format!("{path}.pluginConfig"), &self.plugin_config, errors).ignoring(ignored);
        let chosen = self.plugins.choose(&format!("{path}.plugins"), errors);
        Profile {
            scheduler_name,
            percentage: u32::try_from(share).unwrap_or_default(),
            preemption: chosen.preempts.then_some(args.preempting),
            volumes_within: args.volumes_within,
            devices: args.devices,
            plugins: chosen
                .plugins
                .into_iter()
                .filter_map(|named| named.make(&args))
                .collect(),
        }
    }
}

fn percentage(path: &str, value: i64, errors: &mut Errors) {
    if !(0..=100).contains(&value) {
        errors.invalid(path, value, "not in valid range [0-100]");
    }
}
