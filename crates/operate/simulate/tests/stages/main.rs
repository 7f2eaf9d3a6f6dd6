//! Stages, from what is written to what is next.
#![allow(clippy::unwrap_used)]

mod choose;
mod query;
mod spec;
mod template;
