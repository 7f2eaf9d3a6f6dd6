//! Bodies of writes, decoded: which kind they are, which fields are unknown, and what their defaults are.

use super::negotiate::PROTOBUF;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Decoded, Format, Strictness, decode_text, proto, strict_error};
use keelson_api::{ApiError, ApiResult, GroupVersion, GroupVersionKind, Map, Object, SchemaRef, Value};
use keelson_registry::codec::{complete, kind_error, no_kind};
use keelson_registry::strategy::Strategy;
use keelson_registry::{Cx, FieldValidation};

/// What a body has to be.
pub struct Expected<'a> {
    pub kind: &'a GroupVersionKind,
    pub schema: &'a SchemaRef,
    /// Fills in conditional defaults.
    pub strategy: Option<&'a dyn Strategy>,
    /// A custom resource: decoded without a type, pruned after.
    pub custom: bool,
}

/// Decodes a body as the expected kind. Unknown and duplicate fields are handled as the request wants them.
pub fn decode(cx: &Cx, bytes: &[u8], format: Format, expected: &Expected) -> ApiResult<Object> {
    let want = expected.kind;
    let strictness = match cx.field_validation {
        FieldValidation::Ignore => Strictness::Lenient,
        _ => Strictness::Report,
    };
    let mut findings = Vec::new();
    let mut value = match format {
        Format::Protobuf => {
            let envelope = proto::open(bytes).map_err(|e| unrecognized(want, &e, bytes))?;
            if !matches!(envelope.content_type, "" | PROTOBUF) {
                return Err(unrecognized(want, &"the envelope holds no protobuf", bytes));
            }
            check_kind(envelope.api_version, envelope.kind, expected, bytes)?;
            Value::from(envelope.decode(expected.schema).map_err(|e| cannot_handle(want, &e))?.0)
        }
        Format::Json | Format::Yaml => {
            let decoded = match as_expected(bytes, format, expected, strictness) {
                Some(decoded) => decoded,
                None => in_two_steps(bytes, format, expected, strictness)?,
            };
            findings = decoded.findings;
            decoded.value
        }
    };
    // Go reads nothing into what it has.
    if value.is_null() && !expected.custom {
        value = Value::Object(Map::new());
    }
    // A body may leave out of which version it is: the path says it, and defaults go by it.
    let says_none = |object: &&mut Map| object.str("apiVersion").unwrap_or_default().is_empty();
    if let Some(object) = value.as_object_mut().filter(says_none) {
        object.insert("apiVersion", want.api_version());
    }
    let (mut object, unknown) =
        complete(expected.schema, expected.strategy, value).map_err(|e| cannot_handle(want, &e))?;
    for u in unknown {
        if !findings.contains(&u) {
            findings.push(u);
        }
    }
    report(cx, want, findings)?;
    object.set_gvk(&want.api_version(), &want.kind);
    Ok(object)
}

fn check_kind_of(value: &Value, expected: &Expected, bytes: &[u8]) -> ApiResult<()> {
    if let Some(why) = kind_error(value) {
        return Err(unrecognized(expected.kind, &why, bytes));
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    check_kind(text("apiVersion"), text("kind"), expected, bytes)
}

/// A text that is of the expected type and says so is read once.
fn as_expected(bytes: &[u8], format: Format, expected: &Expected, strictness: Strictness) -> Option<Decoded> {
    let schema = (!expected.custom).then_some(expected.schema)?;
    let typed = decode_text(bytes, format, Some(schema), strictness).ok()?;
    check_kind_of(&typed.value, expected, bytes).ok()?;
    Some(typed)
}

/// The kind is read first: a body of another kind must not be judged by this one's fields.
fn in_two_steps(bytes: &[u8], format: Format, expected: &Expected, strictness: Strictness) -> ApiResult<Decoded> {
    let want = expected.kind;
    let any = decode_text(bytes, format, None, strictness).map_err(|e| unrecognized(want, &json_error(&e), bytes))?;
    check_kind_of(&any.value, expected, bytes)?;
    if expected.custom || any.value.is_null() {
        return Ok(any);
    }
    decode_text(bytes, format, Some(expected.schema), strictness).map_err(|e| cannot_handle(want, &e))
}

/// Unknown and duplicate fields: warned of or refused.
fn report(cx: &Cx, want: &GroupVersionKind, findings: Vec<String>) -> ApiResult<()> {
    match cx.field_validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            findings.into_iter().for_each(|f| cx.warn(f));
            Ok(())
        }
        FieldValidation::Strict => strict_error(&findings).map_or(Ok(()), |e| Err(cannot_handle(want, &e))),
    }
}

/// What a body says that it is; what it leaves out is as expected.
fn check_kind(api_version: &str, kind: &str, expected: &Expected, body: &[u8]) -> ApiResult<()> {
    let want = expected.kind;
    if api_version.matches('/').count() > 1 {
        let why = format!("unexpected GroupVersion string: {api_version}");
        return Err(unrecognized(want, &why, body));
    }
    let mut said = match api_version {
        "/" => GroupVersion::default(),
        text => GroupVersion::parse(text),
    };
    if said.version.is_empty() && (said.group.is_empty() || said.group == want.group) {
        said = want.group_version();
    }
    let kind = if kind.is_empty() { want.kind.as_str() } else { kind };
    let refused = |why: String| {
        let shown = GroupVersionKind::new(&said.group, &said.version, kind);
        Err(cannot_handle_as(&shown, want, &why))
    };
    let version_differs = || {
        ApiError::bad_request(format!(
            "the API version in the data ({said}) does not match the expected API version ({})",
            want.group_version()
        ))
    };
    if said.version.is_empty() {
        let shown = String::from_utf8_lossy(body);
        return refused(format!("Object 'apiVersion' is missing in '{shown}'"));
    }
    if said == want.group_version() && kind == want.kind {
        return Ok(());
    }
    if expected.custom && said != want.group_version() {
        return Err(version_differs());
    }
    if !expected.custom && builtin_kind_at(&said.to_string(), kind).is_none() {
        return refused(no_kind(&said.to_string(), kind));
    }
    // Events are in two groups.
    if kind == want.kind && (said.group == want.group || kind == "Event") {
        return Err(version_differs());
    }
    refused(format!(
        "converting ({}.{kind}) to ({}.{}): unknown conversion",
        said.version,
        go_package(&want.group),
        want.kind
    ))
}

/// The last word of upstream's package for a group's internal types.
fn go_package(group: &str) -> &str {
    match group {
        "" => "core",
        g => g.split('.').next().unwrap_or(g),
    }
}

fn cannot_handle(want: &GroupVersionKind, e: &dyn std::fmt::Display) -> ApiError {
    cannot_handle_as(want, want, e)
}

fn cannot_handle_as(said: &GroupVersionKind, want: &GroupVersionKind, e: &dyn std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!(
        "{} in version {:?} cannot be handled as a {}: {e}",
        said.kind,
        said.version.as_str(),
        want.kind
    ))
}

fn json_error(e: &keelson_api::codec::DecodeError) -> String {
    format!("couldn't get version/kind; json parse error: {e}")
}

fn unrecognized(want: &GroupVersionKind, e: &dyn std::fmt::Display, body: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {e} ({})",
        want.kind,
        summary(body)
    ))
}

fn summary(body: &[u8]) -> String {
    const MAX: usize = 30;
    let dots = if body.len() > MAX { " ..." } else { "" };
    let head = &body[..body.len().min(MAX)];
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{dots}", String::from_utf8_lossy(head)),
        Some(_) => format!("{}{dots}", hex::encode(head)),
    }
}
