//! What an administrator asks about the store as a whole: that a snapshot be taken of it now, or a picture of this machine for a backup.
//!
//! | path | |
//! |---|---|
//! | `POST /keelson/store/snapshots` | takes one, and tells about it |
//! | `POST /keelson/backup/pictures` | the same: of the store and of this machine's volumes |
//!
//! This crate knows no store but by its keys: who made the server takes what is asked for.

use crate::nowhere::Nowhere;
use crate::request::{Request, RequestContext, Response, response};
use crate::state::ServerState;
use crate::upgrades::administers;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use keelson_api::{ApiError, Reason};
use std::sync::Arc;
use std::time::Duration;

pub const PATH: &str = "/keelson/store/snapshots";
pub const PICTURES: &str = "/keelson/backup/pictures";

/// Less than requests have: who asks is to hear what becomes of it.
const PATIENCE: Duration = Duration::from_secs(50);

/// Takes a snapshot; tells of it as JSON.
pub type Take = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<serde_json::Value>> + Send + Sync>;

/// Answers the paths of this module; `None` for others, and where none are taken.
pub async fn serve(server: &ServerState, context: &RequestContext, request: &Request) -> Option<Response> {
    let (take, later) = match context.info.path.trim_end_matches('/') {
        PATH => (
            &server.config.snapshots,
            "the snapshot is still being taken and will be finished: `keelson store snapshot ls` shows it then",
        ),
        PICTURES => (
            &server.config.pictures,
            "the picture is still being taken and will be finished: who asks again gets it",
        ),
        _ => return None,
    };
    let take = take.as_ref()?;
    if *request.method() != Method::POST {
        return Some(Nowhere::method().answer(request.headers(), context));
    }
    // Each fills the disk a little more: a grant for all paths is not enough for it.
    if !administers(context, request) {
        let why = "only the group system:masters may have snapshots taken of the store";
        return Some(response::error(&ApiError::new(Reason::Forbidden, why)));
    }
    // It goes on to its end, whoever waits for it.
    let Ok(taken) = tokio::time::timeout(PATIENCE, tokio::spawn(take())).await else {
        return Some(response::error(&ApiError::new(Reason::Timeout, later)));
    };
    let told = taken.map_err(anyhow::Error::from).flatten();
    let told = told.and_then(|told| Ok(serde_json::to_vec(&told)?));
    Some(match told {
        Ok(json) => response::bytes_of(StatusCode::CREATED, "application/json", json.into()),
        Err(error) => response::error(&ApiError::new(Reason::ServiceUnavailable, format!("{error:#}"))),
    })
}
