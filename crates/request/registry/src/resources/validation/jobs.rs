//! Jobs and cron jobs.

use super::Rules;
use super::check::{Errs, count, is_true, s};
use super::pod_spec::template;
use super::success;
use super::workloads::{matches_template, shown_labels, spec_of, template_labels};
use crate::strategy::restore;
use jiff::tz::TimeZone;
use keelson_api::{Map, Object, Value};
use keelson_cron::{Schedule, zone};
use keelson_machinery::names;
use keelson_machinery::selector::LabelSelector;
use std::collections::HashSet;

pub const JOB: Rules = Rules {
    object: |_, o, e| job(o, e),
    create: |_, o, e| {
        generated_selector(o, e);
        indexed_name(o, e);
    },
    update: |_, new, old, e| {
        job_update(new, old, e);
        indexed_name(new, e);
    },
    status: |_, new, old, e| super::job_status::change(new, old, e),
    ..Rules::SUBDOMAIN
};
pub const CRON_JOB: Rules = Rules {
    object: |_, o, e| spec_of(o, e, cron_job),
    create: |_, o, e| {
        if o.name().len() > 52 {
            e.invalid("metadata.name", o.name(), "must be no more than 52 characters");
        }
        spec_of(o, e, |e, spec| zones(e, spec, None));
    },
    update: |_, new, old, e| spec_of(new, e, |e, spec| zones(e, spec, old.obj("spec"))),
    ..Rules::SUBDOMAIN
};

const INDEXED: &str = "Indexed";

fn job(o: &Object, e: &mut Errs) {
    spec_of(o, e, |e, spec| {
        job_spec(e, spec);
        if spec.contains_key("selector") {
            e.label_selector(spec, "selector");
        } else {
            e.required("selector", "");
        }
        matches_template(e, spec, true);
    });
}

/// Unless the user sees to it himself, selector and labels name the job.
fn generated_selector(o: &Object, e: &mut Errs) {
    let Some(spec) = o.obj("spec") else { return };
    if is_true(spec, "manualSelector") || !spec.contains_key("selector") {
        return;
    }
    let labels = template_labels(spec);
    let expected = [
        ("controller-uid", o.uid()),
        ("job-name", o.name()),
        ("batch.kubernetes.io/controller-uid", o.uid()),
        ("batch.kubernetes.io/job-name", o.name()),
    ];
    for (key, value) in expected {
        match labels.and_then(|l| l.str(key)) {
            None => e.required("spec.template.metadata.labels", &format!("must be '{value}'")),
            Some(found) if found != value => {
                e.invalid(
                    "spec.template.metadata.labels",
                    shown_labels(spec),
                    &format!("must be '{value}'"),
                );
            }
            Some(_) => {}
        }
    }
    let as_labels = Map::from_iter(expected);
    let matches = LabelSelector::from_object(spec.get("selector")).map(|s| s.matches(Some(&as_labels)));
    if matches == Ok(false) {
        let shown = spec.get("selector").cloned().unwrap_or(Value::Null);
        e.invalid("spec.selector", shown, "`selector` not auto-generated");
    }
}

/// The names of an indexed job's pods end in their index and must fit.
fn indexed_name(o: &Object, e: &mut Errs) {
    let Some(spec) = o.obj("spec") else { return };
    let completions = spec.int("completions").unwrap_or(0);
    if s(spec, "completionMode") == INDEXED && completions > 0 {
        let last = format!("{}-{}", o.name(), completions - 1);
        if !names::dns1123_label(&last).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {last}");
            e.invalid("metadata.name", o.name(), &why);
        }
    }
}

fn job_spec(e: &mut Errs, spec: &Map) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        e.non_negative(spec, key);
    }
    let (per_index, failed) = (spec.int("backoffLimitPerIndex"), spec.int("maxFailedIndexes"));
    if failed.is_some() && per_index.is_none() {
        e.required("backoffLimitPerIndex", "when maxFailedIndexes is specified");
    }
    if let Some(by) = spec.str("managedBy") {
        managed_by(e, by);
    }
    let mode = s(spec, "completionMode");
    if spec.contains_key("completionMode") && !matches!(mode, INDEXED | "NonIndexed") {
        e.not_supported("completionMode", mode, &["NonIndexed", INDEXED]);
    }
    let (completions, parallelism) = (spec.int("completions"), spec.int("parallelism"));
    if mode == INDEXED {
        if completions.is_none() {
            e.required("completions", "when completion mode is Indexed");
        }
        if let Some(n) = parallelism.filter(|n| *n > 100_000) {
            e.invalid(
                "parallelism",
                n,
                "must be less than or equal to 100000 when completion mode is Indexed",
            );
        }
        if let (Some(c), Some(f)) = (completions, failed)
            && f > c
        {
            e.invalid("maxFailedIndexes", f, "must be less than or equal to completions");
        }
        if let Some(f) = failed.filter(|f| *f > 100_000) {
            e.invalid("maxFailedIndexes", f, "must be less than or equal to 100000");
        }
    } else if mode == "NonIndexed" || !spec.contains_key("completionMode") {
        for (key, value) in [("backoffLimitPerIndex", per_index), ("maxFailedIndexes", failed)] {
            if let Some(n) = value {
                e.invalid(key, n, "requires indexed completion mode");
            }
        }
    }
    e.child(spec, "podFailurePolicy", |e, p| failure_policy(e, p, spec));
    match (spec.get("successPolicy"), completions) {
        (Some(policy), _) if mode != INDEXED => {
            let why = "requires indexed completion mode";
            e.invalid_as("batch.SuccessPolicy", "successPolicy", Some(policy), why);
        }
        (Some(_), Some(completions)) => success::policy(e, spec, completions),
        _ => {}
    }
    replacement_policy(e, spec);
    template(e, spec);
    let empty = Map::new();
    let pod = spec.obj("template").and_then(|t| t.obj("spec")).unwrap_or(&empty);
    let key = "template.spec.restartPolicy";
    match s(pod, "restartPolicy") {
        "Always" | "" => e.required(key, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.contains_key("podFailurePolicy") => {
            e.invalid(
                key,
                "OnFailure",
                "only \"Never\" is supported when podFailurePolicy is specified",
            );
        }
        "OnFailure" | "Never" => {}
        other => e.not_supported(key, other, &["OnFailure", "Never"]),
    }
}

/// The controller that a job is left to, as a path below its domain.
fn managed_by(e: &mut Errs, by: &str) {
    const LONGEST: usize = 63;
    e.domain_prefixed_path("managedBy", by);
    if by.len() > LONGEST {
        e.too_long("managedBy", LONGEST);
    }
}

fn replacement_policy(e: &mut Errs, spec: &Map) {
    let Some(policy) = spec.str("podReplacementPolicy") else {
        return;
    };
    if spec.contains_key("podFailurePolicy") {
        if policy != "Failed" {
            e.not_supported("podReplacementPolicy", policy, &["Failed"]);
        }
    } else if !matches!(policy, "Failed" | "TerminatingOrFailed") {
        e.not_supported("podReplacementPolicy", policy, &["Failed", "TerminatingOrFailed"]);
    }
}

fn failure_policy(e: &mut Errs, policy: &Map, spec: &Map) {
    let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
    let pod = spec.get("template").and_then(|t| t.get("spec"));
    let names: HashSet<&str> = ["containers", "initContainers"]
        .into_iter()
        .filter_map(|list| pod?.get(list)?.as_array())
        .flatten()
        .map(|c| c.get("name").and_then(Value::as_str).unwrap_or_default())
        .collect();
    if count(policy, "rules") > 20 {
        e.too_many("rules", count(policy, "rules"), 20);
    }
    e.each(policy, "rules", |e, _, rule| {
        match s(rule, "action") {
            "" => e.required(
                "action",
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            ),
            "FailIndex" if !spec.contains_key("backoffLimitPerIndex") => {
                e.invalid("action", "FailIndex", "requires the backoffLimitPerIndex to be set");
            }
            action if !actions.contains(&action) => e.not_supported("action", action, &actions),
            _ => {}
        }
        e.child(rule, "onExitCodes", |e, codes| {
            match s(codes, "operator") {
                "In" | "NotIn" => {}
                "" => e.required("operator", "valid values: [\"In\" \"NotIn\"]"),
                other => e.not_supported("operator", other, &["In", "NotIn"]),
            }
            if let Some(name) = codes.str("containerName")
                && !names.contains(name)
            {
                let why = "must be one of the container or initContainer names in the pod template";
                e.invalid("containerName", name, why);
            }
            let values: Vec<i64> = codes
                .arr("values")
                .into_iter()
                .flatten()
                .filter_map(Value::as_i64)
                .collect();
            if values.is_empty() {
                let shown = codes.get("values").cloned().unwrap_or_default();
                e.invalid("values", shown, "at least one value is required");
            } else if values.len() > 255 {
                e.too_many("values", values.len(), 255);
            }
            let mut known = HashSet::new();
            for (i, v) in values.iter().enumerate() {
                let field = format!("values[{i}]");
                if s(codes, "operator") == "In" && *v == 0 {
                    e.invalid(&field, 0i64, "must not be 0 for the In operator");
                }
                if !known.insert(*v) {
                    e.duplicate(&field, *v);
                }
            }
            if !values.is_sorted() {
                e.invalid(
                    "values",
                    codes.get("values").cloned().unwrap_or(Value::Null),
                    "must be ordered",
                );
            }
        });
        e.each(rule, "onPodConditions", |e, _, c| {
            e.format("type", s(c, "type"), names::label_key);
            match s(c, "status") {
                "True" | "False" | "Unknown" => {}
                "" => e.required("status", "valid values: [\"False\" \"True\" \"Unknown\"]"),
                other => e.not_supported("status", other, &["False", "True", "Unknown"]),
            }
        });
        let (codes, conditions) = (rule.contains_key("onExitCodes"), count(rule, "onPodConditions") > 0);
        let why = match (codes, conditions) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => return,
        };
        let path = e.at("");
        e.push(keelson_api::Cause::new(
            "FieldValueInvalid",
            path,
            format!("Invalid value: {why}"),
        ));
    });
}

fn job_update(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (n, o) = (new.obj("spec").unwrap_or(&empty), old.obj("spec").unwrap_or(&empty));
    e.within("spec", |e| {
        if s(n, "completionMode") == INDEXED {
            let (c, p) = (n.int("completions"), n.int("parallelism"));
            // That there are none is told already.
            if let Some(c) = c.filter(|c| Some(*c) != o.int("completions") && Some(*c) != p) {
                e.invalid("completions", c, "can only be modified in tandem with spec.parallelism");
            }
        } else {
            e.immutable(n.get("completions"), o.get("completions"), "completions");
        }
        e.immutable_as("*v1.LabelSelector", n.get("selector"), o.get("selector"), "selector");
        template_update(n, o, old, e);
        for (key, ty) in [
            ("completionMode", "*string"),
            ("podFailurePolicy", "*batch.PodFailurePolicy"),
            ("backoffLimitPerIndex", "*int"),
            ("managedBy", "*string"),
            ("successPolicy", "*batch.SuccessPolicy"),
        ] {
            e.immutable_as(ty, n.get(key), o.get(key), key);
        }
    });
}

/// Whether a suspended job has no pods, and won't be found to have some: it never began, or its controller has said that it rests.
fn is_idle(job: &Object) -> bool {
    let conditions = job.at(&["status", "conditions"]).and_then(Value::as_array);
    let says = |condition: &Value, key: &str, text: &str| condition.get(key).and_then(Value::as_str) == Some(text);
    let rests = |c: &Value| says(c, "type", "Suspended") && says(c, "status", "True");
    let active = job.at(&["status", "active"]).and_then(Value::as_i64).unwrap_or(0);
    let never_started = job.at(&["status", "startTime"]).is_none();
    active == 0 && (never_started || conditions.is_some_and(|all| all.iter().any(rests)))
}

/// While a job is suspended, where its pods may go and what they use can be changed.
fn template_update(n: &Map, o: &Map, old: &Object, e: &mut Errs) {
    let mut before = o.obj("template").cloned().unwrap_or_default();
    let now = n.obj("template").cloned().unwrap_or_default();
    let suspended = is_true(o, "suspend");
    let is_idle = suspended && is_idle(old);
    if is_idle {
        let meta = now.obj("metadata").cloned().unwrap_or_default();
        for key in ["annotations", "labels"] {
            restore(before.object_mut("metadata"), Some(&meta), key);
        }
        let pod = now.obj("spec").cloned().unwrap_or_default();
        let spec = before.object_mut("spec");
        for key in ["nodeSelector", "tolerations", "schedulingGates"] {
            restore(spec, Some(&pod), key);
        }
        let asked = pod.obj("affinity");
        if asked.is_some() || spec.contains_key("affinity") {
            let affinity = spec.object_mut("affinity");
            restore(affinity, asked, "nodeAffinity");
            if affinity.is_empty() && asked.is_none() {
                spec.remove("affinity");
            }
        }
    }
    if is_idle {
        restore(&mut before, Some(&now), "metadata");
        for list in ["containers", "initContainers"] {
            let resources: Vec<Option<Value>> = now
                .obj("spec")
                .and_then(|s| s.arr(list))
                .into_iter()
                .flatten()
                .map(|c| c.get("resources").cloned())
                .collect();
            if let Some(Value::Array(containers)) = before.object_mut("spec").get_mut(list) {
                for (c, r) in containers.iter_mut().filter_map(Value::as_object_mut).zip(resources) {
                    match r {
                        Some(r) => c.insert("resources", r),
                        None => c.remove("resources"),
                    };
                }
            }
        }
    }
    let (now, before) = (Value::Object(now), Value::Object(before));
    match is_idle {
        // Of a suspended job's template only the specification is looked at.
        true => e.immutable_as("core.PodSpec", now.get("spec"), before.get("spec"), "template.spec"),
        false => e.immutable_as("core.PodTemplateSpec", Some(&now), Some(&before), "template"),
    }
}

fn cron_job(e: &mut Errs, spec: &Map) {
    match s(spec, "schedule") {
        "" => e.required("schedule", ""),
        schedule => {
            if let Err(why) = Schedule::parse(schedule, TimeZone::UTC) {
                e.invalid("schedule", schedule, &why.0);
            }
        }
    }
    e.non_negative(spec, "startingDeadlineSeconds");
    e.one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
    e.child(spec, "jobTemplate", |e, t| {
        let empty = Map::new();
        let job = t.obj("spec").unwrap_or(&empty);
        e.within("spec", |e| {
            job_spec(e, job);
            if let Some(selector) = job.get("selector") {
                e.invalid("selector", selector.clone(), "`selector` will be auto-generated");
            }
            if is_true(job, "manualSelector") {
                e.not_supported("manualSelector", true, &["nil", "false"]);
            }
        });
    });
    e.non_negative(spec, "successfulJobsHistoryLimit");
    e.non_negative(spec, "failedJobsHistoryLimit");
}

/// A cron job's zone stands in a field of its own. What an object has of old it may keep.
fn zones(e: &mut Errs, spec: &Map, old: Option<&Map>) {
    let schedule = s(spec, "schedule");
    if schedule.contains("TZ") {
        if !old.is_some_and(|old| s(old, "schedule").contains("TZ")) {
            let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            e.invalid("schedule", schedule, why);
        } else if spec.contains_key("timeZone") {
            let why = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
            e.invalid("schedule", schedule, why);
        }
    }
    let Some(name) = spec
        .str("timeZone")
        .filter(|name| old.is_none_or(|old| old.str("timeZone") != Some(name)))
    else {
        return;
    };
    if name.is_empty() {
        return e.invalid("timeZone", name, "timeZone must be nil or non-empty string");
    }
    let well_formed = |part: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+');
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(known)
    };
    if !name.split('/').all(well_formed) {
        return e.invalid("timeZone", name, &format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        e.invalid("timeZone", name, why);
    }
    // Go takes this one name for the machine's own zone.
    if name != "Local"
        && let Err(why) = zone::load(name)
    {
        e.invalid("timeZone", name, &why.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(spec: &str, old: Option<&str>) -> Vec<String> {
        let map = |text: &str| match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(map)) => map,
            other => panic!("no object: {other:?}"),
        };
        let mut e = Errs::default();
        zones(&mut e, &map(spec), old.map(map).as_ref());
        e.list.iter().map(|c| c.message.clone()).collect()
    }

    #[test]
    fn zones_are_named_exactly_and_in_their_own_field() {
        for good in ["Europe/Berlin", "UTC", "Etc/UTC"] {
            assert!(
                said(&format!(r#"{{"schedule":"* * * * *","timeZone":"{good}"}}"#), None).is_empty(),
                "{good}"
            );
        }
        for bad in ["europe/berlin", "utc", "Mars/Olympus", "Europe//Berlin", "../UTC"] {
            let said = said(&format!(r#"{{"schedule":"* * * * *","timeZone":"{bad}"}}"#), None);
            assert!(said[0].ends_with(&format!("unknown time zone {bad}")), "{said:?}");
        }
        assert_eq!(said(r#"{"schedule":"* * * * *","timeZone":"local"}"#, None).len(), 2);
        assert_eq!(said(r#"{"schedule":"* * * * *","timeZone":"Local"}"#, None).len(), 1);
        let own = r#"{"schedule":"TZ=UTC 0 0 * * *"}"#;
        assert_eq!(said(own, None).len(), 1);
        assert!(said(own, Some(own)).is_empty(), "what is there may stay");
        let both = r#"{"schedule":"TZ=UTC 0 0 * * *","timeZone":"UTC"}"#;
        assert!(said(both, Some(own))[0].contains("cannot use both"));
        let lost = r#"{"schedule":"* * * * *","timeZone":"Lost/Zone"}"#;
        assert!(
            said(lost, Some(lost)).is_empty(),
            "an unchanged zone isn't looked up again"
        );
    }
}
