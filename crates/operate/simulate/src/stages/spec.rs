//! Stages as they are written. What isn't understood is refused, by its name and its place.

use super::query::Query;
use super::template::Template;
use serde_json::{Map, Value};
use std::time::Duration;

/// How many stages there may be, and how large a file of them.
const MOST: usize = 1000;
pub const LARGEST: u64 = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Node,
    Pod,
}

#[derive(Clone, Debug)]
pub struct Stage {
    pub name: String,
    pub kind: Kind,
    pub(super) selector: Vec<Requirement>,
    pub(super) weight: i64,
    pub(super) weight_from: Option<Query>,
    pub(super) delay: Option<Duration>,
    pub(super) delay_from: Option<Query>,
    pub(super) jitter: Option<Duration>,
    pub(super) jitter_from: Option<Query>,
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub(super) struct Requirement {
    pub of: Query,
    pub operator: Operator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Event {
        warning: bool,
        reason: String,
        message: String,
    },
    Finalizers {
        add: Vec<String>,
        remove: Vec<String>,
        empty: bool,
    },
    Delete,
    Patch {
        subresource: String,
        /// Under which field the template's value stands; empty: it is the whole patch.
        root: String,
        template: Template,
        strategic: bool,
    },
}

/// The stages of YAML or JSON documents; lists of them, too.
pub fn read(text: &str) -> Result<Vec<Stage>, String> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|e| format!("the stages are no YAML: {e}"))?;
    let mut stages = Vec::new();
    for document in documents.iter().filter(|d| !d.is_null()) {
        match document["items"].as_array() {
            Some(items) => {
                for item in items {
                    stages.push(stage(item)?);
                }
            }
            None => stages.push(stage(document)?),
        }
    }
    match stages.len() {
        0 => Err("there are no stages".into()),
        n if n > MOST => Err(format!("there are more than {MOST} stages")),
        _ => Ok(stages),
    }
}

fn stage(object: &Value) -> Result<Stage, String> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let kind = object["kind"].as_str().unwrap_or("Stage");
    if kind != "Stage"
        || object["apiVersion"]
            .as_str()
            .is_some_and(|v| v != "kwok.x-k8s.io/v1alpha1")
    {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        return Err(format!(
            "{kind} {name:?} of {version} isn't a Stage of kwok.x-k8s.io/v1alpha1"
        ));
    }
    of_spec(&name, &object["spec"]).map_err(|e| format!("the stage {name:?}: {e}"))
}

fn of_spec(name: &str, spec: &Value) -> Result<Stage, String> {
    let spec = fields(
        spec,
        "spec",
        &[
            "resourceRef",
            "selector",
            "weight",
            "weightFrom",
            "delay",
            "next",
            "steps",
            "immediateNextStage",
        ],
    )?;
    let get = |key: &str| spec.get(key).unwrap_or(&Value::Null);
    let reference = fields(get("resourceRef"), "spec.resourceRef", &["apiGroup", "kind"])?;
    let group = text(&reference, "apiGroup", "spec.resourceRef")?;
    let kind = match (group, text(&reference, "kind", "spec.resourceRef")?) {
        ("v1" | "", "Node") => Kind::Node,
        ("v1" | "", "Pod") => Kind::Pod,
        (group, kind) => {
            return Err(format!(
                "stages of {kind} in {group} aren't played, only those of Node and Pod in v1"
            ));
        }
    };
    if get("selector").is_null() {
        return Err("it has no selector".into());
    }
    let delay = fields(
        get("delay"),
        "spec.delay",
        &[
            "durationMilliseconds",
            "durationFrom",
            "jitterDurationMilliseconds",
            "jitterDurationFrom",
        ],
    )?;
    let time = |key: &str| match delay.get(key).unwrap_or(&Value::Null) {
        Value::Null => Ok(None),
        v => v
            .as_u64()
            .map(|ms| Some(Duration::from_millis(ms)))
            .ok_or_else(|| format!("spec.delay.{key}: {v} is no number of milliseconds")),
    };
    let from = |key: &str| expression(delay.get(key).unwrap_or(&Value::Null), &format!("spec.delay.{key}"));
    Ok(Stage {
        name: name.to_owned(),
        kind,
        selector: selector(get("selector"))?,
        weight: whole(get("weight"), "spec.weight")?,
        weight_from: expression(get("weightFrom"), "spec.weightFrom")?,
        delay: time("durationMilliseconds")?,
        delay_from: from("durationFrom")?,
        jitter: time("jitterDurationMilliseconds")?,
        jitter_from: from("jitterDurationFrom")?,
        steps: steps(get("next"), get("steps"))?,
    })
}

fn selector(selector: &Value) -> Result<Vec<Requirement>, String> {
    let place = "spec.selector";
    let selector = fields(
        selector,
        place,
        &["matchLabels", "matchAnnotations", "matchExpressions"],
    )?;
    let mut all = Vec::new();
    for (key, of) in [("matchLabels", "labels"), ("matchAnnotations", "annotations")] {
        let place = format!("{place}.{key}");
        let wanted = match selector.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(wanted)) => wanted,
            Some(_) => return Err(format!("{place} is no object")),
        };
        for name in wanted.keys() {
            all.push(Requirement {
                of: Query::parse(&format!(".metadata.{of}[{}]", Value::from(name.as_str())))?,
                operator: Operator::In,
                values: vec![text(wanted, name, &place)?.to_owned()],
            });
        }
    }
    for one in items(selector.get("matchExpressions"), "spec.selector.matchExpressions")? {
        let place = "spec.selector.matchExpressions";
        let mut parts = fields(one, place, &["key", "operator", "values", "jq"])?;
        if let Some(jq) = parts.get("jq") {
            parts = fields(jq, &format!("{place}.jq"), &["key", "operator", "values"])?;
        }
        let operator = match text(&parts, "operator", place)? {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => return Err(format!("{place}: the operator {other:?} isn't supported")),
        };
        let values = texts(parts.get("values"), place)?;
        if values.is_empty() == matches!(operator, Operator::In | Operator::NotIn) {
            return Err(format!("{place}: {operator:?} doesn't go with {} values", values.len()));
        }
        let of = Query::parse(text(&parts, "key", place)?).map_err(|e| format!("{place}: {e}"))?;
        all.push(Requirement { of, operator, values });
    }
    Ok(all)
}

fn steps(next: &Value, listed: &Value) -> Result<Vec<Step>, String> {
    let mut all = Vec::new();
    let place = "spec.next";
    let next = fields(
        next,
        place,
        &[
            "event",
            "finalizers",
            "delete",
            "patches",
            "statusTemplate",
            "statusSubresource",
        ],
    )?;
    let more = |all: &mut Vec<Step>, from: &Map<String, Value>, place: &str| -> Result<(), String> {
        if let Some(event) = from.get("event").filter(|e| !e.is_null()) {
            let place = format!("{place}.event");
            let event = fields(event, &place, &["type", "reason", "message"])?;
            all.push(Step::Event {
                warning: text(&event, "type", &place)? == "Warning",
                reason: text(&event, "reason", &place)?.to_owned(),
                message: text(&event, "message", &place)?.to_owned(),
            });
        }
        if let Some(change) = from.get("finalizers").filter(|f| !f.is_null()) {
            let place = format!("{place}.finalizers");
            let change = fields(change, &place, &["add", "remove", "empty"])?;
            let list = |key: &str| -> Result<Vec<String>, String> {
                let one = |v: &Value| {
                    let named = v["value"].as_str().map(str::to_owned);
                    named.ok_or_else(|| format!("{place}.{key}: {v} has no value"))
                };
                items(change.get(key), &place)?.iter().map(one).collect()
            };
            all.push(Step::Finalizers {
                add: list("add")?,
                remove: list("remove")?,
                empty: flag(&change, "empty", &place)?,
            });
        }
        if flag(from, "delete", place)? {
            all.push(Step::Delete);
        }
        Ok(())
    };
    more(&mut all, &next, place)?;
    let template = text(&next, "statusTemplate", place)?;
    let subresource = text(&next, "statusSubresource", place)?;
    if !template.is_empty() {
        all.push(Step::Patch {
            subresource: if subresource.is_empty() { "status" } else { subresource }.to_owned(),
            root: "status".into(),
            template: Template::parse(template).map_err(|e| format!("{place}.statusTemplate: {e}"))?,
            strategic: true,
        });
    }
    for one in items(next.get("patches"), "spec.next.patches")? {
        all.push(patch(one, "spec.next.patches")?);
    }
    for one in items(Some(listed), "spec.steps")? {
        let step = fields(one, "spec.steps", &["event", "finalizers", "delete", "patch"])?;
        more(&mut all, &step, "spec.steps")?;
        if let Some(one) = step.get("patch").filter(|p| !p.is_null()) {
            all.push(patch(one, "spec.steps.patch")?);
        }
    }
    Ok(all)
}

fn patch(patch: &Value, place: &str) -> Result<Step, String> {
    let patch = fields(patch, place, &["subresource", "root", "template", "type"])?;
    let text = |key: &str| text(&patch, key, place);
    let strategic = match text("type")? {
        "" | "strategic" => true,
        "merge" => false,
        other => return Err(format!("{place}: patches of type {other:?} aren't supported")),
    };
    Ok(Step::Patch {
        subresource: text("subresource")?.to_owned(),
        root: text("root")?.to_owned(),
        template: Template::parse(text("template")?).map_err(|e| format!("{place}.template: {e}"))?,
        strategic,
    })
}

/// `{expressionFrom: JQ}`, or `{jq: {expression: JQ}}`.
fn expression(from: &Value, place: &str) -> Result<Option<Query>, String> {
    let from = fields(from, place, &["expressionFrom", "jq"])?;
    let jq = fields(
        from.get("jq").unwrap_or(&Value::Null),
        &format!("{place}.jq"),
        &["expression"],
    )?;
    let query = match (text(&from, "expressionFrom", place)?, text(&jq, "expression", place)?) {
        ("", "") if from.values().all(Value::is_null) => return Ok(None),
        ("", query) | (query, _) => query,
    };
    Query::parse(query).map(Some).map_err(|e| format!("{place}: {e}"))
}

/// Nothing is an empty one; what is something else is refused, never taken for nothing.
fn text<'a>(map: &'a Map<String, Value>, key: &str, place: &str) -> Result<&'a str, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("{place}.{key}: {other} is no text")),
    }
}

fn flag(map: &Map<String, Value>, key: &str, place: &str) -> Result<bool, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(format!("{place}.{key}: {other} is neither true nor false")),
    }
}

/// An object of these fields and no others; nothing is an empty one.
fn fields(value: &Value, place: &str, known: &[&str]) -> Result<Map<String, Value>, String> {
    let map = match value {
        Value::Null => return Ok(Map::new()),
        Value::Object(map) => map,
        _ => return Err(format!("{place} is no object")),
    };
    match map
        .iter()
        .find(|(key, value)| !known.contains(&key.as_str()) && !value.is_null())
    {
        Some((key, _)) => Err(format!("{place}.{key} isn't supported")),
        None => Ok(map.clone()),
    }
}

fn items<'a>(value: Option<&'a Value>, place: &str) -> Result<&'a [Value], String> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(format!("{place} is no list")),
    }
}

fn texts(value: Option<&Value>, place: &str) -> Result<Vec<String>, String> {
    let text = |v: &Value| {
        v.as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("{place}: {v} is no text"))
    };
    items(value, place)?.iter().map(text).collect()
}

fn whole(value: &Value, place: &str) -> Result<i64, String> {
    match value {
        Value::Null => Ok(0),
        v => v
            .as_i64()
            .filter(|n| *n >= 0)
            .ok_or_else(|| format!("{place}: {v} is no whole number")),
    }
}
