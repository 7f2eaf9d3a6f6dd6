//! Server-side apply as the source of an update: what is there, and what the applier says of it.

use crate::codec::complete_from;
use crate::context::{Cx, FieldValidation};
use crate::engine::{Engine, UpdateSource};
use crate::managed;
use async_trait::async_trait;
use keelson_api::codec::{Strictness, yaml};
use keelson_api::{ApiError, ApiResult, Object, Value};
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
        if !matches!(decoded.value, Value::Object(_)) {
            return Err(ApiError::bad_request(format!(
                "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
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
            Wording::Json,
        )
        .map_err(ApiError::bad_request)?;
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
