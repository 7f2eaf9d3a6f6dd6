//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1), its drop-in files and the flags of upstream's kubelet: one table of
//! fields, from texts to what this kubelet is told, or to everything that is wrong with them. The same for a kubelet beside other
//! components and for one that is a program of its own ([`crate::Alone`]).
//!
//! What is in it and can't be done here is refused by name, never passed over; a value that is the default is no wish.

mod fields;
mod files;
mod flags;
mod kinds;
mod reserved;
mod show;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::managers::{cpus, memory, topology};
use fields::{Field, What};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use flags::{Flag, all as flags, judge};
pub use show::configz;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// What files and flags say, merged; what comes later counts.
#[derive(Clone, Debug, Default)]
pub struct Document {
    said: Map<String, Value>,
    /// Fields that a flag has said: another one adds to it, and zero is what it says.
    by_flag: BTreeSet<&'static str>,
    /// Where plug-ins are configured and where they are, which only flags say.
    providers: [Option<PathBuf>; 2],
}

/// Flags that say no field.
const PROVIDERS: [&str; 2] = ["image-credential-provider-config", "image-credential-provider-bin-dir"];

impl Document {
    /// Takes the content of the first file, which is in this directory: relative paths are meant from there, and defaults that
    /// depend on other fields are made of what this file says, before anything is merged over it.
    pub fn first(&mut self, content: Value, dir: &Path) -> Result<(), String> {
        self.add(content)?;
        let join = |value: &mut Value| {
            if let Some(path) = value.as_str().filter(|p| !p.is_empty()) {
                *value = dir.join(path).to_string_lossy().into();
            }
        };
        for (name, value) in &mut self.said {
            if field(name).is_some_and(|f| f.kind == kinds::Kind::Path) {
                join(value);
            }
        }
        let authentication = self.said.get_mut("authentication");
        if let Some(file) = authentication.and_then(|a| a.pointer_mut("/x509/clientCAFile")) {
            join(file);
        }
        if !self.has("evictionHard") {
            let defaults = crate::Eviction::default().hard;
            let texts = crate::eviction::threshold::show(&defaults);
            self.said.insert("evictionHard".into(), serde_json::json!(texts));
        }
        let time = |name: &str| {
            let said = self.said.get(name);
            said.filter(|v| !kinds::Kind::Duration.is_zero(v)).cloned()
        };
        if let (Some(update), None) = (time("nodeStatusUpdateFrequency"), time("nodeStatusReportFrequency")) {
            self.said.insert("nodeStatusReportFrequency".into(), update);
        }
        Ok(())
    }

    /// Adds the content of a file: maps are merged, lists and plain values replaced, `null` gives up what was said.
    /// Fails on another kind, fields that don't exist and values of another type.
    pub fn add(&mut self, content: Value) -> Result<(), String> {
        let Value::Object(mut content) = content else {
            return Err(format!("it must be a {KIND} of {API_VERSION}"));
        };
        let mut take = |key: &str| content.remove(key).and_then(|v| v.as_str().map(str::to_owned));
        let (version, kind) = (take("apiVersion").unwrap_or_default(), take("kind").unwrap_or_default());
        if version != API_VERSION || kind != KIND {
            return Err(format!(
                "no kind {kind:?} is registered for version {version:?}: it must be {KIND} of {API_VERSION}"
            ));
        }
        // Of no meaning in a file, but there where one was read from an API.
        content.remove("metadata");
        let mut errors = Vec::new();
        for (name, value) in &content {
            match field(name) {
                None => errors.push(format!("unknown field {name:?}")),
                Some(f) if !value.is_null() => errors.extend(f.kind.check(name, value).err()),
                Some(_) => {}
            }
        }
        if !errors.is_empty() {
            return Err(format!("strict decoding error: {}", errors.join(", ")));
        }
        self.merge(content);
        if self.said.get("mergeDefaultEvictionSettings") == Some(&Value::Bool(true))
            && let Some(Value::Object(hard)) = self.said.get_mut("evictionHard")
        {
            let defaults = crate::Eviction::default().hard;
            for (signal, text) in crate::eviction::threshold::show(&defaults) {
                hard.entry(signal).or_insert(text.into());
            }
        }
        Ok(())
    }

    /// Adds a flag of upstream's kubelet, by its name without dashes. Fails on one that doesn't exist or has no such value.
    pub fn flag(&mut self, name: &str, text: &str) -> Result<(), String> {
        if let Some(at) = PROVIDERS.iter().position(|known| *known == name) {
            self.providers[at] = Some(text).filter(|t| !t.is_empty()).map(PathBuf::from);
            return Ok(());
        }
        let Some((field, path)) = fields::flag(name) else {
            return Err(format!("unknown flag: --{name}"));
        };
        let kind = path.last().map_or(field.kind, |(_, kind)| *kind);
        let mut value = kind
            .read(text)
            .map_err(|e| format!("invalid argument {text:?} for \"--{name}\" flag: {e}"))?;
        let again = !self.by_flag.insert(field.name);
        if !path.is_empty() {
            for (key, _) in path.iter().rev() {
                value = Value::Object(Map::from_iter([((*key).to_owned(), value)]));
            }
            self.merge(Map::from_iter([(field.name.to_owned(), value)]));
            return Ok(());
        }
        // The first one says the whole: its map replaces the file's, and what was merged into that. But for gates.
        match self.said.get_mut(field.name) {
            Some(said) if again || kind == kinds::Kind::Bools => kinds::grow(kind, said, value),
            _ => {
                self.said.insert(field.name.to_owned(), value);
            }
        }
        Ok(())
    }

    /// As a flag, in place of what flags of this name have said.
    pub fn say(&mut self, name: &str, text: &str) -> Result<(), String> {
        if let Some((field, [])) = fields::flag(name) {
            self.by_flag.remove(field.name);
        }
        self.flag(name, text)
    }

    /// Brings what is said into a kubelet's settings. Tells everything that is wrong.
    pub fn apply(&self, config: &mut Config) -> Result<(), String> {
        let mut errors = Vec::new();
        for field in fields::all() {
            errors.extend(self.apply_one(field, config).err());
        }
        errors.extend(check(self, config));
        errors.extend(self.read_providers(config).err());
        if errors.is_empty() {
            return Ok(());
        }
        Err(errors.join("; "))
    }

    fn read_providers(&self, config: &mut Config) -> Result<(), String> {
        config.credential_providers = match &self.providers {
            [None, None] => None,
            [Some(file), Some(dir)] => {
                let read = crate::providers::Settings::read(file, dir);
                Some(read.map_err(|e| format!("--{}: {e:#}", PROVIDERS[0]))?)
            }
            _ => {
                return Err(format!(
                    "--{} and --{} belong together: give both or neither",
                    PROVIDERS[0], PROVIDERS[1]
                ));
            }
        };
        Ok(())
    }

    fn apply_one(&self, field: &Field, config: &mut Config) -> Result<(), String> {
        let Some(value) = self.said.get(field.name).filter(|v| !v.is_null()) else {
            return Ok(());
        };
        let counts = field.pointer || self.by_flag.contains(field.name);
        if !counts && field.kind.is_zero(value) {
            return Ok(());
        }
        match &field.what {
            What::Set { set, .. } => set(config, value).map_err(|e| said(field, value, &e)),
            What::Alone { set, .. } if config.alone.is_some() => set(config, value).map_err(|e| said(field, value, &e)),
            What::Only { default, others, why }
            | What::Unmet { default, others, why }
            | What::Alone {
                default, others, why, ..
            } => {
                let text = kinds::plain(value);
                let mut usual = std::iter::once(default).chain(*others);
                match usual.any(|usual| field.kind.is_same(&text, usual)) {
                    true => Ok(()),
                    false => Err(format!("{}: {text} can't be had here: {why}", named(field))),
                }
            }
        }
    }

    /// RFC 7386.
    fn merge(&mut self, content: Map<String, Value>) {
        let mut all = Value::Object(std::mem::take(&mut self.said));
        merge(&mut all, Value::Object(content));
        if let Value::Object(all) = all {
            self.said = all;
        }
    }

    fn has(&self, name: &str) -> bool {
        self.said.get(name).is_some_and(|v| !v.is_null())
    }
}

fn field(name: &str) -> Option<&'static Field> {
    fields::all().find(|f| f.name == name)
}

/// A field's name, with the flag that means the same.
fn named(field: &Field) -> String {
    match field.flag {
        "" => field.name.to_owned(),
        flag => format!("{} (--{flag})", field.name),
    }
}

/// An error as upstream words it.
fn said(field: &Field, value: &Value, error: &str) -> String {
    match error.strip_prefix("must") {
        Some(_) => format!(
            "invalid configuration: {} {} {error}",
            named(field),
            kinds::plain(value)
        ),
        None => format!("invalid configuration: {}: {error}", named(field)),
    }
}

/// What depends on several fields.
fn check(document: &Document, c: &mut Config) -> Vec<String> {
    let mut errors = Vec::new();
    let (low, high) = (c.image_gc_low_percent, c.image_gc_high_percent);
    if low >= high {
        errors.push(format!(
            "invalid configuration: imageGCLowThresholdPercent (--image-gc-low-threshold) {low} must be less than \
             imageGCHighThresholdPercent (--image-gc-high-threshold) {high}"
        ));
    }
    if !c.image_max_age.is_zero() && c.image_max_age <= c.image_min_age {
        let show = |d| crate::go_duration(d);
        errors.push(format!(
            "invalid configuration: imageMaximumGCAge {} must be greater than imageMinimumGCAge {}",
            show(c.image_max_age),
            show(c.image_min_age)
        ));
    }
    if document.has("maxParallelImagePulls") && c.serialize_pulls == Some(true) && c.parallel_pulls > Some(1) {
        errors.push(
            "invalid configuration: maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls \
             (--serialize-image-pulls) is set to false"
                .into(),
        );
    }
    errors.extend(managers(c));
    errors.extend(shutdown(c));
    errors.extend(evictions(document, c).err());
    errors.extend(verification(document, c).err());
    errors.extend(reserved::check(c));
    errors
}

/// Options of policies, as far as they can be judged without the machine.
fn managers(c: &Config) -> Vec<String> {
    let mut errors = Vec::new();
    let cpus = cpus::Options::parse(&c.cpu_options, c.alpha_cpu_options);
    errors.extend(
        cpus.err()
            .map(|e| format!("cpuManagerPolicyOptions (--cpu-manager-policy-options): {e}")),
    );
    if !c.static_cpus && !c.cpu_options.is_empty() {
        let said: Vec<String> = c.cpu_options.iter().map(|(k, v)| format!("{k}:{v}")).collect();
        let said = said.join(" ");
        errors.push(format!(
            "new none policy error: None policy: received unsupported options=map[{said}]"
        ));
    }
    if c.static_cpus && crate::node::status::reserved(c, "cpu") <= 0 {
        errors.push(
            "[cpumanager] the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
                .into(),
        );
    }
    let says = |of: &BTreeMap<String, String>| of.contains_key(memory::policy::MEMORY);
    if c.static_memory && !c.reserved_memory.values().any(says) {
        errors.push("[memorymanager] you should specify the system reserved memory".into());
    }
    let topology = topology::Options::parse(&c.topology_options);
    errors.extend(
        topology
            .err()
            .map(|e| format!("topologyManagerPolicyOptions (--topology-manager-policy-options): {e}")),
    );
    errors
}

/// What pods get when the machine stops.
fn shutdown(c: &Config) -> Vec<String> {
    let (all, critical) = (c.shutdown_grace, c.shutdown_grace_critical);
    let mut errors = Vec::new();
    if critical > all {
        errors.push(format!(
            "invalid configuration: shutdownGracePeriodCriticalPods {} must be <= shutdownGracePeriod {}",
            crate::go_duration(critical),
            crate::go_duration(all)
        ));
    }
    let two = !all.is_zero() || !critical.is_zero();
    if two && !c.shutdown_by_priority.is_empty() {
        let both = "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time";
        errors.push(format!("invalid configuration: {both}"));
    }
    errors
}

/// Thresholds, of which soft ones need times.
fn evictions(document: &Document, c: &mut Config) -> Result<(), String> {
    use crate::eviction::threshold::{graces, parse, reclaims};
    let texts = |name: &str| kinds::texts(document.said.get(name));
    if document.has("evictionHard") {
        c.eviction.hard = parse(&texts("evictionHard"))?;
    }
    let graces = graces(&texts("evictionSoftGracePeriod"))?;
    let mut soft = Vec::new();
    for t in parse(&texts("evictionSoft"))? {
        let grace = graces.get(&t.signal);
        let missing = || {
            let signal = t.signal.name();
            format!("grace period must be specified for the soft eviction threshold {signal}")
        };
        soft.push((t, *grace.ok_or_else(missing)?));
    }
    c.eviction.soft = soft;
    c.eviction.reclaim = reclaims(&texts("evictionMinimumReclaim"))?;
    Ok(())
}

fn verification(document: &Document, c: &mut Config) -> Result<(), String> {
    let (policy, list) = (
        "imagePullCredentialsVerificationPolicy",
        "preloadedImagesVerificationAllowlist",
    );
    if !document.has(policy) && !document.has(list) {
        return Ok(());
    }
    let name = document.said.get(policy).and_then(Value::as_str).unwrap_or_default();
    let allowed = kinds::list(document.said.get(list));
    let parsed = crate::Verification::parse(name, &allowed);
    c.image_pull_verification = parsed.map_err(|e| format!("invalid configuration: {e}"))?;
    Ok(())
}

/// RFC 7386.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Value::Object(into) = into else { return };
    for (key, value) in patch {
        match value {
            Value::Null => {
                into.remove(&key);
            }
            value => merge(into.entry(key).or_insert(Value::Null), value),
        }
    }
}
