//! PATCH: what a JSON, merge or strategic merge patch makes of the object that is there.

use crate::codec::{complete_from, kind_error, no_kind};
use crate::context::{Cx, FieldValidation};
use crate::engine::{Engine, UpdateSource};
use crate::managed;
use crate::patched;
use crate::strategy::Strategy;
use async_trait::async_trait;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{MOST_FINDINGS, Strictness, json};
use keelson_api::{ApiError, ApiResult, Cause, Object, Reason, SchemaRef, Value};
use keelson_machinery::canonical::Wording;
use keelson_machinery::go;
use keelson_machinery::patch::json_patch::{self, MAX_OPERATIONS};
use keelson_machinery::patch::{merge_patch, strategic};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
}

/// A patch that was read and is not yet applied.
pub struct Patch {
    kind: PatchKind,
    patch: Value,
    /// Duplicate fields of the patch itself.
    findings: Vec<String>,
}

impl Patch {
    pub fn parse(cx: &Cx, kind: PatchKind, bytes: &[u8]) -> ApiResult<Self> {
        let strictness = match cx.field_validation {
            FieldValidation::Ignore => Strictness::Lenient,
            _ => Strictness::Report,
        };
        let decoded = json::decode(bytes, None, strictness).map_err(|e| match kind {
            // What is no JSON at all isn't looked at any further.
            _ if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err() => {
                ApiError::bad_request("invalid JSON patch")
            }
            PatchKind::Strategic => ApiError::bad_request(e.to_string()),
            _ => ApiError::bad_request(format!("error decoding patch: {e}")),
        })?;
        let mut findings = decoded.findings;
        match (&decoded.value, kind) {
            (Value::Array(ops), PatchKind::Json) if ops.len() > MAX_OPERATIONS => {
                return Err(ApiError::new(
                    Reason::RequestEntityTooLarge,
                    format!(
                        "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                        ops.len()
                    ),
                ));
            }
            (Value::Array(ops), PatchKind::Json) => {
                findings.iter_mut().for_each(|f| *f = format!("json patch {f}"));
                let keys = ops.iter().enumerate().flat_map(|(i, op)| {
                    let keys = op.as_object().into_iter().flat_map(|o| o.keys());
                    keys.map(move |key| (i, key))
                });
                let unknown = keys.filter(|(_, key)| !matches!(key.as_str(), "op" | "path" | "from" | "value"));
                let room = MOST_FINDINGS.saturating_sub(findings.len());
                findings.extend(
                    unknown
                        .map(|(i, key)| format!("json patch unknown field \"[{i}].{key}\""))
                        .take(room),
                );
            }
            (Value::Object(_), PatchKind::Merge | PatchKind::Strategic) => {}
            (other, PatchKind::Json) => {
                return Err(ApiError::bad_request(format!(
                    "error decoding patch: json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
                    other.type_name()
                )));
            }
            (other, PatchKind::Merge) => {
                return Err(ApiError::bad_request(format!(
                    "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                    other.type_name()
                )));
            }
            (other, PatchKind::Strategic) => {
                return Err(ApiError::bad_request(format!(
                    "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                    other.type_name()
                )));
            }
        }
        Ok(Patch {
            kind,
            patch: decoded.value,
            findings,
        })
    }

    /// The patched object, complete and checked for unknown fields.
    pub fn apply_to(&self, cx: &Cx, existing: &Object) -> ApiResult<Object> {
        // What the store holds is canonical, and so is what is left of it; a converted object needn't be.
        let known = cx.def.converter.is_none().then_some(existing);
        let strategy = Some(cx.def.strategy.as_ref());
        self.apply_with(cx, &cx.def.schema, strategy, existing, known)
    }

    /// The same for an object of another kind than the resource's (Scale).
    pub fn apply_as(
        &self,
        cx: &Cx,
        schema: &SchemaRef,
        strategy: Option<&dyn Strategy>,
        existing: &Object,
    ) -> ApiResult<Object> {
        self.apply_with(cx, schema, strategy, existing, None)
    }

    fn apply_with(
        &self,
        cx: &Cx,
        schema: &SchemaRef,
        strategy: Option<&dyn Strategy>,
        existing: &Object,
        known: Option<&Object>,
    ) -> ApiResult<Object> {
        let original = Value::Object(existing.0.clone());
        let patch = || match self.kind {
            PatchKind::Json => json_patch::apply(&original, &self.patch),
            PatchKind::Merge => merge_patch::apply(&original, &self.patch),
            PatchKind::Strategic => strategic::apply(&original, &self.patch, schema),
        };
        let patched = patch()?;
        let invalid = |why: String| {
            let text = match self.kind {
                PatchKind::Strategic => go::go_value(&self.patch),
                // The patched object as it was before it was completed.
                PatchKind::Json => patched::after_json_patch(&patch().unwrap_or_default(), &self.patch, schema),
                PatchKind::Merge => patched::after_merge_patch(&patch().unwrap_or_default(), &self.patch, schema),
            };
            ApiError::invalid("", "", "", vec![Cause::invalid("patch", &text.into(), &why)])
        };
        let wording = match self.kind {
            PatchKind::Strategic => Wording::Unstructured,
            _ => Wording::Json,
        };
        if wording == Wording::Json
            && let Some(why) = kind_error(&patched)
        {
            return Err(invalid(why));
        }
        if wording == Wording::Json
            && !cx.def.custom
            && let Some(why) = unregistered(&patched, existing)
        {
            return Err(invalid(why));
        }
        let (mut object, unknown) = complete_from(schema, strategy, patched, known, wording).map_err(&invalid)?;
        let findings: Vec<String> = self.findings.iter().cloned().chain(unknown).collect();
        match cx.field_validation {
            FieldValidation::Strict if !findings.is_empty() => {
                return Err(invalid(format!("strict decoding error: {}", findings.join(", "))));
            }
            FieldValidation::Warn => findings.into_iter().for_each(|f| cx.warn(f)),
            _ => {}
        }
        if object.api_version() != existing.api_version() || object.kind() != existing.kind() {
            // Upstream decodes the result as the kind of the request, whatever the patch says.
            object.set_gvk(existing.api_version(), existing.kind());
        }
        Ok(object)
    }
}

/// Why what a patch made of an object is of no kind that there is; what it doesn't say is as before.
fn unregistered(patched: &Value, existing: &Object) -> Option<String> {
    let says = |key: &str| patched.get(key).and_then(Value::as_str).filter(|said| !said.is_empty());
    let version = says("apiVersion").unwrap_or(existing.api_version());
    let kind = says("kind").unwrap_or(existing.kind());
    let is_known = (version, kind) == (existing.api_version(), existing.kind())
        || version.matches('/').count() > 1
        || builtin_kind_at(version, kind).is_some();
    (!is_known).then(|| no_kind(version, kind))
}

#[async_trait]
impl UpdateSource for Patch {
    async fn updated(&self, engine: &Engine, cx: &Cx, existing: Option<&Object>) -> ApiResult<Object> {
        let existing = existing.ok_or_else(|| cx.not_found(&cx.name))?;
        let mut object = self.apply_to(cx, existing)?;
        managed::update(cx, Some(existing), &mut object, engine.now());
        Ok(object)
    }
}
