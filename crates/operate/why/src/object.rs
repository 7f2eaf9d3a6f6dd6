//! Objects as the API shows them. Rules read many kinds and few fields of each, so they read JSON by pointers; what is
//! absent reads as empty.

use serde_json::Value;

pub trait Fields {
    fn text(&self, path: &str) -> &str;
    fn list(&self, path: &str) -> &[Value];
    fn number(&self, path: &str) -> Option<i64>;
    fn flag(&self, path: &str) -> bool;
    fn pairs(&self, path: &str) -> Vec<(&str, &str)>;
    fn has(&self, path: &str) -> bool;

    fn kind(&self) -> &str {
        self.text("/kind")
    }
    fn name(&self) -> &str {
        self.text("/metadata/name")
    }
    fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }
    fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }
    /// `pod/web-0`: as a person would type it.
    fn shown(&self) -> String {
        format!("{}/{}", self.kind().to_lowercase(), self.name())
    }
    fn is_deleting(&self) -> bool {
        self.has("/metadata/deletionTimestamp")
    }
    fn condition(&self, kind: &str) -> Option<&Value> {
        self.list("/status/conditions").iter().find(|c| c.text("/type") == kind)
    }
    /// The condition, if it has this status.
    fn condition_is(&self, kind: &str, status: &str) -> Option<&Value> {
        self.condition(kind).filter(|c| c.text("/status") == status)
    }
    fn is_controlled_by(&self, uid: &str) -> bool {
        let owners = self.list("/metadata/ownerReferences").iter();
        !uid.is_empty() && owners.filter(|o| o.flag("/controller")).any(|o| o.text("/uid") == uid)
    }
}

impl Fields for Value {
    fn text(&self, path: &str) -> &str {
        self.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }
    fn list(&self, path: &str) -> &[Value] {
        let list = self.pointer(path).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    }
    fn number(&self, path: &str) -> Option<i64> {
        self.pointer(path).and_then(Value::as_i64)
    }
    fn flag(&self, path: &str) -> bool {
        self.pointer(path).and_then(Value::as_bool).unwrap_or_default()
    }
    fn pairs(&self, path: &str) -> Vec<(&str, &str)> {
        let map = self.pointer(path).and_then(Value::as_object);
        let pairs = map.into_iter().flatten();
        pairs.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect()
    }
    fn has(&self, path: &str) -> bool {
        self.pointer(path).is_some_and(|v| !v.is_null())
    }
}

/// A number or a name, as ports are written.
pub fn port_text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(name)) => name.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// The text between two marks: `quoted("configmap \"x\" not found", "configmap \"", "\"")` is `x`.
pub fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

/// Text of strangers in one line of bearable length, with no control characters a terminal would obey.
pub fn line(text: &str) -> String {
    const LONGEST: usize = 400;
    let clean = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean: String = clean.chars().filter(|c| !c.is_control()).collect();
    match clean.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &clean[..at]),
        None => clean,
    }
}
