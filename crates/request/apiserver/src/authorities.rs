//! What an administrator asks of the cluster's authorities: where they stand, who still depends on a former one, and that one makes
//! its next step now and not when its time has come.
//!
//! | path | |
//! |---|---|
//! | `GET /keelson/authorities` | where each stands, and what depends on the one before |
//! | `POST /keelson/authorities/NAME/STEP` | makes a step; `?force=true`: whoever may be shut out by it |
//!
//! This crate makes no authority's steps: who made the server does.

use crate::nowhere::Nowhere;
use crate::request::{Request, RequestContext, Response, response};
use crate::state::ServerState;
use crate::upgrades::administers;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use keelson_api::{ApiError, Reason};
use keelson_pki::succession::Step;
use std::sync::Arc;
use std::time::Duration;

pub const PATH: &str = "/keelson/authorities";

/// Less than requests have: who asks is to hear what becomes of it.
const PATIENCE: Duration = Duration::from_secs(50);

/// A step that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub authority: String,
    pub step: Step,
    pub force: bool,
}

/// Why a step isn't made.
#[derive(Debug)]
pub enum Refused {
    /// There is no such authority.
    Unknown(String),
    /// Not now: what has to come about before, a line each.
    Waits(Vec<String>),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Refused {
        Refused::Failed(error)
    }
}

/// Who makes the steps.
pub trait Succession: Send + Sync {
    /// As JSON.
    fn told(&self) -> BoxFuture<'static, anyhow::Result<serde_json::Value>>;
    fn step(&self, asked: Asked) -> BoxFuture<'static, Result<serde_json::Value, Refused>>;
}

fn parse(path: &str, query: Option<&str>) -> Option<Asked> {
    let (authority, step) = path.strip_prefix('/')?.split_once('/')?;
    let step = match step {
        "announce" => Step::Announce,
        "sign" => Step::Sign,
        "withdraw" => Step::Withdraw,
        _ => return None,
    };
    Some(Asked {
        authority: authority.into(),
        step,
        force: query.is_some_and(|query| query.split('&').any(|pair| pair == "force=true")),
    })
}

fn refusal(why: Refused) -> ApiError {
    match why {
        Refused::Unknown(name) => ApiError::new(Reason::NotFound, format!("there is no authority {name:?}")),
        Refused::Waits(lines) => ApiError::new(Reason::Conflict, lines.join("\n")),
        Refused::Failed(error) => ApiError::new(Reason::ServiceUnavailable, format!("{error:#}")),
    }
}

/// Answers the paths of this module; `None` for others, and where nobody makes steps.
pub async fn serve(server: &ServerState, context: &RequestContext, request: &Request) -> Option<Response> {
    let below = context.info.path.trim_end_matches('/').strip_prefix(PATH)?;
    let makes = server.config.authorities.as_ref()?;
    let asked = parse(below, request.uri().query());
    let wanted = match (below, &asked) {
        ("", _) => Method::GET,
        (_, Some(_)) => Method::POST,
        _ => return None,
    };
    if *request.method() != wanted {
        return Some(Nowhere::method().answer(request.headers(), context));
    }
    // A step may shut others out: a grant for all paths is not enough for it.
    if !administers(context, request) {
        let why = "only the group system:masters may see and replace the cluster's authorities";
        return Some(response::error(&ApiError::new(Reason::Forbidden, why)));
    }
    let makes: Arc<dyn crate::authorities::Succession> = makes.clone();
    let work = async move {
        match asked {
            Some(asked) => makes.step(asked).await,
            None => makes.told().await.map_err(Refused::Failed),
        }
    };
    // A step goes on to its end, whoever waits for it.
    let Ok(told) = tokio::time::timeout(PATIENCE, tokio::spawn(work)).await else {
        let later = "the step is still being made: `keelson certificate ls` shows it then";
        return Some(response::error(&ApiError::new(Reason::Timeout, later)));
    };
    let told = told.unwrap_or_else(|error| Err(Refused::Failed(error.into())));
    let told = told.and_then(|told| serde_json::to_vec(&told).map_err(|error| Refused::Failed(error.into())));
    Some(match told {
        Ok(json) => response::bytes_of(StatusCode::OK, "application/json", json.into()),
        Err(why) => response::error(&refusal(why)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_named_by_its_path() {
        let asked = |step, force| {
            Some(Asked {
                authority: "ca".into(),
                step,
                force,
            })
        };
        assert_eq!(parse("/ca/sign", None), asked(Step::Sign, false));
        assert_eq!(
            parse("/ca/withdraw", Some("a=b&force=true")),
            asked(Step::Withdraw, true)
        );
        for path in ["", "/", "/ca", "/ca/", "/ca/retire", "/ca/sign/now", "ca/sign"] {
            assert_eq!(parse(path, None), None, "{path}");
        }
    }
}
