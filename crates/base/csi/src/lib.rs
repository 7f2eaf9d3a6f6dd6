//! The container storage interface (CSI, version 1) and the kubelet's registration of plug-ins.
//!
//! Drivers are known only by their sockets, ours as well as others'. This crate knows nothing of volumes, pods or the API: it has
//! the messages, clients whose calls end ([`Driver`]), and what all sides must agree on by name.
//!
//! Messages that carry secrets have no `Debug`: they can't get into logs by it.

mod driver;

/// Messages, clients and servers of `csi.v1`, written by `tools/proto/run.sh`.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod v1 {
    include!("../proto/csi.v1.rs");
}

/// Messages, clients and servers of `pluginregistration` (v1), written by `tools/proto/run.sh`.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod registration {
    include!("../proto/pluginregistration.rs");
}

pub use driver::{Driver, Registrar, ended};

/// `PluginInfo.type` of CSI drivers.
pub const CSI_PLUGIN: &str = "CSIPlugin";
/// What a driver says it speaks when it registers.
pub const CSI_VERSION: &str = "1.0.0";
