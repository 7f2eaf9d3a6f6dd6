use super::*;
use keelson_api::value;

fn messages(schema: Value, spec: Value, old: Option<Value>) -> Vec<String> {
    let s = Structural::parse(&value!({"type": "object", "properties": {"spec": schema}}));
    let wrap = |spec: Value| value!({"apiVersion": "g/v1", "kind": "K", "metadata": {}, "spec": spec});
    let old = old.map(wrap);
    validate(&wrap(spec), old.as_ref(), &s)
        .into_iter()
        .map(|c| format!("{}: {}", c.field, c.message))
        .collect()
}

#[test]
fn types_and_required() {
    let schema = value!({"type": "object", "required": ["x", "y"], "properties": {
        "x": {"type": "string"}, "l": {"type": "array", "items": {"type": "integer"}}, "n": {"type": "number"},
        "p": {"x-kubernetes-int-or-string": true}, "z": {"type": "string", "nullable": true}}});
    let got = messages(
        schema.clone(),
        value!({"x": 1, "l": [1, "a"], "n": 1, "p": true, "z": null}),
        None,
    );
    assert_eq!(
        got,
        [
            "spec.l[1]: Invalid value: \"string\": spec.l[1] in body must be of type integer: \"string\"",
            "spec.p: Invalid value: \"boolean\": spec.p in body must be of type integer,string: \"boolean\"",
            "spec.x: Invalid value: \"integer\": spec.x in body must be of type string: \"integer\"",
            "spec.y: Required value",
        ]
    );
    assert_eq!(
        messages(schema, value!({"x": null, "y": 1}), None),
        ["spec.x: Invalid value: \"null\": spec.x in body must be of type string: \"null\""]
    );
}

#[test]
fn limits() {
    let schema = value!({"type": "object", "properties": {
        "s": {"type": "string", "pattern": "^a+$", "maxLength": 3, "minLength": 2},
        "n": {"type": "integer", "minimum": 1, "maximum": 10, "exclusiveMaximum": true, "multipleOf": 2},
        "e": {"type": "string", "enum": ["a", "b"]},
        "l": {"type": "array", "maxItems": 1, "minItems": 1, "items": {"type": "integer"}},
        "f": {"type": "string", "format": "date-time"}}});
    assert_eq!(
        messages(
            schema.clone(),
            value!({"s": "b", "n": 11, "e": "c", "l": [1, 2], "f": "x"}),
            None
        ),
        [
            "spec.e: Unsupported value: \"c\": supported values: \"a\", \"b\"",
            "spec.f: Invalid value: \"x\": spec.f in body must be of type date-time: \"x\"",
            "spec.l: Too many: 2: must have at most 1 item",
            "spec.n: Invalid value: 11: spec.n in body should be a multiple of 2",
            "spec.n: Invalid value: 11: spec.n in body should be less than 10",
            "spec.s: Invalid value: \"b\": spec.s in body should be at least 2 chars long",
            "spec.s: Invalid value: \"b\": spec.s in body should match '^a+$'",
        ]
    );
    assert_eq!(
        messages(schema, value!({"s": "aaaa", "n": 0, "l": []}), None),
        [
            "spec.l: Invalid value: 0: spec.l in body should have at least 1 items",
            "spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1",
            "spec.s: Too long: may not be more than 3 bytes",
        ]
    );
}

#[test]
fn logic() {
    let schema = value!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}});
    assert!(messages(schema.clone(), value!({"a": 1}), None).is_empty());
    assert_eq!(
        messages(schema.clone(), value!({"a": 1, "b": 1}), None),
        [
            "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found 2 valid alternatives"
        ]
    );
    assert_eq!(
        messages(schema, value!({}), None),
        [
            "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found none valid",
            "spec.a: Required value"
        ]
    );
}

#[test]
fn lists_of_sets_and_maps_are_unique() {
    let schema = value!({"type": "object", "properties": {
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
              "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}});
    assert_eq!(
        messages(
            schema,
            value!({"s": ["a", "b", "a", "a"], "m": [{"k": "x"}, {"k": "x", "v": 1}]}),
            None
        ),
        [
            "spec.m[1]: Duplicate value: {\"k\":\"x\"}",
            "spec.s[2]: Duplicate value: \"a\""
        ]
    );
}

#[test]
fn what_did_not_change_is_not_complained_about() {
    let schema =
        value!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "string"}}});
    let old = value!({"a": "too long", "b": "x"});
    assert!(messages(schema.clone(), value!({"a": "too long", "b": "y"}), Some(old.clone())).is_empty());
    assert_eq!(messages(schema, value!({"a": "other", "b": "y"}), Some(old)).len(), 1);
}
