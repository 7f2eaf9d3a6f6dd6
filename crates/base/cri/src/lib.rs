//! The Kubernetes container runtime interface (CRI v1): messages, client and server, in process or over a unix socket.
//!
//! The kubelet knows a runtime only through [`CriClients`]; whether the other side is a tonic server in the same
//! process or a socket of containerd is decided where the clients are made, and nowhere else. This crate knows
//! nothing of how a runtime works.

mod bounded;
mod clients;
pub mod observed;
pub mod series;
mod serve;

/// Messages, clients and servers of `runtime.v1`, written by `tools/proto/run.sh`.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod v1 {
    include!("../proto/runtime.v1.rs");
}

pub use bounded::Waits;
pub use clients::{CriClients, CriService};
pub use serve::serve;
pub use v1::image_service_client::ImageServiceClient;
pub use v1::image_service_server::{ImageService, ImageServiceServer};
pub use v1::runtime_service_client::RuntimeServiceClient;
pub use v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};

/// Condition types of `RuntimeStatus`.
pub const RUNTIME_READY: &str = "RuntimeReady";
/// See [`RUNTIME_READY`].
pub const NETWORK_READY: &str = "NetworkReady";

/// Largest message either side accepts: upstream's kubelet uses the same bound.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
