//! The CRI server: images, sandboxes, containers, the per-pod shim, streaming.

mod capability;
pub mod shim;
