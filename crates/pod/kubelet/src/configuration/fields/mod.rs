//! The table: every field of `KubeletConfiguration`, the flag that says the same, and what becomes of it here. Facts (names,
//! bounds, defaults) are upstream's; what can't be had says why.

use super::kinds::{self, Kind};
use crate::config::{Alone, Config};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

macro_rules! put {
    ($place:ident, $read:expr) => {
        |c, v| {
            #[allow(clippy::redundant_closure_call)]
            let read = $read(v)?;
            c.$place = read;
            Ok(())
        }
    };
}

/// A part of a rate.
macro_rules! rate {
    ($place:ident, $part:ident) => {
        set(
            |c, v| {
                c.$place.$part = Some(count(v)?);
                Ok(())
            },
            |c| json!(c.$place.$part),
        )
    };
}

mod evictions;
mod images;
mod node;
mod pods;
mod resources;
mod serving;

pub(super) type Setter = fn(&mut Config, &Value) -> Result<(), String>;

pub(super) enum What {
    /// It is done as said.
    Set { set: Setter, show: fn(&Config) -> Value },
    /// Only a kubelet that is a program of its own can be told; within another that is as with `Only`.
    Alone {
        set: Setter,
        show: fn(&Config) -> Value,
        default: &'static str,
        others: &'static [&'static str],
        why: &'static str,
    },
    /// There is one way, which is the default; further texts that mean the same.
    Only {
        default: &'static str,
        others: &'static [&'static str],
        why: &'static str,
    },
    /// It isn't there: upstream's default is taken, and anything else refused.
    Unmet {
        default: &'static str,
        others: &'static [&'static str],
        why: &'static str,
    },
}

pub(super) struct Field {
    pub name: &'static str,
    pub flag: &'static str,
    pub kind: Kind,
    /// Zero is a value and not the default.
    pub pointer: bool,
    pub what: What,
}

const fn field(name: &'static str, flag: &'static str, kind: Kind, pointer: bool, what: What) -> Field {
    Field {
        name,
        flag,
        kind,
        pointer,
        what,
    }
}

const fn set(set: Setter, show: fn(&Config) -> Value) -> What {
    What::Set { set, show }
}

const fn only(default: &'static str, why: &'static str) -> What {
    What::Only {
        default,
        others: &[],
        why,
    }
}

const fn unmet(default: &'static str, others: &'static [&'static str], why: &'static str) -> What {
    What::Unmet { default, others, why }
}

/// Within another program there is one way, for that reason.
const fn alone(set: Setter, show: fn(&Config) -> Value, default: &'static str, why: &'static str) -> What {
    What::Alone {
        set,
        show,
        default,
        others: &[],
        why,
    }
}

/// Tells a kubelet that is a program of its own.
fn own(c: &mut Config, put: impl FnOnce(&mut Alone)) -> Result<(), String> {
    if let Some(alone) = &mut c.alone {
        put(alone);
    }
    Ok(())
}

/// Below a field: flags that say a part of it.
pub(super) type Path = &'static [(&'static str, Kind)];
const PARTS: &[(&str, &str, Path)] = &[
    (
        "anonymous-auth",
        "authentication",
        &[("anonymous", Kind::Object), ("enabled", Kind::Bool)],
    ),
    (
        "authentication-token-webhook",
        "authentication",
        &[("webhook", Kind::Object), ("enabled", Kind::Bool)],
    ),
    (
        "authentication-token-webhook-cache-ttl",
        "authentication",
        &[("webhook", Kind::Object), ("cacheTTL", Kind::Duration)],
    ),
    (
        "client-ca-file",
        "authentication",
        &[("x509", Kind::Object), ("clientCAFile", Kind::Path)],
    ),
    ("authorization-mode", "authorization", &[("mode", Kind::Text)]),
    (
        "authorization-webhook-cache-authorized-ttl",
        "authorization",
        &[("webhook", Kind::Object), ("cacheAuthorizedTTL", Kind::Duration)],
    ),
    (
        "authorization-webhook-cache-unauthorized-ttl",
        "authorization",
        &[("webhook", Kind::Object), ("cacheUnauthorizedTTL", Kind::Duration)],
    ),
];

/// The field that a flag is about, and the way down to its part.
pub(super) fn flag(name: &str) -> Option<(&'static Field, Path)> {
    let (_, field, path) = flags().find(|(flag, ..)| *flag == name)?;
    Some((field, path))
}

/// Every flag: its name, the field, and the way down to its part.
pub(super) fn flags() -> impl Iterator<Item = (&'static str, &'static Field, Path)> {
    let none: Path = &[];
    let whole = all().filter(|f| !f.flag.is_empty()).map(move |f| (f.flag, f, none));
    let parts = PARTS.iter().filter_map(|(flag, field, path)| {
        let field = super::field(field)?;
        Some((*flag, field, *path))
    });
    whole.chain(parts)
}

fn int(v: &Value, low: i64, high: i64) -> Result<i64, String> {
    let n = v.as_i64().unwrap_or(i64::MAX);
    match (low..=high).contains(&n) {
        true => Ok(n),
        false if high == i64::MAX && low == 0 => Err("must not be a negative number".into()),
        false if high == i64::MAX => Err(format!("must be {low} or greater")),
        false => Err(format!("must be between {low} and {high}, inclusive")),
    }
}

fn count(v: &Value) -> Result<u32, String> {
    int(v, 0, i64::from(u32::MAX)).map(|n| n as u32)
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn path(v: &Value) -> Option<PathBuf> {
    Some(text(v)).filter(|t| !t.is_empty()).map(PathBuf::from)
}

fn truth(v: &Value) -> bool {
    v == true
}

fn time(v: &Value) -> Result<Duration, String> {
    let said = v.as_str().map(keelson_api::duration::length);
    Ok(said.transpose().map_err(|e| e.to_string())?.unwrap_or_default())
}

/// A time that has to be longer than nothing.
fn some_time(v: &Value) -> Result<Duration, String> {
    time(v).and_then(|d| {
        (!d.is_zero())
            .then_some(d)
            .ok_or_else(|| "must be greater than 0".into())
    })
}

fn percent(v: &Value) -> Result<u64, String> {
    int(v, 0, 100).map(|n| n as u64)
}

const ELSEWHERE: &str = "the option of the program says it";
const GROUPS: &str = "where the program itself runs is the service manager's business";

/// Every field, by subject.
pub(super) fn all() -> impl Iterator<Item = &'static Field> {
    let subjects = [
        serving::FIELDS,
        node::FIELDS,
        pods::FIELDS,
        images::FIELDS,
        resources::FIELDS,
        evictions::FIELDS,
    ];
    subjects.into_iter().flatten()
}

/// Parts of an object that are known, and what they are; anything else is an error. One that isn't there has none.
pub(super) fn known(v: &Value, path: &str, parts: &[(&str, Kind)]) -> Result<(), String> {
    if !v.is_null() {
        Kind::Object.check(path.trim_end_matches('.'), v)?;
    }
    for (name, value) in v.as_object().into_iter().flatten() {
        match parts.iter().find(|(known, _)| known == name) {
            None => return Err(format!("unknown field \"{path}{name}\"")),
            Some((_, kind)) if !value.is_null() => kind.check(&format!("{path}{name}"), value)?,
            Some(_) => {}
        }
    }
    Ok(())
}
