//! An answer without what is each server's own: uids, revisions, moments, addresses and names that were drawn.

use crate::case::Request;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The headers that clients read.
const HEADERS: &[&str] = &[
    "content-type",
    "cache-control",
    "retry-after",
    "warning",
    "location",
    "allow",
    "www-authenticate",
];
/// Of those that are there or not, whatever they say.
const PRESENT: &[&str] = &["audit-id", "x-kubernetes-pf-flowschema-uid"];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub code: u16,
    /// Values of one name in order.
    pub headers: BTreeMap<String, Vec<String>>,
    /// What stands in the body, masked; several values if it is a stream.
    pub body: Value,
    /// As it came, for what the next request takes from it.
    #[serde(skip)]
    pub raw: Value,
}

impl Answer {
    pub fn new(request: &Request, code: u16, headers: &http::HeaderMap, bytes: Vec<u8>) -> Answer {
        let raw = parsed(&bytes);
        let mut body = raw.clone();
        Mask::of(request).value("", &mut body);
        sort_managers(&mut body);
        Answer {
            code,
            headers: shown(request, headers),
            body,
            raw,
        }
    }

    /// There was none: the connection was closed, or nothing came.
    pub fn none() -> Answer {
        Answer {
            code: 0,
            headers: BTreeMap::new(),
            body: Value::Null,
            raw: Value::Null,
        }
    }
    pub fn text(&self) -> String {
        self.raw.to_string()
    }
    /// Whether it is a `Status` that tells of a failure.
    pub fn is_failure(&self) -> bool {
        self.body.get("kind").and_then(Value::as_str) == Some("Status") && self.code >= 400
    }
}

fn shown(request: &Request, headers: &http::HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut out = BTreeMap::new();
    let mask = Mask::of(request);
    for name in HEADERS {
        let mut values: Vec<String> = headers
            .get_all(*name)
            .iter()
            .map(|v| mask.text(&String::from_utf8_lossy(v.as_bytes())))
            .collect();
        values.sort();
        if !values.is_empty() {
            out.insert((*name).to_string(), values);
        }
    }
    for name in PRESENT.iter().filter(|n| headers.contains_key(**n)) {
        out.insert((*name).to_string(), vec!["<present>".into()]);
    }
    out
}

/// JSON, a stream of JSON, or text.
fn parsed(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    if let Ok(value) = serde_json::from_slice(bytes) {
        return value;
    }
    let all: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(bytes).into_iter().collect();
    match all {
        Ok(all) => Value::Array(all),
        Err(_) => Value::String(String::from_utf8_lossy(bytes).into_owned()),
    }
}

macro_rules! pattern {
    ($name:ident, $text:literal) => {
        #[allow(clippy::unwrap_used, reason = "a constant")]
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).unwrap());
    };
}
pattern!(UID, "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}");
pattern!(
    MOMENT,
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d\d:?\d\d)?( UTC)?( m=[+.0-9]+)?Z?"
);
pattern!(ACCOUNT, "kube-api-access-[a-z0-9]{5}");
pattern!(POINTER, "0x[0-9a-f]{8,}");
pattern!(CERTIFICATE, "X509SHA256=[0-9a-f]{64}");
pattern!(
    REVISION,
    r#"(resourceVersion\\*"?: ?\\*"|resourceVersion:|ResourceVersion:|in record \(|UID in record: |in object meta: |latest version: |\bresource version: |, current: )([0-9]+)"#
);
pattern!(AGO, r"^\d+(s|m|ms|m\d+s)$");

/// What names are drawn from.
const DRAWN: &str = "bcdfghjklmnpqrstvwxz2456789";
pattern!(GENERATED, r#""generateName": ?"([^"\\]+)""#);

struct Mask<'a> {
    request: &'a Request,
    /// The names that are drawn for what was sent without one.
    drawn: Option<Regex>,
}

impl Mask<'_> {
    fn of(request: &Request) -> Mask<'_> {
        let prefix = GENERATED.captures(&request.body);
        let drawn = prefix.and_then(|c| Regex::new(&format!("\\b({})[{DRAWN}]{{5}}\\b", regex::escape(&c[1]))).ok());
        Mask { request, drawn }
    }

    fn sent(&self, text: &str) -> bool {
        self.request.body.contains(text) || self.request.path.contains(text)
    }

    fn text(&self, text: &str) -> String {
        let keep = |what: &regex::Captures<'_>, mask: &str| match self.sent(&what[0]) {
            true => what[0].to_string(),
            false => mask.to_string(),
        };
        let text = UID.replace_all(text, |c: &regex::Captures<'_>| keep(c, "<uid>"));
        let text = ACCOUNT.replace_all(&text, |c: &regex::Captures<'_>| keep(c, "<account>"));
        let text = POINTER.replace_all(&text, "<pointer>");
        let text = match &self.drawn {
            Some(drawn) => drawn.replace_all(&text, |c: &regex::Captures<'_>| match self.sent(&c[0]) {
                true => c[0].to_string(),
                false => format!("{}<drawn>", &c[1]),
            }),
            None => text.clone(),
        };
        let text = CERTIFICATE.replace_all(&text, "X509SHA256=<certificate>");
        let text = REVISION.replace_all(&text, |c: &regex::Captures<'_>| match self.sent(&c[2]) {
            true => c[0].to_string(),
            false => format!("{}<rv>", &c[1]),
        });
        MOMENT
            .replace_all(&text, |c: &regex::Captures<'_>| match near(&c[0]) {
                true => keep(c, "<now>"),
                false => c[0].to_string(),
            })
            .into_owned()
    }

    fn value(&self, key: &str, value: &mut Value) {
        match value {
            Value::Object(map) => self.object(map),
            Value::Array(items) => items.iter_mut().for_each(|v| self.value(key, v)),
            Value::String(text) if !text.is_empty() => *text = self.scalar(key, text),
            Value::Number(n)
                if matches!(key, "nodePort" | "healthCheckNodePort")
                    && !self.sent(&n.to_string())
                    && n.as_i64() != Some(0) =>
            {
                *value = Value::String("<allocated>".into());
            }
            _ => {}
        }
    }

    fn scalar(&self, key: &str, text: &str) -> String {
        let own = match key {
            // A number may stand anywhere by chance.
            "resourceVersion" if self.request.body.contains(&format!("\"{text}\"")) => return text.into(),
            "resourceVersion" => return "<rv>".into(),
            "continue" => "<continue>",
            "token" => "<token>",
            "clusterIP" | "clusterIPs" => "<allocated>",
            _ => return self.text(text),
        };
        if self.sent(text) || text == "None" {
            text.to_string()
        } else {
            own.to_string()
        }
    }

    fn object(&self, map: &mut Map<String, Value>) {
        let generated = map.get("generateName").and_then(Value::as_str).map(str::to_string);
        if let (Some(prefix), Some(Value::String(name))) = (generated, map.get_mut("name"))
            && !prefix.is_empty()
            && name.starts_with(&prefix)
            && !self.sent(name)
        {
            *name = format!("{prefix}<drawn>");
        }
        let table = map.get("kind").and_then(Value::as_str) == Some("Table");
        for (key, value) in map.iter_mut() {
            self.value(key, value);
            if table && key == "rows" {
                ages(value);
            }
        }
    }
}

/// Cells that say how long ago something was.
fn ages(rows: &mut Value) {
    let cells = rows
        .as_array_mut()
        .into_iter()
        .flatten()
        .filter_map(|r| r.get_mut("cells"));
    for cell in cells.filter_map(Value::as_array_mut).flatten() {
        if cell.as_str().is_some_and(|c| AGO.is_match(c)) {
            *cell = Value::String("<ago>".into());
        }
    }
}

/// Whether a moment may be one of this run: what is older or later stands in a request or is a constant.
fn near(moment: &str) -> bool {
    let date: String = moment.chars().take(10).collect();
    let Ok(date) = date.parse::<jiff::civil::Date>() else {
        return false;
    };
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    (-2..=366).contains(&(date - today).get_days())
}

/// Managed fields are sorted by time, which differs in seconds.
fn sort_managers(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::Array(entries) if key == "managedFields" => {
                        entries.sort_by_cached_key(|e| {
                            let part = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or_default().to_string();
                            (
                                part("manager"),
                                part("operation"),
                                part("subresource"),
                                part("apiVersion"),
                            )
                        });
                    }
                    _ => sort_managers(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(sort_managers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(request: &str, answer: Value) -> Value {
        let request = Request::new("POST", "/x").json(request);
        Answer::new(&request, 200, &http::HeaderMap::new(), answer.to_string().into_bytes()).body
    }

    #[test]
    fn what_was_sent_stays_and_what_was_drawn_goes() {
        let now = jiff::Timestamp::now().to_string();
        let answer = serde_json::json!({
            "metadata": {"uid": "0a0a0a0a-1111-2222-3333-444444444444", "resourceVersion": "12", "creationTimestamp": now,
                "generateName": "a-", "name": "a-x7x7x"},
            "spec": {"clusterIP": "10.96.0.9", "nodePort": 30001, "when": "2001-02-03T04:05:06Z", "externalIPs": ["1.2.3.4"]},
        });
        let shown = masked(r#"{"metadata":{"generateName":"a-"}}"#, answer.clone());
        let expected = serde_json::json!({
            "metadata": {"uid": "<uid>", "resourceVersion": "<rv>", "creationTimestamp": "<now>", "generateName": "a-", "name": "a-<drawn>"},
            "spec": {"clusterIP": "<allocated>", "nodePort": "<allocated>", "when": "2001-02-03T04:05:06Z", "externalIPs": ["1.2.3.4"]},
        });
        assert_eq!(shown, expected);
        let kept = masked(
            r#"{"metadata":{"resourceVersion":"12"},"spec":{"nodePort":30001}}"#,
            answer,
        );
        assert_eq!(kept.pointer("/spec/nodePort"), Some(&Value::from(30001)));
        assert_eq!(kept.pointer("/metadata/resourceVersion"), Some(&Value::from("12")));
    }
}
