//! gRPC over unix sockets: how the node's programs (runtimes, drivers, plug-ins) are reached and served.
//!
//! Knows no protocol. A socket that another live server holds is never taken from it; a stale one is replaced.

mod client;
mod presence;
mod server;

pub use client::{Deadline, channel, connect, in_time, socket_path};
pub use presence::Presence;
pub use server::{bind, unbind};
