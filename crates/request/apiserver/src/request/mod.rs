//! A request as every later stage sees it: what it asks ([`RequestInfo`]), who asks ([`UserInfo`]), and what is gathered
//! on its way ([`RequestContext`]).

mod body;
mod context;
mod info;
mod intake;
mod query;
pub mod response;
pub mod socket;

pub use body::{Body, BodyError, BoxError, MAX_REQUEST_BODY};
pub use context::{AuditAnnotations, RequestContext, Warnings};
pub use info::{PAST, RequestInfo};
pub use intake::{Intake, Taken};
pub use keelson_registry::user::{self, UserInfo};
pub use query::Query;

/// A header's value that says who somebody is. Names have letters beyond ASCII, and what is no UTF-8 is a name that nobody has:
/// a value that were left out would make somebody else of him.
pub fn name_of(value: &http::HeaderValue) -> keelson_api::Str {
    keelson_api::Str::from(&*String::from_utf8_lossy(value.as_bytes()))
}

pub type Request = http::Request<Body>;
pub type Response = http::Response<Body>;
