//! The end of the chain for resources: one handler a verb.

use crate::request::{Request, RequestContext, Response, response};
use crate::state::ServerState;
use keelson_api::ApiError;

/// Serves a request for a resource that was authenticated and authorised.
pub async fn serve(_state: &ServerState, context: RequestContext, _request: Request) -> Response {
    response::error(&ApiError::not_found(
        &context.info.api_group,
        &context.info.resource,
        &context.info.name,
    ))
}
