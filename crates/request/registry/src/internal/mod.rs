//! Structs as upstream shows them in messages: the JSON of its internal types, whose fields have Go's names and order.
//!
//! Which fields there are is read from a table that `tools/validation` writes; values are of the published types.

mod diff;

use keelson_api::codec::json;
use keelson_api::{Map, Value};
use std::collections::HashMap;
use std::sync::OnceLock;

struct Field {
    key: &'static str,
    /// Where the published form has it, dotted.
    source: &'static str,
    ty: &'static str,
    omit_empty: bool,
}

type Table = HashMap<&'static str, Vec<Field>>;

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Table::new();
        let mut name = "";
        for line in include_str!("types.txt").lines() {
            if let Some(ty) = line.strip_prefix("type ") {
                name = ty;
                table.entry(name).or_default();
            } else if let [key, source, ty, ref options @ ..] = *line.trim().split(' ').collect::<Vec<_>>()
                && !line.starts_with('#')
            {
                let omit_empty = options.contains(&"omitempty");
                let field = Field {
                    key,
                    source,
                    ty,
                    omit_empty,
                };
                table.entry(name).or_default().push(field);
            }
        }
        table
    })
}

/// A value of an internal type (`core.PodSpec`, `[]core.Toleration`) on one line.
pub fn shown(ty: &str, value: Option<&Value>) -> String {
    let mut writer = Writer::default();
    writer.value(ty, value);
    writer.out
}

/// How two values of an internal type differ: the changed lines of their indented JSON, with three around them.
pub fn difference(ty: &str, old: &Value, new: &Value) -> String {
    let lines = |value| {
        let mut writer = Writer {
            indent: Some(0),
            ..Writer::default()
        };
        writer.value(ty, Some(value));
        writer.out
    };
    diff::unified(&lines(old), &lines(new))
}

#[derive(Default)]
struct Writer {
    out: String,
    /// How deep the line is; `None`: all on one line.
    indent: Option<usize>,
}

impl Writer {
    fn value(&mut self, ty: &str, value: Option<&Value>) {
        let value = value.filter(|v| !v.is_null());
        if let Some(inner) = ty.strip_prefix('*') {
            return match value {
                Some(_) => self.value(inner, value),
                None => self.out.push_str("null"),
            };
        }
        if let Some(element) = ty.strip_prefix("[]") {
            let Some(list) = value.and_then(Value::as_array) else {
                return self.out.push_str("null");
            };
            return self.block('[', ']', list.iter(), |w, v| w.value(element, Some(v)));
        }
        if let Some(element) = ty.strip_prefix("{}") {
            let Some(map) = value.and_then(Value::as_object) else {
                return self.out.push_str("null");
            };
            return self.block('{', '}', map.iter(), |w, (key, v)| {
                w.key(key);
                w.value(element, Some(v));
            });
        }
        match (ty, value) {
            ("string", None) => self.out.push_str("\"\""),
            ("bool", None) => self.out.push_str("false"),
            ("int", None) => self.out.push('0'),
            ("quantity", None) => self.out.push_str("\"0\""),
            ("time" | "any", None) => self.out.push_str("null"),
            ("string" | "bool" | "int" | "quantity" | "time" | "any", Some(v)) => self.scalar(v),
            (name, value) => {
                let empty = Map::new();
                self.fields(name, value.and_then(Value::as_object).unwrap_or(&empty));
            }
        }
    }

    fn fields(&mut self, name: &str, map: &Map) {
        let fields = table().get(name).map(Vec::as_slice).unwrap_or_default();
        let found = fields.iter().map(|field| {
            let mut steps = field.source.split('.');
            let first = steps.next().and_then(|key| map.get(key));
            (field, steps.fold(first, |at, key| at?.get(key)))
        });
        let there = found.filter(|(field, value)| !field.omit_empty || !is_empty(field.ty, *value));
        self.block('{', '}', there, |w, (field, value)| {
            w.key(field.key);
            w.value(field.ty, value);
        });
    }

    fn block<T>(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.out.push(open);
        self.indent = self.indent.map(|n| n + 1);
        let mut any = false;
        for item in items {
            if any {
                self.out.push(',');
            }
            any = true;
            self.line();
            each(self, item);
        }
        self.indent = self.indent.map(|n| n - 1);
        if any {
            self.line();
        }
        self.out.push(close);
    }

    fn line(&mut self) {
        if let Some(n) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', n));
        }
    }

    fn key(&mut self, key: &str) {
        self.scalar(&Value::from(key));
        self.out.push_str(if self.indent.is_some() { ": " } else { ":" });
    }

    fn scalar(&mut self, value: &Value) {
        self.out.push_str(&String::from_utf8_lossy(&json::encode(value)));
    }
}

/// What `omitempty` leaves out.
fn is_empty(ty: &str, value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => !table().contains_key(ty),
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => ty.starts_with("{}") && map.is_empty(),
        Some(_) if ty.starts_with('*') => false,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Bool(b)) => !b,
        Some(Value::Int(i)) => *i == 0,
        Some(Value::Float(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn structs_have_all_fields_in_gos_order() {
        let selector =
            value!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}], "matchLabels": {"x": "y"}});
        assert_eq!(
            shown("v1.LabelSelector", Some(&selector)),
            r#"{"matchLabels":{"x":"y"},"matchExpressions":[{"key":"a","operator":"In","values":["b"]}]}"#
        );
        assert_eq!(
            shown(
                "core.PodResourceClaim",
                Some(&value!({"name": "gpu", "resourceClaimName": "a"}))
            ),
            r#"{"Name":"gpu","ResourceClaimName":"a","ResourceClaimTemplateName":null}"#
        );
        assert_eq!(shown("*core.PodSecurityContext", None), "null");
    }

    #[test]
    fn embedded_metadata_stand_inline() {
        let template = value!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let text = shown("core.PodTemplateSpec", Some(&template));
        assert!(
            text.starts_with(r#"{"labels":{"a":"b"},"Spec":{"Volumes":null,"InitContainers":null,"Containers":[],"#),
            "{text}"
        );
    }

    #[test]
    fn a_difference_shows_three_lines_around() {
        let old = value!({"name": "gpu", "resourceClaimName": "a"});
        let new = value!({"name": "gpu", "resourceClaimName": "b"});
        assert_eq!(
            difference("core.PodResourceClaim", &old, &new),
            "@@ -1,5 +1,5 @@\n {\n  \"Name\": \"gpu\",\n- \"ResourceClaimName\": \"a\",\n+ \"ResourceClaimName\": \"b\",\n  \"ResourceClaimTemplateName\": null\n }\n"
        );
    }
}
