//! Fields with forms of their own: amounts that are kept from pods, CPUs, taints, feature gates.

use super::fields::known;
use super::kinds::Kind;
use crate::config::Config;
use crate::managers::set::Set;
use crate::shutdown::groups::Period;
use keelson_api::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What may be reserved.
const RESERVED: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];

/// Amounts by resource. One that isn't an amount, or of something that can't be reserved, is refused in upstream's words.
pub(super) fn amounts(v: &Value) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for (name, text) in v.as_object().into_iter().flatten() {
        if !RESERVED.contains(&name.as_str()) {
            return Err(format!("cannot reserve {name:?} resource"));
        }
        let text = text.as_str().unwrap_or_default();
        let amount = Quantity::parse(text).map_err(|_| {
            format!(
                "failed to parse quantity {text:?} for {name:?} resource: quantities must match the regular expression \
                     '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )
        })?;
        if amount.milli_value() < 0 {
            return Err(format!("resource quantity for {name:?} cannot be negative: {text}"));
        }
        all.insert(name.clone(), text.to_owned());
    }
    Ok(all)
}

/// How many CPUs a list such as `0-3,8` names.
pub(super) fn cpus(list: &str) -> Option<i64> {
    let set = Set::parse(list).filter(|set| !set.is_empty())?;
    i64::try_from(set.len()).ok()
}

const ENFORCED: [&str; 6] = [
    "pods",
    "system-reserved",
    "system-reserved-compressible",
    "kube-reserved",
    "kube-reserved-compressible",
    "none",
];

pub(super) fn enforced(list: &[String]) -> Result<BTreeSet<String>, String> {
    let mut all = BTreeSet::new();
    for what in list {
        if !ENFORCED.contains(&what.as_str()) {
            return Err(format!(
                "option {what:?} specified for enforceNodeAllocatable (--enforce-node-allocatable). Valid options are {}",
                ENFORCED.map(|e| format!("{e:?}")).join(", ")
            ));
        }
        if !all.insert(what.clone()) {
            return Err(format!("duplicated enforcements {what:?}"));
        }
    }
    if all.remove("none") && !all.is_empty() {
        return Err("may not contain additional enforcements when \"none\" is specified".into());
    }
    Ok(all)
}

/// What is enforced needs a place where it is.
pub(super) fn check(c: &Config) -> Vec<String> {
    let mut errors = Vec::new();
    for (kind, field, flag, group) in [
        (
            "system-reserved",
            "systemReservedCgroup",
            "system-reserved-cgroup",
            &c.system_reserved_cgroup,
        ),
        (
            "kube-reserved",
            "kubeReservedCgroup",
            "kube-reserved-cgroup",
            &c.kube_reserved_cgroup,
        ),
    ] {
        let compressible = format!("{kind}-compressible");
        let (all, weight) = (c.enforce.contains(kind), c.enforce.contains(&compressible));
        if all && weight {
            errors.push(format!(
                "invalid configuration: both {kind:?} and {compressible:?} cannot be specified together in \
                 enforceNodeAllocatable (--enforce-node-allocatable)"
            ));
        }
        if (all || weight) && group.is_empty() {
            errors.push(format!(
                "invalid configuration: {field} (--{flag}) must be specified when {kind:?} or {compressible:?} included in \
                 enforceNodeAllocatable (--enforce-node-allocatable)"
            ));
        }
    }
    if c.reserved_cpus.is_some() && !(c.system_reserved_cgroup.is_empty() && c.kube_reserved_cgroup.is_empty()) {
        errors.push(
            "invalid configuration: can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup \
             (--system-reserved-cgroup) or kubeReservedCgroup (--kube-reserved-cgroup)"
                .into(),
        );
    }
    errors
}

/// How long pods get when the machine stops, by priority.
pub(super) fn periods(v: &Value) -> Result<Vec<Period>, String> {
    let parts = ["priority", "shutdownGracePeriodSeconds"].map(|name| (name, Kind::Int));
    let one = |v: &Value| {
        known(v, "", &parts)?;
        let number = |name: &str| v[name].as_i64().unwrap_or(0);
        let (priority, seconds) = (number("priority"), number("shutdownGracePeriodSeconds"));
        let priority = i32::try_from(priority).map_err(|_| format!("priority {priority} is no number of 32 bits"))?;
        match seconds {
            0.. => Ok(Period { priority, seconds }),
            _ => Err(format!("shutdownGracePeriodSeconds {seconds} must not be negative")),
        }
    };
    v.as_array().into_iter().flatten().map(one).collect()
}

/// As `key=value:effect`.
pub(super) fn taints(v: &Value) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    let parts = ["key", "value", "effect", "timeAdded"].map(|name| (name, Kind::Text));
    for taint in v.as_array().into_iter().flatten() {
        known(taint, "", &parts)?;
        let text = |name: &str| taint[name].as_str().unwrap_or_default();
        let (key, value, effect) = (text("key"), text("value"), text("effect"));
        if key.is_empty() || !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            return Err(format!("invalid taint: {key}={value}:{effect}"));
        }
        if !taint["timeAdded"].is_null() {
            return Err("taint.TimeAdded is not nil".into());
        }
        all.push(format!("{key}={value}:{effect}"));
    }
    Ok(all)
}

/// Of CPUs' options that are alpha; off, unless it is said.
const ALPHA_CPUS: &str = "CPUManagerPolicyAlphaOptions";

/// A gate that stands as it is said to is no wish; others are refused by name.
pub(super) fn gates(c: &mut Config, v: &Value) -> Result<(), String> {
    for (name, on) in v.as_object().into_iter().flatten() {
        match name == ALPHA_CPUS {
            true => c.alpha_cpu_options = on == true,
            false => keelson_api::gates::check(name, on == true)?,
        }
    }
    Ok(())
}
