//! A Job's status: what its counts and conditions may be together, and how they may go on. Rules about a field are of use when it
//! changes: what stands in violation of them doesn't keep others from being told.

use super::check::{Errs, is_true, s};
use crate::strategy::same;
use keelson_api::{Map, Object, Time, Value};
use std::collections::HashSet;

/// One side of a change: what rules ask of it.
struct Status<'a> {
    map: &'a Map,
    spec: &'a Map,
}

impl Status<'_> {
    fn is(&self, condition: &str) -> bool {
        let list = self.map.arr("conditions").into_iter().flatten();
        list.filter_map(Value::as_object)
            .any(|c| s(c, "type") == condition && s(c, "status") == "True")
    }
    fn is_not(&self, condition: &str) -> bool {
        let list = self.map.arr("conditions").into_iter().flatten();
        list.filter_map(Value::as_object)
            .any(|c| s(c, "type") == condition && s(c, "status") == "False")
    }
    fn is_finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }
    fn count(&self, key: &str) -> i64 {
        self.map.int(key).unwrap_or(0)
    }
    fn time(&self, key: &str) -> Option<Time> {
        self.map.str(key).and_then(|t| Time::parse(t).ok())
    }
    fn uncounted(&self) -> usize {
        let pods = self.map.obj("uncountedTerminatedPods");
        let of = |key: &str| pods.and_then(|p| p.arr(key)).map_or(0, Vec::len);
        of("succeeded") + of("failed")
    }
}

pub fn change(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let now = Status {
        map: new.obj("status").unwrap_or(&empty),
        spec: new.obj("spec").unwrap_or(&empty),
    };
    let was = Status {
        map: old.obj("status").unwrap_or(&empty),
        spec: old.obj("spec").unwrap_or(&empty),
    };
    e.within("status", |e| {
        counts(e, &now);
        conditions(e, &now, &was);
        times(e, &now, &was);
        finished(e, &now, &was);
        indexes(e, &now, &was);
        agreement(e, &now, &was);
        transitions(e, &now, &was);
    });
}

fn conflict(e: &mut Errs, why: &str) {
    e.push(keelson_api::Cause::new(
        "FieldValueInvalid",
        e.at("conditions"),
        format!("Invalid value: {why}"),
    ));
}

fn counts(e: &mut Errs, now: &Status) {
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        e.non_negative(now.map, key);
    }
    e.child(now.map, "uncountedTerminatedPods", |e, pods| {
        let mut seen = HashSet::new();
        for key in ["succeeded", "failed"] {
            e.each_str(pods, key, |e, _, uid| {
                if uid.is_empty() {
                    e.invalid("", uid, "must not be empty");
                } else if !seen.insert(uid.to_string()) {
                    e.duplicate("", uid);
                }
            });
        }
    });
}

fn changed(now: &Status, was: &Status, condition: &str) -> bool {
    now.is(condition) != was.is(condition)
}

fn differs(now: &Status, was: &Status, key: &str) -> bool {
    !same(now.map.get(key), was.map.get(key))
}

fn conditions(e: &mut Errs, now: &Status, was: &Status) {
    let complete = changed(now, was, "Complete");
    if (complete || changed(now, was, "Failed")) && now.is("Complete") && now.is("Failed") {
        conflict(e, "cannot set Complete=True and Failed=true conditions");
    }
    if (complete || changed(now, was, "FailureTarget")) && now.is("Complete") && now.is("FailureTarget") {
        conflict(e, "cannot set Complete=True and FailureTarget=true conditions");
    }
}

fn times(e: &mut Errs, now: &Status, was: &Status) {
    let shown = |key: &str| now.map.get(key).cloned().unwrap_or(Value::Null);
    let (started, completed) = (differs(now, was, "startTime"), differs(now, was, "completionTime"));
    if completed || changed(now, was, "Complete") {
        match (now.time("completionTime"), now.is("Complete")) {
            (Some(_), false) => e.invalid(
                "completionTime",
                shown("completionTime"),
                "cannot set completionTime when there is no Complete=True condition",
            ),
            (None, true) => e.required("completionTime", "completionTime is required for Complete jobs"),
            _ => {}
        }
    }
    if (started || completed)
        && let (Some(start), Some(end)) = (now.time("startTime"), now.time("completionTime"))
        && end < start
    {
        e.invalid(
            "completionTime",
            shown("completionTime"),
            "must be equal to or after `startTime`",
        );
    }
}

fn finished(e: &mut Errs, now: &Status, was: &Status) {
    let failed = changed(now, was, "Failed") || differs(now, was, "failedIndexes");
    if failed && now.is("Failed") && !now.is("FailureTarget") {
        conflict(
            e,
            "cannot set Failed=True condition without the FailureTarget=true condition",
        );
    }
    let met = changed(now, was, "Complete") || changed(now, was, "SuccessCriteriaMet");
    if met && now.is("Complete") && !now.is("SuccessCriteriaMet") {
        conflict(
            e,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        );
    }
    if !now.is_finished() {
        return;
    }
    let newly = !was.is_finished();
    if (newly || now.count("active") != was.count("active")) && now.count("active") > 0 {
        e.invalid("active", now.count("active"), "active>0 is invalid for finished job");
    }
    let nothing_to_do = is_true(now.spec, "suspend") && now.spec.int("completions") == Some(0);
    if (newly || differs(now, was, "startTime")) && !nothing_to_do && now.time("startTime").is_none() {
        e.required("startTime", "startTime is required for finished job");
    }
    if (newly || differs(now, was, "uncountedTerminatedPods")) && now.uncounted() > 0 {
        e.invalid_as(
            "batch.UncountedTerminatedPods",
            "uncountedTerminatedPods",
            now.map.get("uncountedTerminatedPods"),
            "must be empty for finished job",
        );
    }
}

fn indexes(e: &mut Errs, now: &Status, was: &Status) {
    let (done, failed) = (s(now.map, "completedIndexes"), now.map.str("failedIndexes"));
    let done_changed = done != s(was.map, "completedIndexes");
    let failed_changed = failed != was.map.str("failedIndexes");
    let completions = now.spec.int("completions");
    let per_index = now.spec.contains_key("backoffLimitPerIndex");
    if done_changed && let Some(Err(why)) = completions.map(|n| check_indexes(done, n)) {
        e.invalid(
            "completedIndexes",
            done,
            &format!("error parsing completedIndexes: {why}"),
        );
    }
    if failed_changed
        && per_index
        && let (Some(n), Some(failed)) = (completions, failed)
        && let Err(why) = check_indexes(failed, n)
    {
        e.invalid("failedIndexes", failed, &format!("error parsing failedIndexes: {why}"));
    }
    if done_changed && !done.is_empty() && s(now.spec, "completionMode") != "Indexed" {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        e.invalid("completedIndexes", done, why);
    }
    let Some(failed) = failed else { return };
    if failed_changed && !per_index {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        e.invalid("failedIndexes", failed, why);
    }
    if (failed_changed || done_changed)
        && let Some(index) = completions.and_then(|n| overlap(done, failed, n))
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        e.invalid("failedIndexes", failed, &why);
    }
}

fn agreement(e: &mut Errs, now: &Status, was: &Status) {
    let terminating = now.count("terminating");
    if (now.is_finished() != was.is_finished() || differs(now, was, "terminating"))
        && now.is_finished()
        && terminating > 0
    {
        let why = "terminating>0 is invalid for finished job";
        e.invalid("terminating", terminating, why);
    }
    let active_changed = now.count("active") != was.count("active");
    if (differs(now, was, "ready") || active_changed) && now.count("ready") > now.count("active") {
        e.invalid("ready", now.count("ready"), "cannot set more ready pods than active");
    }
    if now.is("SuccessCriteriaMet") && now.is("Failed") {
        conflict(e, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if now.is("SuccessCriteriaMet") && now.is("FailureTarget") {
        conflict(
            e,
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        );
    }
    if now.spec.contains_key("successPolicy") && !now.is("SuccessCriteriaMet") && now.is("Complete") {
        conflict(
            e,
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        );
    }
}

/// What can't be taken back.
fn transitions(e: &mut Errs, now: &Status, was: &Status) {
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if was.is(condition) && !now.is(condition) {
            conflict(e, &format!("cannot disable the terminal {condition}=True condition"));
        }
    }
    if now.count("failed") < was.count("failed") {
        e.invalid("failed", now.count("failed"), "cannot decrease the failed counter");
    }
    // An indexed job with as many pods at a time as completions may be scaled down.
    let elastic =
        s(now.spec, "completionMode") == "Indexed" && now.spec.int("completions") == now.spec.int("parallelism");
    if !elastic && now.count("succeeded") < was.count("succeeded") {
        let why = "cannot decrease the succeeded counter";
        e.invalid("succeeded", now.count("succeeded"), why);
    }
    let shown = |key: &str| now.map.get(key).cloned().unwrap_or(Value::Null);
    let (completed, before) = (now.time("completionTime"), was.time("completionTime"));
    if completed.is_some() && before.is_some() && completed != before {
        e.invalid("completionTime", shown("completionTime"), super::check::IMMUTABLE);
    }
    let resuming = was.is("Suspended") && now.is_not("Suspended");
    let started = was.time("startTime");
    if !resuming && started.is_some() && started != now.time("startTime") && !is_true(now.spec, "suspend") {
        let why = "field is immutable for unsuspended job once set";
        e.invalid("startTime", shown("startTime"), why);
    }
    if was.is("SuccessCriteriaMet") && !now.is("SuccessCriteriaMet") {
        conflict(e, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if was.is("Complete") && !was.is("SuccessCriteriaMet") && now.is("SuccessCriteriaMet") {
        conflict(
            e,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        );
    }
}

/// The first and last index of one part of a list such as `0-2,5`.
fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let index = |text: &str| match text.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
        Ok(n) if n >= completions => Err(format!("too large index: {text:?}")),
        Ok(n) => Ok(n),
    };
    match text.split('-').collect::<Vec<_>>()[..] {
        [one] => index(one).map(|n| (n, n)),
        [first, last] => {
            let (first, last) = (index(first)?, index(last)?);
            if first >= last {
                return Err(format!("non-increasing order, previous: {first}, current: {last}"));
            }
            Ok((first, last))
        }
        _ => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

fn check_indexes(text: &str, completions: i64) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let mut previous: Option<i64> = None;
    for part in text.split(',') {
        let (first, last) = interval(part, completions)?;
        if let Some(previous) = previous.filter(|p| *p >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        previous = Some(last);
    }
    Ok(())
}

/// The first index that two lists share; parts that can't be read are passed over.
fn overlap(done: &str, failed: &str, completions: i64) -> Option<i64> {
    let parts = |text: &str| -> Vec<(i64, i64)> {
        text.split(',')
            .filter_map(|part| interval(part, completions).ok())
            .collect()
    };
    let (done, failed) = (parts(done), parts(failed));
    let (mut i, mut j) = (0, 0);
    while let (Some((a, b)), Some((x, y))) = (done.get(i), failed.get(j)) {
        if a <= y && x <= b {
            return Some(*a.max(x));
        }
        if a <= x { i += 1 } else { j += 1 }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn job(spec: Value, status: Value) -> Object {
        Object(
            value!({"spec": spec, "status": status})
                .as_object()
                .cloned()
                .unwrap_or_default(),
        )
    }

    fn told(new: Object, old: Object) -> Vec<String> {
        let mut e = Errs::default();
        change(&new, &old, &mut e);
        super::super::tests::shown(e.list.into())
    }

    fn is(kinds: &[&str]) -> Value {
        Value::Array(kinds.iter().map(|k| value!({"type": (*k), "status": "True"})).collect())
    }

    #[test]
    fn counters_only_grow_and_ends_stay() {
        let old = job(value!({}), value!({"failed": 2, "succeeded": 3}));
        assert_eq!(
            told(job(value!({}), value!({"failed": 1, "succeeded": 2})), old.clone()),
            [
                "status.failed: Invalid value: 1: cannot decrease the failed counter",
                "status.succeeded: Invalid value: 2: cannot decrease the succeeded counter"
            ]
        );
        let elastic = value!({"completionMode": "Indexed", "completions": 3, "parallelism": 3});
        assert!(told(job(elastic, value!({"failed": 2, "succeeded": 2})), old).is_empty());
        let ended = value!({
            "conditions": (is(&["SuccessCriteriaMet", "Complete"])), "startTime": "2024-01-01T00:00:00Z",
            "completionTime": "2024-01-01T00:01:00Z"
        });
        assert!(told(job(value!({}), ended.clone()), job(value!({}), value!({}))).is_empty());
        assert_eq!(
            told(job(value!({}), value!({})), job(value!({}), ended)).len(),
            3,
            "a start, and two conditions that are gone"
        );
    }

    #[test]
    fn the_ends_of_a_job_agree() {
        let begun = job(value!({}), value!({"startTime": "2024-01-01T00:00:00Z", "active": 1}));
        let with = |conditions: &[&str]| {
            let status = value!({"startTime": "2024-01-01T00:00:00Z", "active": 1, "conditions": (is(conditions))});
            told(job(value!({}), status), begun.clone())
        };
        let active = "status.active: Invalid value: 1: active>0 is invalid for finished job";
        assert_eq!(with(&["FailureTarget"]), [""; 0]);
        assert_eq!(with(&["FailureTarget", "Failed"]), [active]);
        assert_eq!(
            with(&["Failed"]),
            [
                "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
                active
            ]
        );
        assert_eq!(with(&["SuccessCriteriaMet", "FailureTarget"]).len(), 1);
    }

    #[test]
    fn what_stays_wrong_keeps_nothing_from_being_told() {
        let wrong = value!({"ready": 3, "active": 1, "completedIndexes": "9-1"});
        let more = value!({"ready": 3, "active": 1, "completedIndexes": "9-1", "failed": 1});
        let spec = value!({"completions": 3, "completionMode": "Indexed"});
        assert!(told(job(spec.clone(), more), job(spec, wrong)).is_empty());
    }

    #[test]
    fn indexes_are_read_as_upstream_reads_them() {
        for (text, want) in [
            ("", ""),
            ("0-2,4", ""),
            ("x", "cannot convert string to integer for index: \"x\""),
            ("5", "too large index: \"5\""),
            ("2-1", "non-increasing order, previous: 2, current: 1"),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
            (
                "1-2-3",
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
        ] {
            assert_eq!(check_indexes(text, 5).err().unwrap_or_default(), want, "{text}");
        }
        assert_eq!(overlap("0-2,4", "3,4", 5), Some(4));
        assert_eq!(overlap("0-2,x", "3,4", 5), None);
        assert_eq!(overlap("", "3", 5), None);
    }
}
