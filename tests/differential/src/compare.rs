//! What differs between two answers.

use crate::answer::Answer;
use crate::case::Case;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::LazyLock;

/// A difference, by which others of the same cause are known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    pub kind: String,
    pub field: String,
    pub sort: String,
}

/// One line, as a list of them has it, whatever stands in the texts.
impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, part) in [&self.kind, &self.field, &self.sort].into_iter().enumerate() {
            if n > 0 {
                f.write_str(" | ")?;
            }
            for c in part.chars() {
                match c.is_control() {
                    true => write!(f, "{}", c.escape_default())?,
                    false => f.write_char(c)?,
                }
            }
        }
        Ok(())
    }
}

/// One difference: its group, and what each side says there.
#[derive(Clone, Debug)]
pub struct Difference {
    pub group: Group,
    pub ours: String,
    pub peer: String,
}

/// All that differs between the answers to a case.
pub fn differences(case: &Case, ours: &[Answer], peer: &[Answer]) -> Vec<Difference> {
    let mut out = Found { case, out: Vec::new() };
    for ((step, a), b) in case.steps.iter().zip(ours).zip(peer) {
        if a != b {
            out.answers(&step.method, a, b);
        }
    }
    out.out
}

/// All that differs between two values of a kind.
pub fn values(case: &Case, ours: &Value, peer: &Value) -> Vec<Difference> {
    let mut out = Found { case, out: Vec::new() };
    out.values("", ours, peer);
    out.out
}

struct Found<'a> {
    case: &'a Case,
    out: Vec<Difference>,
}

impl Found<'_> {
    fn add(&mut self, field: &str, sort: &str, ours: &impl ToString, peer: &impl ToString) {
        let kind = self.case.kind.rsplit(' ').next().unwrap_or_default();
        let sort = if field == "message" {
            sort.replace(kind, "KIND")
        } else {
            sort.to_string()
        };
        let group = group(&self.case.kind, field, &sort);
        if self.out.iter().all(|d| d.group != group) {
            let short = |text: String| text.chars().take(600).collect();
            self.out.push(Difference {
                group,
                ours: short(ours.to_string()),
                peer: short(peer.to_string()),
            });
        }
    }

    fn answers(&mut self, method: &str, a: &Answer, b: &Answer) {
        // Of an answer that doesn't come there is nothing to compare.
        for (who, silent, other) in [("ours gives no answer", a, b), ("the peer gives no answer", b, a)] {
            if silent.code == 0 {
                return self.add(method, &format!("{who} for {}", other.code), &a.text(), &b.text());
            }
        }
        match (a.is_failure(), b.is_failure()) {
            (true, true) => self.failures(a, b),
            (true, false) => self.one_refuses("only ours refuses", a, a, b),
            (false, true) => self.one_refuses("only the peer refuses", b, a, b),
            (false, false) => {
                if a.code != b.code {
                    self.add(method, &format!("code {} for {}", a.code, b.code), &a.text(), &b.text());
                }
                self.values("", &a.body, &b.body);
            }
        }
        for name in a.headers.keys().chain(b.headers.keys()).collect::<BTreeSet<_>>() {
            let none = Vec::new();
            let (x, y) = (
                a.headers.get(name).unwrap_or(&none),
                b.headers.get(name).unwrap_or(&none),
            );
            if x == y {
                continue;
            }
            if name == "warning" {
                self.warnings(x, y);
            } else {
                self.add(
                    &format!("header {name}"),
                    &format!("{x:?} for {y:?}"),
                    &x.join(", "),
                    &y.join(", "),
                );
            }
        }
    }

    fn warnings(&mut self, ours: &[String], peer: &[String]) {
        for only in ours.iter().filter(|w| !peer.contains(w)) {
            self.add("warning", &format!("only ours warns: {}", gist(only)), only, &"");
        }
        for only in peer.iter().filter(|w| !ours.contains(w)) {
            self.add("warning", &format!("only the peer warns: {}", gist(only)), &"", only);
        }
    }

    /// One side refuses what the other takes, or answers with something else.
    fn one_refuses(&mut self, who: &str, failure: &Answer, a: &Answer, b: &Answer) {
        let said = causes(failure);
        let other = if a.is_failure() { b.code } else { a.code };
        let who = match other {
            200..300 => who.to_string(),
            code => format!("{who} in form of a status (code {code})"),
        };
        if said.is_empty() {
            let text = format!("{who}: {} {}", failure.code, gist(message(failure)));
            return self.add("", &text, &a.text(), &b.text());
        }
        for (reason, field, text) in said {
            self.add(
                &field,
                &format!("{who}: {reason} {}", gist(&text)),
                &a.text(),
                &b.text(),
            );
        }
    }

    fn failures(&mut self, a: &Answer, b: &Answer) {
        let (x, y) = (causes(a), causes(b));
        let told = self.out.len();
        if a.code != b.code {
            let field = y.first().or(x.first()).map(|c| c.1.clone()).unwrap_or_default();
            let text = format!(
                "code {} for {}: {} for {}",
                a.code,
                b.code,
                gist(message(a)),
                gist(message(b))
            );
            return self.add(&field, &text, &message(a), &message(b));
        }
        for (reason, field, text) in x.difference(&y) {
            let same: Vec<_> = y.difference(&x).filter(|c| c.1 == *field && c.0 == *reason).collect();
            match same.as_slice() {
                [(_, _, other)] => {
                    self.add(field, &format!("text {} for {}", gist(text), gist(other)), text, other);
                }
                _ => self.add(
                    field,
                    &format!("only our cause: {reason} {}", gist(text)),
                    text,
                    &message(b),
                ),
            }
        }
        for (reason, field, text) in y.difference(&x) {
            if x.difference(&y).filter(|c| c.1 == *field && c.0 == *reason).count() != 1 {
                self.add(
                    field,
                    &format!("only the peer's cause: {reason} {}", gist(text)),
                    &message(a),
                    text,
                );
            }
        }
        if self.out.len() == told {
            let (x, y) = (message(a), message(b));
            if parts(x) != parts(y) {
                self.add("message", &format!("{} for {}", gist(x), gist(y)), &x, &y);
            }
            let rest = |v: &Value| {
                let mut v = v.clone();
                if let Some(map) = v.as_object_mut() {
                    map.remove("message");
                    if let Some(details) = map.get_mut("details").and_then(Value::as_object_mut) {
                        details.remove("causes");
                    }
                }
                v
            };
            self.values("status", &rest(&a.body), &rest(&b.body));
        }
    }

    fn values(&mut self, path: &str, a: &Value, b: &Value) {
        match (a, b) {
            _ if a == b => {}
            (Value::Object(x), Value::Object(y)) => {
                for key in x.keys().chain(y.keys()).collect::<BTreeSet<_>>() {
                    let at = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    match (x.get(key), y.get(key)) {
                        (Some(a), Some(b)) => self.values(&at, a, b),
                        (Some(a), None) => self.add(&at, "only ours has it", a, &""),
                        (None, Some(b)) => self.add(&at, "only the peer has it", &"", b),
                        (None, None) => {}
                    }
                }
            }
            (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
                for (a, b) in x.iter().zip(y) {
                    self.values(&format!("{path}[]"), a, b);
                }
            }
            (Value::Array(x), Value::Array(y)) => {
                let only = |x: &[Value], y: &[Value]| {
                    let only: Vec<&Value> = x.iter().filter(|v| !y.contains(v)).take(4).collect();
                    serde_json::to_string(&only).unwrap_or_default()
                };
                let sort = if x.len() > y.len() {
                    "ours is longer"
                } else {
                    "the peer's is longer"
                };
                self.add(path, sort, &only(x, y), &only(y, x));
            }
            _ => self.add(path, "value", a, b),
        }
    }
}

fn message(answer: &Answer) -> &str {
    answer.body.get("message").and_then(Value::as_str).unwrap_or_default()
}

/// The parts of an aggregate, whose order is that of maps.
fn parts(message: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = message.split([',', '[', ']']).map(str::trim).collect();
    parts.sort_unstable();
    parts
}

/// Reason, field and message of each cause.
fn causes(answer: &Answer) -> BTreeSet<(String, String, String)> {
    let listed = answer.body.pointer("/details/causes").and_then(Value::as_array);
    let text = |cause: &Value, key: &str| cause.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    listed
        .into_iter()
        .flatten()
        .map(|c| (text(c, "reason"), text(c, "field"), text(c, "message")))
        .collect()
}

/// Fields that many kinds have stand together.
fn group(kind: &str, field: &str, sort: &str) -> Group {
    #[allow(clippy::unwrap_used, reason = "a constant")]
    static INDEX: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[[^\]]*\]").unwrap());
    let field = INDEX.replace_all(field, "[]").into_owned();
    let field = if field.contains("managedFields[].fieldsV1") {
        "metadata.managedFields[].fieldsV1".into()
    } else {
        field
    };
    // What stands in a list, a table or an event is the kind's as well.
    static WITHIN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^(items\[\]\.|(\[\]\.)?object\.(items\[\]\.)?)?(rows\[\]\.object\.)?").ok());
    let field = match WITHIN.as_ref() {
        Some(within) => within.replace(&field, "").into_owned(),
        None => field,
    };
    let (kind, field) = if let Some((_, rest)) = field.rsplit_once("template.spec.") {
        ("PodSpec".to_string(), rest.to_string())
    } else if let Some(rest) = field.strip_prefix("spec.").filter(|_| kind == "v1 Pod") {
        ("PodSpec".into(), rest.to_string())
    } else if field == "message"
        || field.starts_with("metadata.")
        || field == "metadata"
        || field.ends_with("columnDefinitions[].description")
        || sort.contains("gives no answer")
        || field.starts_with("header ")
    {
        ("*".into(), field)
    } else {
        (kind.into(), field)
    };
    // Containers of all sorts have the same fields.
    let field = field
        .replace("initContainers[]", "containers[]")
        .replace("ephemeralContainers[]", "containers[]");
    Group {
        kind,
        field,
        sort: sort.chars().take(240).collect::<String>().trim_end().to_string(),
    }
}

/// A message without the values in it.
fn gist(message: &str) -> String {
    #[allow(clippy::unwrap_used, reason = "constants")]
    static VALUES: LazyLock<[Regex; 5]> = LazyLock::new(|| {
        [
            Regex::new(r"Go struct field \S+ of type \S+").unwrap(),
            Regex::new(r#""(\\.|[^"\\])*""#).unwrap(),
            Regex::new(r"\{.*\}").unwrap(),
            Regex::new(r"[0-9]+").unwrap(),
            Regex::new(r"map\[.*\]").unwrap(),
        ]
    });
    let mut text = message.to_string();
    for (pattern, mark) in VALUES.iter().zip(["Go struct field", "…", "{…}", "N", "map[…]"]) {
        text = pattern.replace_all(&text, mark).into_owned();
    }
    text.chars().take(160).collect()
}
