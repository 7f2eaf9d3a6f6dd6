//! What a machine asks that is to become a server too: where the cluster's objects are kept, and how they are reached.
//!
//! | path | |
//! |---|---|
//! | `GET /keelson/server` | the datastore's addresses and credentials |
//! | `GET /keelson/server/token` | for administrators: whether another token takes the present one's place, and who hasn't taken it |
//! | `POST /keelson/server/token` | for administrators: has another take its place |
//!
//! Who shows the servers' token is [`USER`], in [`GROUP`], which may ask this and nothing else; tokens of agents are other
//! tokens, and may not. This crate knows no datastore: what is told comes from who made the server.

use crate::authn::impersonation::Acting;
use crate::nowhere::Nowhere;
use crate::request::{Request, RequestContext, Response, UserInfo, response};
use crate::state::ServerState;
use crate::upgrades::administers;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use keelson_api::{ApiError, Reason};
use keelson_pki::ServerToken;
use parking_lot::RwLock;
use std::sync::Arc;

pub const PATH: &str = "/keelson/server";
pub const TOKEN: &str = "/keelson/server/token";
pub const USER: &str = "system:keelson:server";
pub const GROUP: &str = "system:keelson:servers";

/// What is told, as JSON; an error says why nothing can be.
pub type Offer = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<serde_json::Value>> + Send + Sync>;

/// The token that counts, which may be another from one moment to the next; `None`: nobody is known by any.
#[derive(Clone)]
pub struct Borne(Arc<RwLock<Option<ServerToken>>>);

impl Borne {
    pub fn new(token: ServerToken) -> Borne {
        Borne(Arc::new(RwLock::new(Some(token))))
    }
    pub fn set(&self, token: ServerToken) {
        *self.0.write() = Some(token);
    }
    /// Another counts, which isn't known here.
    pub fn lose(&self) {
        *self.0.write() = None;
    }
    pub fn is(&self, bearer: &str) -> bool {
        self.0.read().as_ref().is_some_and(|token| token.is_borne(bearer))
    }
}

/// Who has another token take the place of the present one. Neither is ever told.
pub trait Turns: Send + Sync {
    fn begin(&self) -> BoxFuture<'static, anyhow::Result<serde_json::Value>>;
    fn told(&self) -> BoxFuture<'static, anyhow::Result<serde_json::Value>>;
}

/// By which token other machines become servers, and what they are told.
#[derive(Clone)]
pub struct Joining {
    pub token: Borne,
    pub offer: Offer,
    /// `None`: nobody.
    pub turns: Option<Arc<dyn Turns>>,
}

impl Joining {
    /// Who shows the token.
    pub(crate) fn authenticate(&self, bearer: &str) -> Option<UserInfo> {
        self.token.is(bearer).then(|| UserInfo {
            name: USER.into(),
            groups: vec![GROUP.into()],
            ..UserInfo::default()
        })
    }
}

/// Answers the path of this module; `None` for others, and where nobody can join.
pub async fn serve(server: &ServerState, context: &RequestContext, request: &Request) -> Option<Response> {
    let joining = server.config.joining.as_ref()?;
    match context.info.path.trim_end_matches('/') {
        PATH => {}
        TOKEN => return Some(turn(joining.turns.as_deref()?, context, request).await),
        _ => return None,
    }
    if *request.method() != Method::GET {
        return Some(Nowhere::method().answer(request.headers(), context));
    }
    // What is told leads past every rule of access: a grant for all paths is not enough for it.
    let shows_it = context.user.in_group(GROUP) && request.extensions().get::<Acting>().is_none();
    if !shows_it && !administers(context, request) {
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

async fn turn(turns: &dyn Turns, context: &RequestContext, request: &Request) -> Response {
    // Who shows the old one may not see it replaced: a grant for all paths is not enough for it.
    if !administers(context, request) {
        let why = "only the group system:masters may replace the servers' token";
        return response::error(&ApiError::new(Reason::Forbidden, why));
    }
    let told = match *request.method() {
        Method::GET => turns.told(),
        Method::POST => turns.begin(),
        _ => return Nowhere::method().answer(request.headers(), context),
    };
    let told = told.await.and_then(|told| Ok(serde_json::to_vec(&told)?));
    match told {
        Ok(json) => response::bytes_of(StatusCode::OK, "application/json", json.into()),
        Err(error) => response::error(&ApiError::new(Reason::ServiceUnavailable, format!("{error:#}"))),
    }
}
