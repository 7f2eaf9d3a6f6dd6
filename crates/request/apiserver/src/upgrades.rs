//! An upgrade of all machines: what they are asked, which only administrators say, and the programs that they fetch for it.
//!
//! | path | |
//! |---|---|
//! | `GET /keelson/upgrade/order` | what is asked of whom, for machines too |
//! | `PUT /keelson/upgrade/order?revision=N` | asks something else, if it is still what it was at N |
//! | `GET /keelson/upgrade/programs/SUM` | how much of a program this server has |
//! | `GET /keelson/upgrade/programs/SUM?at=N` | a piece of it, for machines too |
//! | `PUT /keelson/upgrade/programs/SUM?at=N&size=M` | a piece is brought |
//! | `DELETE /keelson/upgrade/programs` | this server keeps none |
//!
//! A machine runs, as root, what an order names. So neither orders nor programs are objects: whoever may write objects of some kind, or
//! change them on their way, writes none of these. Programs are named by their sum, and come in pieces, so that no request is large.
//! This crate keeps neither: who made the server does.

use crate::authn::impersonation::Acting;
use crate::nowhere::Nowhere;
use crate::request::{Request, RequestContext, Response, response};
use crate::state::ServerState;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use keelson_api::{ApiError, Reason};

pub const PATH: &str = "/keelson/upgrade";
/// The largest piece of a program, and the largest order.
pub const PIECE: usize = 1 << 20;

/// What is asked of who keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Order,
    Give {
        revision: u64,
        order: Bytes,
    },
    Standing {
        program: String,
    },
    Piece {
        program: String,
        at: u64,
    },
    Take {
        program: String,
        at: u64,
        size: u64,
        piece: Bytes,
    },
    Forget,
}

pub enum Told {
    Json(serde_json::Value),
    Bytes(Bytes),
}

#[derive(Debug)]
pub enum Refused {
    Unknown(String),
    /// It isn't what it was any more.
    Met(String),
    Wrong(String),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Refused {
        Refused::Failed(error)
    }
}

/// Keeps orders and programs.
pub trait Upgrades: Send + Sync {
    fn answer(&self, asked: Asked) -> BoxFuture<'static, Result<Told, Refused>>;
}

/// A sum as programs are named by it: nothing else is ever a name of a file.
pub fn is_sum(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a path asks; a body is put in later. `None`: nothing that there is.
fn parse(method: &Method, below: &str, query: Option<&str>) -> Option<Asked> {
    let pairs = query.into_iter().flat_map(|query| query.split('&'));
    let pairs: Vec<(&str, &str)> = pairs.filter_map(|pair| pair.split_once('=')).collect();
    let number = |name| {
        let found = pairs.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.parse::<u64>().ok())
    };
    match (method.as_str(), below) {
        ("GET", "/order") => Some(Asked::Order),
        ("PUT", "/order") => Some(Asked::Give {
            revision: number("revision")??,
            order: Bytes::new(),
        }),
        ("DELETE", "/programs") => Some(Asked::Forget),
        (method, path) => {
            let program = path.strip_prefix("/programs/").filter(|name| is_sum(name))?.to_owned();
            match (method, number("at")) {
                ("GET", None) => Some(Asked::Standing { program }),
                ("GET", Some(at)) => Some(Asked::Piece { program, at: at? }),
                ("PUT", at) => Some(Asked::Take {
                    program,
                    at: at??,
                    size: number("size")??,
                    piece: Bytes::new(),
                }),
                _ => None,
            }
        }
    }
}

/// Whether it is an administrator who asks. Who only acts as one is none: a role for everything lets do that.
pub(crate) fn administers(context: &RequestContext, request: &Request) -> bool {
    let user = &context.user;
    user.in_group("system:masters") && request.extensions().get::<Acting>().is_none()
}

/// Machines read what they are asked and what they are to run; everything else is an administrator's.
fn may(context: &RequestContext, request: &Request, asked: &Asked) -> bool {
    let reads = matches!(asked, Asked::Order | Asked::Piece { .. });
    administers(context, request) || (reads && context.user.in_group(keelson_pki::layout::NODES_GROUP))
}

fn refusal(why: Refused) -> ApiError {
    match why {
        Refused::Unknown(text) => ApiError::new(Reason::NotFound, text),
        Refused::Met(text) => ApiError::new(Reason::Conflict, text),
        Refused::Wrong(text) => ApiError::bad_request(text),
        Refused::Failed(error) => ApiError::new(Reason::ServiceUnavailable, format!("{error:#}")),
    }
}

/// Whether a path is this module's, on a server that keeps orders.
pub fn is_asked(server: &ServerState, context: &RequestContext) -> bool {
    server.config.upgrades.is_some() && below(context).is_some()
}

fn below(context: &RequestContext) -> Option<&str> {
    let below = context.info.path.trim_end_matches('/').strip_prefix(PATH)?;
    (below.is_empty() || below.starts_with('/')).then_some(below)
}

pub async fn serve(server: &ServerState, context: &RequestContext, request: Request) -> Response {
    match answer(server, context, request).await {
        Ok(answer) => answer,
        Err(why) => response::error(&why),
    }
}

async fn answer(server: &ServerState, context: &RequestContext, request: Request) -> Result<Response, ApiError> {
    let asked = below(context).and_then(|below| parse(request.method(), below, request.uri().query()));
    let (Some(mut asked), Some(keeps)) = (asked, &server.config.upgrades) else {
        return Ok(Nowhere::path(server, &context.info).answer(request.headers(), context));
    };
    // A machine runs what is said here: a grant for all paths is not enough for it.
    if !may(context, &request, &asked) {
        let why = "only the group system:masters may have machines run another program";
        return Err(ApiError::new(Reason::Forbidden, why));
    }
    if let Asked::Give { order: body, .. } | Asked::Take { piece: body, .. } = &mut asked {
        *body = request.into_body().collect(PIECE).await?;
    }
    Ok(match keeps.answer(asked).await.map_err(refusal)? {
        Told::Json(value) => response::bytes_of(StatusCode::OK, "application/json", value.to_string().into()),
        Told::Bytes(bytes) => response::bytes_of(StatusCode::OK, "application/octet-stream", bytes),
    })
}
