//! The error that every layer of the server speaks: what becomes a `metav1.Status` on the wire.
//!
//! Codes, reasons and messages are upstream's, since clients match on them.

use crate::go_quote;
use crate::value::{Map, Str, Value};
use std::collections::HashSet;
use std::fmt;

pub type ApiResult<T> = Result<T, ApiError>;

/// A failed request: code, reason, message and details.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    pub details: Option<Box<Details>>,
}

/// `status.details`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: Str,
    pub group: Str,
    pub kind: Str,
    pub uid: Str,
    pub causes: Vec<Cause>,
    /// Seconds; 0: not set.
    pub retry_after_seconds: i64,
}

/// One of `status.details.causes`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    /// `FieldValueInvalid`, …
    pub reason: Str,
    pub message: String,
    pub field: String,
}

macro_rules! reasons {
    ($($name:ident = $code:literal),* $(,)?) => {
        /// `status.reason`, with the code it usually comes with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { Unknown, $($name),* }
        impl Reason {
            pub fn as_str(self) -> &'static str { match self { Reason::Unknown => "", $(Reason::$name => stringify!($name)),* } }
            pub fn code(self) -> u16 { match self { Reason::Unknown => 500, $(Reason::$name => $code),* } }
            pub fn parse(s: &str) -> Reason { match s { $(stringify!($name) => Reason::$name,)* _ => Reason::Unknown } }
        }
    };
}
reasons! {
    Unauthorized = 401, Forbidden = 403, NotFound = 404, AlreadyExists = 409, Conflict = 409, Gone = 410, Invalid = 422,
    ServerTimeout = 500, StorageReadError = 500, Timeout = 504, TooManyRequests = 429, BadRequest = 400, MethodNotAllowed = 405,
    NotAcceptable = 406, RequestEntityTooLarge = 413, UnsupportedMediaType = 415, InternalError = 500, Expired = 410,
    ServiceUnavailable = 503,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ApiError {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        ApiError {
            code: reason.code(),
            reason,
            message: message.into(),
            details: None,
        }
    }
    pub fn with_code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }
    fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_with(Box::default)
    }
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.details_mut().causes = causes;
        self
    }
    pub fn with_retry_after(mut self, seconds: i64) -> Self {
        self.details_mut().retry_after_seconds = seconds;
        self
    }
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}")).with_causes(vec![Cause {
            message: message.to_string(),
            ..Cause::default()
        }])
    }
    /// `resource` is the qualified one: `deployments.apps`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            Reason::NotFound,
            format!("{} {} not found", qualified(group, resource), go_quote(name)),
        )
        .with_details(named(group, resource, name))
    }
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            Reason::AlreadyExists,
            format!("{} {} already exists", qualified(group, resource), go_quote(name)),
        )
        .with_details(named(group, resource, name))
    }
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        Self::new(
            Reason::Conflict,
            format!(
                "Operation cannot be fulfilled on {} {}: {why}",
                qualified(group, resource),
                go_quote(name)
            ),
        )
        .with_details(named(group, resource, name))
    }
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!("{} {} is forbidden: {why}", qualified(group, resource), go_quote(name))
        };
        Self::new(Reason::Forbidden, message).with_details(named(group, resource, name))
    }
    /// `kind` with its group: details carry the kind, as upstream's `NewInvalid`.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let qualified = qualified(group, kind);
        // What is said twice is said once, as Go's aggregates do.
        let mut said = HashSet::new();
        let each = causes.iter().map(|c| format!("{}: {}", c.field, c.message));
        let each: Vec<String> = each.filter(|text| said.insert(text.clone())).collect();
        let list = match each.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut details = named(group, kind, name);
        details.causes = causes;
        let message = format!("{qualified} {} is invalid: {list}", go_quote(name));
        Self::new(Reason::Invalid, message).with_details(details)
    }
    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        Self::new(
            Reason::MethodNotAllowed,
            format!(
                "{verb} is not supported on resources of kind \"{}\"",
                qualified(group, resource)
            ),
        )
        .with_details(Details {
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        })
    }
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }
    pub fn is(&self, reason: Reason) -> bool {
        self.reason == reason
    }
    /// The `metav1.Status` object.
    pub fn to_status(&self) -> Value {
        let mut m = Map::new();
        m.push("apiVersion", "v1");
        m.push("code", i64::from(self.code));
        if let Some(d) = &self.details {
            let mut o = Map::new();
            if !d.causes.is_empty() {
                o.push("causes", d.causes.iter().map(Cause::to_value).collect::<Vec<_>>());
            }
            for (key, value) in [
                ("group", &d.group),
                ("kind", &d.kind),
                ("name", &d.name),
                ("uid", &d.uid),
            ] {
                if !value.is_empty() {
                    o.insert(key, value.clone());
                }
            }
            if d.retry_after_seconds != 0 {
                o.insert("retryAfterSeconds", d.retry_after_seconds);
            }
            m.push("details", o);
        }
        m.push("kind", "Status");
        m.push("message", self.message.as_str());
        m.push("metadata", Map::new());
        if self.reason != Reason::Unknown {
            m.push("reason", self.reason.as_str());
        }
        m.push("status", "Failure");
        Value::Object(m)
    }
}

impl Cause {
    pub fn new(reason: &str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Cause {
            reason: reason.into(),
            field: field.into(),
            message: message.into(),
        }
    }
    /// `field.Required`
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let sep = if detail.is_empty() { "" } else { ": " };
        Self::new("FieldValueRequired", field, format!("Required value{sep}{detail}"))
    }
    /// `field.Invalid`; `value` as Go prints it (strings quoted).
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::invalid_shown(field, &shown(value), detail)
    }
    /// The same for a value that is shown in a form of its own.
    pub fn invalid_shown(field: impl Into<String>, shown: &str, detail: &str) -> Self {
        let sep = if detail.is_empty() { "" } else { ": " };
        Self::new(
            "FieldValueInvalid",
            field,
            format!("Invalid value: {shown}{sep}{detail}"),
        )
    }
    /// `field.NotSupported`
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| go_quote(s)).collect();
        Self::new(
            "FieldValueNotSupported",
            field,
            format!(
                "Unsupported value: {}: supported values: {}",
                shown(value),
                list.join(", ")
            ),
        )
    }
    /// `field.Forbidden`
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        let sep = if detail.is_empty() { "" } else { ": " };
        Self::new("FieldValueForbidden", field, format!("Forbidden{sep}{detail}"))
    }
    /// `field.Duplicate`
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            "FieldValueDuplicate",
            field,
            format!("Duplicate value: {}", shown(value)),
        )
    }
    /// `field.NotFound`
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {}", shown(value)))
    }
    /// `field.TooLong`
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(
            "FieldValueTooLong",
            field,
            format!("Too long: may not be more than {max} bytes"),
        )
    }
    /// `field.TypeInvalid`
    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(
            "FieldValueTypeInvalid",
            field,
            format!("Invalid value: {}: {detail}", shown(value)),
        )
    }
    fn to_value(&self) -> Value {
        let mut m = Map::new();
        if !self.field.is_empty() {
            m.push("field", self.field.as_str());
        }
        if !self.message.is_empty() {
            m.push("message", self.message.as_str());
        }
        if !self.reason.is_empty() {
            m.push("reason", self.reason.clone());
        }
        Value::Object(m)
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(s) => go_quote(s),
        Value::Null => "null".into(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_string()
    } else {
        format!("{resource}.{group}")
    }
}

fn named(group: &str, kind: &str, name: &str) -> Details {
    Details {
        name: name.into(),
        group: group.into(),
        kind: kind.into(),
        ..Details::default()
    }
}
