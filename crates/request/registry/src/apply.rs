//! Server-side apply as the source of an update: what is there, and what the applier says of it.

use crate::codec::complete_from;
use crate::context::{Cx, FieldValidation};
use crate::engine::{Engine, UpdateSource};
use crate::managed;
use async_trait::async_trait;
use keelson_api::codec::{Strictness, yaml};
use keelson_api::{ApiError, ApiResult, Object, Reason, Value};
use keelson_machinery::canonical::Wording;

/// A configuration to apply.
pub struct Apply {
    config: Value,
    force: bool,
}

impl Apply {
    pub fn parse(cx: &Cx, bytes: &[u8], force: bool) -> ApiResult<Self> {
        let decoded = yaml::decode(bytes, None, Strictness::Report)
            .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
        if decoded.value.is_null() {
            return Err(ApiError::bad_request("invalid object type: /, Kind="));
        }
        if !matches!(decoded.value, Value::Object(_)) {
            return Err(ApiError::bad_request(format!(
                "error decoding patch: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                decoded.value.type_name()
            )));
        }
        match cx.field_validation {
            FieldValidation::Strict if !decoded.findings.is_empty() => {
                let findings = decoded.findings.join(", ");
                return Err(ApiError::bad_request(format!(
                    "error strict decoding patch: error converting YAML to JSON: {findings}"
                )));
            }
            FieldValidation::Warn => decoded
                .findings
                .iter()
                .for_each(|f| cx.warn(format!("error converting YAML to JSON: {f}"))),
            _ => {}
        }
        Ok(Apply {
            config: decoded.value,
            force,
        })
    }
    pub fn config(&self) -> &Value {
        &self.config
    }
    pub fn force(&self) -> bool {
        self.force
    }
    /// What can't be read as the type is the server's fault, upstream says, of an object that it names as it was sent.
    fn unconvertible(&self, cx: &Cx, why: &str) -> ApiError {
        let said = |key: &str| {
            self.config
                .at(&["metadata", key])
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let kind = format!("{}/{}, Kind={}", cx.def.gvr.group, cx.def.gvr.version, cx.def.kind);
        let (namespace, name) = (said("namespace"), said("name"));
        let message = format!(
            "failed to convert new object ({namespace}/{name}; {kind}) to proper version: unable to convert unstructured object to {kind}: {why}"
        );
        ApiError::new(Reason::Unknown, message)
    }
}

#[async_trait]
impl UpdateSource for Apply {
    async fn updated(&self, engine: &Engine, cx: &Cx, existing: Option<&Object>) -> ApiResult<Object> {
        let merged = managed::apply(cx, existing, &self.config, self.force, engine.now())?;
        let known = existing.filter(|_| cx.def.converter.is_none());
        let (object, _) = complete_from(
            &cx.def.schema,
            Some(cx.def.strategy.as_ref()),
            merged,
            known,
            Wording::Unstructured,
        )
        .map_err(|why| self.unconvertible(cx, &why))?;
        if existing.is_none() && !object.uid().is_empty() {
            return Err(cx.conflict(
                &cx.name,
                format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    object.uid()
                ),
            ));
        }
        Ok(object)
    }
}
