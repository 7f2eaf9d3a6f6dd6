//! The CRI server: images, sandboxes, containers, the per-pod shim, streaming.
//!
//! A kubelet reaches it through CRI only ([`Runtime`] implements both services; [`Runtime::clients`] for one in the same
//! process, `keelson_cri::serve` for others). Pods belong to their shims ([`shim`]), which are this same program started
//! with the argument `shim`; they outlive the server, and a new one takes them up where the old one died. Everything on
//! the host that is changed for a pod is written down first (`records`), so that it can be undone by whoever comes
//! next. This crate knows no pod object and no API server.

mod capability;
mod cdi;
pub mod cell;
mod config;
mod containers;
mod cri;
mod events;
pub mod images;
mod records;
mod restore;
mod runtime;
mod sandbox;
pub mod selinux;
pub mod shim;
mod streaming;
mod uninstall;

pub use config::{Config, Handler, SELF};
pub use cri::import_request;
pub use records::unreadable as unreadable_records;
pub use runtime::Runtime;
pub use streaming::client as streams;
pub use streaming::datagrams;
pub use uninstall::{Removed, uninstall};
