//! Between versions of one resource.

use async_trait::async_trait;
use keelson_api::{ApiResult, Object};

/// Converts objects of one resource between its versions; CRDs with a webhook answer over the network.
#[async_trait]
pub trait Converter: Send + Sync + std::fmt::Debug {
    /// Each object as `api_version` has it; an object already there passes unchanged.
    async fn convert(&self, objects: Vec<Object>, api_version: &str) -> ApiResult<Vec<Object>>;
    /// The same for one object without waiting, where that is possible.
    fn convert_now(&self, _object: Object, _api_version: &str) -> Option<ApiResult<Object>> {
        None
    }
}

/// One object.
pub async fn convert_one(c: &dyn Converter, object: Object, api_version: &str) -> ApiResult<Object> {
    if object.api_version() == api_version {
        return Ok(object);
    }
    let mut out = c.convert(vec![object], api_version).await?;
    match (out.pop(), out.is_empty()) {
        (Some(o), true) => Ok(o),
        _ => Err(keelson_api::ApiError::internal(
            "conversion of one object did not yield one object",
        )),
    }
}

pub mod autoscaling;
pub mod events;
mod metrics;
