//! The registry as clients see it: over sockets of this machine, with a cluster that is played, and before another registry.
#![allow(clippy::unwrap_used)]

mod cluster;
mod support;
mod uploads;
mod upstream;
