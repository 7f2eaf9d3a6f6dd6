//! Between the versions of a custom resource: a new `apiVersion` and nothing else, or a webhook's answer.

use crate::admission::Lookup;
use crate::webhook::{self, ClientConfig};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Map, Object, Value, value};
use keelson_registry::convert::Converter;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(30);
/// So many objects are sent at once: an answer has a bound.
const PORTION: usize = 500;

/// Versions differ in nothing but their name.
#[derive(Debug)]
pub struct Renamed;

fn rename(mut o: Object, api_version: &str) -> Object {
    o.insert("apiVersion", api_version);
    o
}

#[async_trait]
impl Converter for Renamed {
    async fn convert(&self, objects: Vec<Object>, api_version: &str) -> ApiResult<Vec<Object>> {
        Ok(objects.into_iter().map(|o| rename(o, api_version)).collect())
    }
    fn convert_now(&self, object: Object, api_version: &str) -> Option<ApiResult<Object>> {
        Some(Ok(rename(object, api_version)))
    }
}

/// A webhook converts.
pub struct Webhook {
    pub lookup: Arc<Lookup>,
    pub config: ClientConfig,
    /// The first review version that both sides know: `v1` or `v1beta1`.
    pub review: String,
    /// `spec.names.kind` and group, for messages.
    pub of: String,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Webhook({})", self.config.url())
    }
}

#[async_trait]
impl Converter for Webhook {
    async fn convert(&self, objects: Vec<Object>, api_version: &str) -> ApiResult<Vec<Object>> {
        let asked: Vec<usize> = objects
            .iter()
            .enumerate()
            .filter(|(_, o)| o.api_version() != api_version)
            .map(|(i, _)| i)
            .collect();
        if asked.is_empty() {
            return Ok(objects);
        }
        let mut out = objects;
        for portion in asked.chunks(PORTION) {
            let converted = self.ask(portion.iter().map(|i| &out[*i]), api_version).await?;
            for (i, new) in portion.iter().zip(converted) {
                out[*i] = self.merged(&out[*i], new, api_version)?;
            }
        }
        Ok(out)
    }
}

impl Webhook {
    fn failed(&self, why: impl fmt::Display) -> ApiError {
        ApiError::internal(format!("conversion webhook for {} failed: {why}", self.of))
    }

    async fn ask(&self, objects: impl Iterator<Item = &Object>, api_version: &str) -> ApiResult<Vec<Object>> {
        let uid = Uuid::new_v4().to_string();
        let objects: Vec<Value> = objects.map(|o| Value::Object(o.0.clone())).collect();
        let n = objects.len();
        let mut review = value!({"apiVersion": format!("apiextensions.k8s.io/{}", self.review), "kind": "ConversionReview",
            "request": {"uid": uid, "desiredAPIVersion": api_version}});
        review.set_at(&["request", "objects"], objects);
        let answer = webhook::call(&self.lookup, &self.config, &review, TIMEOUT, true)
            .await
            .map_err(|e| self.failed(e))?;
        let empty = Map::new();
        let response = answer.get("response").and_then(Value::as_object).unwrap_or(&empty);
        if response.str("uid") != Some(uid.as_str()) {
            return Err(self.failed(format!(
                "expected response.uid=\"{uid}\", got \"{}\"",
                response.str("uid").unwrap_or_default()
            )));
        }
        let result = response.get("result");
        let status = result
            .and_then(|r| r.get("status"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        if status != "Success" {
            let message = result
                .and_then(|r| r.get("message"))
                .and_then(Value::as_str)
                .unwrap_or_default();
            return Err(self.failed(message));
        }
        let list = response.arr("convertedObjects").cloned().unwrap_or_default();
        if list.len() != n {
            return Err(self.failed(format!("expected {n} converted objects, got {}", list.len())));
        }
        list.into_iter()
            .map(|v| Object::try_from(v).map_err(|_| self.failed("a converted object is no object")))
            .collect()
    }

    /// What the webhook made of an object, with the metadata that it may not change.
    fn merged(&self, old: &Object, mut new: Object, api_version: &str) -> ApiResult<Object> {
        if new.api_version() != api_version {
            return Err(self.failed(format!(
                "invalid converted object: invalid groupVersion {}, expected {api_version}",
                new.api_version()
            )));
        }
        if new.kind() != old.kind() {
            return Err(self.failed(format!(
                "invalid converted object: invalid kind {}, expected {}",
                new.kind(),
                old.kind()
            )));
        }
        for key in ["name", "namespace", "uid"] {
            let text = |o: &Object| o.meta().and_then(|m| m.str(key)).unwrap_or_default().to_string();
            if text(&new) != text(old) {
                return Err(self.failed(format!("invalid converted object: metadata.{key} must not be changed")));
            }
        }
        // Only labels and annotations are the webhook's to change.
        let mut meta = old.meta().cloned().unwrap_or_default();
        for key in ["labels", "annotations"] {
            match new.meta().and_then(|m| m.get(key)) {
                Some(v) => drop(meta.insert(key, v.clone())),
                None => drop(meta.remove(key)),
            }
        }
        new.insert("metadata", meta);
        Ok(new)
    }
}
