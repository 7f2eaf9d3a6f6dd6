//! What a file says: documents of YAML or JSON, each an object or a list of them.

use crate::DEPENDS_ON;
use serde_json::Value;

/// Of one file. More are a mistake, or several files.
pub const MOST: usize = 2000;
/// Lists in lists.
const DEEPEST: usize = 3;

#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub api_version: String,
    pub kind: String,
    /// As written.
    pub namespace: Option<String>,
    pub name: String,
    pub value: Value,
}

impl Manifest {
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }
    pub fn version(&self) -> &str {
        self.api_version.rsplit('/').next().unwrap_or_default()
    }
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.value["metadata"]["annotations"][name].as_str()
    }
    pub fn shown(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

/// All objects of a file, as they stand in it. The error says where, and never what.
pub fn read(text: &[u8]) -> Result<Vec<Manifest>, String> {
    let text = std::str::from_utf8(text).map_err(|e| format!("it is no text (byte {})", e.valid_up_to()))?;
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        // A text of a file may be a secret.
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: 2_000_000, max_events: 8_000_000, max_depth: 128 },
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|e| first_line(&e.to_string()))?;
    let mut all = Vec::new();
    for (number, document) in documents.into_iter().enumerate() {
        let at = format!("document {}", number + 1);
        match document {
            Value::Null => {}
            document => take(document, &at, 0, &mut all)?,
        }
    }
    Ok(all)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}

fn take(mut document: Value, at: &str, depth: usize, all: &mut Vec<Manifest>) -> Result<(), String> {
    let Value::Object(fields) = &mut document else {
        return Err(format!("{at} is no object"));
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version.is_empty() || kind.is_empty() {
        return Err(format!("{at} doesn't say what it is (apiVersion and kind)"));
    }
    let group_and_version: Vec<&str> = api_version.split('/').collect();
    let is_name = |part: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric();
        part.starts_with(plain) && part.ends_with(plain) && part.chars().all(|c| plain(c) || ".-".contains(c))
    };
    if group_and_version.len() > 2 || !group_and_version.iter().all(is_name) {
        return Err(format!("{at}: apiVersion is VERSION or GROUP/VERSION"));
    }
    if kind.ends_with("List")
        && fields
            .get("items")
            .is_some_and(|items| items.is_array() || items.is_null())
    {
        if depth == DEEPEST {
            return Err(format!("{at}: lists in lists in lists"));
        }
        let Some(Value::Array(items)) = fields.remove("items") else {
            return Ok(());
        };
        for (number, mut item) in items.into_iter().enumerate() {
            // Those of a typed list may leave it to the list.
            if kind != "List"
                && let Value::Object(fields) = &mut item
            {
                let of_one = kind.trim_end_matches("List");
                fields.entry("apiVersion").or_insert_with(|| api_version.clone().into());
                fields.entry("kind").or_insert_with(|| of_one.into());
            }
            take(item, &format!("{at}, item {}", number + 1), depth + 1, all)?;
        }
        return Ok(());
    }
    let metadata = &document["metadata"];
    for field in ["name", "namespace"] {
        if !metadata[field].is_string() && !metadata[field].is_null() {
            return Err(format!(
                "{at}, a {kind}: its {field} is no text; words like y, n, on and off, and numbers, want quotes"
            ));
        }
    }
    let Some(name) = metadata["name"].as_str().filter(|n| !n.is_empty()) else {
        return Err(match metadata["generateName"].is_string() {
            true => format!("{at}, a {kind}: with generateName it would be another object each time; give it a name"),
            false => format!("{at}, a {kind}, has no name"),
        });
    };
    if all.len() == MOST {
        return Err(format!("it says more than {MOST} objects: make several files of it"));
    }
    all.push(Manifest {
        name: name.to_string(),
        namespace: metadata["namespace"].as_str().filter(|n| !n.is_empty()).map(Into::into),
        api_version,
        kind,
        value: document,
    });
    Ok(())
}

/// Which add-ons have to be ready before.
pub fn depends_on(manifests: &[Manifest]) -> Vec<String> {
    let said = manifests.iter().filter_map(|m| m.annotation(DEPENDS_ON));
    let names = said
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|n| !n.is_empty());
    let mut names: Vec<String> = names.map(Into::into).collect();
    names.sort();
    names.dedup();
    names
}
