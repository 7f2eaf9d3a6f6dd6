//! The ways in which a value of a type is changed.

use super::places::{Change, Place, To, least};
use keelson_api::schema::FieldType;
use serde_json::{Map, Value, json};

/// All changes of what stands at a place, or of what doesn't.
pub fn of(place: &Place) -> Vec<Change> {
    let mut out = Changes(Vec::new());
    let name = place.field.as_ref().map(|f| f.name.to_string());
    let Some(value) = &place.value else {
        out.to("set", least(&place.ty));
        if !matches!(place.ty, FieldType::Struct(_)) {
            out.to("set empty", empty(&place.ty));
        }
        out.to("set to another type", other_type(&place.ty));
        return out.0;
    };
    out.push("removed", To::Removed);
    out.to("null", Value::Null);
    out.to("another type", other_type(&place.ty));
    if let Some(name) = name {
        let upper = name[..1].to_uppercase() + &name[1..];
        out.push("written in another case", To::Renamed(upper));
        out.push("written twice", To::Twice(value.clone()));
    }
    if place.field.is_some() && matches!(place.ty, FieldType::Struct(_)) {
        out.push("beside an unknown field", To::Beside);
    }
    let enums = place.field.iter().flat_map(|f| &f.enums);
    for one in enums.filter(|e| value.as_str() != Some(e.as_str())) {
        out.to(&format!("{one}"), json!(one.as_str()));
    }
    match &place.ty {
        FieldType::Bool => out.to("turned", json!(value != &Value::Bool(true))),
        FieldType::Int32 | FieldType::Int64 | FieldType::UInt32 | FieldType::UInt64 => numbers(value, &mut out),
        FieldType::Float32 | FieldType::Float64 => numbers(value, &mut out),
        FieldType::String => strings(value, &mut out),
        FieldType::Bytes => {
            out.all(&[("", ""), ("changed", "Yg=="), ("no base64", "%"), ("unpadded", "YQ")]);
        }
        FieldType::Quantity => quantities(&mut out),
        FieldType::IntOrString => int_or_strings(&mut out),
        FieldType::Time | FieldType::MicroTime | FieldType::Duration => {
            out.all(&[
                ("empty", ""),
                ("no time", "yesterday"),
                ("negative", "-5m"),
                ("date", "2026-01-02"),
                ("other", "2027-01-02T03:04:05.5+02:00"),
            ]);
        }
        FieldType::List(element) => lists(value, element, &mut out),
        FieldType::Map(element) => maps(value, element, &mut out),
        FieldType::Struct(_) => out.to("empty", json!({})),
        _ => out.to("empty", json!({})),
    }
    out.0
}

struct Changes(Vec<Change>);

impl Changes {
    fn push(&mut self, label: &str, to: To) {
        self.0.push(Change {
            label: label.into(),
            to,
        });
    }
    fn to(&mut self, label: &str, value: Value) {
        self.push(label, To::Value(value));
    }
    fn all(&mut self, values: &[(&str, &str)]) {
        for (label, value) in values {
            self.to(label, json!(value));
        }
    }
}

fn empty(ty: &FieldType) -> Value {
    match ty {
        FieldType::Bool => json!(false),
        FieldType::Int32 | FieldType::Int64 | FieldType::UInt32 | FieldType::UInt64 | FieldType::Float64 => json!(0),
        FieldType::List(_) => json!([]),
        FieldType::Map(_) => json!({}),
        FieldType::Quantity | FieldType::IntOrString => json!(0),
        _ => json!(""),
    }
}

fn other_type(ty: &FieldType) -> Value {
    match ty {
        FieldType::String | FieldType::Bytes | FieldType::Time | FieldType::MicroTime | FieldType::Duration => json!(5),
        FieldType::List(_) => json!({"a": 1}),
        FieldType::Quantity | FieldType::IntOrString => json!([1]),
        _ => json!("text"),
    }
}

fn numbers(value: &Value, out: &mut Changes) {
    let n = value.as_i64().unwrap_or(0);
    for (label, number) in [
        ("one more", n.saturating_add(1)),
        ("one less", n.saturating_sub(1)),
        ("zero", 0),
        ("negative", -1),
        ("large", 100_000),
        ("the largest of 32 bits", i64::from(i32::MAX)),
        ("too large for 32 bits", 1 << 31),
        ("the largest", i64::MAX),
    ] {
        if number != n {
            out.to(label, json!(number));
        }
    }
    out.to("a fraction", json!(1.5));
    out.to("a number in quotes", json!(n.to_string()));
}

fn strings(value: &Value, out: &mut Changes) {
    let text = value.as_str().unwrap_or_default();
    out.to("empty", json!(""));
    out.to("longer", json!(format!("{text}x")));
    out.to("upper case", json!("Upper_Case"));
    out.to("of 64", json!("a".repeat(64)));
    out.to("of 300", json!("a".repeat(300)));
    out.all(&[
        ("with spaces", "a b"),
        ("with odd marks", "-a.!b/"),
        ("dotted", "a.b.c"),
        ("qualified", "example.com/a"),
        ("a way up", "../x"),
        ("a root", "/x"),
        ("not ASCII", "ä"),
        ("of lines", "a\nb"),
        ("an address", "10.0.0.1"),
        ("an address with zeros", "010.0.0.1"),
        ("an address of six", "fd00::1"),
        ("a network", "10.0.0.1/24"),
        ("a number", "5"),
        ("a URL", "http://a/b"),
    ]);
}

fn quantities(out: &mut Changes) {
    out.all(&[
        ("negative", "-1"),
        ("zero", "0"),
        ("fraction", "1500m"),
        ("tiny", "1n"),
        ("huge", "9Ei"),
        ("exponent", "1e3"),
        ("no quantity", "abc"),
        ("empty", ""),
        ("unit in lower case", "1gi"),
        ("plain", "2"),
    ]);
    out.to("a number", json!(3));
    out.to("a broken number", json!(0.5));
}

fn int_or_strings(out: &mut Changes) {
    out.all(&[
        ("half", "50%"),
        ("too much", "150%"),
        ("below", "-1%"),
        ("text", "abc"),
        ("empty", ""),
        ("upper case", "A_b"),
        ("none", "0%"),
        ("long", "abcdefghijklmnop"),
    ]);
    for n in [0, 1, -1, 70_000] {
        out.to(&n.to_string(), json!(n));
    }
}

fn lists(value: &Value, element: &FieldType, out: &mut Changes) {
    let items = value.as_array().cloned().unwrap_or_default();
    out.to("empty", json!([]));
    out.to("of null", json!([null]));
    out.to("of the least", json!([least(element)]));
    if let Some(first) = items.first() {
        let mut twice = items.clone();
        twice.push(first.clone());
        out.to("with its first twice", json!(twice));
        out.to("of many", json!(vec![first.clone(); 101]));
    }
    if items.len() > 1 {
        out.to("the other way round", json!(items.iter().rev().collect::<Vec<_>>()));
        out.to("of the first", json!(items[..1]));
    }
    let mut more = items;
    more.push(least(element));
    out.to("with one more", json!(more));
}

fn maps(value: &Value, element: &FieldType, out: &mut Changes) {
    let map = value.as_object().cloned().unwrap_or_default();
    out.to("empty", json!({}));
    for key in [
        "added",
        "",
        "Not_a/good/key!",
        "a b",
        "example.com/x",
        "kubernetes.io/x",
    ] {
        let mut more = map.clone();
        more.insert(
            key.into(),
            map.values().next().cloned().unwrap_or_else(|| least(element)),
        );
        out.to(&format!("with key {key:?}"), Value::Object(more));
    }
    let long: Map<String, Value> = [("k".repeat(300), least(element))].into_iter().collect();
    out.to("with a long key", Value::Object(long));
}
