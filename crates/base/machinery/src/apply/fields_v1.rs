//! Sets of fields as `managedFields` has them: `{"f:spec":{".":{},"f:containers":{"k:{\"name\":\"a\"}":{}}}}`.

use super::fieldpath::{PathElement, Set};
use keelson_api::{Map, Str, Value};

fn json(v: &Value) -> String {
    serde_json::to_string(v).unwrap_or_default()
}

fn push_json(v: &Value, out: &mut Str) {
    match v {
        Value::String(text) => push_quoted(text, out),
        other => out.push_str(&json(other)),
    }
}

fn push_quoted(text: &Str, out: &mut Str) {
    if text.bytes().any(|c| matches!(c, b'"' | b'\\' | ..=0x1f)) {
        return out.push_str(&json(&text.clone().into()));
    }
    out.push('"');
    out.push_str(text);
    out.push('"');
}

/// A step in its written form: `f:name`, `k:{…}`, `v:…`, `i:0`.
pub fn element_to_string(pe: &PathElement) -> Str {
    let mut out = Str::default();
    match pe {
        PathElement::Field(name) => {
            out.push_str("f:");
            out.push_str(name);
        }
        PathElement::Key(keys) => {
            let mut before = "k:{";
            for (name, v) in keys {
                out.push_str(std::mem::replace(&mut before, ","));
                push_quoted(name, &mut out);
                out.push(':');
                push_json(v, &mut out);
            }
            out.push_str(if keys.is_empty() { "k:{}" } else { "}" });
        }
        PathElement::Value(v) => {
            out.push_str("v:");
            push_json(v, &mut out);
        }
        PathElement::Index(i) => out.push_str(&format!("i:{i}")),
    }
    out
}

/// Reads a step; `Ok(None)` for kinds of a later version, which are dropped.
pub fn element_from_str(s: &str) -> Result<Option<PathElement>, String> {
    let b = s.as_bytes();
    if b.len() < 2 {
        return Err("key must be 2 characters long:".into());
    }
    if b[1] != b':' {
        return Err(format!("missing colon: {s}"));
    }
    let rest = &s[2..];
    let parse = |text: &str| serde_json::from_str::<Value>(text).map_err(|e| e.to_string());
    Ok(Some(match b[0] {
        b'f' => PathElement::Field(Str::from(rest)),
        b'v' => PathElement::Value(parse(rest)?),
        b'k' => match parse(rest)? {
            Value::Object(m) => PathElement::Key(m.into_iter().collect()),
            other => return Err(format!("expected a map of keys, found {}", other.type_name())),
        },
        b'i' => PathElement::Index(rest.parse().map_err(|_| format!("not an index: {rest}"))?),
        _ => return Ok(None),
    }))
}

/// Whether reading a step and writing it again gives the same.
pub(super) fn is_as_written(step: &str) -> bool {
    let plain = match step.split_at_checked(2) {
        Some(("f:", _)) => true,
        Some(("k:", keys)) => are_plain_keys(keys),
        Some(("v:", v)) => plain_scalar(v.as_bytes()) == Some(v.len()),
        _ => false,
    };
    let again = || element_from_str(step).is_ok_and(|pe| pe.is_some_and(|pe| element_to_string(&pe) == step));
    plain || again()
}

/// `{"name":"a","port":80}`: names in order, no escapes, no spaces.
fn are_plain_keys(text: &str) -> bool {
    let Some(mut rest) = text.as_bytes().strip_prefix(b"{") else {
        return false;
    };
    let mut last: Option<&[u8]> = None;
    loop {
        let Some((name, after)) = plain_string(rest).and_then(|n| rest.split_at_checked(n)) else {
            return false;
        };
        let name = &name[1..name.len() - 1];
        let Some(v) = after.strip_prefix(b":").filter(|_| last < Some(name)) else {
            return false;
        };
        let Some((_, after)) = plain_scalar(v).and_then(|n| v.split_at_checked(n)) else {
            return false;
        };
        match after {
            b"}" => return true,
            [b',', more @ ..] => (last, rest) = (Some(name), more),
            _ => return false,
        }
    }
}

/// The length of a string at the start, quotes included, that is written as it reads.
fn plain_string(text: &[u8]) -> Option<usize> {
    let inner = text.strip_prefix(b"\"")?;
    let end = inner.iter().position(|c| matches!(c, b'"' | b'\\' | ..=0x1f))?;
    (inner[end] == b'"').then_some(end + 2)
}

/// The length of a plain string or an integer at the start.
fn plain_scalar(text: &[u8]) -> Option<usize> {
    const MOST_DIGITS: usize = 18;
    if text.first() == Some(&b'"') {
        return plain_string(text);
    }
    let digits = text.iter().take_while(|c| c.is_ascii_digit()).count();
    let has_zeros = digits > 1 && text[0] == b'0';
    ((1..=MOST_DIGITS).contains(&digits) && !has_zeros).then_some(digits)
}

impl Set {
    /// The written form as a JSON document, in upstream's order.
    pub fn to_json(&self) -> String {
        let mut out = String::from("{");
        self.emit(false, &mut out);
        out.push('}');
        out
    }

    fn emit(&self, include_self: bool, out: &mut String) {
        let mut first = true;
        let mut field = |out: &mut String, pe: &str| {
            if !std::mem::take(&mut first) {
                out.push(',');
            }
            out.push_str(&json(&Value::from(pe)));
            out.push(':');
        };
        if include_self && !(self.members.is_empty() && self.children.is_empty()) {
            field(out, ".");
            out.push_str("{}");
        }
        let (mut m, mut c) = (self.members.iter().peekable(), self.children.iter().peekable());
        loop {
            let order = match (m.peek(), c.peek()) {
                (Some(pe), Some((key, _))) => (*pe).cmp(key),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return,
            };
            let member = if order.is_le() { m.next() } else { None };
            let child = if order.is_ge() { c.next() } else { None };
            let Some(pe) = member.or(child.map(|(key, _)| key)) else {
                return;
            };
            field(out, &element_to_string(pe));
            out.push('{');
            if let Some((_, set)) = child {
                set.emit(member.is_some(), out);
            }
            out.push('}');
        }
    }

    /// The written form as a value.
    pub fn to_value(&self) -> Value {
        Value::Object(self.to_map(false))
    }

    pub(super) fn to_map(&self, include_self: bool) -> Map {
        let mut pairs: Vec<(Str, Value)> = Vec::with_capacity(self.members.len() + self.children.len() + 1);
        if include_self && !(self.members.is_empty() && self.children.is_empty()) {
            pairs.push((Str::const_new("."), Map::new().into()));
        }
        let mut members = self.members.iter().peekable();
        for (key, set) in &self.children {
            while let Some(pe) = members.next_if(|pe| *pe < key) {
                pairs.push((element_to_string(pe), Map::new().into()));
            }
            let is_member = members.next_if(|pe| *pe == key).is_some();
            pairs.push((element_to_string(key), set.to_map(is_member).into()));
        }
        pairs.extend(members.map(|pe| (element_to_string(pe), Map::new().into())));
        Map::from_pairs(pairs)
    }

    /// Reads the written form.
    pub fn from_value(v: &Value) -> Result<Set, String> {
        match v {
            Value::Null => Ok(Set::new()),
            Value::Object(m) => Set::from_map(m),
            other => Err(format!("expected a map of fields, found {}", other.type_name())),
        }
    }
    pub(super) fn from_map(m: &Map) -> Result<Set, String> {
        Ok(read(m)?.0.unwrap_or_default())
    }
}

/// What is below, and whether the node itself is a member.
fn read(m: &Map) -> Result<(Option<Set>, bool), String> {
    let mut set: Option<Set> = None;
    let mut member = false;
    for (key, v) in m {
        if key == "." {
            member = true;
            continue;
        }
        let pe = element_from_str(key).map_err(|e| format!("parsing key as path element: {e}"))?;
        let Some(pe) = pe else { continue };
        let Value::Object(below) = v else {
            return Err(format!("expected a map of fields at {key}, found {}", v.type_name()));
        };
        let (below, is_member) = read(below)?;
        let set = set.get_or_insert_default();
        if is_member {
            set.insert(std::slice::from_ref(&pe));
        }
        if let Some(below) = below {
            *set.descend(&pe) = below;
        }
    }
    let leaf = set.is_none();
    Ok((set, member || leaf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_form_round_trips() {
        let text = concat!(
            r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"#,
            r#""k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{}},"#,
            r#""k:{\"containerPort\":443,\"protocol\":\"TCP\"}":{}},"#,
            r#""f:finalizers":{"v:\"a\"":{},"v:\"b\"":{}},"f:replicas":{}}}"#
        );
        let v: Value = serde_json::from_str(text).unwrap();
        let set = Set::from_value(&v).unwrap();
        assert_eq!(set.to_json(), text);
        assert_eq!(set.to_value(), v);
        assert_eq!(
            set.to_string().lines().collect::<Vec<_>>(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.replicas",
                ".spec.containers[containerPort=80,protocol=\"TCP\"]",
                ".spec.containers[containerPort=443,protocol=\"TCP\"]",
                ".spec.containers[containerPort=80,protocol=\"TCP\"].name",
                ".spec.finalizers[=\"a\"]",
                ".spec.finalizers[=\"b\"]",
            ]
        );
    }

    #[test]
    fn bad_forms_are_refused_and_unknown_ones_dropped() {
        let from = |s: &str| Set::from_value(&serde_json::from_str::<Value>(s).unwrap());
        assert!(from(r#"{"x":{}}"#).is_err());
        assert!(from(r#"{"ff":{}}"#).is_err());
        assert!(from(r#"{"f:a":1}"#).is_err());
        assert!(from(r#"{"q:a":{}}"#).unwrap().is_empty());
    }

    #[test]
    fn set_operations() {
        let a = Set::of_fields(&[&["a"], &["a", "b"], &["c", "d"]]);
        let b = Set::of_fields(&[&["a"], &["c", "d"], &["e"]]);
        assert_eq!(a.union(&b), Set::of_fields(&[&["a"], &["a", "b"], &["c", "d"], &["e"]]));
        assert_eq!(a.intersection(&b), Set::of_fields(&[&["a"], &["c", "d"]]));
        assert_eq!(a.difference(&b), Set::of_fields(&[&["a", "b"]]));
        assert_eq!(a.recursive_difference(&b), Set::new());
        assert_eq!(a.len(), 3);
        assert!(a.has(&Path::fields(&["c", "d"]).0) && !a.has(&Path::fields(&["c"]).0));
    }

    use super::super::fieldpath::Path;
}
