//! What is answered where nothing is served.
//!
//! Upstream is three servers of which each passes on what it doesn't know. The one with the built-in groups answers with
//! a Status whatever lies below its roots; the last answers everything else with a line of text, or, while it can't know
//! yet what there is (definitions and extension servers are read at the start), with "try again": a resource that exists
//! is never said not to.

use crate::handlers::negotiate::{self, Offers};
use crate::request::{RequestContext, RequestInfo, Response, response};
use crate::state::ServerState;
use http::{HeaderMap, StatusCode};
use keelson_api::status::Details;
use keelson_api::{ApiError, Reason, resources};

/// Why a request is for nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Nowhere {
    Text,
    Status(Box<ApiError>),
}

impl Nowhere {
    /// Nothing is served at the path.
    pub fn path(server: &ServerState, info: &RequestInfo) -> Self {
        if below_built_in(&info.path) {
            return bare(Reason::NotFound, "the server could not find the requested resource");
        }
        if !server.sync.paths_known() {
            let text = "the request has been made before all known HTTP paths have been installed, please try again";
            return Nowhere::Status(Box::new(
                ApiError::new(Reason::ServiceUnavailable, text).with_retry_after(5),
            ));
        }
        Nowhere::Text
    }
    /// Something is served at the path, but not by this method.
    pub fn method() -> Self {
        let text = "the server does not allow this method on the requested resource";
        bare(Reason::MethodNotAllowed, text)
    }
    pub fn status(e: ApiError) -> Self {
        Nowhere::Status(Box::new(e))
    }

    /// The answer, in the client's format where it has one.
    pub fn answer(&self, headers: &HeaderMap, context: &RequestContext) -> Response {
        match self {
            Nowhere::Text => response::text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Nowhere::Status(e) => {
                let offers = Offers {
                    no_protobuf: false,
                    shapes: false,
                    tables: false,
                    watch: false,
                };
                let out = negotiate::output(negotiate::accept(headers).as_deref(), context, offers);
                crate::handlers::respond::error(e, out.ok(), None)
            }
        }
    }
}

/// A Status that says no more than its code.
fn bare(reason: Reason, text: &str) -> Nowhere {
    Nowhere::status(ApiError::new(reason, text).with_details(Details::default()))
}

/// Whether the path is one of the built-in server's roots, or below one.
pub fn below_built_in(path: &str) -> bool {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api" | "version", ..] | ["apis"] => true,
        [".well-known", "openid-configuration", ..] | ["openid", "v1", "jwks", ..] => true,
        ["apis", group, ..] => resources::groups().iter().any(|g| g.name == *group),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_roots_are_told_from_the_rest() {
        for path in [
            "/api",
            "/api/v2",
            "/api/nothing/x",
            "/apis",
            "/apis/apps/nothing",
            "/version/x",
            "/openid/v1/jwks",
        ] {
            assert!(below_built_in(path), "{path}");
        }
        for path in [
            "/",
            "/nothing",
            "/apiss",
            "/apis/x.example.com/v1",
            "/metrics/x",
            "/openid/v1",
            "/versions",
        ] {
            assert!(!below_built_in(path), "{path}");
        }
    }
}
