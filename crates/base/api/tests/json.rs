//! What JSON decoding refuses and reports, in upstream's words.

#![allow(clippy::unwrap_used)]

use keelson_api::SchemaRef;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{DecodeError, Strictness, json, yaml};

fn schema(api_version: &str, kind: &str) -> SchemaRef {
    builtin_kind_at(api_version, kind).unwrap()
}

fn error(kind: (&str, &str), text: &str) -> String {
    json::decode(text.as_bytes(), Some(&schema(kind.0, kind.1)), Strictness::Report)
        .unwrap_err()
        .0
}

#[test]
fn type_errors_read_as_gos() {
    let deployment = ("apps/v1", "Deployment");
    assert_eq!(
        error(deployment, r#"{"spec":{"replicas":"3"}}"#),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        error(deployment, r#"{"spec":{"replicas":1.5}}"#),
        "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        error(("v1", "Pod"), r#"{"spec":{"containers":{}}}"#),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
    );
    assert_eq!(
        error(("v1", "ConfigMap"), r#"{"data":{"a":1}}"#),
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
    assert_eq!(
        error(("v1", "Pod"), r#"{"spec":{"volumes":[{"configMap":{"name":5}}]}}"#),
        "json: cannot unmarshal number into Go struct field ConfigMapVolumeSource.spec.volumes.VolumeSource.configMap.LocalObjectReference.name of type string"
    );
    for (field, of) in [
        (r#""metadata":{"uid":5}"#, "ObjectMeta.metadata.uid of type types.UID"),
        (
            r#""metadata":{"creationTimestamp":5}"#,
            "ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (
            r#""spec":{"overhead":5}"#,
            "PodSpec.spec.overhead of type v1.ResourceList",
        ),
        (
            r#""spec":{"restartPolicy":5}"#,
            "PodSpec.spec.restartPolicy of type v1.RestartPolicy",
        ),
        (r#""spec":{"volumes":[5]}"#, "PodSpec.spec.volumes of type v1.Volume"),
        (
            r#""spec":{"nodeSelector":5}"#,
            "PodSpec.spec.nodeSelector of type map[string]string",
        ),
    ] {
        let want = format!("json: cannot unmarshal number into Go struct field {of}");
        assert_eq!(error(("v1", "Pod"), &format!("{{{field}}}")), want);
    }
    assert_eq!(
        error(("v1", "PersistentVolumeClaim"), r#"{"spec":{"accessModes":[5]}}"#),
        "json: cannot unmarshal number into Go struct field PersistentVolumeClaimSpec.spec.accessModes of type v1.PersistentVolumeAccessMode"
    );
    assert_eq!(
        error(("v1", "Pod"), r#"{"metadata":{"creationTimestamp":"yesterday"}}"#),
        r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#
    );
    assert!(
        error(("v1", "Pod"), r#"{"spec":{"overhead":{"cpu":"1x"}}}"#).starts_with("quantities must match the regular")
    );
}

#[test]
fn syntax_errors_read_as_gos() {
    for (text, want) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        (
            "{\"a\":1,}",
            "invalid character '}' looking for beginning of object key string",
        ),
        ("{\"a\" 1}", "invalid character '1' after object key"),
        ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("nul", "unexpected end of JSON input"),
        ("nope", "invalid character 'o' in literal null (expecting 'u')"),
        ("\"a\nb\"", "invalid character '\\n' in string literal"),
        ("\"\\x\"", "invalid character 'x' in string escape code"),
        ("-", "unexpected end of JSON input"),
        ("hello", "invalid character 'h' looking for beginning of value"),
    ] {
        let got = json::decode(text.as_bytes(), None, Strictness::Lenient).unwrap_err();
        assert_eq!(got, DecodeError(want.into()), "{text}");
    }
    let deep = "[".repeat(5000);
    assert_eq!(
        json::decode(deep.as_bytes(), None, Strictness::Lenient).unwrap_err().0,
        "exceeded max depth"
    );
}

#[test]
fn unknown_and_duplicate_fields_are_reported() {
    let text = r#"{"kind":"Deployment","metadata":{"name":"a","name":"b","labels":{"x":"1","x":"2"}},
        "spec":{"foo":{"bar":1},"template":{"spec":{"containers":[{"name":"c","unknownField":true}]}}}}"#;
    let d = json::decode(
        text.as_bytes(),
        Some(&schema("apps/v1", "Deployment")),
        Strictness::Report,
    )
    .unwrap();
    assert_eq!(
        d.strict_error().unwrap().0,
        "strict decoding error: duplicate field \"metadata.name\", duplicate field \"metadata.labels.x\", \
         unknown field \"spec.foo\", unknown field \"spec.template.spec.containers[0].unknownField\""
    );
    assert_eq!(d.value.at(&["metadata", "name"]).unwrap().as_str(), Some("b"));
    assert!(d.value.at(&["spec", "foo"]).is_none());
}

#[test]
fn what_comes_again_is_read_into_what_is_there() {
    let text = br#"{"metadata":{"labels":{"a":"1","b":"1"},"finalizers":["x"],"name":"x"},
        "metadata":{"labels":{"b":"2"},"labels":{"c":"3"},"finalizers":["y"]},"metadata":{"name":"y"}}"#;
    let d = json::decode(text, Some(&schema("v1", "ConfigMap")), Strictness::Lenient).unwrap();
    assert_eq!(
        json::encode(d.value.at(&["metadata"]).unwrap()),
        br#"{"finalizers":["y"],"labels":{"a":"1","b":"2","c":"3"},"name":"y"}"#
    );
}

#[test]
fn strings_are_unescaped_as_go_does() {
    let d = json::decode(br#""\u00e9\ud83d\ude00\ud800x\/\n""#, None, Strictness::Lenient).unwrap();
    assert_eq!(d.value.as_str(), Some("é😀\u{fffd}x/\n"));
    assert_eq!(
        json::encode(&"<a & b>\u{2028}\u{1}\"".into()),
        br#""\u003ca \u0026 b\u003e\u2028\u0001\"""#
    );
}

#[test]
fn floats_are_written_as_go_does() {
    for (text, want) in [
        ("1.0", "1.0"),
        ("1e21", "1e+21"),
        ("1.5e-7", "1.5e-7"),
        ("100000.25", "100000.25"),
    ] {
        let d = json::decode(text.as_bytes(), None, Strictness::Lenient).unwrap();
        let want = want.trim_end_matches(".0");
        assert_eq!(String::from_utf8(json::encode(&d.value)).unwrap(), want, "{text}");
    }
}

#[test]
fn yaml_knows_octal_modes_and_old_booleans() {
    let text =
        b"metadata:\n  name: x\nspec:\n  volumes:\n  - name: a\n    secret: {defaultMode: 0644, optional: yes}\n";
    let d = yaml::decode(text, Some(&schema("v1", "Pod")), Strictness::Report).unwrap();
    assert!(d.findings.is_empty(), "{:?}", d.findings);
    let volume = &d.value.at(&["spec", "volumes"]).unwrap().as_array().unwrap()[0];
    assert_eq!(volume.at(&["secret", "defaultMode"]).unwrap().as_i64(), Some(420));
    assert_eq!(volume.at(&["secret", "optional"]).unwrap().as_bool(), Some(true));
    let twice = b"metadata:\n  name: x\n  name: z\n";
    assert_eq!(
        yaml::decode(twice, Some(&schema("v1", "Pod")), Strictness::Report)
            .unwrap()
            .findings
            .len(),
        1
    );
    assert!(yaml::decode(b"a: [", None, Strictness::Lenient).is_err());
}

#[test]
fn duplicates_are_found_in_large_maps_too() {
    let keys = (0..200).chain([150]).map(|i| format!("\"k{i}\":\"v\""));
    let text = format!("{{\"data\":{{{}}}}}", keys.collect::<Vec<_>>().join(","));
    let map = schema("v1", "ConfigMap");
    let decoded = json::decode(text.as_bytes(), Some(&map), Strictness::Report).unwrap();
    assert_eq!(decoded.findings, ["duplicate field \"data.k150\""]);
}

#[test]
fn maps_of_messages_may_come_in_any_order() {
    let map = schema("v1", "ConfigMap");
    let message = |key: &str| {
        let value = json::decode(
            format!("{{\"data\":{{\"{key}\":\"{key}\"}}}}").as_bytes(),
            None,
            Strictness::Lenient,
        );
        let value = value.unwrap().value;
        keelson_api::codec::proto::encode_message(value.as_object().unwrap(), &map).unwrap()
    };
    // Messages that stand one after another are one message.
    let message = [message("b"), message("a"), message("b")].concat();
    let decoded = keelson_api::codec::proto::decode_message(&message, &map).unwrap();
    let data = decoded.obj("data").unwrap();
    assert_eq!(data.keys().map(|k| k.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(data.str("a"), Some("a"));
}

#[test]
fn a_text_is_escaped_alike_wherever_its_bytes_stand() {
    let escaped = |c: char| match c {
        '"' => "\\\"".to_string(),
        '\\' => "\\\\".into(),
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        '\u{8}' => "\\b".into(),
        '\u{c}' => "\\f".into(),
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | ..' ' => format!("\\u{:04x}", c as u32),
        plain => plain.into(),
    };
    let some = (0..0x80).chain([0xe9, 0x2027, 0x2028, 0x2029, 0x20ac, 0x1f600]);
    for c in some.filter_map(char::from_u32) {
        for at in 0..18 {
            let (before, after) = ("x".repeat(at), "~!".repeat((18 - at) / 2));
            let written = json::encode(&format!("{before}{c}{after}").into());
            let wanted = format!("\"{before}{}{after}\"", escaped(c));
            assert_eq!(String::from_utf8(written).unwrap(), wanted);
        }
    }
}
