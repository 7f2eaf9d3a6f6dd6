//! Named formats, and what is wrong with a text by one.

use super::super::value::{CelError, Val};
use super::Found;
use crate::names;
use crate::structural::formats;

const NAMES: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn find(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|n| *n == name)
}

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    match (name.strip_prefix("format.")?, args) {
        ("named", [Val::Str(s)]) => Some(Ok(find(s).map_or(Val::Optional(None), |f| Val::some(Val::Format(f))))),
        (name, []) => find(name).map(|f| Ok(Val::Format(f))),
        _ => None,
    }
}

/// The text that a prefix of a generated name is judged by: a trailing dash is what generation completes.
fn completed(s: &str) -> String {
    match s.strip_suffix('-') {
        Some(rest) => format!("{rest}a"),
        None => s.to_string(),
    }
}

fn complaints(format: &str, s: &str) -> Vec<String> {
    let by = |name: &str, message: &str| {
        if formats::matches(name, s) {
            Vec::new()
        } else {
            vec![message.to_string()]
        }
    };
    match format {
        "dns1123Label" => names::dns1123_label(s),
        "dns1123Subdomain" => names::dns1123_subdomain(s),
        "dns1035Label" => names::dns1035_label(s),
        "qualifiedName" => names::label_key(s),
        "dns1123LabelPrefix" => names::dns1123_label(&completed(s)),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&completed(s)),
        "dns1035LabelPrefix" => names::dns1035_label(&completed(s)),
        "labelValue" => names::label_value(s),
        "uri" => by("uri", "invalid URI"),
        "uuid" => by("uuid", "does not match the UUID format"),
        "byte" => by("byte", "invalid base64"),
        "date" => by("date", "invalid date"),
        "datetime" => by("date-time", "invalid datetime"),
        _ => Vec::new(),
    }
}

pub fn member<'a>(name: &str, format: &str, args: &[Val<'a>]) -> Found<'a> {
    match (name, args) {
        ("validate", [Val::Str(s)]) => {
            let errs = complaints(format, s);
            Some(Ok(if errs.is_empty() {
                Val::Optional(None)
            } else {
                Val::some(Val::list(errs.into_iter().map(Val::str).collect()))
            }))
        }
        ("validate", _) => Some(Err(CelError::no_overload())),
        _ => None,
    }
}
