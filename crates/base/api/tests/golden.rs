//! Objects written by the published Go types, as JSON and as protobuf: both must decode to the same value, and the value
//! must encode to the same protobuf bytes.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Strictness, json, proto};
use keelson_api::schema::FieldType;
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

/// Those of them that can be stored.
fn objects() -> Vec<Golden> {
    let stored = |g: &Golden| match g.schema.def().field("metadata").map(|field| &field.ty) {
        Some(FieldType::Struct(id)) => g.schema.schema.get(*id).field("uid").is_some(),
        _ => false,
    };
    golden().into_iter().filter(stored).collect()
}

/// What reading, setting the revision and writing gives.
fn slowly(g: &Golden, raw: &[u8]) -> Option<Object> {
    let mut object = Object(proto::decode_message(raw, &g.schema).ok()?);
    object.set_meta("resourceVersion", "123456789");
    Some(object)
}

fn members(object: &Object) -> String {
    let text = String::from_utf8(json::encode_map(object)).unwrap();
    format!(",{}", &text[1..text.len() - 1])
}

#[test]
fn json_straight_from_protobuf_is_what_values_give() {
    for g in objects() {
        let raw = proto::open(&g.proto).unwrap().raw;
        let object = slowly(&g, raw).unwrap();
        let mut out = b"before".to_vec();
        proto::json_members(raw, &g.schema, 123_456_789, &mut out).unwrap_or_else(|e| panic!("{}: {e}", g.name));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("before{}", members(&object)),
            "{}",
            g.name
        );
        let mut out = Vec::new();
        proto::json_metadata(raw, &g.schema, 123_456_789, &mut out).unwrap_or_else(|e| panic!("{}: {e}", g.name));
        let metadata = json::encode_map(object.meta().unwrap());
        assert_eq!(
            String::from_utf8(out).unwrap(),
            String::from_utf8(metadata).unwrap(),
            "{}",
            g.name
        );
    }
}

#[test]
fn a_revision_set_in_protobuf_is_what_values_give() {
    let partial = builtin_kind_at("meta.k8s.io/v1", "PartialObjectMetadata").unwrap();
    for g in objects() {
        let raw = proto::open(&g.proto).unwrap().raw;
        let object = slowly(&g, raw).unwrap();
        let revised = proto::revised(raw, 123_456_789).unwrap_or_else(|| panic!("{}", g.name));
        assert_eq!(revised.len(), revised.head.len() + revised.rest.len());
        let wanted = proto::encode_message(&object, &g.schema).unwrap();
        assert_eq!([&revised.head, revised.rest].concat(), wanted, "{}", g.name);
        let mut metadata = Object::new();
        metadata.insert("metadata", object.meta().unwrap().clone());
        let revised = proto::revised_metadata(raw, 123_456_789).unwrap();
        let wanted = proto::encode_message(&metadata, &partial).unwrap();
        assert_eq!([&revised.head, revised.rest].concat(), wanted, "{}", g.name);
    }
}

#[test]
fn single_fields_are_read_as_in_the_whole() {
    for g in objects() {
        let raw = proto::open(&g.proto).unwrap().raw;
        let object: Value = Object(proto::decode_message(raw, &g.schema).unwrap()).into();
        for path in paths(&object) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let read = proto::field_at(raw, &g.schema, &path).unwrap();
            assert_eq!(read.as_ref(), object.at(&path), "{} {path:?}", g.name);
        }
        let none = proto::field_at(raw, &g.schema, &["metadata", "nonsense"]).unwrap();
        assert_eq!(none, None);
        let light = proto::open(&g.proto)
            .unwrap()
            .decode_without_managed_fields(&g.schema)
            .unwrap();
        let mut whole = proto::open(&g.proto).unwrap().decode(&g.schema).unwrap();
        whole.meta_mut().remove("managedFields");
        assert_eq!(light, whole, "{}", g.name);
    }
}

/// The paths of fields of the first two levels, and of what stands in `status` and `spec`.
fn paths(object: &Value) -> Vec<Vec<String>> {
    let mut out = Vec::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        out.push(vec![name.to_string()]);
        if matches!(name.as_str(), "metadata" | "spec" | "status" | "involvedObject") {
            let inner = value.as_object().into_iter().flatten();
            out.extend(inner.map(|(inner, _)| vec![name.to_string(), inner.to_string()]));
        }
    }
    out
}

/// Bytes that were tampered with are refused by both ways or read alike by both, and never panic.
#[test]
fn damaged_messages_are_read_alike() {
    let mut seed = 7u64;
    let mut random = move |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for g in objects().iter().filter(|g| g.proto.len() > 200) {
        let raw = proto::open(&g.proto).unwrap().raw;
        for _ in 0..40 {
            let mut raw = raw.to_vec();
            let at = random(raw.len());
            match random(3) {
                0 => raw[at] = random(256) as u8,
                1 => drop(raw.remove(at)),
                _ => raw.truncate(at),
            }
            let mut out = Vec::new();
            let straight = proto::json_members(&raw, &g.schema, 123_456_789, &mut out);
            let Some(object) = slowly(g, &raw) else { continue };
            if straight.is_ok() {
                assert_eq!(String::from_utf8(out).unwrap(), members(&object), "{}", g.name);
            } else {
                assert!(out.is_empty());
            }
            if let Some(revised) = proto::revised(&raw, 123_456_789) {
                let bytes = [&revised.head, revised.rest].concat();
                assert_eq!(slowly(g, &bytes), Some(object), "{}", g.name);
            }
        }
    }
}
