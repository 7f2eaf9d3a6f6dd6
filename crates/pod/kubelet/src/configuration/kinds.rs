//! Types of fields: which JSON they are, how a flag's text is read, and which value is as good as none.

use crate::managers::memory::reserved;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    Float,
    Text,
    /// A text; a relative one in the first file is meant from that file's directory.
    Path,
    Duration,
    /// A list of texts.
    Texts,
    /// Texts by names: `a=b,c=d`; of thresholds `a<b`.
    Map(char),
    /// Truths by names.
    Bools,
    /// Taints, as `key=value:effect`.
    Taints,
    /// Amounts by nodes of memory, as `0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=1Gi`.
    Memory,
    /// Anything that has a form of its own: judged by the field itself.
    Object,
    List,
}

impl Kind {
    /// Whether a value has this type.
    pub fn check(self, name: &str, value: &Value) -> Result<(), String> {
        let texts = |mut all: Box<dyn Iterator<Item = &Value> + '_>| all.all(Value::is_string);
        let good = match self {
            Kind::Bool => value.is_boolean(),
            Kind::Int => value.is_i64() || value.is_u64(),
            Kind::Float => value.is_number(),
            Kind::Text | Kind::Path => value.is_string(),
            Kind::Duration => value.as_str().is_some_and(|t| keelson_api::duration::parse(t).is_ok()) || value == 0,
            Kind::Texts => value.as_array().is_some_and(|l| texts(Box::new(l.iter()))),
            Kind::Map(_) => value.as_object().is_some_and(|m| texts(Box::new(m.values()))),
            Kind::Bools => value.as_object().is_some_and(|m| m.values().all(Value::is_boolean)),
            Kind::Object => value.is_object(),
            Kind::Taints | Kind::Memory | Kind::List => value.is_array(),
        };
        let wanted = match self {
            Kind::Bool => "true or false",
            Kind::Int => "a whole number",
            Kind::Float => "a number",
            Kind::Text | Kind::Path => "a string",
            Kind::Duration => "a duration such as 10s",
            Kind::Texts => "a list of strings",
            Kind::Map(_) => "strings by name",
            Kind::Bools => "true or false by name",
            Kind::Object => "an object",
            Kind::Taints | Kind::Memory | Kind::List => "a list",
        };
        good.then_some(())
            .ok_or_else(|| format!("{name} has to be {wanted}, not {value}"))
    }

    /// Reads a flag's text.
    pub fn read(self, text: &str) -> Result<Value, String> {
        Ok(match self {
            Kind::Bool => match text {
                "" | "true" | "True" | "TRUE" | "t" | "T" | "1" => true.into(),
                "false" | "False" | "FALSE" | "f" | "F" | "0" => false.into(),
                _ => return Err("invalid syntax".into()),
            },
            Kind::Int => text.parse::<i64>().map_err(|e| e.to_string())?.into(),
            Kind::Float => text.parse::<f64>().map_err(|e| e.to_string())?.into(),
            Kind::Text | Kind::Path => text.into(),
            Kind::Duration => {
                keelson_api::duration::parse(text).map_err(|e| e.to_string())?;
                text.into()
            }
            Kind::Texts => parts(text).collect(),
            Kind::Map(sign) => pairs(text, sign)?,
            Kind::Bools => {
                let mut all = Map::new();
                for part in text.split(',').filter(|p| !p.trim().is_empty()) {
                    let (name, value) = part.split_once('=').ok_or("missing bool value")?;
                    all.insert(name.trim().to_owned(), Kind::Bool.read(value.trim())?);
                }
                all.into()
            }
            Kind::Taints => {
                let taints: Result<Vec<Value>, String> = text
                    .split(',')
                    .filter(|p| !p.trim().is_empty())
                    .map(|t| taint(t.trim()))
                    .collect();
                taints?.into()
            }
            Kind::Memory => reserved::read(text)?,
            Kind::Object | Kind::List => return Err("it can only be set in a file".into()),
        })
    }

    /// Whether two texts say the same: `2m` and `120s` do.
    pub fn is_same(self, one: &str, other: &str) -> bool {
        let time = |text: &str| {
            keelson_api::duration::parse(text)
                .ok()
                .filter(|_| self == Kind::Duration)
        };
        one == other || time(one).is_some_and(|t| time(other) == Some(t))
    }

    /// Whether a value is what Go has for "nothing said".
    pub fn is_zero(self, value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(s) if self == Kind::Duration => keelson_api::duration::parse(s) == Ok(0),
            Value::String(s) => s.is_empty(),
            Value::Array(l) => l.is_empty(),
            Value::Object(m) => m.values().all(|v| Kind::Object.is_zero(v)),
        }
    }
}

fn parts(text: &str) -> impl Iterator<Item = Value> + '_ {
    let parts = text.split(',').map(str::trim);
    parts.filter(|p| !p.is_empty()).map(Value::from)
}

fn pairs(text: &str, sign: char) -> Result<Value, String> {
    let mut all = Map::new();
    for part in text.split(',').filter(|p| !p.trim().is_empty()) {
        let pair = part.split_once(sign);
        let (name, value) = pair.ok_or_else(|| format!("malformed pair, expect string{sign}string"))?;
        all.insert(name.trim().to_owned(), value.trim().into());
    }
    Ok(all.into())
}

/// `key=value:effect`, `key:effect`.
fn taint(text: &str) -> Result<Value, String> {
    let wrong = || format!("invalid taint spec: {text}");
    let (pair, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if key.is_empty() {
        return Err(wrong());
    }
    Ok(serde_json::json!({"key": key, "value": value, "effect": effect}))
}

/// What a flag says beside what one of its name said before: lists and maps grow, all else is replaced, as upstream has it.
pub(super) fn grow(kind: Kind, into: &mut Value, more: Value) {
    match (kind, into, more) {
        (Kind::Texts | Kind::Memory, Value::Array(into), Value::Array(mut more)) => into.append(&mut more),
        (Kind::Map(_) | Kind::Bools, Value::Object(into), Value::Object(mut more)) => into.append(&mut more),
        (_, into, more) => *into = more,
    }
}

/// A value as a person would write it.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

pub(super) fn list(value: Option<&Value>) -> Vec<String> {
    let all = value.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

pub(super) fn texts(value: Option<&Value>) -> BTreeMap<String, String> {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}
