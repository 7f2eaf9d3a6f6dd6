//! A request from the socket to the response: chain, authentication, authorisation, admission, handlers, discovery, OpenAPI.

pub mod authn;
pub mod authz;
pub mod handlers;
pub mod request;
pub mod state;

pub use request::{Body, RequestContext, RequestInfo, UserInfo};
pub use state::ServerState;
