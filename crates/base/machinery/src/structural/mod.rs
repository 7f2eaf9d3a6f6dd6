//! Structural schemas: what a CustomResourceDefinition's `openAPIV3Schema` says, parsed once.
//!
//! * [`prune`]: dropping and reporting unknown fields, filling defaults, dropping nulls.
//! * [`validate`]: types, limits, formats, list types; [`formats`]: the string formats.
//! * [`check`]: whether a schema is structural at all.
//! * [`definition`]: validation of a whole CustomResourceDefinition.
//! * [`convert`]: as a [`keelson_api::Schema`]; [`publish`]: as the OpenAPI documents show it.
//!
//! One node type serves both the structure and the logical parts (`allOf`, `anyOf`, `oneOf`, `not`); whether a schema
//! is structural is checked when the definition is written, not here.

pub mod check;
pub mod convert;
pub mod definition;
pub mod formats;
pub mod prune;
pub mod publish;
pub mod validate;

use keelson_api::{Map, Str, Value};
use regex::Regex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A node of a schema.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`; empty: any.
    pub ty: Str,
    pub title: Str,
    pub description: Str,
    pub nullable: bool,
    pub int_or_string: bool,
    pub preserve_unknown: bool,
    pub embedded_resource: bool,
    pub default: Option<Value>,
    pub properties: BTreeMap<Str, Structural>,
    pub additional: Option<Additional>,
    pub items: Option<Box<Structural>>,
    /// `atomic`, `set`, `map`; empty: not said.
    pub list_type: Str,
    pub list_map_keys: Vec<Str>,
    /// `atomic`, `granular`; empty: not said.
    pub map_type: Str,
    pub rules: Vec<Rule>,
    pub checks: Checks,
    /// At the root of a version's schema: what was written, for the OpenAPI documents.
    pub source: Option<Arc<Value>>,
}

/// `additionalProperties`: a bool or a schema.
#[derive(Clone, Debug)]
pub enum Additional {
    Allowed(bool),
    Schema(Box<Structural>),
}

/// One of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: Str,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
}

/// What a value must satisfy besides its type.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    pub format: Str,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Str,
    /// The compiled pattern; absent when it is empty or doesn't compile.
    pub regex: Option<Regex>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub multiple_of: Option<f64>,
    pub enums: Option<Vec<Value>>,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub required: Vec<Str>,
    pub all_of: Vec<Structural>,
    pub any_of: Vec<Structural>,
    pub one_of: Vec<Structural>,
    pub not: Option<Box<Structural>>,
}

impl Structural {
    /// Reads a `JSONSchemaProps`. What isn't understood is left out; the definition's validation reports it.
    pub fn parse(v: &Value) -> Structural {
        let Some(m) = v.as_object() else {
            return Structural::default();
        };
        let text = |key: &str| Str::from(m.str(key).unwrap_or_default());
        let flag = |key: &str| m.bool(key).unwrap_or(false);
        let strings = |key: &str| -> Vec<Str> {
            m.arr(key)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Str::from)
                .collect()
        };
        let mut s = Structural {
            ty: text("type"),
            title: text("title"),
            description: text("description"),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            default: m.get("default").filter(|d| !d.is_null()).cloned(),
            properties: m
                .obj("properties")
                .map(|p| p.iter().map(|(k, v)| (k.clone(), Structural::parse(v))).collect())
                .unwrap_or_default(),
            additional: match m.get("additionalProperties") {
                Some(Value::Bool(b)) => Some(Additional::Allowed(*b)),
                Some(v @ Value::Object(_)) => Some(Additional::Schema(Box::new(Structural::parse(v)))),
                _ => None,
            },
            items: m
                .get("items")
                .filter(|v| v.as_object().is_some())
                .map(|v| Box::new(Structural::parse(v))),
            list_type: text("x-kubernetes-list-type"),
            list_map_keys: strings("x-kubernetes-list-map-keys"),
            map_type: text("x-kubernetes-map-type"),
            rules: m
                .arr("x-kubernetes-validations")
                .into_iter()
                .flatten()
                .filter_map(Rule::parse)
                .collect(),
            checks: Checks::parse(m),
            source: None,
        };
        s.checks.required = strings("required");
        s
    }

    /// The schema of the values of unnamed keys.
    pub fn additional_schema(&self) -> Option<&Structural> {
        match &self.additional {
            Some(Additional::Schema(s)) => Some(s),
            _ => None,
        }
    }

    /// Whether any rule stands here or below.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
            || self.properties.values().any(Structural::has_rules)
            || self.items.as_deref().is_some_and(Structural::has_rules)
            || self.additional_schema().is_some_and(Structural::has_rules)
            || self.checks.all_of.iter().any(Structural::has_rules)
    }
}

impl Rule {
    fn parse(v: &Value) -> Option<Rule> {
        let m = v.as_object()?;
        let text = |key: &str| m.str(key).unwrap_or_default().to_string();
        Some(Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: m.str("reason").unwrap_or_default().into(),
            field_path: text("fieldPath"),
            optional_old_self: m.bool("optionalOldSelf"),
        })
    }
}

impl Checks {
    fn parse(m: &Map) -> Checks {
        let list = |key: &str| m.arr(key).into_iter().flatten().map(Structural::parse).collect();
        let number = |key: &str| m.get(key).and_then(Value::as_f64);
        let pattern = m.str("pattern").unwrap_or_default();
        Checks {
            format: m.str("format").unwrap_or_default().into(),
            maximum: number("maximum"),
            exclusive_maximum: m.bool("exclusiveMaximum").unwrap_or(false),
            minimum: number("minimum"),
            exclusive_minimum: m.bool("exclusiveMinimum").unwrap_or(false),
            max_length: m.int("maxLength"),
            min_length: m.int("minLength"),
            pattern: pattern.into(),
            regex: if pattern.is_empty() {
                None
            } else {
                Regex::new(pattern).ok()
            },
            max_items: m.int("maxItems"),
            min_items: m.int("minItems"),
            unique_items: m.bool("uniqueItems").unwrap_or(false),
            multiple_of: number("multipleOf"),
            enums: m.arr("enum").filter(|e| !e.is_empty()).cloned(),
            max_properties: m.int("maxProperties"),
            min_properties: m.int("minProperties"),
            required: Vec::new(),
            all_of: list("allOf"),
            any_of: list("anyOf"),
            one_of: list("oneOf"),
            not: m.get("not").map(|v| Box::new(Structural::parse(v))),
        }
    }
}
