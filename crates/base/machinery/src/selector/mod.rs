//! Label and field selectors: parsing with upstream's errors, and matching.
//!
//! A selector is a conjunction of requirements; the empty selector matches everything.
//! Nothing here knows where labels or fields come from: matching takes a lookup function.

mod fields;
mod labels;
mod parse;

pub use fields::{FieldRequirement, FieldSelector, escape_value, unescape_value};
pub use labels::{LabelSelector, Operator, Requirement};
