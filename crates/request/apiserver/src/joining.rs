//! What a machine asks that is to become a server too: where the cluster's objects are kept, and how they are reached.
//!
//! | path | |
//! |---|---|
//! | `GET /keelson/server` | the datastore's addresses and credentials |
//!
//! Who shows the servers' token is [`USER`], in [`GROUP`], which may ask this and nothing else; tokens of agents are other
//! tokens, and may not. This crate knows no datastore: what is told comes from who made the server.

use crate::nowhere::Nowhere;
use crate::request::{Request, RequestContext, Response, UserInfo, response};
use crate::state::ServerState;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use keelson_api::{ApiError, Reason};
use keelson_pki::ServerToken;
use std::sync::Arc;

pub const PATH: &str = "/keelson/server";
pub const USER: &str = "system:keelson:server";
pub const GROUP: &str = "system:keelson:servers";

/// What is told, as JSON; an error says why nothing can be.
pub type Offer = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<serde_json::Value>> + Send + Sync>;

/// By which token other machines become servers, and what they are told.
#[derive(Clone)]
pub struct Joining {
    pub token: ServerToken,
    pub offer: Offer,
}

impl Joining {
    /// Who shows the token.
    pub(crate) fn authenticate(&self, bearer: &str) -> Option<UserInfo> {
        self.token.is_borne(bearer).then(|| UserInfo {
            name: USER.into(),
            groups: vec![GROUP.into()],
            ..UserInfo::default()
        })
    }
}

/// Answers the path of this module; `None` for others, and where nobody can join.
pub async fn serve(server: &ServerState, context: &RequestContext, request: &Request) -> Option<Response> {
    let joining = server.config.joining.as_ref()?;
    if context.info.path.trim_end_matches('/') != PATH {
        return None;
    }
    if *request.method() != Method::GET {
        return Some(Nowhere::method().answer(request.headers(), context));
    }
    // What is told leads past every rule of access: a grant for all paths is not enough for it.
    let groups = &context.user.groups;
    if !groups.iter().any(|group| group == GROUP || group == "system:masters") {
        let why = format!("only the groups {GROUP} and system:masters may ask where the datastore is");
        return Some(response::error(&ApiError::new(Reason::Forbidden, why)));
    }
    let told = (joining.offer)()
        .await
        .and_then(|offer| Ok(serde_json::to_vec(&offer)?));
    Some(match told {
        Ok(json) => response::bytes_of(StatusCode::OK, "application/json", json.into()),
        Err(error) => response::error(&ApiError::bad_request(format!("{error:#}"))),
    })
}
