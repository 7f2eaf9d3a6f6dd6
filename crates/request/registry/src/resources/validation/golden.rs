//! What the published Kubernetes server says about the same objects (written by `tools/validation`).

use super::tests::{read, request};
use crate::context::Cx;
use keelson_api::{Cause, Object, Value};
use std::collections::BTreeSet;

const GOLDEN: &str = include_str!("golden.txt");

fn shown(causes: Vec<Cause>) -> BTreeSet<String> {
    causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

fn create(cx: &Cx, v: Value) -> Result<Object, BTreeSet<String>> {
    let mut o = read(cx, v);
    cx.def.strategy.prepare_create(cx, &mut o);
    let mut errs = cx.def.strategy.validate(cx, &o);
    if errs.is_empty() {
        errs = crate::meta::validate(&o, cx.def.namespaced);
    }
    if errs.is_empty() { Ok(o) } else { Err(shown(errs)) }
}

fn update(cx: &Cx, before: Value, after: Value) -> Option<BTreeSet<String>> {
    let mut old = create(cx, before).ok()?;
    old.set_meta("resourceVersion", "1");
    let mut new = read(cx, after);
    new.set_meta("resourceVersion", "1");
    for key in ["creationTimestamp", "uid", "generation"] {
        crate::strategy::restore(new.meta_mut(), old.meta(), key);
    }
    cx.def.strategy.prepare_update(cx, &mut new, &old);
    let mut errs = crate::meta::validate(&new, cx.def.namespaced);
    errs.extend(crate::meta::validate_update(&new, &old));
    errs.extend(cx.def.strategy.validate_update(cx, &new, &old));
    Some(shown(errs))
}

/// What differs between two values, by path.
fn differences(path: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(x), Value::Object(y)) => {
            for key in x.keys().chain(y.keys().filter(|k| !x.contains_key(k))) {
                let (a, b) = (x.get(key).unwrap_or(&Value::Null), y.get(key).unwrap_or(&Value::Null));
                differences(&format!("{path}.{key}"), a, b, out);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter()
                .zip(y)
                .enumerate()
                .for_each(|(i, (a, b))| differences(&format!("{path}[{i}]"), a, b, out));
        }
        // Moments are the clock's.
        _ if path.ends_with("TransitionTime") => {}
        (a, b) if a != b => out.push(format!("{path}: ours {a:?}, theirs {b:?}")),
        _ => {}
    }
}

/// Objects as they are compared: without what the test sets itself.
fn comparable(o: &Object) -> Value {
    let mut o = o.clone();
    for key in ["uid", "creationTimestamp", "namespace"] {
        o.meta_mut().remove(key);
    }
    o.into()
}

/// A message without what may be worded freely: values and differences shown in it.
fn gist(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    if let Some((field, _)) = first.split_once(": Invalid value: ")
        && first.ends_with(": field is immutable")
    {
        return format!("{field}: field is immutable");
    }
    for kind in ["Unsupported value: ", "Duplicate value: "] {
        if let Some((head, rest)) = first.split_once(kind)
            && (rest.starts_with('{') || rest.starts_with("null"))
        {
            return format!(
                "{head}{kind}…{}",
                rest.rsplit_once(": supported").map_or("", |(_, d)| d)
            );
        }
    }
    match first.split_once("Invalid value: ") {
        Some((head, rest))
            if rest.starts_with(['{', '['])
                || rest.starts_with("null")
                || rest.starts_with("v1.")
                || rest.contains(".core.") =>
        {
            let detail = rest.rsplit_once(": ").map_or("", |(_, d)| d);
            format!("{head}Invalid value: …: {detail}")
        }
        _ => first.to_string(),
    }
}

/// The value at a JSON pointer is set, or removed when there is none.
fn change(v: &mut Value, pointer: &str, new: Option<Value>) {
    let (first, rest) = match pointer[1..].split_once('/') {
        Some((first, _)) => (first, &pointer[first.len() + 1..]),
        None => (&pointer[1..], ""),
    };
    let key = first.replace("~1", "/").replace("~0", "~");
    match (v, rest.is_empty(), new) {
        (Value::Object(m), true, Some(new)) => {
            m.insert(key, new);
        }
        (Value::Object(m), true, None) => {
            m.remove(&key);
        }
        (Value::Object(m), false, new) => m.get_mut(&key).into_iter().for_each(|v| change(v, rest, new.clone())),
        (Value::Array(a), last, new) => {
            let Some(item) = key.parse::<usize>().ok().and_then(|i| a.get_mut(i)) else {
                return;
            };
            match (last, new) {
                (true, Some(new)) => *item = new,
                (true, None) => {}
                (false, new) => change(item, rest, new),
            }
        }
        _ => {}
    }
}

/// How many cases still differ; this number only falls.
const KNOWN_DIFFERENCES: usize = 24;

#[test]
fn objects_are_judged_as_upstream_judges_them() {
    let (mut cases, mut failures) = (0, Vec::new());
    let mut base: Option<(Cx, Value)> = None;
    for line in GOLDEN.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let json = |i: usize| -> Value { serde_json::from_str(columns[i]).unwrap() };
        cases += 1;
        if columns[0] == "object" {
            let (api_version, kind) = columns[1].rsplit_once(',').unwrap();
            base = Some((
                request(&keelson_api::GroupVersion::parse(api_version).group, kind),
                json(2),
            ));
        }
        let Some((cx, sound)) = &base else {
            panic!("the file begins with an object")
        };
        let mut object = sound.clone();
        let said = columns[3];
        if columns[0] != "object" {
            change(&mut object, columns[1], (columns[2] != "-").then(|| json(2)));
        }
        let theirs = || -> BTreeSet<String> {
            let list: Value = serde_json::from_str(said).unwrap();
            list.as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(gist)
                .collect()
        };
        let what = format!("{} {} {} {}", columns[0], cx.def.kind, columns[1], columns[2]);
        let mut fail = |why: String| failures.push(format!("{what}:\n    {why}"));
        if columns[0] == "update" {
            // Some kinds judge the name again, though it can't change.
            let judged = |m: &String| !m.starts_with("metadata.name: ") || m.ends_with("immutable");
            let Some(ours) = update(cx, sound.clone(), object) else {
                continue;
            };
            let ours: BTreeSet<String> = ours.iter().map(|m| gist(m)).filter(judged).collect();
            compare(&ours, &theirs().into_iter().filter(judged).collect(), &mut fail);
            continue;
        }
        match (create(cx, object), said.starts_with('[')) {
            (Err(errs), true) => compare(&errs.iter().map(|m| gist(m)).collect(), &theirs(), &mut fail),
            (Ok(_), true) => compare(&BTreeSet::new(), &theirs(), &mut fail),
            (Err(errs), false) => fail(format!("refused: {errs:?}")),
            (Ok(ours), false) if said != "ok" => {
                let mut found = Vec::new();
                differences("", &comparable(&ours), &comparable(&read(cx, json(3))), &mut found);
                if !found.is_empty() {
                    fail(found.join("; "));
                }
            }
            (Ok(_), false) => {}
        }
    }
    let report = failures.join("\n");
    println!("{report}\n{} of {cases} differ", failures.len());
    assert!(
        failures.len() <= KNOWN_DIFFERENCES,
        "{} of {cases} differ:\n{report}",
        failures.len()
    );
}

fn compare(ours: &BTreeSet<String>, theirs: &BTreeSet<String>, fail: &mut impl FnMut(String)) {
    if ours != theirs {
        let (more, less) = (
            ours.difference(theirs).collect::<Vec<_>>(),
            theirs.difference(ours).collect::<Vec<_>>(),
        );
        fail(format!("too many {more:?}\n    missing {less:?}"));
    }
}
