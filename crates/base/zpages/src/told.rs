//! What the pages say.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The flags of a component by name, each with its value as text. What is secret isn't among the values.
pub type Flags = BTreeMap<String, String>;

const DELIMITERS: [&str; 4] = [":", ": ", "=", " "];
/// What clients ask for, not people who look into a component.
const NOT_FOR_DEBUGGING: [&str; 5] = ["/apis", "/api", "/openid", "/openapi", "/.well-known"];
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is \
                       for debugging purposes only.";

pub fn delimiter() -> &'static str {
    DELIMITERS[rand::random_range(0..DELIMITERS.len())]
}

/// The first part of each path, once.
pub fn folders<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let first = |path: &'a str| path.split('/').nth(1).filter(|first| !first.is_empty());
    let folders: BTreeSet<String> = paths
        .into_iter()
        .filter_map(first)
        .map(|first| format!("/{first}"))
        .filter(|folder| !NOT_FOR_DEBUGGING.contains(&folder.as_str()))
        .collect();
    folders.into_iter().collect()
}

#[derive(Serialize)]
struct Meta<'a> {
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statusz<'a> {
    kind: &'static str,
    api_version: String,
    metadata: Meta<'a>,
    start_time: String,
    uptime_seconds: i64,
    go_version: &'static str,
    binary_version: &'a str,
    emulation_version: &'a str,
    paths: Vec<String>,
    #[serde(skip)]
    started: Timestamp,
}

impl<'a> Statusz<'a> {
    pub fn new(component: &'a str, api: &str, version: &'a str, paths: Vec<String>) -> Self {
        let seconds = keelson_sys::own::started().unwrap_or_else(|error| {
            tracing::warn!(%error, "it isn't known when this process was started");
            0.0
        });
        let started = Timestamp::from_second(seconds as i64).unwrap_or_default();
        let up = keelson_clock::now().as_second() - started.as_second();
        let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
        Statusz {
            kind: "Statusz",
            api_version: format!("config.k8s.io/{api}"),
            metadata: Meta { name: component },
            start_time: started.to_string(),
            uptime_seconds: up.max(0),
            // It was compiled with none.
            go_version: "none (keelson)",
            binary_version: version,
            emulation_version: minor,
            paths,
            started,
        }
    }
}

pub fn statusz_text(status: &Statusz<'_>, delimiter: &str) -> String {
    let started = status
        .started
        .to_zoned(TimeZone::UTC)
        .strftime("%a %b %e %H:%M:%S UTC %Y");
    let up = status.uptime_seconds;
    let lines = [
        ("Started", started.to_string()),
        (
            "Up",
            format!("{} hr {:02} min {:02} sec", up / 3600, (up / 60) % 60, up % 60),
        ),
        ("Go version", status.go_version.into()),
        ("Binary version", status.binary_version.into()),
        ("Emulation version", status.emulation_version.into()),
        ("Paths", status.paths.join(" ")),
    ];
    let mut text = format!("\n{} statusz\n{WARNING}\n\n", status.metadata.name);
    for (name, value) in lines {
        let _ = writeln!(text, "{name}{delimiter} {value}");
    }
    text
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flagz<'a> {
    kind: &'static str,
    api_version: String,
    metadata: Meta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<&'a Flags>,
}

impl<'a> Flagz<'a> {
    pub fn new(component: &'a str, api: &str, flags: Option<&'a Flags>) -> Self {
        Flagz {
            kind: "Flagz",
            api_version: format!("config.k8s.io/{api}"),
            metadata: Meta { name: component },
            flags: flags.filter(|flags| !flags.is_empty()),
        }
    }
}

pub fn flagz_text(component: &str, flags: Option<&Flags>, delimiter: &str) -> String {
    let mut text = format!("\n{component} flagz\n{WARNING}\n");
    for (name, value) in flags.into_iter().flatten() {
        let _ = writeln!(text, "{name}{delimiter}{value}");
    }
    text
}
