//! Where pods come from: the API server, and manifests on the disk.

pub mod api;
pub mod file;
mod mirror;

pub use mirror::Mirrors;
