//! A version 2 document in the protobuf form (`openapi.v2.Document`) that older clients ask for.
//!
//! Field numbers are those of the published `openapiv2/OpenAPIv2.proto`; only what documents here contain is written.

use keelson_api::{Map, Value};

/// Protobuf output: only lengths and varints are needed.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }
    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
    fn text(&mut self, field: u64, text: Option<&str>) {
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }
    fn flag(&mut self, field: u64, on: Option<bool>) {
        if on == Some(true) {
            self.varint(field << 3);
            self.varint(1);
        }
    }
    fn message(&mut self, field: u64, write: impl FnOnce(&mut Out)) {
        let mut inner = Out::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }
    /// A `NamedX`: name, and the value as a message.
    fn named(&mut self, field: u64, name: &str, write: impl FnOnce(&mut Out)) {
        self.message(field, |o| {
            o.text(1, Some(name));
            o.message(2, write);
        });
    }
    fn strings(&mut self, field: u64, list: Option<&Vec<Value>>) {
        for text in list.into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }
    /// A `NamedAny` for each vendor extension; its value is YAML, of which JSON is a part.
    fn extensions(&mut self, field: u64, m: &Map) {
        for (key, value) in m.iter().filter(|(k, _)| k.starts_with("x-")) {
            self.named(field, key, |o| any(o, value));
        }
    }
}

fn any(o: &mut Out, value: &Value) {
    o.text(2, Some(&serde_json::to_string(value).unwrap_or_default()));
}

fn map_of<'a>(m: &'a Map, key: &str) -> impl Iterator<Item = (&'a str, &'a Map)> {
    m.obj(key)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.as_str(), v.as_object()?)))
}

pub fn encode(document: &Value) -> Vec<u8> {
    let mut o = Out::default();
    let Some(doc) = document.as_object() else { return o.0 };
    o.text(1, doc.str("swagger"));
    if let Some(info) = doc.obj("info") {
        o.message(2, |o| {
            o.text(1, info.str("title"));
            o.text(2, info.str("version"));
        });
    }
    o.message(8, |o| {
        map_of(doc, "paths").for_each(|(name, item)| o.named(2, name, |o| path_item(o, item)))
    });
    o.message(9, |o| {
        map_of(doc, "definitions").for_each(|(name, s)| o.named(1, name, |o| schema(o, s)))
    });
    for requirement in doc.arr("security").into_iter().flatten().filter_map(Value::as_object) {
        o.message(12, |o| requirement.keys().for_each(|name| o.named(1, name, |_| {})));
    }
    o.message(13, |o| {
        for (name, definition) in map_of(doc, "securityDefinitions") {
            // SecurityDefinitionsItem.api_key_security = 2
            o.named(1, name, |o| {
                o.message(2, |o| {
                    o.text(1, definition.str("type"));
                    o.text(2, definition.str("name"));
                    o.text(3, definition.str("in"));
                    o.text(4, definition.str("description"));
                });
            });
        }
    });
    o.0
}

fn path_item(o: &mut Out, item: &Map) {
    for (field, method) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (6, "options"),
        (7, "head"),
        (8, "patch"),
    ] {
        if let Some(op) = item.obj(method) {
            o.message(field, |o| operation(o, op));
        }
    }
    parameters(o, 9, item);
    o.extensions(10, item);
}

fn operation(o: &mut Out, op: &Map) {
    o.strings(1, op.arr("tags"));
    o.text(2, op.str("summary"));
    o.text(3, op.str("description"));
    o.text(5, op.str("operationId"));
    o.strings(6, op.arr("produces"));
    o.strings(7, op.arr("consumes"));
    parameters(o, 8, op);
    o.message(9, |o| {
        for (code, response) in map_of(op, "responses") {
            // ResponseValue.response = 1
            o.named(1, code, |o| {
                o.message(1, |o| {
                    o.text(1, response.str("description"));
                    if let Some(s) = response.obj("schema") {
                        // SchemaItem.schema = 1
                        o.message(2, |o| o.message(1, |o| schema(o, s)));
                    }
                });
            });
        }
    });
    o.strings(10, op.arr("schemes"));
    o.extensions(13, op);
}

/// ParametersItem.parameter = 1; Parameter: body_parameter = 1, non_body_parameter = 2.
fn parameters(o: &mut Out, field: u64, m: &Map) {
    for p in m.arr("parameters").into_iter().flatten().filter_map(Value::as_object) {
        o.message(field, |o| {
            o.message(1, |o| match p.str("in") {
                Some("body") => o.message(1, |o| {
                    o.text(1, p.str("description"));
                    o.text(2, p.str("name"));
                    o.text(3, p.str("in"));
                    o.flag(4, p.bool("required"));
                    if let Some(s) = p.obj("schema") {
                        o.message(5, |o| schema(o, s));
                    }
                }),
                place => o.message(2, |o| {
                    // NonBodyParameter: header = 1, form data = 2, query = 3, path = 4.
                    let query = place == Some("query");
                    o.message(if query { 3 } else { 4 }, |o| simple_parameter(o, p, query));
                }),
            });
        });
    }
}

fn simple_parameter(o: &mut Out, p: &Map, query: bool) {
    // A query parameter has `allowEmptyValue` at 5, and what follows one further on than a path parameter has it.
    let shift = u64::from(query);
    o.flag(1, p.bool("required"));
    o.text(2, p.str("in"));
    o.text(3, p.str("description"));
    o.text(4, p.str("name"));
    o.text(5 + shift, p.str("type"));
    o.text(6 + shift, p.str("format"));
    o.flag(19 + shift, p.bool("uniqueItems"));
}

fn schema(o: &mut Out, s: &Map) {
    o.text(1, s.str("$ref"));
    o.text(2, s.str("format"));
    o.text(3, s.str("title"));
    o.text(4, s.str("description"));
    if let Some(default) = s.get("default") {
        o.message(5, |o| any(o, default));
    }
    o.strings(19, s.arr("required"));
    for value in s.arr("enum").into_iter().flatten() {
        o.message(20, |o| any(o, value));
    }
    // AdditionalPropertiesItem: schema = 1, boolean = 2.
    match s.get("additionalProperties") {
        Some(Value::Object(inner)) => o.message(21, |o| o.message(1, |o| schema(o, inner))),
        Some(Value::Bool(on)) => o.message(21, |o| o.flag(2, Some(*on))),
        _ => {}
    }
    if let Some(ty) = s.str("type") {
        o.message(22, |o| o.text(1, Some(ty)));
    }
    if let Some(items) = s.obj("items") {
        o.message(23, |o| o.message(1, |o| schema(o, items)));
    }
    for inner in s.arr("allOf").into_iter().flatten().filter_map(Value::as_object) {
        o.message(24, |o| schema(o, inner));
    }
    if s.contains_key("properties") {
        o.message(25, |o| {
            map_of(s, "properties").for_each(|(name, p)| o.named(1, name, |o| schema(o, p)))
        });
    }
    o.extensions(31, s);
}
