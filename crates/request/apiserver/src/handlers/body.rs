//! Bodies of writes, decoded: which kind they are, which fields are unknown, and what their defaults are.

use super::negotiate::PROTOBUF;
use keelson_api::codec::{Decoded, Format, Strictness, decode_text, proto, strict_error};
use keelson_api::{ApiError, ApiResult, GroupVersion, GroupVersionKind, Object, SchemaRef, Value};
use keelson_registry::codec::complete;
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
    let value = match format {
        Format::Protobuf => {
            let envelope = proto::open(bytes).map_err(|e| unrecognized(want, &e, bytes))?;
            if !matches!(envelope.content_type, "" | PROTOBUF) {
                return Err(unrecognized(want, &"the envelope holds no protobuf", bytes));
            }
            check_kind(envelope.api_version, envelope.kind, want)?;
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

fn check_kind_of(value: &Value, want: &GroupVersionKind) -> ApiResult<()> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    check_kind(text("apiVersion"), text("kind"), want)
}

/// A text that is of the expected type and says so is read once.
fn as_expected(bytes: &[u8], format: Format, expected: &Expected, strictness: Strictness) -> Option<Decoded> {
    let schema = (!expected.custom).then_some(expected.schema)?;
    let typed = decode_text(bytes, format, Some(schema), strictness).ok()?;
    check_kind_of(&typed.value, expected.kind).ok()?;
    Some(typed)
}

/// The kind is read first: a body of another kind must not be judged by this one's fields.
fn in_two_steps(bytes: &[u8], format: Format, expected: &Expected, strictness: Strictness) -> ApiResult<Decoded> {
    let want = expected.kind;
    let any = decode_text(bytes, format, None, strictness).map_err(|e| unrecognized(want, &json_error(&e), bytes))?;
    check_kind_of(&any.value, want)?;
    if expected.custom {
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

fn check_kind(api_version: &str, kind: &str, want: &GroupVersionKind) -> ApiResult<()> {
    let expected = want.group_version();
    if !api_version.is_empty() && GroupVersion::parse(api_version) != expected {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    if !kind.is_empty() && kind != want.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: converting ({}.{kind}) to ({}.{}): unknown conversion",
            want.version.as_str(),
            want.kind,
            want.version,
            go_package(&want.group),
            want.kind
        )));
    }
    Ok(())
}

/// The last word of upstream's package for a group's internal types.
fn go_package(group: &str) -> &str {
    match group {
        "" => "core",
        g => g.split('.').next().unwrap_or(g),
    }
}

fn cannot_handle(want: &GroupVersionKind, e: &dyn std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!(
        "{} in version {:?} cannot be handled as a {}: {e}",
        want.kind,
        want.version.as_str(),
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
