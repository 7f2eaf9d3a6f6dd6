//! Claims and volumes.

pub mod claim;
pub mod volume;
