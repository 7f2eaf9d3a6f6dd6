//! A value that a layer between the store and its reader couldn't open (it is sealed, and no key fits) is handed on as a mark
//! that says why. So a reader of many still gets all the others, nobody takes sealed bytes for an object, and an update, which
//! reads first, can't write over what it hasn't understood.

use bytes::Bytes;

/// No object begins so: those in protobuf begin with `k8s`, those in JSON with a brace.
const MARK: &[u8] = b"\0unopened:";

pub fn mark(why: &str) -> Bytes {
    [MARK, why.as_bytes()].concat().into()
}

/// Why the value wasn't opened, if it is a mark.
pub fn reason(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_prefix(MARK)?).ok()
}
