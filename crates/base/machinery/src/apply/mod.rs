//! Server-side apply: who owns which field, and merging what someone applies into what is there.
//!
//! * [`fieldpath`]: paths and sets of paths; [`fields_v1`]: their form in `managedFields`.
//! * [`typed`]: walking a value by its type: field sets, comparison, merging, removal, validation.
//! * [`updater`]: the rules: conflicts, force, taking over, pruning what is no longer applied.
//! * [`managed`]: the entries of `metadata.managedFields`.
//! * [`manager`]: what the engine calls: [`FieldManager`].
//! * `kept`: updates by way of the written form (`written`), which most of leave most entries as they are.
//! * [`scale`]: carrying ownership of `replicas` between a resource and its scale subresource.
//!
//! Nothing here knows defaulting or storage: the engine canonicalises and defaults what comes out.

pub mod fieldpath;
pub mod fields_v1;
mod kept;
pub mod managed;
pub mod manager;
pub mod scale;
pub mod typed;
pub mod updater;
mod written;

pub use fieldpath::{Path, PathElement, Set};
pub use manager::{Converter, FieldManager, ignore_timestamps, manager_name};

#[cfg(test)]
mod tests;
