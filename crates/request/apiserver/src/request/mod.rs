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

/// The name of something more about a user, as a header's name has it. One that is escaped wrongly stands as it is.
pub fn extra_key(escaped: &str) -> keelson_api::Str {
    let mut escapes = escaped.split('%').skip(1);
    let good = escapes.all(|e| e.len() >= 2 && e.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit));
    match good {
        true => keelson_api::Str::from(&*percent_encoding::percent_decode_str(escaped).decode_utf8_lossy()),
        false => keelson_api::Str::from(escaped),
    }
}

pub type Request = http::Request<Body>;
pub type Response = http::Response<Body>;
