//! Bytes to values and back: JSON, YAML and the Kubernetes protobuf envelope.
//!
//! Decoding is guided by a schema where one is known: values get the form that Go's own round trip gives them (quantities
//! and times normalised, unknown fields dropped), type errors and strict findings get upstream's words. A codec knows
//! nothing of defaults or validity.

mod field_sets;
pub mod json;
mod json_lex;
mod json_status;
mod json_written;
pub mod proto;
mod proto_before;
mod proto_decode;
mod proto_encode;
mod proto_json;
mod proto_only;
mod proto_parts;
mod proto_same;
mod proto_schema_props;
mod wire;
pub mod yaml;

pub(crate) use field_sets::FieldSets;
pub use json_status::encode_status;
pub use wire::base64_error;

use crate::{SchemaRef, Value};

/// Why bytes could not be decoded, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// Why a value has no protobuf form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EncodeError(pub String);

/// What to do with fields that are unknown or stand twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// Drop unknown fields, let the last of duplicates win.
    #[default]
    Lenient,
    /// The same, and say so.
    Report,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.foo"`, `duplicate field "metadata.name"`; at most [`MOST_FINDINGS`], in order of appearance.
    pub findings: Vec<String>,
}

impl Decoded {
    /// The error that findings make under strict validation.
    pub fn strict_error(&self) -> Option<DecodeError> {
        strict_error(&self.findings)
    }
}

/// The error that findings make under strict validation.
pub fn strict_error(findings: &[String]) -> Option<DecodeError> {
    (!findings.is_empty()).then(|| DecodeError(format!("strict decoding error: {}", findings.join(", "))))
}

/// The content types of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

/// Decodes a JSON or YAML body. Protobuf names its kind in the envelope: see [`proto::open`].
pub fn decode_text(
    bytes: &[u8],
    format: Format,
    schema: Option<&SchemaRef>,
    strictness: Strictness,
) -> Result<Decoded, DecodeError> {
    match format {
        Format::Yaml => yaml::decode(bytes, schema, strictness),
        Format::Json | Format::Protobuf => json::decode(bytes, schema, strictness),
    }
}

/// So many complaints of one body are told, as upstream tells: a body can hold hundreds of thousands.
pub const MOST_FINDINGS: usize = 100;

/// Bytes of complaints after which no more are told: each has the path to its place, whose keys may be as long as the body.
const MOST_TOLD: usize = 1 << 20;

/// Whether one more complaint of a body is told.
pub fn has_room(told: &[String]) -> bool {
    told.len() < MOST_FINDINGS && told.iter().map(String::len).sum::<usize>() < MOST_TOLD
}

/// The longest nesting that is read or written.
pub const MAX_DEPTH: usize = 400;
