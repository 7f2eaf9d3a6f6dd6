//! The three kinds of patches that clients send, apart from apply.
//!
//! All work on the object in the version the client spoke; decoding, defaulting and validation of the result are the
//! caller's. Failures are the statuses that upstream answers with.

pub mod json_patch;
pub mod merge_patch;
pub mod strategic;
