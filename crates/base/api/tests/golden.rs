//! Objects written by the published Go types, as JSON and as protobuf: both must decode to the same value, and the value
//! must encode to the same protobuf bytes.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Strictness, json, proto};
use keelson_api::{Object, SchemaRef, Value};

struct Golden {
    name: String,
    schema: SchemaRef,
    json: Vec<u8>,
    proto: Vec<u8>,
}

fn golden() -> Vec<Golden> {
    let text = include_str!("golden.txt");
    text.lines()
        .map(|line| {
            let mut columns = line.split('\t');
            let name = columns.next().unwrap();
            let (api_version, kind) = name.split_once(',').unwrap();
            let schema = builtin_kind_at(api_version, kind).unwrap_or_else(|| panic!("no schema of {name}"));
            let json = columns.next().unwrap().as_bytes().to_vec();
            let proto = base64::engine::general_purpose::STANDARD
                .decode(columns.next().unwrap())
                .unwrap();
            Golden {
                name: name.into(),
                schema,
                json,
                proto,
            }
        })
        .collect()
}

fn from_json(g: &Golden) -> Value {
    let decoded =
        json::decode(&g.json, Some(&g.schema), Strictness::Report).unwrap_or_else(|e| panic!("{}: {e}", g.name));
    assert!(decoded.findings.is_empty(), "{}: {:?}", g.name, decoded.findings);
    decoded.value
}

/// Where two values differ.
fn differences(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for key in x.keys().chain(y.keys().filter(|k| !x.contains_key(k))) {
                let path = format!("{path}.{key}");
                match (x.get(key), y.get(key)) {
                    (Some(a), Some(b)) => differences(&path, a, b, out),
                    (a, b) => out.push(format!("{path}: {a:?} != {b:?}")),
                }
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (i, (a, b)) in x.iter().zip(y).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, out);
            }
        }
        _ if a != b => out.push(format!("{path}: {a:?} != {b:?}")),
        _ => {}
    }
}

#[test]
fn protobuf_decodes_to_what_json_says() {
    let mut failures = Vec::new();
    for g in golden() {
        let envelope = proto::open(&g.proto).unwrap();
        let value: Value = envelope
            .decode(&g.schema)
            .unwrap_or_else(|e| panic!("{}: {e}", g.name))
            .into();
        differences(&g.name, &from_json(&g), &value, &mut failures);
    }
    assert!(
        failures.is_empty(),
        "{} differences (json != proto):\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn json_encodes_to_the_same_protobuf() {
    let mut failures = Vec::new();
    for g in golden() {
        let object = Object::try_from(from_json(&g)).unwrap();
        let bytes = proto::encode(&object, &g.schema).unwrap_or_else(|e| panic!("{}: {e}", g.name));
        if bytes != g.proto {
            let ours: Value = proto::open(&bytes).unwrap().decode(&g.schema).unwrap().into();
            let mut found = vec![format!("{}: {} bytes, want {}", g.name, bytes.len(), g.proto.len())];
            differences(&g.name, &from_json(&g), &ours, &mut found);
            failures.push(found.join("\n  "));
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn json_is_written_as_go_writes_it() {
    // Only the order of keys differs: reading Go's text without a schema and writing it gives our text.
    for g in golden() {
        let plain = json::decode(&g.json, None, Strictness::Report).unwrap();
        assert!(plain.findings.is_empty());
        let text = json::encode(&from_json(&g));
        assert_eq!(
            String::from_utf8(json::encode(&plain.value)).unwrap(),
            String::from_utf8(text).unwrap(),
            "{}",
            g.name
        );
    }
}

#[test]
fn yaml_says_the_same() {
    use keelson_api::codec::yaml;
    for g in golden()
        .into_iter()
        .filter(|g| g.name.ends_with("Pod") || g.name.ends_with("Service"))
    {
        let value = from_json(&g);
        let text = yaml::encode(&value);
        let again = yaml::decode(&text, Some(&g.schema), Strictness::Report).unwrap();
        assert_eq!(again.value, value, "{}", String::from_utf8_lossy(&text));
    }
}

#[test]
fn cut_messages_are_errors_not_panics() {
    for g in golden().iter().filter(|g| g.proto.len() > 200).take(20) {
        let raw = proto::open(&g.proto).unwrap().raw;
        for end in 0..raw.len() {
            let _ = proto::decode_message(&raw[..end], &g.schema);
            let _ = json::decode(&g.json[..end.min(g.json.len())], Some(&g.schema), Strictness::Report);
        }
    }
}
