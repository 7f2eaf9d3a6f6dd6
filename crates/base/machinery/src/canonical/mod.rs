//! The canonical form of an object: what upstream's round trip through a typed struct would make of it.
//!
//! * Built-in types: unknown fields are dropped and reported, nulls and empty `omitempty` fields are dropped, fields
//!   that are always written get their zero value, quantities and times are normalised, values of a wrong type are
//!   refused with the message of Go's decoder.
//! * Custom resources (a schema with a structural one attached): pruning only; values of a wrong type are left to
//!   validation, as upstream does.
//!
//! Defaults are a separate pass, since a strategy's conditional defaults may stand between.

mod coerce;
mod defaults;
mod path;
mod scalars;

pub use coerce::{DecodeError, Wording};
pub use defaults::{apply_defaults, fill_zero};
pub use path::Path;

use crate::structural::{Structural, prune};
use keelson_api::{Map, SchemaRef, Value};

/// What canonicalising found, besides doing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Paths of fields that the type doesn't have (`spec.foo`, `spec.containers[0].foo`), in order of appearance; at
    /// most [`MOST_FINDINGS`](keelson_api::codec::MOST_FINDINGS).
    pub unknown: Vec<String>,
}

impl Report {
    /// The complaints as strict decoding words them, one a field.
    pub fn strict_errors(&self) -> Vec<String> {
        self.unknown.iter().map(|p| format!("unknown field \"{p}\"")).collect()
    }
}

/// The structural schema attached to a custom resource's type.
pub fn structural(schema: &SchemaRef) -> Option<&Structural> {
    schema.schema.custom.as_ref()?.downcast_ref()
}

/// Brings an object into canonical form.
pub fn canonicalize(object: &mut Value, schema: &SchemaRef) -> Result<Report, DecodeError> {
    canonicalize_from(object, schema, None, Wording::Json)
}

/// The same of an object that was made of one that is canonical: what they have in common needs no second look.
pub fn canonicalize_from(
    object: &mut Value,
    schema: &SchemaRef,
    known: Option<&Map>,
    wording: Wording,
) -> Result<Report, DecodeError> {
    if let Some(s) = structural(schema) {
        let mut unknown = coerce::metadata(object, schema)?;
        unknown.extend(prune::prune(object, s));
        unknown.extend(coerce::embedded(object, s, schema)?);
        return Ok(Report { unknown });
    }
    coerce::object(object, schema, known, wording)
}

/// The message of a failed strict decoding.
pub fn strict_decoding_error(errors: &[String]) -> String {
    format!("strict decoding error: {}", errors.join(", "))
}

#[cfg(test)]
mod tests;
