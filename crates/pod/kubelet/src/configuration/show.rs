//! `/configz`: what is in force, as a `KubeletConfiguration` with every field that there is.

use super::fields::{self, What};
use super::kinds::{Kind, list, plain};
use crate::config::Config;
use serde_json::{Map, Value, json};
use std::time::Duration;

pub fn configz(c: &Config) -> Value {
    let mut all = Map::new();
    for f in fields::all() {
        let value = match &f.what {
            What::Set { show, .. } | What::Alone { show, .. } => show(c),
            What::Only { default, .. } => literal(f.kind, default),
            // What isn't in force isn't shown.
            What::Unmet { .. } => Value::Null,
        };
        if !value.is_null() {
            all.insert(f.name.to_owned(), value);
        }
    }
    json!({"kubeletconfig": all})
}

/// A default of the table as the value that it stands for.
pub(super) fn literal(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Text | Kind::Path | Kind::Duration => text.into(),
        _ => serde_json::from_str(text).unwrap_or(Value::Null),
    }
}

/// A value as a flag would say it; `None`: nothing is said.
pub(super) fn as_flag(kind: Kind, value: &Value) -> Option<String> {
    let pairs = |sign: char| {
        let all = value.as_object().into_iter().flatten();
        let all: Vec<String> = all.map(|(k, v)| format!("{k}{sign}{}", plain(v))).collect();
        all.join(",")
    };
    let text = match kind {
        Kind::Map(sign) => pairs(sign),
        Kind::Bools => pairs('='),
        Kind::Texts => list(Some(value)).join(","),
        Kind::Object | Kind::List | Kind::Taints | Kind::Memory => return None,
        _ if value.is_null() => return None,
        _ => plain(value),
    };
    Some(text).filter(|text| !text.is_empty())
}

/// Nothing where no traces go.
pub(super) fn tracing(c: &Config) -> Value {
    let Some(settings) = &c.tracing else { return json!({}) };
    json!({"endpoint": settings.endpoint.to_string(), "samplingRatePerMillion": settings.rate.of_a_million()})
}

/// As Go writes it.
pub(super) fn time(d: Duration) -> Value {
    crate::go_duration(d).into()
}

pub(super) fn soft(c: &Config) -> Value {
    let all: Vec<_> = c.eviction.soft.iter().map(|(t, _)| *t).collect();
    json!(crate::eviction::threshold::show(&all))
}

pub(super) fn soft_grace(c: &Config) -> Value {
    let all = c.eviction.soft.iter();
    let all: Map<String, Value> = all
        .map(|(t, grace)| (t.signal.name().to_owned(), time(*grace)))
        .collect();
    all.into()
}

pub(super) fn authentication(c: &Config) -> Value {
    let authorities = c.alone.as_ref().and_then(|a| a.client_ca.clone());
    let x509 = authorities.map_or(json!({}), |file| json!({"clientCAFile": file}));
    json!({"x509": x509, "webhook": {"enabled": true, "cacheTTL": time(c.reviews.tokens)}, "anonymous": {"enabled": c.anonymous}})
}

pub(super) fn authorization(c: &Config) -> Value {
    let (allow, deny) = (time(c.reviews.allowed), time(c.reviews.denied));
    json!({"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": allow, "cacheUnauthorizedTTL": deny}})
}
