//! Images as registries have them: names, digests, where to ask for what and as whom, and the client that asks.
//!
//! It keeps nothing and unpacks nothing. A node's runtime pulls by it, `keelson registry` asks the registries behind it, and
//! `keelson image bundle` collects.

pub mod client;
pub mod digest;
pub mod reference;
pub mod registries;
pub mod signature;

/// Longest manifest: registries take no more.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Longest document of any kind.
pub const MAX_DOCUMENT: u64 = 8 << 20;
