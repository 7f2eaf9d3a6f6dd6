//! Faults as the cluster's components write them down, each with the cause that has to be named first; and healthy things,
//! for which none may be. Whatever is said with certainty has to be right: a cause that a case doesn't list fails it.
//!
//! `faults/*.yaml` are lists of cases. An object of a case is the name of a template (`templates.yaml`) and what differs from it;
//! `event` is short for an Event of an object.

#![allow(clippy::unwrap_used)]

use keelson_why::{Confidence, Picture, Question, Report, diagnose, kind, needs};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

const NOW: &str = "2026-03-01T12:00:00Z";
const NAMESPACE: &str = "shop";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    case: String,
    ask: String,
    #[serde(default)]
    objects: Vec<BTreeMap<String, Value>>,
    #[serde(default)]
    logs: BTreeMap<String, String>,
    /// The first cause; `none` for what is well.
    cause: String,
    /// Other causes that are right too.
    #[serde(default)]
    also: Vec<String>,
    /// What the text has to say.
    #[serde(default)]
    says: Vec<String>,
    /// No node and namespace besides those of the case.
    #[serde(default)]
    bare: bool,
}

fn folder() -> std::path::PathBuf {
    "tests".into()
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn cases() -> Vec<Case> {
    let mut files: Vec<_> = std::fs::read_dir(folder().join("faults"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    files.iter().flat_map(|f| read::<Vec<Case>>(f)).collect()
}

fn merge(into: &mut Value, extra: Value) {
    match (into, extra) {
        (Value::Object(into), Value::Object(extra)) => {
            for (key, value) in extra {
                match value {
                    Value::Null => drop(into.remove(&key)),
                    value => merge(into.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (into, extra) => *into = extra,
    }
}

fn event(number: usize, short: &Value) -> Value {
    let text = |key: &str| short[key].as_str().unwrap_or_default().to_string();
    let of = text("of");
    let (kind_name, name) = of.split_once('/').expect("an event is of KIND/NAME");
    let known = kind(kind_name).unwrap_or_else(|| panic!("no kind {kind_name}"));
    let namespace = if known.id.namespaced { NAMESPACE } else { "" };
    json!({
        "kind": "Event",
        "metadata": {"name": format!("e{number}"), "namespace": if namespace.is_empty() { "default" } else { namespace }},
        "type": "Warning",
        "reason": text("reason"),
        "message": text("message"),
        "count": short["count"].as_i64().unwrap_or(1),
        "lastTimestamp": short["at"].as_str().unwrap_or("2026-03-01T11:59:00Z"),
        "involvedObject": {"kind": known.id.kind, "namespace": namespace, "name": name, "fieldPath": text("path")},
    })
}

fn objects(case: &Case, templates: &BTreeMap<String, Value>) -> Vec<Value> {
    let mut objects = Vec::new();
    if !case.bare {
        objects.extend(["node", "namespace"].map(|t| templates[t].clone()));
    }
    for (number, object) in case.objects.iter().enumerate() {
        for (template, with) in object {
            if template == "event" {
                objects.push(event(number, with));
                continue;
            }
            let base = templates
                .get(template)
                .unwrap_or_else(|| panic!("{}: no template {template}", case.case));
            let mut object = base.clone();
            merge(&mut object, with.clone());
            objects.push(object);
        }
    }
    for object in &mut objects {
        complete(object);
    }
    objects
}

/// Namespace and uid, where they go without saying.
fn complete(object: &mut Value) {
    let kind_name = object["kind"].as_str().unwrap_or_default().to_string();
    let known = kind(&kind_name).unwrap_or_else(|| panic!("no kind {kind_name:?}"));
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let metadata = object["metadata"].as_object_mut().unwrap();
    let put = |metadata: &mut Map<String, Value>, key: &str, value: String| {
        metadata.entry(key).or_insert(Value::String(value));
    };
    if known.id.namespaced {
        put(metadata, "namespace", NAMESPACE.into());
    }
    put(metadata, "uid", format!("{}-{name}", kind_name.to_lowercase()));
    put(metadata, "creationTimestamp", "2026-03-01T11:00:00Z".into());
}

fn question(ask: &str) -> Question {
    let words: Vec<&str> = ask.split(' ').collect();
    match words[..] {
        ["denied", user, verb, what] => Question::denied(user, &[], verb, what, NAMESPACE),
        ["denied", user, verb, what, "-"] => Question::denied(user, &[], verb, what, ""),
        ["unreachable", from, to] => Question::unreachable(from, to, NAMESPACE),
        _ => Question::object(&[ask.to_string()], NAMESPACE),
    }
    .unwrap_or_else(|e| panic!("{ask}: {e}"))
}

fn picture(case: &Case, templates: &BTreeMap<String, Value>) -> Picture {
    let mut picture = Picture::whole(NOW.parse().unwrap(), objects(case, templates));
    for (place, text) in &case.logs {
        let (pod, container) = place.split_once('/').unwrap();
        picture.add_log(NAMESPACE, pod, container, text.clone());
    }
    picture
}

fn wrong(case: &Case, report: &Report) -> Option<String> {
    let first = report.findings.first().map_or("none", |f| f.cause.as_str());
    if first != case.cause {
        return Some(format!("says {first:?} first, not {:?}", case.cause));
    }
    let right: BTreeSet<&str> = case
        .also
        .iter()
        .map(String::as_str)
        .chain([case.cause.as_str()])
        .collect();
    let sure = report.findings.iter().filter(|f| f.confidence == Confidence::Certain);
    if let Some(found) = sure.clone().find(|f| !right.contains(f.cause.as_str())) {
        return Some(format!("is sure of {:?}", found.cause));
    }
    let told: BTreeSet<&str> = report.findings.iter().map(|f| f.cause.as_str()).collect();
    if let Some(missing) = case.also.iter().find(|c| !told.contains(c.as_str())) {
        return Some(format!("doesn't say {missing:?}"));
    }
    let text = report.text();
    if let Some(missing) = case.says.iter().find(|s| !text.contains(s.as_str())) {
        return Some(format!("doesn't tell {missing:?}"));
    }
    report
        .findings
        .iter()
        .find(|f| f.fix.is_empty() && f.cause != "does-not-exist")
        .map(|f| format!("has no fix for {}", f.cause))
}

#[test]
fn every_fault_has_its_cause_and_healthy_things_have_none() {
    let templates: BTreeMap<String, Value> = read(&folder().join("templates.yaml"));
    let cases = cases();
    let mut failures = Vec::new();
    for case in &cases {
        let report = diagnose(&question(&case.ask), &picture(case, &templates));
        if let Some(why) = wrong(case, &report) {
            failures.push(format!("{}: {why}\n{}", case.case, report.text()));
        }
    }
    let names: BTreeSet<&str> = cases.iter().map(|c| c.case.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "a case's name stands twice");
    let faults = cases.iter().filter(|c| c.cause != "none").count();
    let healthy = cases.len() - faults;
    println!("{faults} faults, {healthy} healthy, {} wrong", failures.len());
    assert!(
        failures.is_empty(),
        "{} wrong:\n\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(faults >= 100 && healthy >= 15, "{faults} faults, {healthy} healthy");
}

/// What a cluster doesn't let be read is not judged: an empty picture, of which nothing has been asked, tells nothing.
#[test]
fn what_was_not_read_is_not_missing() {
    let templates: BTreeMap<String, Value> = read(&folder().join("templates.yaml"));
    for case in cases().iter().filter(|c| !c.ask.starts_with("denied")) {
        let question = question(&case.ask);
        let mut bare = Picture::new(NOW.parse().unwrap());
        if let Question::Object { kind, name, .. } = &question {
            let own = objects(case, &templates)
                .into_iter()
                .filter(|o| o["kind"] == **kind && o["metadata"]["name"] == **name);
            own.for_each(|o| bare.add(o));
        }
        let report = diagnose(&question, &bare);
        let absent = [
            "missing",
            "no-default-class",
            "no-volume-matches",
            "selector-matches-nothing",
            "no-ingress-class",
            "does-not-exist",
        ];
        for found in &report.findings {
            let says = absent.iter().any(|a| found.cause.ends_with(a)) && found.confidence == Confidence::Certain;
            // An object that names what it lacks in its own status is heard.
            let told = case.also.contains(&found.cause) || found.cause == case.cause;
            assert!(
                !says || (told && !found.evidence.is_empty()),
                "{}: {found:?}",
                case.case
            );
        }
        assert!(
            !needs(&question, &bare).is_empty() || matches!(question, Question::Object { .. }),
            "{}",
            case.case
        );
    }
}

/// The rules take no time beside the requests: 2 ms a question at 5,000 pods, in a debug build on a busy machine.
#[test]
fn rules_are_quick_on_a_large_cluster() {
    let templates: BTreeMap<String, Value> = read(&folder().join("templates.yaml"));
    let case = cases()
        .into_iter()
        .find(|c| c.cause == "selector-matches-nothing")
        .unwrap();
    let mut all = objects(&case, &templates);
    for n in 0..5000 {
        let mut pod = templates["pod"].clone();
        merge(
            &mut pod,
            json!({"metadata": {"name": format!("p{n}"), "labels": {"app": format!("a{n}")}}}),
        );
        complete(&mut pod);
        all.push(pod);
    }
    let mut picture = Picture::new(NOW.parse().unwrap());
    // Each is another: looked for before it is put in, which is what takes the time.
    let began = Instant::now();
    all.into_iter().for_each(|o| picture.add(o));
    let adding = began.elapsed();
    let began = Instant::now();
    diagnose(&question(&case.ask), &picture);
    let took = began.elapsed();
    println!("adding 5,000 pods: {adding:?}; a question: {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(adding < Duration::from_secs(3), "{adding:?}");
}
