//! What is refused, in etcd's codes and words: clients know them by their text.

use crate::Error;
use tonic::body::Body;
use tonic::{Code, Status};

macro_rules! words {
    ($($name:ident: $code:ident $text:literal,)*) => {
        $(pub(super) fn $name() -> Status {
            Status::new(Code::$code, concat!("etcdserver: ", $text))
        })*
    };
}

words! {
    empty_key: InvalidArgument "key is not provided",
    key_not_found: InvalidArgument "key not found",
    value_provided: InvalidArgument "value is provided",
    lease_provided: InvalidArgument "lease is provided",
    too_many_ops: InvalidArgument "too many operations in txn request",
    duplicate_key: InvalidArgument "duplicate key given in txn request",
    invalid_sort: InvalidArgument "invalid sort option",
    too_large: InvalidArgument "request is too large",
    compacted: OutOfRange "mvcc: required revision has been compacted",
    future: OutOfRange "mvcc: required revision is a future revision",
    no_space: ResourceExhausted "mvcc: database space exceeded",
    lease_not_found: NotFound "requested lease not found",
    lease_exists: FailedPrecondition "lease already exists",
    lease_too_long: OutOfRange "too large lease TTL",
    member_not_found: NotFound "member not found",
    no_auth: FailedPrecondition "authentication is not enabled",
    bad_transferee: FailedPrecondition "bad leader transferee",
    stopped: Unavailable "server stopped",
    timed_out: Unavailable "request timed out",
    unhealthy: Unavailable "unhealthy cluster",
    corrupt: DataLoss "corrupt cluster",
}

/// What a store's error is in etcd's words. What they don't tell is logged here.
pub(super) fn of(error: Error) -> Status {
    match error {
        Error::Compacted { .. } => compacted(),
        Error::FutureRevision { .. } => future(),
        Error::Closed => stopped(),
        Error::Invalid { what } => Status::invalid_argument(what),
        Error::Answered { what } => Status::unknown(what),
        told => {
            tracing::warn!(error = %told, "a request of etcd's API failed");
            match told {
                Error::NoSpace { .. } => no_space(),
                Error::Stalled { .. } => timed_out(),
                Error::Unavailable { .. } => unhealthy(),
                Error::Corrupt { .. } => corrupt(),
                other => Status::unknown(other.to_string()),
            }
        }
    }
}

/// Nothing that etcd would say.
pub(super) fn too_many_snapshots() -> Status {
    Status::resource_exhausted("keelson: too many snapshots are being sent")
}

/// What can't be done here, and why.
pub(super) fn never(what: &str) -> Status {
    Status::unimplemented(format!("keelson: {what}"))
}

/// A message longer than is read: etcd's library has another code for it than ours.
pub(super) fn too_long(mut answer: http::Response<Body>) -> http::Response<Body> {
    const OURS: &str = "Error, decoded message length too large";
    let headers = answer.headers_mut();
    let is = |name: &str, f: &dyn Fn(&str) -> bool| headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(f);
    let is_ours = |v: &str| v.replace("%20", " ").starts_with(OURS);
    if is("grpc-status", &|v| v == "11") && is("grpc-message", &is_ours) {
        headers.insert("grpc-status", http::HeaderValue::from_static("8"));
        let text = http::HeaderValue::from_static("grpc: received message larger than max");
        headers.insert("grpc-message", text);
    }
    answer
}
